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

/// All codes of a page of mixed widths. codes[batch of 16 channels][page_tokens][16].
inline void pack_mixed(const PanelLayout& layout, const ChannelOrder& order, const unsigned char* codes,
                       unsigned char* panel) {
  const QuadPlaces places(order);
  for (Index tile = 0; tile < page_tokens / tile_lanes; ++tile) {
    U32x16 neighbours[mixed_depth_limit / 4];  // quads of neighbouring channels
    for (Index batch = 0; batch < layout.depth_stride() / tile_lanes; ++batch) {
      U32x16 four[4];
      load_quads(codes + tile_lanes * (batch * page_tokens + tile * tile_lanes), four);
      for (int q = 0; q < 4; ++q) neighbours[4 * batch + q] = four[q];
    }
    unsigned char* const to = panel + tile * layout.tile_bytes();
    std::memset(to, 0, std::size_t(layout.tile_bytes()));
    const auto add_bits = [&](std::uint8_t vector, U32x16 bits) {
      store_words(to + 64 * vector, bit_or(load_words(to + 64 * vector), bits));
    };
    for (Index q = 0; q < places.count(); ++q) {
      U32x16 quad = zero_words();
      for (int i = 0; i < 4; ++i) {
        const std::uint8_t channel = order.channels[4 * q + i];
        const U32x16 code = bit_and(shift_right(neighbours[channel / 4], channel % 4 * 8), 255u);
        quad = bit_or(quad, shift_left(code, 8 * i));
      }
      const QuadPlace& place = places[q];
      add_bits(place.low_vector, byte_fields(quad, 0, place.low_width, place.low_shift));
      if (place.width > place.low_width)
        add_bits(place.high_vector,
                 byte_fields(quad, place.low_width, place.width - place.low_width, place.high_shift));
    }
  }
}
