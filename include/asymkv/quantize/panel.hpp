// panel.hpp: the storage layout of quantized keys and values, where each code lies in it.
// Used by the quantizers (write), the kernels (read), the policy and the cache (bytes).
//
// Scores are q.K^T and outputs are p.V: each is a row times a matrix [depth x lanes], where depth is summed over and
// each lane is one result. Keys: depth = channels, lanes = tokens. Values: depth = tokens, lanes = channels.
// Per-channel keys and per-token values then both mean: groups run along the lanes, one scale and zero point per
// (group, depth). So one layout, one quantizer and one product kernel serve both sides, and the scales fold into the
// row on the left.
//
//   panel   = codes | scales [groups][depth_stride] | zero points [groups][depth_stride] | widths | pad to 64 bytes
//             scales: binary16, or compact codes; zero points: binary16, none where symmetric; widths: mixed alone
//   codes   = [lane tiles of 16][depth blocks of 32][vectors of 64 bytes], `bits` vectors a block
//   vector  = 16 little-endian 32-bit words, word i belongs to lane i of the tile
//   word    = byte d%4 holds depth d; inside it, fields of w bits from the low end hold depths d, d+4, d+8, ...
//
//   1-bit word of a lane, depth in each field (low bit of a byte first):
//     byte 0: 0 4 8 12 16 20 24 28 | byte 1: 1 5 9 ... | byte 2: 2 6 10 ... | byte 3: 3 7 11 ... 31
//
// Widths that are no power of two are two planes: 3 = 2+1, 5 = 4+1, 6 = 4+2; the vectors of the low plane come first.
// Mixed widths (keys): channels lie in an order of their own, those of one width side by side (mixed_widths.hpp), and
// so do their scales and zero points. Four neighbours of one width, a quad, lie in the same bits of the vectors' bytes,
// channel i of a quad in bytes i of the words. A lane tile is mixed_halves * depth / 64 vectors, each of one of these
// kinds, in this order; but eight quads of 3 bits are three vectors as above, eight of 5 are five, and four of 6 three:
//
//   bits of a byte, low ones first:
//     8 | 4 4 | 2 2 2 2 | 1 1 1 1 1 1 1 1 | blocks of 3, of 5, of 6 | 5 3 | 6 2 | 3 3 2 | 3 2 2 1
//
// `widths` is four sets, of the channels whose width has the binary digit 8, 4, 2 and 1: bit c%8 of byte c/8 stands for
// channel c.
//
// A vector load thus gives, by one shift and mask, 16 lanes x 4 depths of byte codes: what float conversion and 4-way
// integer dot products both want. Lanes are padded to 16 and depth to 32; the padding is counted as stored.
#pragma once

#include "asymkv/format.hpp"
#include "asymkv/quantize/compact_scale.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Tokens of a page.
constexpr Index page_tokens = 128;
constexpr Index tile_lanes = 16;
constexpr Index block_depth = 32;

constexpr Index round_up(Index n, Index multiple) noexcept { return (n + multiple - 1) / multiple * multiple; }
/// Elements that a dense row of `dim` elements takes in the cache.
constexpr Index padded_dim(Index dim) noexcept { return round_up(dim, tile_lanes); }

/// Widths of the two planes of a code; high is 0 where one plane holds it all.
struct Planes {
  int low, high;
};
constexpr Planes planes_of(int bits) noexcept {
  return bits == 3 ? Planes{2, 1} : bits == 5 ? Planes{4, 1} : bits == 6 ? Planes{4, 2} : Planes{bits, 0};
}

/// Zero point of a symmetric format over its scale: levels lie evenly around 0.
constexpr float symmetric_zero_point(int bits) noexcept { return -0.5f * float((1 << bits) - 1); }

/// Deepest panel with mixed widths: its channels are reordered in small buffers.
constexpr Index mixed_depth_limit = 256;

/// Sizes and offsets of a panel, in bytes.
struct PanelLayout {
  Format format;
  Index lanes = 0;
  Index depth = 0;

  constexpr Index group_size() const noexcept { return format.group_size; }
  /// Without a division: kernels ask once a page.
  constexpr Index groups() const noexcept {
    return (lanes + group_size() - 1) >> (group_size() == 32 ? 5 : group_size() == 64 ? 6 : 7);
  }
  constexpr Index depth_blocks() const noexcept { return (depth + block_depth - 1) / block_depth; }
  constexpr Index depth_stride() const noexcept { return round_up(depth, tile_lanes); }
  /// Elements of rows on the left: mixed widths have whole quads of channels.
  constexpr Index slots() const noexcept { return format.mixed() ? round_up(depth, 4) : depth; }
  constexpr Index block_bytes() const noexcept { return format.bits * 64; }
  constexpr Index tile_vectors() const noexcept {
    return format.mixed() ? (format.mixed_halves * depth + 63) / 64 : depth_blocks() * format.bits;
  }
  constexpr Index tile_bytes() const noexcept { return tile_vectors() * 64; }
  constexpr Index code_bytes() const noexcept { return (lanes + tile_lanes - 1) / tile_lanes * tile_bytes(); }

