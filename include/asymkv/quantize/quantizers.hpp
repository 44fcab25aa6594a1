// quantizers.hpp: KeyQuantizer<Bits> and ValueQuantizer<Bits>, usable alone on Eigen matrices of one head.
#pragma once

#include <limits>

#include "asymkv/quantize/quantized_matrix.hpp"

ASYMKV_NAMESPACE_BEGIN

namespace detail {

/// Largest magnitude in a view, as a float; infinity or NaN if there is one.
inline float greatest_magnitude(const kernels::Table& kernels, const ConstTensor& x) noexcept {
  std::uint32_t greatest = 0;
  const bool rows = x.dim_stride == 1;
  const bool one_row = rows && x.head_stride == x.dim;  // a token's heads lie side by side: fewer calls
  const Index heads = one_row ? 1 : x.heads;
  const Index dim = one_row ? x.heads * x.dim : x.dim;
  const Index step = rows ? dim : 1;
  for (Index token = 0; token < x.tokens; ++token)
    for (Index head = 0; head < heads; ++head)
      for (Index i = 0; i < dim; i += step) {
        const char* at = static_cast<const char*>(x.row(token, head)) + scalar_bytes(x.type) * i * x.dim_stride;
        const std::uint32_t bits = kernels.greatest_magnitude(at, x.type, step);
        greatest = bits > greatest ? bits : greatest;
      }
  if (x.type == ScalarType::f32) return bits_float(greatest);
  return x.type == ScalarType::f16 ? half_to_float(std::uint16_t(greatest))
                                   : bfloat16_to_float(std::uint16_t(greatest));
}

/// The first element of a view, heads within tokens, whose magnitude is not within a limit, for errors: there must be
/// one, and it is searched number by number.
struct FirstBeyond {
  float magnitude = 0.0f;
  char place[128] = "";
  FirstBeyond(const ConstTensor& x, float limit) noexcept {
    for (Index token = 0; token < x.tokens; ++token)
      for (Index head = 0; head < x.heads; ++head)
        for (Index i = 0; i < x.dim; ++i) {
          magnitude = std::fabs(load_scalar(x.row(token, head), x.type, i * x.dim_stride));
          if (magnitude <= limit) continue;
          std::snprintf(place, sizeof place,
                        "first at token %lld, head %lld, element %lld of this call, counted from 0",
                        static_cast<long long>(token), static_cast<long long>(head), static_cast<long long>(i));
          return;
        }
  }
};

/// Whether a format can hold x, whose greatest_magnitude() is `greatest`; `argument` is named in the error.
inline Status check_magnitude(const ConstTensor& x, float greatest, float limit, const char* argument) noexcept {
  constexpr float most = std::numeric_limits<float>::max();
  if (!(greatest <= most))
    return Status::error(ErrorCode::non_finite, "%s: contains NaN or infinity, %s", argument,
                         FirstBeyond(x, most).place);
  if (greatest > limit) {
    const FirstBeyond first(x, limit);
    return Status::error(ErrorCode::overflow,
                         "%s: magnitude %g is above %g, the most this format takes (f32 takes more), %s", argument,
                         double(first.magnitude), double(limit), first.place);
  }
  return {};
}

/// What sets one quantizer apart from another, in words, for errors.
struct QuantizerWords {
  char text[80];
  QuantizerWords(Side side, const Format& format) noexcept {
    std::snprintf(text, sizeof text, "%s, %d bits, group %d%s%s%s", side_name(side), format.bits, format.group_size,
                  format.fit == Fit::fitted ? ", fitted" : "", format.metadata == Metadata::compact ? ", compact" : "",
                  format.zero_point == ZeroPoint::symmetric ? ", symmetric" : "");
  }
};

}  // namespace detail

/// Round-to-nearest quantizer (paper section 2) with a scale and a zero point per group of `group_size` elements: along
/// tokens for keys (per channel), along channels for values (per token). Where group_size does not divide the row, the
/// last group is shorter. Bits in {1..6, 8}.
template <int Bits, Side kSide>
class Quantizer {
  static_assert(is_packed_bits(Bits), "Bits must be 1, 2, 3, 4, 5, 6 or 8");

 public:
  explicit Quantizer(int group_size = 32, Fit fit = Fit::min_max, Metadata metadata = Metadata::fp16,
                     ZeroPoint zero_point = ZeroPoint::affine) noexcept
      : format_{Bits, group_size, fit, metadata, zero_point} {}

  const Format& format() const noexcept { return format_; }

