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

inline Status check_optional_tensors(const ConstTensor& queries, const AttentionParams& params, Index length) noexcept {
  const ConstTensor& mask = params.mask;
  if (mask.data != nullptr &&
      (mask.tokens != queries.tokens || (mask.heads != 1 && mask.heads != queries.heads) || mask.dim != length))
    return Status::error(ErrorCode::invalid_argument,
                         "params: mask: shape is [%lld, %lld, %lld], must be [%lld, 1 or %lld, %lld]",
                         number(mask.tokens), number(mask.heads), number(mask.dim), number(queries.tokens),
                         number(queries.heads), number(length));
  if (mask.data == nullptr && (mask.tokens != 0 || mask.dim != 0))
    return Status::error(ErrorCode::invalid_argument, "params: mask: data is null");
  const Tensor& lse = params.lse;
  if (lse.data == nullptr && lse.tokens == 0) return {};
  if (lse.data == nullptr) return Status::error(ErrorCode::invalid_argument, "params: lse: data is null");
  if (lse.tokens != queries.tokens || lse.heads != queries.heads || lse.dim != 1 || lse.type != ScalarType::f32)
    return Status::error(ErrorCode::invalid_argument,
                         "params: lse: is [%lld, %lld, %lld] in %s, must be [%lld, %lld, 1] in f32", number(lse.tokens),
                         number(lse.heads), number(lse.dim), scalar_name(lse.type), number(queries.tokens),
                         number(queries.heads));
  return {};
}

/// Shapes, and numbers that are no tensors. `length` is the layer's.
inline Status check_attention_shapes(const CacheShape& shape, Index length, const ConstTensor& q, const Tensor& out,
                                     const AttentionParams& params) noexcept {
  constexpr Index farthest = Index(1) << 32;
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
    return Status::error(ErrorCode::invalid_argument, "params: scale is %g; its magnitude may be 2^126 at most",
                         double(params.scale));
  if (q.tokens < 1 || q.heads < 1 || q.heads % shape.kv_heads != 0 || q.dim != shape.key_dim)
    return Status::error(ErrorCode::invalid_argument,
                         "queries: shape is [%lld, %lld, %lld], must be [n, multiple of %lld, %lld]", number(q.tokens),
                         number(q.heads), number(q.dim), number(shape.kv_heads), number(shape.key_dim));
  if (length == 0 || (!params.position && q.tokens > length))
    return Status::error(ErrorCode::out_of_range, "queries: %lld tokens, but the layer has %lld; append comes first",
                         number(q.tokens), number(length));
  if (out.tokens != q.tokens || out.heads != q.heads || out.dim != shape.value_dim)
    return Status::error(ErrorCode::invalid_argument, "output: shape is [%lld, %lld, %lld], must be [%lld, %lld, %lld]",
                         number(out.tokens), number(out.heads), number(out.dim), number(q.tokens), number(q.heads),
                         number(shape.value_dim));
  if (q.data == nullptr || out.data == nullptr)
    return Status::error(ErrorCode::invalid_argument, "%s: data is null", q.data == nullptr ? "queries" : "output");
  if (Status status = check_head_numbers(params.alibi_slopes, "alibi_slopes", q.heads); !status.ok()) return status;
  if (Status status = check_head_numbers(params.sink_logits, "sink_logits", q.heads); !status.ok()) return status;
  return check_optional_tensors(q, params, length);
}

/// Most that is added to a score: sums stay finite.
constexpr double most_added = 0x1p100;

/// Finite numbers up to most_added and -infinity.
inline bool is_mask(const kernels::Table& kernels, const ConstTensor& mask) noexcept {
  constexpr std::uint32_t hidden = 0xff800000u;
  std::uint32_t greatest = 0;
  float x[page_tokens];
  for (Index token = 0; token < mask.tokens; ++token)
    for (Index head = 0; head < mask.heads; ++head)
      for (Index first = 0; first < mask.dim; first += page_tokens) {
        const Index count = std::min(page_tokens, mask.dim - first);
        load_elements(kernels, mask, token, head, {first, first + count}, x);
        for (Index i = 0; i < count; ++i) {
          const std::uint32_t bits = float_bits(x[i]);
          greatest = std::max(greatest, bits == hidden ? 0u : bits & 0x7fffffffu);
        }
      }
  return greatest <= float_bits(float(most_added));
}

/// Numbers of the optional arguments.
inline Status check_terms(const kernels::Table& kernels, Index length, const ConstTensor& queries,
                          const AttentionParams& params) noexcept {
  const double first = double(params.position.value_or(length - queries.tokens));
  const double distance = std::fabs(first) + double(length) + double(queries.tokens);
  for (Index head = 0; head < params.alibi_slopes.count; ++head)
    if (const double slope = double(params.alibi_slopes.data[head]); !(std::fabs(slope) * distance <= most_added))
      return Status::error(ErrorCode::overflow,
                           "params: alibi_slopes: %g of head %lld, times distances, is beyond 2^100", slope,
                           number(head));
  for (Index head = 0; head < params.sink_logits.count; ++head)
    if (const double logit = double(params.sink_logits.data[head]); !(std::fabs(logit) <= most_added))
      return Status::error(ErrorCode::overflow, "params: sink_logits: %g of head %lld is beyond 2^100", logit,
                           number(head));
  if (params.mask.data != nullptr && !is_mask(kernels, params.mask))
    return Status::error(ErrorCode::non_finite, "params: mask: use numbers up to 2^100 in magnitude, or -infinity");
  return {};
}

/// Greatest magnitudes that a layer's keys and values had when they were appended.
struct GreatestMagnitudes {
  float keys, values;
};

/// Numbers; shapes have been checked. Scores and weighted sums stay finite in float, with a factor of 8 to spare for
/// folded scales.
inline Status check_attention_numbers(const kernels::Table& kernels, const GreatestMagnitudes& greatest, Index length,
                                      const ConstTensor& queries, const Tensor& output,
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
  if (value * double(length) > most || (output.type == ScalarType::f16 && value > 65504.0))
    return Status::error(ErrorCode::overflow, "output: sums of values up to %g overflow %s", value,
                         output.type == ScalarType::f16 ? "f16" : "float");
  return check_terms(kernels, length, queries, params);
}

}  // namespace detail
ASYMKV_NAMESPACE_END
