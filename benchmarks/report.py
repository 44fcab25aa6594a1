#!/usr/bin/env python3
"""report.py RESULT.json [--plot FILE.svg]: what `bench_attention --benchmark_format=json` measured, as Markdown:
decode, for as many query heads as kv heads (MHA) and four times as many (GQA4), and prefill where there are rows of it.
Times are CPU times, medians of the repetitions. --plot draws the decode time against the context length, and under it
the memory floor: the bytes of the cache over the read bandwidth measured in the same run. Needs Python alone."""

import argparse
import json
import math
import re
import statistics
import sys

# rows of several queries (q4) are left out
NAME = re.compile(r"(?P<kind>\w+)/(?P<cache>[^/]+)/h(?P<heads>\d+)/kv(?P<kv>\d+)/d(?P<dim>\d+)/t(?P<tokens>\d+)"
                  r"(?:/(?P<isa>(?!q\d)\w+))?")
NUMBERS = ("cpu_time", "bytes", "bytes_per_second", "dram_share", "fma_share", "ns_per_token_head", "error")
MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}

# label: colour; the lines of the plot, where measured
LINES = {"float": "#8c8c8c", "half": "#444444", "k4v4": "#1f6fb2", "k2v2": "#3a8f4d", "k1v1": "#8456a8",
         "balanced-1.7": "#d1582b", "smallest-1.2": "#b08a00", "ggml-q4_0": "#c2255c"}


def read_rows(benchmarks):
    """Rows as dictionaries: the parts of the name, and the median of each number. A row that failed is left out."""
    runs = {}
    for run in benchmarks:
        if not run.get("error_occurred") and run.get("aggregate_name", "median") == "median":
            runs.setdefault(run["run_name"], []).append(run)
    rows = []
    for name, of_name in runs.items():
        parts = NAME.fullmatch(name)
        if parts is None:
            continue
        medians = [run for run in of_name if "aggregate_name" in run] or of_name
        row = {key: int(text) if text and text.isdigit() else text for key, text in parts.groupdict().items()}
        row.update({key: statistics.median(run[key] for run in medians) for key in NUMBERS})
        row["ms"] = row["cpu_time"] * MILLISECONDS[medians[0]["time_unit"]]
        row["label"] = row["cache"] + (f" ({row['isa']})" if row["isa"] else "")
        rows.append(row)
    return rows


def digits(x):
    """Three significant digits, never as a power of ten."""
    return f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}" if x else "0"


def share(x):
    return f"{100 * x:.0f} %" if x >= 0.095 else f"{100 * x:.1f} %"


DECODE = (("ms", lambda row: digits(row["ms"])), ("GB/s", lambda row: digits(row["bytes_per_second"] / 1e9)),
          ("of bandwidth", lambda row: share(row["dram_share"])),
          ("ns a token and kv head", lambda row: digits(row["ns_per_token_head"])),
          ("error", lambda row: f"{row['error']:.0e}"))
PREFILL = (("ms", lambda row: digits(row["ms"])), ("of fp32 peak", lambda row: share(row["fma_share"])),
           ("error", lambda row: f"{row['error']:.0e}"))


