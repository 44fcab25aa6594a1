// quantized_matrix.hpp: a matrix [tokens x channels] of one head as codes, scales and zero points. Made by
// KeyQuantizer, ValueQuantizer and import_kivi.
#pragma once

#include "asymkv/memory.hpp"
#include "asymkv/quantize/panel_writer.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Owns one panel. Indices are not checked; tokens and channels are those of the matrix that was quantized.
class QuantizedMatrix {
 public:
  /// Zero codes, scales and zero points. Errors: invalid_argument, out_of_memory.
  static Result<QuantizedMatrix> create(Side side, const Format& format, Index tokens, Index channels) noexcept {
    if (Status status = check(format, side); !status.ok()) return status;
    if (!format.packed())
      return Status::error(ErrorCode::invalid_argument, "format: bits is %d; a quantizer packs 1..6 or 8", format.bits);
    if (format.mixed() || format.rotation != Rotation::none)
      return Status::error(ErrorCode::unsupported, "format: mixed widths and rotation are offered by caches alone");
    constexpr Index most = Index(1) << 31;
    if (tokens < 1 || tokens > most || channels < 1 || channels > most || tokens * channels > most)
      return Status::error(
          ErrorCode::invalid_argument,
          "matrix: %lld tokens x %lld channels; both must be at least 1 and their product at most 2^31",
          static_cast<long long>(tokens), static_cast<long long>(channels));
    QuantizedMatrix matrix;
    matrix.side_ = side;
    matrix.format_ = format;
    matrix.layout_ = side == Side::keys ? PanelLayout{format, tokens, channels} : PanelLayout{format, channels, tokens};
    if (!matrix.panel_.allocate(matrix.layout_.bytes(), Allocator()))
      return Status::error(ErrorCode::out_of_memory, "matrix: no memory for %lld bytes",
                           static_cast<long long>(matrix.layout_.bytes()));
    return matrix;
  }

  Side side() const noexcept { return side_; }
  const Format& format() const noexcept { return format_; }
  int bits() const noexcept { return format_.bits; }
  Index group_size() const noexcept { return format_.group_size; }
  Index tokens() const noexcept { return side_ == Side::keys ? layout_.lanes : layout_.depth; }
  Index channels() const noexcept { return side_ == Side::keys ? layout_.depth : layout_.lanes; }

  int code(Index token, Index channel) const noexcept {
    return extract_code(layout_, panel_.data(), lane_of(token, channel), depth_of(token, channel));
  }
  float scale(Index token, Index channel) const noexcept {
    return stored_scale(layout_, panel_.data(), metadata_index(token, channel));
  }
  float zero_point(Index token, Index channel) const noexcept {
    return stored_zero_point(layout_, panel_.data(), metadata_index(token, channel));
  }
  /// Position of the group of an element in both metadata arrays.
  Index metadata_index(Index token, Index channel) const noexcept {
    return lane_of(token, channel) / layout_.group_size() * layout_.depth_stride() + depth_of(token, channel);
  }

  /// Bytes as stored, padding included: all, codes, scales and zero points.
  Index bytes() const noexcept { return layout_.bytes(); }
  Index code_bytes() const noexcept { return layout_.code_bytes(); }
  Index metadata_bytes() const noexcept { return layout_.metadata_bytes(); }
  const PanelLayout& layout() const noexcept { return layout_; }
  const unsigned char* data() const noexcept { return panel_.data(); }
  unsigned char* data() noexcept { return panel_.data(); }

 private:
  QuantizedMatrix() noexcept = default;
  Index lane_of(Index token, Index channel) const noexcept { return side_ == Side::keys ? token : channel; }
  Index depth_of(Index token, Index channel) const noexcept { return side_ == Side::keys ? channel : token; }

  Side side_ = Side::keys;
  Format format_;
  PanelLayout layout_;
  Buffer panel_;
};

ASYMKV_NAMESPACE_END
