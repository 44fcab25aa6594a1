// step_times.hpp: what both modes say of a run's memory and time.
#pragma once

#include <algorithm>
#include <cstdio>

#include "options.hpp"
#include "ranks.hpp"

namespace context_parallel {

/// Seconds of one rank.
class StepTimes {
 public:
  void add(double attend, double exchange) {
    attend_ += attend;
    exchange_ += exchange;
  }
  /// Called by all ranks; `exchange` is what ranks exchange outputs by.
  void print(const Ranks& ranks, Index steps, const char* exchange) const {
    double slowest = 0.0, mean = 0.0, whole = 0.0;
    for (const std::vector<double>& times : ranks.collect(std::vector<double>{attend_, exchange_})) {
      slowest = std::max(slowest, times[0]);
      mean += times[0] / ranks.count;
      whole = std::max(whole, times[0] + times[1]);
    }
    if (ranks.rank != 0) return;
    const double milliseconds = 1000.0 / double(steps);
    std::printf("steps: %lld, %.2f ms each; append and attend %.2f on average over the ranks, %.2f on the slowest; the "
                "rest is the %s, and waiting for other ranks\n",
                (long long)(steps), whole * milliseconds, mean * milliseconds, slowest * milliseconds, exchange);
  }

 private:
  double attend_ = 0.0, exchange_ = 0.0;
};

/// Called by all ranks when their caches are filled.
inline void print_caches(const Options& options, const Ranks& ranks, Index bytes, Index tokens) {
  const auto all = ranks.collect(std::vector<double>{double(bytes), double(tokens)});
  if (ranks.rank != 0) return;
  std::printf("caches: %d ranks, %s, %lld layers of 8 kv heads of 128\n", ranks.count, options.policy.c_str(),
              (long long)(options.layers));
  for (int rank = 0; rank < ranks.count; ++rank)
    std::printf("  rank %d: %.0f tokens, %.1f MiB\n", rank, all[std::size_t(rank)][1],
                all[std::size_t(rank)][0] / 1048576.0);
}

}  // namespace context_parallel
