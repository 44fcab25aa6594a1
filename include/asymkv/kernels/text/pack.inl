// pack.inl: codes into the words of a panel (panel.hpp has the picture), 16 lanes at once: what dot.inl and
// dequantize.inl read. Included once per instruction set, after dequantize.inl.

/// Writes one plane of a batch into a lane tile: bits [shift, shift + Width) of its codes. `vector` is the plane's
/// first in the block.
template <int Width>
inline void insert_plane(const CodeBatch& batch, const U32x16 (&quads)[4], U32x16 lanes, unsigned char* vector,
                         int shift) {
  constexpr int fields = 8 / Width, together = fields < 4 ? fields : 4;  // quads of codes that one word takes
  constexpr std::uint32_t field_mask = 0x01010101u * ((1u << Width) - 1u);
  const int half = int(batch.batch % 2) * 4;
  vector += 64 * (half / fields);
  ASYMKV_UNROLL
  for (int v = 0; v < 4 / together; ++v, vector += 64) {
    U32x16 fresh = zero_words();
    std::uint32_t replaced = 0;
    ASYMKV_UNROLL
    for (int q = 0; q < together; ++q) {
      const int place = Width * ((half + q) % fields);
      fresh = bit_or(fresh, shift_left(bit_and(shift_right(quads[v * together + q], shift), field_mask), place));
      for (int i = 0; i < 4; ++i) {
        const Index depth = 4 * (v * together + q) + i;
        if (depth >= batch.first && depth < batch.last) replaced |= ((1u << Width) - 1u) << (8 * i + place);
      }
    }
    store_words(vector, blend_bits(bit_and(lanes, replaced), fresh, load_words(vector)));
  }
}

/// All planes of a batch of Bits-bit codes.
template <int Bits>
inline void insert_tiles(const PanelLayout& layout, unsigned char* panel, const CodeBatch& batch) {
  constexpr Planes planes = planes_of(Bits);
  const Index end = batch.lane + batch.lanes;
  const unsigned char* codes = batch.codes;
  for (Index tile = batch.lane / tile_lanes; tile * tile_lanes < end; ++tile, codes += 16 * tile_lanes) {
    std::uint32_t lanes[tile_lanes];
    for (Index l = 0; l < tile_lanes; ++l)
      lanes[l] = tile * tile_lanes + l >= batch.lane && tile * tile_lanes + l < end ? 0xffffffffu : 0u;
    U32x16 quads[4];
    load_quads(codes, quads);
    unsigned char* block = panel + tile * layout.tile_bytes() + batch.batch / 2 * (64 * Bits);
    insert_plane<planes.low>(batch, quads, load_words(lanes), block, 0);
    if constexpr (planes.high != 0)
      insert_plane<planes.high>(batch, quads, load_words(lanes), block + 64 * planes.low, planes.low);
  }
}

inline void insert_codes(const PanelLayout& layout, unsigned char* panel, const CodeBatch& batch) {
  with_packed_bits(layout.format.bits, [&](auto bits) { insert_tiles<bits()>(layout, panel, batch); });
}

/// Where the bits of a channel's plane are among the codes of a lane tile: bits [shift, shift + width) of the words of
/// a quad.
struct PlaneSource {
  std::uint8_t quad, shift;
};

/// The vectors of one plane of a lane tile.
template <int Width>
inline unsigned char* pack_plane(const U32x16* quads, const PlaneSource* sources, Index vectors, unsigned char* to) {
  constexpr int fields = 8 / Width;
  for (; vectors > 0; --vectors, sources += 4 * fields, to += 64) {
    U32x16 word = zero_words();
    ASYMKV_UNROLL
    for (int byte = 3; byte >= 0; --byte) ASYMKV_UNROLL
    for (int f = fields - 1; f >= 0; --f) {
      const PlaneSource from = sources[4 * f + byte];
      word = bit_or(shift_left(word, Width), bit_and(shift_right(quads[from.quad], from.shift), (1u << Width) - 1u));
    }
    store_words(to, word);
  }
  return to;
}

/// All planes of a page of mixed widths. codes[batch of 16 channels][page_tokens][16].
inline void pack_mixed(const PanelLayout& layout, const PlaneOrder& order, const unsigned char* codes,
                       unsigned char* panel) {
  constexpr int empty = mixed_depth_limit / 4;  // a quad of zeros, where a vector is padded
  PlaneSource sources[plane_count][mixed_depth_limit + 32];
  std::uint8_t used[mixed_depth_limit] = {};
  for (int p = 0; p < plane_count; ++p) {
    for (Index i = 0; i < order.vectors(p) * plane_channels[p]; ++i) {
      const bool padding = i >= order.count[p];
      const int channel = padding ? 4 * empty : order.channels[p][i];
      sources[p][i] = {std::uint8_t(channel / 4), std::uint8_t(padding ? 0 : channel % 4 * 8 + used[channel])};
    }
    for (Index i = 0; i < order.count[p]; ++i)
      used[order.channels[p][i]] = std::uint8_t(used[order.channels[p][i]] + plane_bits[p]);
  }
  U32x16 quads[empty + 1];
  quads[empty] = zero_words();
  for (Index tile = 0; tile < page_tokens / tile_lanes; ++tile) {
    for (Index batch = 0; batch < layout.depth_stride() / tile_lanes; ++batch) {
      U32x16 four[4];
      load_quads(codes + tile_lanes * (batch * page_tokens + tile * tile_lanes), four);
      for (int q = 0; q < 4; ++q) quads[4 * batch + q] = four[q];
    }
    unsigned char* to = panel + tile * layout.tile_bytes();
    to = pack_plane<8>(quads, sources[0], order.vectors(0), to);
    to = pack_plane<4>(quads, sources[1], order.vectors(1), to);
    to = pack_plane<2>(quads, sources[2], order.vectors(2), to);
    pack_plane<1>(quads, sources[3], order.vectors(3), to);
  }
}