  /// Quantizes [tokens x channels] of float, Eigen::half or Eigen::bfloat16, any storage order and strides. O(size).
  /// Errors: invalid_argument (empty matrix, group_size), non_finite, overflow (magnitude above 32752, of symmetric
  /// formats 23000), out_of_memory, and what ASYMKV_FORCE_ISA may cause.
  template <class Derived>
  Result<QuantizedMatrix> quantize(const Eigen::DenseBase<Derived>& matrix) const noexcept {
    return quantize(tensor(matrix));
  }

  /// Writes code * scale + zero point (one rounding) to a matrix of the same shape.
  /// Errors: invalid_argument (shape, or `quantized` came from another quantizer), out_of_memory.
  template <class Derived>
  Status dequantize(const QuantizedMatrix& quantized, Eigen::DenseBase<Derived>& out) const noexcept {
    return dequantize(quantized, tensor(out));
  }

  /// The same for a view of one head, [tokens, 1, channels].
  Result<QuantizedMatrix> quantize(const ConstTensor& matrix) const noexcept {
    Result<const kernels::Table*> table = kernels::choose_table();
    if (!table.ok()) return table.status();
    if (Status status = check_view(matrix, "matrix"); !status.ok()) return status;
    Result<QuantizedMatrix> result = QuantizedMatrix::create(kSide, format_, matrix.tokens, matrix.dim);
    if (!result.ok()) return result;
    const float greatest = detail::greatest_magnitude(**table, matrix);
    const float limit = magnitude_limit(format_, matrix.dim);
    if (Status status = detail::check_magnitude(matrix, greatest, limit, "matrix"); !status.ok()) return status;
    const PanelLayout& layout = result->layout();
    Buffer scratch;
    if (!scratch.allocate(Index(sizeof(float)) * writer_scratch(layout), Allocator()))
      return Status::error(ErrorCode::out_of_memory, "matrix: no memory for scratch");
    write_panel(**table, layout, result->data(),
                panel_source(kSide, matrix.data, matrix.type, matrix.token_stride, matrix.dim_stride),
                {0, layout.lanes, 0, layout.depth}, reinterpret_cast<float*>(scratch.data()));
    return result;
  }

  Status dequantize(const QuantizedMatrix& quantized, const Tensor& out) const noexcept {
    Result<const kernels::Table*> table = kernels::choose_table();
    if (!table.ok()) return table.status();
    if (Status status = check_view(out, "out"); !status.ok()) return status;
    if (quantized.side() != kSide || quantized.format() != format_)
      return Status::error(ErrorCode::invalid_argument, "quantized: made by another quantizer (%s) than this one (%s)",
                           detail::QuantizerWords(quantized.side(), quantized.format()).text,
                           detail::QuantizerWords(kSide, format_).text);
    if (out.tokens != quantized.tokens() || out.dim != quantized.channels())
      return Status::error(ErrorCode::invalid_argument, "out: is %lld x %lld, must be %lld x %lld",
                           static_cast<long long>(out.tokens), static_cast<long long>(out.dim),
                           static_cast<long long>(quantized.tokens()), static_cast<long long>(quantized.channels()));
    const PanelLayout& layout = quantized.layout();
    Buffer scratch;
    if (!scratch.allocate(Index(sizeof(float)) * reader_scratch(layout), Allocator()))
      return Status::error(ErrorCode::out_of_memory, "out: no memory for scratch");
    read_panel(**table, kSide, layout, quantized.data(), 0, quantized.tokens(), out, 0,
               reinterpret_cast<float*>(scratch.data()));
    return {};
  }

 private:
  static Status check_view(const ConstTensor& view, const char* name) noexcept {
    if (view.heads != 1)
      return Status::error(ErrorCode::invalid_argument, "%s: has %lld heads; a quantizer takes one", name,
                           static_cast<long long>(view.heads));
    if (view.tokens < 1 || view.dim < 1)
      return Status::error(ErrorCode::invalid_argument, "%s: is empty, %lld tokens x %lld channels", name,
                           static_cast<long long>(view.tokens), static_cast<long long>(view.dim));
    if (view.data == nullptr) return Status::error(ErrorCode::invalid_argument, "%s: data is null", name);
    return {};
  }

  Format format_;
};

template <int Bits>
using KeyQuantizer = Quantizer<Bits, Side::keys>;
template <int Bits>
using ValueQuantizer = Quantizer<Bits, Side::values>;

ASYMKV_NAMESPACE_END
