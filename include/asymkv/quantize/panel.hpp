// panel.hpp: the storage layout of quantized keys and values, and the only code that knows where a code lies in it.
// Used by the quantizers (write), the kernels (read), the policy and the cache (bytes).
//
// Scores are q.K^T and outputs are p.V: each is a row times a matrix [depth x lanes], where depth is summed over and
// each lane is one result. Keys: depth = channels, lanes = tokens. Values: depth = tokens, lanes = channels.
// Per-channel keys and per-token values then both mean: groups run along the lanes, one scale and zero point per
// (group, depth). So one layout, one quantizer and one product kernel serve both sides, and the scales fold into the
// row on the left.
//
//   panel   = codes | scales fp16 [groups][depth_stride] | zero points fp16 [groups][depth_stride] | pad to 64 bytes
//   codes   = [lane tiles of 16][depth blocks of 32][vectors of 64 bytes], `bits` vectors a block
//   vector  = 16 little-endian 32-bit words, word i belongs to lane i of the tile
//   word    = byte d%4 holds depth d; inside it, fields of w bits from the low end hold depths d, d+4, d+8, ...
//
//   1-bit word of a lane, depth in each field (low bit of a byte first):
//     byte 0: 0 4 8 12 16 20 24 28 | byte 1: 1 5 9 ... | byte 2: 2 6 10 ... | byte 3: 3 7 11 ... 31
//
// Widths that are no power of two are two planes: 3 = 2+1, 5 = 4+1, 6 = 4+2; the vectors of the low plane come first.
// A vector load thus gives, by one shift and mask, 16 lanes x 4 depths of byte codes: what float conversion and 4-way
// integer dot products both want. Lanes are padded to 16 and depth to 32; the padding is counted as stored.
#pragma once

#include "asymkv/format.hpp"

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

/// Sizes and offsets of a panel, in bytes.
struct PanelLayout {
  int bits = 0;
  int group_size = 0;
  Index lanes = 0;
  Index depth = 0;

  static constexpr PanelLayout make(const Format& format, Index lanes, Index depth) noexcept {
    return {format.bits, format.group_size, lanes, depth};
  }

  constexpr Index groups() const noexcept { return (lanes + group_size - 1) / group_size; }
  constexpr Index group_lanes(Index group) const noexcept {
    return lanes - group * group_size < group_size ? lanes - group * group_size : group_size;
  }
  constexpr Index depth_blocks() const noexcept { return (depth + block_depth - 1) / block_depth; }
  constexpr Index depth_stride() const noexcept { return round_up(depth, tile_lanes); }
  constexpr Index block_bytes() const noexcept { return bits * 64; }
  constexpr Index tile_bytes() const noexcept { return depth_blocks() * block_bytes(); }
  constexpr Index code_bytes() const noexcept { return (lanes + tile_lanes - 1) / tile_lanes * tile_bytes(); }
  constexpr Index scale_offset() const noexcept { return code_bytes(); }
  constexpr Index zero_point_offset() const noexcept { return code_bytes() + 2 * groups() * depth_stride(); }
  constexpr Index metadata_bytes() const noexcept { return 4 * groups() * depth_stride(); }
  constexpr Index bytes() const noexcept { return round_up(code_bytes() + metadata_bytes(), 64); }
};

/// Panel of one kv head in a page: `dim` is key_dim or value_dim.
constexpr PanelLayout page_layout(const Format& format, Side side, Index dim) noexcept {
  return side == Side::keys ? PanelLayout::make(format, page_tokens, dim) : PanelLayout::make(format, dim, page_tokens);
}

