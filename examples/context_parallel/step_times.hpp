// step_times.hpp: what both modes say of a run's memory and time.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdio>

#include "options.hpp"
#include "ranks.hpp"

namespace context_parallel {

/// Of one rank: CPU time of appending and attending, which does not depend on what else the cores are shared with, and
/// the time that passes until all ranks' outputs have been exchanged.
class StepTimes {
 public:
  void start() { start_ = {cpu_seconds(), MPI_Wtime()}; }
  void attended() { attend_ += cpu_seconds() - start_.cpu; }
  void exchanged() { whole_ += MPI_Wtime() - start_.wall; }

  /// Called by all ranks; `exchange` is what ranks exchange outputs by.
  void print(const Ranks& ranks, Index steps, const char* exchange) const {
    double most = 0.0, mean = 0.0, whole = 0.0;
    for (const std::vector<double>& times : ranks.collect(std::vector<double>{attend_, whole_})) {
      most = std::max(most, times[0]);
      mean += times[0] / ranks.count;
      whole = std::max(whole, times[1]);
    }
    if (ranks.rank != 0) return;
    const double milliseconds = 1000.0 / double(steps);
    std::printf(
        "steps: %lld, %.2f ms each with the %s; append and attend took %.2f ms of a rank's CPU time, at most %.2f\n",
        (long long)(steps), whole * milliseconds, exchange, mean * milliseconds, most * milliseconds);
  }

 private:
  static double cpu_seconds() {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
  }
  struct Start {
    double cpu, wall;
  };
  Start start_ = {};
  double attend_ = 0.0, whole_ = 0.0;
};

/// Called by all ranks when their caches are filled.
inline void print_caches(const Options& options, const Ranks& ranks, Index bytes, Index tokens) {
  const auto all = ranks.collect(std::vector<double>{double(bytes), double(tokens)});
  if (ranks.rank != 0) return;
  std::printf("caches: ranks %d, policy %s, layers %lld of 8 kv heads of 128\n", ranks.count, options.policy.c_str(),
              (long long)(options.layers));
  for (int rank = 0; rank < ranks.count; ++rank)
    std::printf("  rank %d: %.0f tokens, %.1f MiB\n", rank, all[std::size_t(rank)][1],
                all[std::size_t(rank)][0] / 1048576.0);
}

}  // namespace context_parallel
