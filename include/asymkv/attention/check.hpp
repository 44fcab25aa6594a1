// check.hpp: whether the arguments of an attend make sense, before anything is written. Used by SequenceCache and the
// reference.
#pragma once

#include "asymkv/attention/call.hpp"
#include "asymkv/cache/kv_cache.hpp"
#include "asymkv/quantize/quantizers.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

inline Status check_head_numbers(const HeadNumbers& x, const char* name, Index heads) noexcept {
  if (x.data == nullptr && x.count == 0) return {};
  if (x.data == nullptr) return Status::error(ErrorCode::invalid_argument, "params: %s: data is null", name);
  if (x.count != heads)
    return Status::error(ErrorCode::invalid_argument,
                         "params: %s has %lld numbers, must have one for each of %lld heads", name, number(x.count),
                         number(heads));
  return {};
}

/// Null data with a shape is a mistake, not the lack of a tensor.
inline Status check_present(const ConstTensor& x, const char* name) noexcept {
  if (x.data != nullptr || (x.tokens == 0 && x.heads == 0 && x.dim == 0)) return {};
  return Status::error(ErrorCode::invalid_argument, "params: %s: data is null", name);
}

inline Status check_mask_shape(const ConstTensor& mask, const ConstTensor& queries, Index length) noexcept {
  if (mask.data == nullptr) return check_present(mask, "mask");
  if (mask.tokens == queries.tokens && (mask.heads == 1 || mask.heads == queries.heads) && mask.dim == length)
    return {};
  return Status::error(ErrorCode::invalid_argument,
                       "params: mask: shape is [%lld, %lld, %lld], must be [%lld, 1 or %lld, %lld]",
                       number(mask.tokens), number(mask.heads), number(mask.dim), number(queries.tokens),
                       number(queries.heads), number(length));
}

inline Status check_lse_shape(const Tensor& lse, const ConstTensor& queries) noexcept {
  if (lse.data == nullptr) return check_present(lse, "lse");
  if (lse.tokens == queries.tokens && lse.heads == queries.heads && lse.dim == 1 && lse.type == ScalarType::f32)
    return {};
  return Status::error(ErrorCode::invalid_argument,
                       "params: lse: is [%lld, %lld, %lld] in %s, must be [%lld, %lld, 1] in f32", number(lse.tokens),
                       number(lse.heads), number(lse.dim), scalar_name(lse.type), number(queries.tokens),
                       number(queries.heads));
}

/// Shapes, and numbers that are no tensors. `length` is the layer's.
inline Status check_attention_shapes(const CacheShape& shape, Index length, const ConstTensor& q, const Tensor& out,
                                     const AttentionParams& params) noexcept {
  constexpr Index farthest = Index(1) << 32, most_heads = Index(1) << 20;
  if (params.window < 0)
    return Status::error(ErrorCode::invalid_argument, "params: window is %lld; use 0 (no limit) or more",
                         number(params.window));
  if (params.position && (*params.position < -farthest || *params.position > farthest))
    return Status::error(ErrorCode::invalid_argument, "params: position is %lld; use -2^32..2^32",
                         number(*params.position));
  if (params.softcap != 0.0f && !(params.softcap >= 0x1p-60f && params.softcap <= 0x1p60f))
    return Status::error(ErrorCode::invalid_argument, "params: softcap is %g; use 0 (none) or 2^-60..2^60",
                         double(params.softcap));
  if (!(std::fabs(attention_scale(params, shape.key_dim)) <= 0x1p126f))  // times log2(e) it is still finite
    return Status::error(ErrorCode::invalid_argument, "params: scale is %g; use a number up to 2^126 in magnitude",
                         double(params.scale));
  if (q.tokens < 1 || q.heads < 1 || q.heads % shape.kv_heads != 0 || q.dim != shape.key_dim || q.tokens > farthest ||
      q.heads > most_heads)
    return Status::error(
        ErrorCode::invalid_argument,
        "queries: shape is [%lld, %lld, %lld], must be [n up to 2^32, multiple of %lld up to 2^20, %lld]",
        number(q.tokens), number(q.heads), number(q.dim), number(shape.kv_heads), number(shape.key_dim));
  if (!params.position && q.tokens > length)
    return Status::error(ErrorCode::out_of_range,
                         "queries: %lld tokens, but the layer has %lld; append comes first, or params.position says "
                         "where they stand",
                         number(q.tokens), number(length));
  if (out.tokens != q.tokens || out.heads != q.heads || out.dim != shape.value_dim)
    return Status::error(ErrorCode::invalid_argument, "output: shape is [%lld, %lld, %lld], must be [%lld, %lld, %lld]",
                         number(out.tokens), number(out.heads), number(out.dim), number(q.tokens), number(q.heads),
                         number(shape.value_dim));
  if (q.data == nullptr || out.data == nullptr)
    return Status::error(ErrorCode::invalid_argument, "%s: data is null", q.data == nullptr ? "queries" : "output");
  if (Status status = check_head_numbers(params.alibi_slopes, "alibi_slopes", q.heads); !status.ok()) return status;
  if (Status status = check_head_numbers(params.sink_logits, "sink_logits", q.heads); !status.ok()) return status;
  if (Status status = check_mask_shape(params.mask, q, length); !status.ok()) return status;
  return check_lse_shape(params.lse, q);
}

