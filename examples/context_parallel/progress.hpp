// progress.hpp: a line for every tenth of what takes long, on rank 0's standard error. Used by both modes.
#pragma once

#include <cstdio>

#include "options.hpp"

namespace context_parallel {

class Progress {
 public:
  Progress(int rank, const char* work, Index all) : shown_(rank == 0), work_(work), all_(all) {}

  void at(Index done) {
    if (!shown_ || done * 10 / all_ <= tenths_) return;
    tenths_ = done * 10 / all_;
    std::fprintf(stderr, "%s: %d%%\n", work_, int(tenths_) * 10);
  }

 private:
  bool shown_;
  const char* work_;
  Index all_, tenths_ = 0;
};

}  // namespace context_parallel
