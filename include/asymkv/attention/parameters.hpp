// parameters.hpp: what a caller may choose about one attention call. Used by KVCache and the reference.
#pragma once

#include <optional>

#include "asymkv/tensor.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Tokens [begin, end).
struct TokenRange {
  Index begin = 0;
  Index end = 0;
};

/// One number for each query head, `count` of them; none where data is null.
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
/// All of them go together, with every format, head size and number of queries. What pointers lead to must not change
/// during a call, or from the first attend_slice to the last merge_slices.
struct AttentionParams {
  /// Factor on q.k before the softmax; 0 means 1/sqrt(key_dim).
  float scale = 0.0f;
  /// Query i sees tokens up to its own.
  bool causal = true;
  /// Sliding window: a query sees no token before the last `window` tokens up to and including its own; 0 means no
  /// limit, negative is invalid_argument. The cost of a call follows the window; the cache keeps all tokens until
  /// KVCache::remove_front.
  Index window = 0;
  /// Token number of the first query, -2^32..2^32; without it, queries are the last tokens of the layer. It may lie
  /// outside of the layer, which then is a part of a longer context (lse, merge_attention) and may be empty: a query
  /// behind all tokens sees them all, one before them, with causal, none.
  std::optional<Index> position = {};
  /// Bound on the magnitude of scores, 2^-60..2^60; 0 means none. Capped scores are within 5e-7 of themselves.
  float softcap = 0.0f;
  /// Added to the scores: [queries, heads or 1, length(layer)] in float, half or bfloat16, any strides (0 where rows
  /// are alike); 1 means the same for all heads. Numbers up to 2^100; -infinity, and all below -2^100, hide a token.
  /// For trees of drafts, padding, prefixes that see each other. Windows and ALiBi count places in the cache, not
  /// depths of a tree: put those of drafts into the mask.
  ConstTensor mask = {};
  /// Slopes of ALiBi; times the distance (of the whole context) 2^100 at most in magnitude. The product is rounded to
  /// float: a bias of some thousand is off by some 1e-4.
  HeadNumbers alibi_slopes = {};
  /// Logits that weigh like a token whose value is 0; neither scaled nor capped; up to 2^100 in magnitude, or -infinity
  /// for a head that has none.
  HeadNumbers sink_logits = {};
  /// Written where its data is not null: the logarithm (natural) of the sum of exp(score), sink logits included;
  /// [queries, heads, 1] in f32, any strides. A query that sees nothing has an output of zeros, and -infinity here.
  Tensor lse = {};

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
