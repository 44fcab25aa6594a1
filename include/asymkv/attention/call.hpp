// call.hpp: what one attend asks for, row by row: a row's query, the tokens that it sees, what is added to its scores,
// and where its output goes. Used by row_block.hpp and attend.hpp; check.hpp has checked it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "asymkv/attention/parameters.hpp"
#include "asymkv/kernels/table.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// The score's factor that params ask for.
inline float attention_scale(const AttentionParams& params, Index key_dim) noexcept {
  return params.scale == 0.0f ? 1.0f / std::sqrt(float(key_dim)) : params.scale;
}

/// Some neighbouring elements of a row of a mask, as float.
inline void load_mask(const kernels::Table& kernels, const ConstTensor& mask, Index query, Index head,
                      const TokenRange& tokens, float* to) noexcept {
  const void* row = mask.row(query, head);
  if (mask.dim_stride == 1)
    return kernels.convert(static_cast<const char*>(row) + tokens.begin * scalar_bytes(mask.type), mask.type, to,
                           ScalarType::f32, tokens.end - tokens.begin);
  for (Index i = tokens.begin; i < tokens.end; ++i)
    to[i - tokens.begin] = load_scalar(row, mask.type, i * mask.dim_stride);
}

/// The rows of a kv head are its query tokens times its query heads, which take turns: row r is of query token
/// r / group and query head kv_head * group + r % group. Scores are kept as base-2 logarithms.
class AttentionCall {
 public:
  /// Keeps references to all but numbers. `length` and `removed` are the layer's.
  AttentionCall(Index kv_heads, Index length, const TokenRange& removed, const ConstTensor& queries,
                const Tensor& output, const AttentionParams& params) noexcept
      : queries_(queries),
        output_(output),
        params_(params),
        length_(length),
        removed_(removed),
        group_(queries.heads / kv_heads),
        position_(params.position.value_or(length - queries.tokens)),
        factor_(attention_scale(params, queries.dim) * log2_e),
        has_terms_(params.softcap != 0.0f || params.mask.data != nullptr || params.alibi_slopes.data != nullptr) {}

  Index length() const noexcept { return length_; }
  /// Tokens that no row sees, whatever its range.
  const TokenRange& removed() const noexcept { return removed_; }
  /// Distance of a query and a token, at most.
  Index farthest() const noexcept {
    const Index last = position_ + queries_.tokens;
    return length_ + std::max({position_, -position_, last, -last});
  }
  /// What any row sees.
  TokenRange visible() const noexcept { return {visible(0).begin, visible(rows() - 1).end}; }
  /// Of one kv head.
  Index rows() const noexcept { return queries_.tokens * group_; }

  /// Both ends grow with the row.
  TokenRange visible(Index row) const noexcept {
    const Index own = own_token(row);
    const Index end = params_.causal ? clamp(own + 1) : length_;
    const Index begin = params_.window > 0 && own >= params_.window ? clamp(own + 1 - params_.window) : 0;
    return {std::min(begin, end), end};
  }

  /// The row's query, scaled.
  void load_query(Index kv_head, Index row, float* to) const noexcept {
    const void* from = queries_.row(row / group_, head(kv_head, row));
    const Index dim = queries_.dim, stride = queries_.dim_stride;  // not read anew after each store
    const ScalarType type = queries_.type;
    const float factor = factor_;
    for (Index i = 0; i < dim; ++i) to[i] = load_scalar(from, type, i * stride) * factor;
  }

  /// Whether scores are more than scaled products.
  bool has_terms() const noexcept { return has_terms_; }
  /// Makes products with tokens [first, first + count), at most page_tokens, scores. Room as for softmax.
  void add_terms(const kernels::Table& kernels, Index kv_head, Index row, Index first, Index count,
                 float* scores) const noexcept {
    kernels::ScoreTerms terms;
    terms.softcap = params_.softcap * log2_e;
    if (params_.alibi_slopes.data != nullptr) terms.slope = params_.alibi_slopes.data[head(kv_head, row)] * log2_e;
    terms.distance = float(own_token(row) - first);
    float mask[page_tokens];
    if (params_.mask.data != nullptr) {
      load_mask(kernels, params_.mask, row / group_, params_.mask.heads == 1 ? 0 : head(kv_head, row),
                {first, first + count}, mask);
      std::fill(mask + count, mask + round_up(count, 16), 0.0f);
      terms.mask = mask;
    }
    kernels.add_terms(scores, count, terms);
  }

  /// Output of a row: sums of values weighted by exp2(score - max), the sum of these weights being `weights`. max is
  /// -infinity, and weights 0, where nothing was seen.
  void store(Index kv_head, Index row, const float* sums, float max, float weights) const noexcept {
    const Index token = row / group_;
    constexpr float lowest = -std::numeric_limits<float>::infinity();
    float factor = 1.0f;
    const float logit =
        params_.sink_logits.data == nullptr ? lowest : params_.sink_logits.data[head(kv_head, row)] * log2_e;
    if (logit > lowest) {
      const float greatest = std::max(max, logit);
      factor = std::exp2(max - greatest);
      weights = weights * factor + std::exp2(logit - greatest);
      max = greatest;
    }
    const float share = weights > 0.0f ? factor / weights : 0.0f;
    void* to = output_.row(token, head(kv_head, row));
    for (Index i = 0; i < output_.dim; ++i) store_scalar(to, output_.type, i * output_.dim_stride, sums[i] * share);
    if (params_.lse.data == nullptr) return;
    const float lse = weights > 0.0f ? (max + std::log2(weights)) / log2_e : lowest;
    store_scalar(params_.lse.row(token, head(kv_head, row)), ScalarType::f32, 0, lse);
  }

 private:
  static constexpr float log2_e = 1.44269504f;

  Index head(Index kv_head, Index row) const noexcept { return kv_head * group_ + row % group_; }
  Index own_token(Index row) const noexcept { return position_ + row / group_; }
  Index clamp(Index token) const noexcept { return token < 0 ? 0 : token > length_ ? length_ : token; }

  const ConstTensor& queries_;
  const Tensor& output_;
  const AttentionParams& params_;
  Index length_;
  TokenRange removed_;
  Index group_, position_;
  float factor_;
  bool has_terms_;
};

}  // namespace detail
ASYMKV_NAMESPACE_END
