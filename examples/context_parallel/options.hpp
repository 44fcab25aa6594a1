// options.hpp: what a run is asked for. Used by main, which reads it from the command line, and by both modes.
#pragma once

#include <asymkv/cache/kv_cache.hpp>
#include <string>

namespace context_parallel {

using asymkv::Index;

struct Options {
  Index context = 200000;  ///< tokens of a sequence before the first step
  Index steps = 1000;      ///< tokens appended and attended one by one
  Index sequences = 8;     ///< of the mode `sequences`
  Index layers = 1;
  std::string policy = "k4v4";
  bool check = true;   ///< compare with one process, which needs the memory for all on rank 0
  int kill_rank = -1;  ///< the rank that kills itself, to see what becomes of the others; -1 for none
  Index kill_step = 0;

  /// The layers of a model with 8 kv heads of 128.
  asymkv::CacheShape shape() const { return {layers, 8, 128, 128}; }
};

/// Query heads of that model.
constexpr Index query_heads = 32;

}  // namespace context_parallel