  constexpr Index metadata_count() const noexcept { return groups() * depth_stride(); }
  constexpr Index scale_bytes() const noexcept { return format.metadata == Metadata::compact ? 1 : 2; }
  constexpr Index zero_point_bytes() const noexcept { return format.zero_point == ZeroPoint::symmetric ? 0 : 2; }
  constexpr Index scale_offset() const noexcept { return code_bytes(); }
  constexpr Index zero_point_offset() const noexcept { return scale_offset() + scale_bytes() * metadata_count(); }
  constexpr Index widths_offset() const noexcept { return zero_point_offset() + zero_point_bytes() * metadata_count(); }
  /// Bytes of one set of channels.
  constexpr Index width_set_bytes() const noexcept { return depth_stride() / 8; }
  constexpr Index widths_bytes() const noexcept { return format.mixed() ? 4 * width_set_bytes() : 0; }
  constexpr Index metadata_bytes() const noexcept { return widths_offset() + widths_bytes() - scale_offset(); }
  constexpr Index bytes() const noexcept { return round_up(code_bytes() + metadata_bytes(), 64); }
};

/// Panel of one kv head in a page: `dim` is key_dim or value_dim.
constexpr PanelLayout page_layout(const Format& format, Side side, Index dim) noexcept {
  return side == Side::keys ? PanelLayout{format, page_tokens, dim} : PanelLayout{format, dim, page_tokens};
}

namespace detail {

/// Where a plane of `width` bits keeps those of depth `depth` of a block.
struct PlaneField {
  Index byte;  ///< behind the lane's word in the plane's first vector
  int shift, mask;
  PlaneField(Index depth, int width) noexcept
      : byte(64 * (depth / 4 * width / 8) + depth % 4), shift(int(depth / 4 * width % 8)), mask((1 << width) - 1) {}
};

inline int extract_plane(const unsigned char* word, Index depth, int width) noexcept {
  const PlaneField field(depth, width);
  return word[field.byte] >> field.shift & field.mask;
}
inline void insert_plane(unsigned char* word, Index depth, int width, int code) noexcept {
  const PlaneField field(depth, width);
  const int others = word[field.byte] & ~(field.mask << field.shift);
  word[field.byte] = static_cast<unsigned char>(others | (code & field.mask) << field.shift);
}

inline Index word_offset(const PanelLayout& layout, Index lane, Index block) noexcept {
  return lane / tile_lanes * layout.tile_bytes() + block * layout.block_bytes() + lane % tile_lanes * 4;
}

}  // namespace detail

/// Code of (lane, depth).
inline int extract_code(const PanelLayout& layout, const unsigned char* panel, Index lane, Index depth) noexcept {
  const unsigned char* word = panel + detail::word_offset(layout, lane, depth / block_depth);
  const Planes planes = planes_of(layout.format.bits);
  const int low = detail::extract_plane(word, depth % block_depth, planes.low);
  if (planes.high == 0) return low;
  return low | detail::extract_plane(word + 64 * planes.low, depth % block_depth, planes.high) << planes.low;
}

/// Stores the code of (lane, depth). Kernels store whole batches (text/pack.inl).
inline void insert_code(const PanelLayout& layout, unsigned char* panel, Index lane, Index depth, int code) noexcept {
  unsigned char* word = panel + detail::word_offset(layout, lane, depth / block_depth);
  const Planes planes = planes_of(layout.format.bits);
  detail::insert_plane(word, depth % block_depth, planes.low, code);
  if (planes.high != 0)
    detail::insert_plane(word + 64 * planes.low, depth % block_depth, planes.high, code >> planes.low);
}

/// Scale and zero point number `index` (group * depth_stride + depth), as stored.
inline float stored_scale(const PanelLayout& layout, const unsigned char* panel, Index index) noexcept {
  if (layout.format.metadata == Metadata::compact) return compact_scales.value[panel[layout.scale_offset() + index]];
  return load_scalar(panel + layout.scale_offset(), ScalarType::f16, index);
}
inline float stored_zero_point(const PanelLayout& layout, const unsigned char* panel, Index index) noexcept {
  if (layout.format.zero_point == ZeroPoint::affine)
    return load_scalar(panel + layout.zero_point_offset(), ScalarType::f16, index);
  return stored_scale(layout, panel, index) * symmetric_zero_point(layout.format.bits);
}
/// The scale must be one that the metadata can hold.
inline void store_metadata(const PanelLayout& layout, unsigned char* panel, Index index, float scale,
                           float zero_point) noexcept {
  if (layout.format.metadata == Metadata::compact)
    panel[layout.scale_offset() + index] = compact_code(scale);
  else
    store_scalar(panel + layout.scale_offset(), ScalarType::f16, index, scale);
  if (layout.format.zero_point == ZeroPoint::affine)
    store_scalar(panel + layout.zero_point_offset(), ScalarType::f16, index, zero_point);
}

ASYMKV_NAMESPACE_END