namespace detail {

/// Writes one plane of the codes of 16 depths of one lane. `word` is the lane's word in the block's first vector of the
/// plane, `half` says which 16 of the block's 32 depths; bytes of `valid` that are 0 keep what is stored.
template <int Width>
inline void insert_plane(unsigned char* word, Index half, int shift, const unsigned char* codes,
                         const std::uint32_t* valid) noexcept {
  constexpr int fields = 8 / Width;
  constexpr std::uint32_t field_mask = 0x01010101u * ((1u << Width) - 1u);
  for (Index i = 0; i < 4; ++i) {
    const Index quad = 4 * half + i;
    const int position = Width * int(quad % fields);
    unsigned char* at = word + 64 * (quad / fields);
    std::uint32_t stored, fresh;
    std::memcpy(&stored, at, 4);
    std::memcpy(&fresh, codes + 4 * i, 4);
    const std::uint32_t mask = (valid[i] & field_mask) << position;
    stored = (stored & ~mask) | (((fresh >> shift) & field_mask) << position & mask);
    std::memcpy(at, &stored, 4);
  }
}

template <int Width>
inline int extract_plane(const unsigned char* word, Index depth) noexcept {
  constexpr int fields = 8 / Width;
  const Index quad = depth / 4;
  return word[64 * (quad / fields) + depth % 4] >> (Width * int(quad % fields)) & ((1 << Width) - 1);
}

inline Index word_offset(const PanelLayout& layout, Index lane, Index block) noexcept {
  return lane / tile_lanes * layout.tile_bytes() + block * layout.block_bytes() + lane % tile_lanes * 4;
}

}  // namespace detail

/// Stores codes of one lane at depths batch*16 + i, for i in [first, last) of 0..16; other codes stay.
inline void insert_codes(const PanelLayout& layout, unsigned char* panel, Index lane, Index batch, Index first,
                         Index last, const unsigned char codes[16]) noexcept {
  unsigned char* word = panel + detail::word_offset(layout, lane, batch / 2);
  const Index half = batch % 2;
  unsigned char bytes[16];
  for (Index i = 0; i < 16; ++i) bytes[i] = i >= first && i < last ? 0xff : 0;
  std::uint32_t valid[4];
  std::memcpy(valid, bytes, 16);
  const Planes planes = planes_of(layout.bits);
  unsigned char* high = word + 64 * planes.low;
  switch (planes.low) {
    case 1:
      detail::insert_plane<1>(word, half, 0, codes, valid);
      break;
    case 2:
      detail::insert_plane<2>(word, half, 0, codes, valid);
      break;
    case 4:
      detail::insert_plane<4>(word, half, 0, codes, valid);
      break;
    default:
      detail::insert_plane<8>(word, half, 0, codes, valid);
  }
  if (planes.high == 1) detail::insert_plane<1>(high, half, planes.low, codes, valid);
  if (planes.high == 2) detail::insert_plane<2>(high, half, planes.low, codes, valid);
}

/// Code of (lane, depth).
inline int extract_code(const PanelLayout& layout, const unsigned char* panel, Index lane, Index depth) noexcept {
  const unsigned char* word = panel + detail::word_offset(layout, lane, depth / block_depth);
  const Index d = depth % block_depth;
  const Planes planes = planes_of(layout.bits);
  const unsigned char* high = word + 64 * planes.low;
  const int low = planes.low == 1   ? detail::extract_plane<1>(word, d)
                  : planes.low == 2 ? detail::extract_plane<2>(word, d)
                  : planes.low == 4 ? detail::extract_plane<4>(word, d)
                                    : detail::extract_plane<8>(word, d);
  if (planes.high == 0) return low;
  return low | (planes.high == 1 ? detail::extract_plane<1>(high, d) : detail::extract_plane<2>(high, d)) << planes.low;
}

/// Bits of the stored scale (zero point) of (group, depth).
inline std::uint16_t metadata_bits(const unsigned char* panel, Index offset, Index index) noexcept {
  std::uint16_t bits;
  std::memcpy(&bits, panel + offset + 2 * index, 2);
  return bits;
}
inline void set_metadata_bits(unsigned char* panel, Index offset, Index index, std::uint16_t bits) noexcept {
  std::memcpy(panel + offset + 2 * index, &bits, 2);
}

ASYMKV_NAMESPACE_END
