#!/usr/bin/env python3
"""plot.py RESULTS.json [MORE.json ...] -o quality.svg: what `llm eval --json` measured, as one picture: mean KL
divergence against all-in bits, every policy with the name that eval was given, presets with theirs. Each model and text
has a panel of its own, from however many files; --only NAME, which may be repeated, keeps those whose title has NAME in
it, in capitals or not. Needs matplotlib (Debian and Ubuntu: apt-get install python3-matplotlib)."""

import argparse
import itertools
import json
import math
import sys

try:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "asymkv", "font.size": 9, "axes.edgecolor": "#999999"})
    import matplotlib.pyplot as plt
except ImportError:
    sys.exit("plot.py: needs matplotlib; on Debian and Ubuntu: apt-get install python3-matplotlib, and run it as "
             "/usr/bin/python3 if another python3 comes first")

COLOURS = ["#1f6fb2", "#d1582b", "#3a8f4d", "#8456a8", "#8a6d3b"]
MARKERS = "os^Dv"


def read_panels(paths, only):
    """{title: {policy: (bits, divergence)}}; without float's rows: a divergence of 0 has no place on the axis."""
    panels = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
        for row in rows:
            points = panels.setdefault(row["model"] + " on " + row["text"], {})
            if row["kld_mean"] > 0:
                points[row["policy"]] = (row["all_in_bits"], row["kld_mean"])
    return {title: points for title, points in panels.items()
            if points and (not only or any(name.lower() in title.lower() for name in only))}


def candidates(width, height):
    """Offsets in pixels of a label's lower left corner from its marker: beside it first, then further away."""
    for distance in (7, 13, 20, 30, 42, 56, 72, 90, 110):
        for angle in (0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158, 68, -68, 112, -112):
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            side = round(x * 2) and math.copysign(1, x)  # 0 above and below: centred there
            yield x * distance + (side - 1) * width / 2, y * distance + (y - 1) * height / 2


def overlaps(box, others):
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def crossing(box, start, others):
    """How many boxes the line from `start` to the middle of `box` runs through."""
    x, y = (box[0] + box[2]) / 2 - start[0], (box[1] + box[3]) / 2 - start[1]
    steps = [(start[0] + x * i / 20, start[1] + y * i / 20) for i in range(21)]
    return sum(any(o[0] < x < o[2] and o[1] < y < o[3] for x, y in steps) for o in others)


def place(start, width, height, frame, markers, labels):
    """Box of the label: the nearest place where it covers nothing, and its line crosses no other label."""
    best = None
    for x, y in candidates(width, height):
        box = (start[0] + x, start[1] + y, start[0] + x + width, start[1] + y + height)
        inside = frame[0] < box[0] and frame[1] < box[1] and box[2] < frame[2] and box[3] < frame[3]
        if not inside or overlaps(box, markers) or overlaps(box, labels):
            continue
        if crossing(box, start, labels) == 0:
            return box
        best = best or box
    return best or (start[0] + 6, start[1], start[0] + 6 + width, start[1] + height)


def label_points(axes, points):
    """points: [(name, bits, divergence, colour)]."""
    renderer = axes.figure.canvas.get_renderer()
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    at = [to_pixels((bits, divergence)) for _, bits, divergence, _ in points]
    markers = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    frame = axes.get_window_extent(renderer).extents
    labels = []
    for (name, _, _, colour), start in sorted(zip(points, at), key=lambda p: (p[1][0], p[1][1])):
        text = axes.text(0, 0, name, color=colour, fontsize=8, va="bottom", ha="left")
        size = text.get_window_extent(renderer)
        box = place(start, size.width, size.height, frame, markers, labels)
        labels.append(box)
        text.set_position(to_data((box[0], box[1])))
        near = (min(max(start[0], box[0]), box[2]), min(max(start[1], box[1]), box[3]))
        if math.dist(near, start) > 12:
            (x0, y0), (x1, y1) = to_data(start), to_data(near)
            axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.6, alpha=0.5, zorder=1)


def set_axes(axes, points):
    bits = [p[1] for p in points]
    low, high = min(bits) / 1.12, max(bits) * 1.25
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(p[2] for p in points) / 2, max(p[2] for p in points) * 2)
    ticks = [t for t in (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 5, 6, 8, 12, 16) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("bits an element, all-in (codes, scales, zero points)")
    axes.set_ylabel("mean KL(float || policy), nats")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_panel(axes, title, policies, colour, marker):
    """Returns the points to label, which can be done when the layout is final."""
    points = [(name, bits, divergence, colour) for name, (bits, divergence) in policies.items()]
    bits, divergences = zip(*policies.values())
    axes.scatter(bits, divergences, s=26, color=colour, marker=marker, zorder=3)
    axes.set_title(title)
    return points


def draw(panels, path):
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, dpi=100, layout="constrained",
                                figsize=(9, 6) if columns == 1 else (14, 5.5 * rows))
    styles = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS))
    drawn = [(axes, draw_panel(axes, title, policies, *style))
             for axes, (title, policies), style in zip(grid.flat, panels.items(), styles)]
    everything = [point for _, points in drawn for point in points]
    for axes, _ in drawn:
        set_axes(axes, everything)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(drawn):]:
        axes.remove()
    figure.canvas.draw()
    figure.set_layout_engine("none")
    for axes, points in drawn:
        label_points(axes, points)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", help="files that llm eval --json wrote")
    parser.add_argument("--only", metavar="NAME", action="append", help="of a model or text")
    parser.add_argument("-o", "--output", required=True, help="SVG, PNG or PDF")
    arguments = parser.parse_args()
    panels = read_panels(arguments.results, arguments.only)
    if not panels:
        sys.exit("plot.py: the files hold no such policy with a divergence above 0")
    draw(panels, arguments.output)


if __name__ == "__main__":
    main()
