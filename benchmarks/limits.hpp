// limits.hpp: what one thread of this machine can do at best, measured in the process whose times are compared with it:
// bytes read from memory and fp32 operations a second. For the shares that benchmarks print.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <asymkv/asymkv.hpp>
#include <cstdint>
#include <ctime>
#include <fstream>
#include <string>
#include <vector>

namespace bench {

using asymkv::Index;

/// The greatest `amount` per second of `runs` calls of function(); CPU time, as the rows have it: on a busy machine the
/// limits would else be low, and the shares high.
template <class Function>
double best_rate(int runs, double amount, Function function) {
  double best = 0.0;
  for (int run = 0; run < runs; ++run) {
    const std::clock_t start = std::clock();
    benchmark::DoNotOptimize(function());
    best = std::max(best, amount * double(CLOCKS_PER_SEC) / double(std::clock() - start));
  }
  return best;
}

constexpr Index line_words = 8;  // of 64 bytes

/// Reads every line of `words`, in `Streams` parts side by side. One word of each line: the memory then moves all of
/// it, and nothing but that takes time.
template <int Streams>
std::uint64_t read_streams(const std::vector<std::uint64_t>& words) noexcept {
  const Index lines = Index(words.size()) / line_words / Streams;
  std::uint64_t seen[Streams] = {};
  for (Index line = 0; line < lines; ++line)
    for (int stream = 0; stream < Streams; ++stream)
      seen[stream] |= words[std::size_t((stream * lines + line) * line_words)];
  std::uint64_t all = 0;
  for (const std::uint64_t each : seen) all |= each;
  return all;
}

/// Bytes a second that one thread reads from memory: the best of 1, 2, 4 and 8 streams through 512 MiB. Huge pages
/// changed nothing where it was tried.
inline double read_bandwidth() {
  static const double measured = [] {
    // 37: streams that are a power of two apart would compete for the same sets of the caches
    const std::vector<std::uint64_t> words(std::size_t(8 * ((Index(1) << 20) + 37) * line_words), 1);
    const double bytes = 8.0 * double(words.size());
    constexpr int runs = 4;
    return std::max({best_rate(runs, bytes, [&] { return read_streams<1>(words); }),
                     best_rate(runs, bytes, [&] { return read_streams<2>(words); }),
                     best_rate(runs, bytes, [&] { return read_streams<4>(words); }),
                     best_rate(runs, bytes, [&] { return read_streams<8>(words); })});
  }();
  return measured;
}

/// Enough to hide the latency of any x86 core's multiply-adds (5 cycles, two at a time), and few enough for 16
/// registers.
constexpr int chains = 12;

namespace baseline {
constexpr int floats = 4;
#include "multiply_adds.inl"
}  // namespace baseline

#if ASYMKV_X86
ASYMKV_REGION(ASYMKV_TARGET_AVX2)
namespace avx2 {
constexpr int floats = 8;
#include "multiply_adds.inl"
}  // namespace avx2
ASYMKV_REGION_END

ASYMKV_REGION(ASYMKV_TARGET_AVX512)
namespace avx512 {
constexpr int floats = 16;
#include "multiply_adds.inl"
}  // namespace avx512
ASYMKV_REGION_END
#endif

inline double best_flops(int floats, float (*multiply_adds)(Index, float, float)) {
  constexpr Index rounds = 2'000'000;
  volatile float half = 0.5f;  // not known to the compiler
  return best_rate(10, 2.0 * double(rounds * chains * floats), [&] { return multiply_adds(rounds, half, half); });
}

/// fp32 operations a second of one thread, a multiply-add counting as two, in the widest registers of the machine. What
/// a forced instruction set does is compared with the same.
inline double fma_peak() {
  static const double measured = [] {
#if ASYMKV_X86
    if (asymkv::isa_supported(asymkv::Isa::avx512)) return best_flops(avx512::floats, avx512::multiply_adds);
    if (asymkv::isa_supported(asymkv::Isa::avx2)) return best_flops(avx2::floats, avx2::multiply_adds);
#endif
    return best_flops(baseline::floats, baseline::multiply_adds);
  }();
  return measured;
}

/// The processor's name as Linux gives it; empty where it gives none.
inline std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  return {};
}

/// The limits, the processor and the instruction set go into the heading of every report, JSON included.
inline void add_limits_to_context() {
  benchmark::AddCustomContext("cpu", cpu_name());
  benchmark::AddCustomContext("isa", asymkv::isa_name((*asymkv::kernels::choose_table())->isa));
  benchmark::AddCustomContext("read_bandwidth_bytes", std::to_string(read_bandwidth()));
  benchmark::AddCustomContext("fma_flops", std::to_string(fma_peak()));
}

}  // namespace bench
