// sequence.hpp: a cache of one sequence, or of a rank's part of one, and the tokens that it is given. Used by both
// modes and the check.
#pragma once

#include <asymkv/cache/asym_kv_cache.hpp>

#include "merge_op.hpp"
#include "tokens.hpp"

namespace context_parallel {

class Sequence {
 public:
  /// Makes room for `reserve` tokens where they stay in full precision. Throws std::runtime_error, as all calls.
  Sequence(const asymkv::CacheShape& shape, const asymkv::AsymKVPolicy& policy, Index number, Index reserve);

  /// Appends tokens first..first+count-1 of the sequence to a layer; to all layers.
  void append(Index layer, Index first, Index count);
  void append(Index first, Index count);

  /// Attention of the query of token number `token`, which stands at `position` in the cache, to all that it holds.
  void attend(Index layer, const Floats& query, Index position, AttentionOutput& output);

  const Tokens& tokens() const { return tokens_; }
  const asymkv::KVCache& cache() const { return cache_; }

 private:
  Tokens tokens_;
  asymkv::AsymKVCache cache_;
};

/// Throws std::runtime_error with what is wrong about the name.
asymkv::AsymKVPolicy parse_policy(const Options& options);

}  // namespace context_parallel