/// Most that is added to a score: sums stay finite.
constexpr double most_added = 0x1p100;

/// A row of a mask: numbers up to most_added, and any below its negative.
inline Status check_mask_row(const kernels::Table& kernels, const ConstTensor& mask, Index query, Index head,
                             const TokenRange& tokens) noexcept {
  const void* const row = mask.row(query, head);
  const auto element = [&](Index i) { return load_scalar(row, mask.type, i * mask.dim_stride); };
  if (mask.dim_stride == 1 && kernels.is_mask(static_cast<const char*>(row) + tokens.begin * scalar_bytes(mask.type),
                                              mask.type, tokens.end - tokens.begin))
    return {};
  for (Index i = tokens.begin; i < tokens.end; ++i)
    if (!(element(i) <= float(most_added)))
      return Status::error(std::isfinite(element(i)) ? ErrorCode::overflow : ErrorCode::non_finite,
                           "params: mask: %g at query %lld, head %lld, token %lld; use numbers up to 2^100, or "
                           "-infinity to hide a token",
                           double(element(i)), number(query), number(head), number(i));
  return {};
}

/// Of the tokens that some query sees; rows that are one in memory are read once.
inline Status check_mask(const kernels::Table& kernels, const ConstTensor& mask, const TokenRange& tokens) noexcept {
  const Index queries = mask.token_stride == 0 ? 1 : mask.tokens, heads = mask.head_stride == 0 ? 1 : mask.heads;
  for (Index query = 0; query < queries; ++query)
    for (Index head = 0; head < heads; ++head)
      if (Status status = check_mask_row(kernels, mask, query, head, tokens); !status.ok()) return status;
  return {};
}

/// Numbers of the optional arguments.
inline Status check_terms(const kernels::Table& kernels, const AttentionCall& call,
                          const AttentionParams& params) noexcept {
  const double distance = double(call.farthest());
  for (Index head = 0; head < params.alibi_slopes.count; ++head) {
    const double slope = double(params.alibi_slopes.data[head]);
    if (!(std::fabs(slope) * distance <= most_added))
      return Status::error(std::isnan(slope) ? ErrorCode::non_finite : ErrorCode::overflow,
                           "params: alibi_slopes: %g of head %lld, times distances, is beyond 2^100", slope,
                           number(head));
  }
  for (Index head = 0; head < params.sink_logits.count; ++head) {
    const double logit = double(params.sink_logits.data[head]);
    if (!(std::fabs(logit) <= most_added) && logit != -std::numeric_limits<double>::infinity())
      return Status::error(std::isnan(logit) ? ErrorCode::non_finite : ErrorCode::overflow,
                           "params: sink_logits: %g of head %lld; use numbers up to 2^100 in magnitude, or -infinity",
                           logit, number(head));
  }
  return params.mask.data == nullptr ? Status() : check_mask(kernels, params.mask, call.visible());
}

/// Greatest magnitudes that a layer's keys and values had when they were appended.
struct GreatestMagnitudes {
  float keys, values;
};

/// Numbers; shapes have been checked. Scores and weighted sums stay finite in float, with a factor of 8 to spare for
/// folded scales.
inline Status check_attention_numbers(const kernels::Table& kernels, const GreatestMagnitudes& greatest,
                                      const AttentionCall& call, const ConstTensor& queries, const Tensor& output,
                                      const AttentionParams& params) noexcept {
  constexpr double most = double(std::numeric_limits<float>::max()) / 8.0;
  const float magnitude = greatest_magnitude(kernels, queries);
  if (Status status = check_magnitude(queries, magnitude, std::numeric_limits<float>::max(), "queries"); !status.ok())
    return status;
  const double query = double(magnitude) * std::fabs(double(attention_scale(params, queries.dim)));
  const double key = double(greatest.keys), value = double(greatest.values);
  if (query * 1.45 > most || query * 1.45 * key * double(queries.dim) > most)
    return Status::error(ErrorCode::overflow, "queries: scale * |query| up to %g with |key| up to %g overflows float",
                         query, key);
  if (value * double(call.length()) > most || (output.type == ScalarType::f16 && value > 65504.0))
    return Status::error(ErrorCode::overflow, "output: sums of values up to %g overflow %s", value,
                         output.type == ScalarType::f16 ? "f16" : "float");
  return check_terms(kernels, call, params);
}

}  // namespace detail
ASYMKV_NAMESPACE_END
