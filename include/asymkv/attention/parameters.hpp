// parameters.hpp: what a caller may choose about one attention call. Used by KVCache::attend and the reference.
#pragma once

#include "asymkv/scalar.hpp"

ASYMKV_NAMESPACE_BEGIN

struct AttentionParams {
  /// Factor on q.k before the softmax; 0 means 1/sqrt(key_dim).
  float scale = 0.0f;
  /// The queries are the last `queries` tokens of the layer; with causal, query i sees tokens up to its own.
  bool causal = true;
};

ASYMKV_NAMESPACE_END
