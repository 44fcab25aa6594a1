// parameters.hpp: what a caller may choose about one attention call. Used by KVCache and the reference.
#pragma once

#include "asymkv/scalar.hpp"

ASYMKV_NAMESPACE_BEGIN

struct AttentionParams {
  /// Factor on q.k before the softmax; 0 means 1/sqrt(key_dim).
  float scale = 0.0f;
  /// The queries are the last `queries` tokens of the layer; with causal, query i sees tokens up to its own.
  bool causal = true;
  /// Sliding window: a query sees no token before the last `window` tokens up to and including its own; 0 means no
  /// limit, negative is invalid_argument. The cost of a call follows the window; the cache keeps all tokens.
  Index window = 0;
};

/// Number ith of nth threads that share the attention of a layer.
struct AttentionSlice {
  Index ith = 0;
  Index nth = 1;
};

ASYMKV_NAMESPACE_END