def table(rows, columns):
    """A line a cache, fastest last; the columns once for each number of query heads."""
    by_label = {}
    for row in rows:
        by_label.setdefault(row["label"], {})[row["heads"] // row["kv"]] = row
    groups = sorted({group for cells in by_label.values() for group in cells})
    titles = [f"{'MHA' if group == 1 else f'GQA{group}'}, {title}" for group in groups for title, _ in columns]
    lines = ["| cache | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for label, cells in sorted(by_label.items(), key=lambda item: -max(row["ms"] for row in item[1].values())):
        texts = [text(cells[group]) if group in cells else "" for group in groups for _, text in columns]
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def limits(context):
    cpu = context.get("cpu") or "unknown processor"
    read, flops = (float(context[limit]) / 1e9 for limit in ("read_bandwidth_bytes", "fma_flops"))
    return f"{cpu}, {context['isa']}; one thread reads {read:.1f} GB/s and does {flops:.0f} fp32 GFLOP/s"


def markdown(context, rows, dim, tokens):
    chosen = [row for row in rows if row["dim"] == dim and row["tokens"] == tokens]
    parts = []
    for kind, columns in (("decode", DECODE), ("prefill", PREFILL)):
        of_kind = [row for row in chosen if row["kind"] == kind]
        if of_kind:
            title = {"decode": "Decode of one token", "prefill": "Prefill of 512 tokens"}[kind]
            parts.append(f"{title} on {tokens}, {of_kind[0]['kv']} kv heads of {dim}, one layer, cold "
                         f"({limits(context)}):\n\n" + table(of_kind, columns))
    return "\n\n".join(parts)


class Frame:
    """Pixels of a log-log plot."""

    left, top, right, bottom, width, height = 64, 46, 640, 470, 790, 520

    def __init__(self, tokens, times):
        self.x_range = (min(tokens), max(tokens))
        self.y_range = (min(times) / 1.5, max(times) * 1.5)

    @staticmethod
    def part(value, low, high):
        return math.log(value / low) / math.log(high / low)

    def x(self, tokens):
        return self.left + (self.right - self.left) * self.part(tokens, *self.x_range)

    def y(self, time):
        return self.bottom - (self.bottom - self.top) * self.part(time, *self.y_range)


def text(x, y, words, anchor="start", colour="#333333", size=12):
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{words}</text>'


def line(points, colour, style):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>'


def axes(frame, tokens):
    parts = []
    for count in tokens:
        x = frame.x(count)
        parts.append(line([(x, frame.top), (x, frame.bottom)], "#e6e6e6", 'stroke-width="1"'))
        parts.append(text(x, frame.bottom + 18, f"{count // 1024}k" if count % 1024 == 0 else str(count), "middle"))
    low, high = frame.y_range
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for tick in (10.0 ** power, 3 * 10.0 ** power):
            if low <= tick <= high:
                y = frame.y(tick)
                parts.append(line([(frame.left, y), (frame.right, y)], "#e6e6e6", 'stroke-width="1"'))
                parts.append(text(frame.left - 8, y + 4, f"{tick:g}", "end"))
    parts.append(text((frame.left + frame.right) / 2, frame.bottom + 38, "tokens in the cache", "middle"))
    parts.append(text(frame.left, frame.top - 8, "ms"))
    return parts


def spread(heights, distance):
    """The heights, moved as little as keeps each that far from the one above."""
    moved = []
    for height in sorted(heights):
        moved.append([height])
        # neighbours that touch become one stack around the mean of their places
        while len(moved) > 1 and top(moved[-1], distance) < top(moved[-2], distance) + distance * len(moved[-2]):
            moved[-2:] = [moved[-2] + moved[-1]]
    return [top(stack, distance) + distance * i for stack in moved for i in range(len(stack))]


def top(stack, distance):
    """The first place of a stack that is centred on the places its members would have."""
    return statistics.mean(stack) - distance * (len(stack) - 1) / 2


def labels(frame, ends):
    """ends: {label: height of the line's last point}."""
    order = sorted(ends, key=ends.get)
    parts = []
    for label, height in zip(order, spread(ends.values(), 15)):
        parts.append(line([(frame.right + 5, ends[label]), (frame.right + 22, height)], LINES[label],
                          'stroke-width="0.7" opacity="0.6"'))
        parts.append(text(frame.right + 26, height + 4, label, colour=LINES[label]))
    return parts


def plot(context, rows):
    """The SVG, or None where no cache was measured at two lengths."""
    of_cache = {cache: sorted((row for row in rows if row["cache"] == cache), key=lambda row: row["tokens"])
                for cache in LINES}
    of_cache = {cache: of for cache, of in of_cache.items() if len(of) > 1}
    if not of_cache:
        return None
    everything = [row for of in of_cache.values() for row in of]
    for row in everything:
        row["floor"] = 1e3 * row["bytes"] / float(context["read_bandwidth_bytes"])
    tokens = sorted({row["tokens"] for row in everything})
    frame = Frame(tokens, [row[number] for row in everything for number in ("ms", "floor")])
    parts = axes(frame, tokens)
    for cache, of in of_cache.items():
        points, floor = ([(frame.x(row["tokens"]), frame.y(row[number])) for row in of] for number in ("ms", "floor"))
        parts.append(line(floor, LINES[cache], 'stroke-width="1" stroke-dasharray="4 4" opacity="0.8"'))
        parts.append(line(points, LINES[cache], 'stroke-width="2"'))
        parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{LINES[cache]}"/>' for x, y in points)
    parts.extend(labels(frame, {cache: frame.y(of[-1]["ms"]) for cache, of in of_cache.items()}))
    first = everything[0]
    shape = f"{first['heads']} heads, {first['kv']} kv heads of {first['dim']}"
    parts.append(text(frame.left, 18, f"Decode of one token and layer, {shape}, cold caches; dashed: bytes over read "
                      "bandwidth", size=13))
    parts.append(text(frame.right, frame.top - 8, limits(context), "end", "#777777", 11))
    size = f'width="{frame.width}" height="{frame.height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}" {size} '
    return "\n".join([head + 'font-family="sans-serif">', f'<rect {size} fill="white"/>', *parts, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", help="the JSON of bench_attention")
    parser.add_argument("--plot", metavar="FILE.svg")
    parser.add_argument("--dim", type=int, default=128, help="head size of the tables and the plot")
    parser.add_argument("--tokens", type=int, default=32768, help="context length of the tables")
    parser.add_argument("--heads", type=int, default=8, help="query heads of the plot")
    arguments = parser.parse_args()
    with open(arguments.result, encoding="utf-8") as file:
        result = json.load(file)
    context, rows = result["context"], read_rows(result["benchmarks"])
    if arguments.plot:
        picture = plot(context, [row for row in rows if row["kind"] == "decode" and row["dim"] == arguments.dim
                                 and row["heads"] == arguments.heads and not row["isa"]])
        if picture is None:
            sys.exit("report.py: no cache of the plot was measured at two lengths")
        with open(arguments.plot, "w", encoding="utf-8") as file:
            file.write(picture)
    print(markdown(context, rows, arguments.dim, arguments.tokens)
          or f"no rows of head size {arguments.dim} on {arguments.tokens} tokens")


if __name__ == "__main__":
    main()
