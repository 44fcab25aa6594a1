// merge.hpp: one attention out of two over different tokens, so that a context may be split over caches, sockets or
// machines. Used by engines that do so.
#pragma once

#include <cmath>
#include <limits>

#include "asymkv/cache/kv_cache.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

inline Status check_part(const ConstTensor& x, const char* name, const Tensor& output, Index dim) noexcept {
  if (x.data == nullptr) return Status::error(ErrorCode::invalid_argument, "%s: data is null", name);
  if (x.tokens >= 0 && x.heads >= 0 && dim >= 0 && x.tokens == output.tokens && x.heads == output.heads && x.dim == dim)
    return {};
  return Status::error(
      ErrorCode::invalid_argument, "%s: shape is [%lld, %lld, %lld], must be [%lld, %lld, %lld], none negative", name,
      number(x.tokens), number(x.heads), number(x.dim), number(output.tokens), number(output.heads), number(dim));
}

inline Status check_lse(const ConstTensor& lse, const char* name, const Tensor& output) noexcept {
  if (Status status = check_part(lse, name, output, 1); !status.ok()) return status;
  if (lse.type != ScalarType::f32)
    return Status::error(ErrorCode::invalid_argument, "%s: is in %s, must be in f32", name, scalar_name(lse.type));
  for (Index token = 0; token < lse.tokens; ++token)
    for (Index head = 0; head < lse.heads; ++head)
      if (!(load_scalar(lse.row(token, head), ScalarType::f32, 0) <= std::numeric_limits<float>::max()))
        return Status::error(ErrorCode::non_finite, "%s: of token %lld, head %lld is NaN or infinity", name,
                             number(token), number(head));
  return {};
}

}  // namespace detail

/// `output` [tokens, heads, dim] and its `lse` [tokens, heads, 1] become those of attention over both sets of tokens,
/// of which the other's are `more` and `more_lse`: what attend writes into output and AttentionParams::lse. Outputs are
/// weighted by exp(lse), so parts may be merged in any order and grouping, alike within rounding; -infinity is a part
/// that saw nothing, whose output is not read. Sink logits belong to one part alone. Outputs in f32, f16 or bf16, lse
/// in f32, any strides. Errors: invalid_argument (shapes, types, null data), non_finite (an lse that is NaN or
/// +infinity); then nothing is written.
inline Status merge_attention(const ConstTensor& more, const ConstTensor& more_lse, const Tensor& output,
                              const Tensor& lse) noexcept {
  if (Status status = detail::check_part(output, "output", output, output.dim); !status.ok()) return status;
  if (Status status = detail::check_part(more, "more", output, output.dim); !status.ok()) return status;
  if (Status status = detail::check_lse(lse, "lse", output); !status.ok()) return status;
  if (Status status = detail::check_lse(more_lse, "more_lse", output); !status.ok()) return status;
  for (Index token = 0; token < output.tokens; ++token)
    for (Index head = 0; head < output.heads; ++head) {
      const float a = load_scalar(lse.row(token, head), ScalarType::f32, 0);
      const float b = load_scalar(more_lse.row(token, head), ScalarType::f32, 0);
      if (b == -std::numeric_limits<float>::infinity()) continue;
      const float greatest = a > b ? a : b;
      const float weight = std::exp(a - greatest), more_weight = std::exp(b - greatest), sum = weight + more_weight;
      for (Index i = 0; i < output.dim; ++i) {
        const float x =
            weight == 0.0f ? 0.0f : load_scalar(output.row(token, head), output.type, i * output.dim_stride);
        const float y = load_scalar(more.row(token, head), more.type, i * more.dim_stride);
        store_scalar(output.row(token, head), output.type, i * output.dim_stride, (weight * x + more_weight * y) / sum);
      }
      store_scalar(lse.row(token, head), ScalarType::f32, 0, greatest + std::log(sum));
    }
  return {};
}

ASYMKV_NAMESPACE_END
