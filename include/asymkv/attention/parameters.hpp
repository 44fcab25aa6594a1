// parameters.hpp: what a caller may choose about one attention call. Used by KVCache and the reference.
#pragma once

#include <optional>

#include "asymkv/tensor.hpp"

ASYMKV_NAMESPACE_BEGIN

/// One number for each query head; none where data is null.
struct HeadNumbers {
  const float* data = nullptr;
  Index count = 0;
};

/// Of query head h at token number `own` and a token t that it sees:
///
///   score  = scale * q.k                        then, where asked for,
///   score  = softcap * tanh(score / softcap)
///   score += mask[query, h, t] - alibi_slopes[h] * |own - t|
///   output = sum over t of exp(score_t) v_t / (sum over t of exp(score_t) + exp(sink_logits[h]))
///
/// All of them go together, with every format, head size and number of queries. Pointers are read, and lse is written,
/// during the call alone.
struct AttentionParams {
  /// Factor on q.k before the softmax; 0 means 1/sqrt(key_dim).
  float scale = 0.0f;
  /// Query i sees tokens up to its own.
  bool causal = true;
  /// Sliding window: a query sees no token before the last `window` tokens up to and including its own; 0 means no
  /// limit, negative is invalid_argument. The cost of a call follows the window; the cache keeps all tokens.
  Index window = 0;
  /// Token number of the first query, -2^32..2^32; without it, queries are the last tokens of the layer. It may lie
  /// outside of the layer, which then is a part of a longer context (lse, merge_attention): a query behind all tokens
  /// sees them all, one before them, with causal, none.
  std::optional<Index> position;
  /// Bound on the magnitude of scores, 2^-60..2^60; 0 means none. Within 4e-7 of it.
  float softcap = 0.0f;
  /// Added to the scores: [queries, heads or 1, length(layer)], any type and strides; finite numbers up to 2^100 in
  /// magnitude, and -infinity, which hides a token. 1 means the same for all heads. For trees of drafts, padding,
  /// prefixes that see each other.
  ConstTensor mask;
  /// Slopes of ALiBi, which times the distance (of the whole context) are 2^100 at most.
  HeadNumbers alibi_slopes;
  /// Logits that weigh like a token whose value is 0; neither scaled nor capped; up to 2^100 in magnitude.
  HeadNumbers sink_logits;
  /// Written where its data is not null: the logarithm (natural) of the sum of exp(score), sink logits included;
  /// [queries, heads, 1] in f32, any strides. A query that sees nothing has an output of zeros, and -infinity here.
  Tensor lse;

  /// Whether more is asked for than scale, causal and window: for caches that offer no more.
  bool extended() const noexcept {
    return position || softcap != 0.0f || mask.data != nullptr || alibi_slopes.data != nullptr ||
           sink_logits.data != nullptr || lse.data != nullptr;
  }
};

/// Number ith of nth threads that share the attention of a layer.
struct AttentionSlice {
  Index ith = 0;
  Index nth = 1;
};

ASYMKV_NAMESPACE_END
