// tokens.hpp: keys, values and queries made from token numbers alone, so that every rank can make any token and nothing
// of them is sent. Used by both modes, and by the reference, which makes all of them in one process.
#pragma once

#include <asymkv/cache/kv_cache.hpp>
#include <vector>

#include "options.hpp"

namespace context_parallel {

using Floats = std::vector<float>;

/// The tokens of one sequence. Channels of keys differ in spread, as a model's do, and values have a mean, so that
/// attention does not average to nothing. A query is most like the key of one token, which it finds far back, on any
/// rank: a quarter of its attention is there, or so, the rest all over the context.
class Tokens {
 public:
  Tokens(const asymkv::CacheShape& shape, Index sequence) : shape_(shape), sequence_(sequence) {}

  /// [count, kv_heads, key_dim] and [count, kv_heads, value_dim] of tokens first..first+count-1.
  Floats keys(Index layer, Index first, Index count) const;
  Floats values(Index layer, Index first, Index count) const;
  /// [query_heads, key_dim]; of a token that is not the first.
  Floats query(Index layer, Index token) const;

 private:
  void fill_key(Index layer, Index token, Index kv_head, float* to) const;

  asymkv::CacheShape shape_;
  Index sequence_;
};

}  // namespace context_parallel
