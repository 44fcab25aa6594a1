// pack.inl: codes into the words of a panel (panel.hpp has the picture), 16 lanes at once: what dot.inl and
// dequantize.inl read. Included once per instruction set, after dequantize.inl.

/// All ones in lanes [begin, end) of a tile, which may reach beyond it on both sides.
inline U32x16 lanes_between(Index begin, Index end) {
  std::uint32_t lanes[tile_lanes];
  if (begin <= 0 && end >= tile_lanes) {
    std::memset(lanes, 0xff, sizeof lanes);
  } else {
    for (Index l = 0; l < tile_lanes; ++l) lanes[l] = l >= begin && l < end ? ~0u : 0u;
  }
  return load_words(lanes);
}

/// The bytes of a batch's quads that are stored: all of a quad whose depths are all in the batch.
struct BatchBytes {
  std::uint32_t quads[4] = {};

  explicit BatchBytes(const DepthBatch& depths) {
    for (Index i = depths.first; i < depths.last; ++i) quads[i / 4] |= 0xffu << i % 4 * 8;
  }
};

/// Writes one plane of a batch into a lane tile: bits [shift, shift + Width) of its codes. `vector` is the plane's
/// first of the batch, `half` 4 where the batch is the second of its block.
template <int Width>
inline void insert_plane(const BatchBytes& bytes, const U32x16 (&quads)[4], U32x16 lanes, unsigned char* vector,
                         int shift, int half) {
  constexpr int fields = 8 / Width, together = fields < 4 ? fields : 4;  // quads of codes that one word takes
  constexpr std::uint32_t field_mask = 0x01010101u * ((1u << Width) - 1u);
  const int first = Width * (half % fields);
  ASYMKV_UNROLL
  for (int v = 0; v < 4 / together; ++v, vector += 64) {
    U32x16 fresh = zero_words();
    std::uint32_t replaced = 0;
    ASYMKV_UNROLL
    for (int q = 0; q < together; ++q) {
      const U32x16 field = bit_and(shift_right(quads[v * together + q], shift), field_mask);
      fresh = bit_or(fresh, shift_left(field, Width * q));
      replaced |= (bytes.quads[v * together + q] & field_mask) << Width * q;
    }
    fresh = shift_left(fresh, first);
    store_words(vector, blend_bits(bit_and(lanes, replaced << first), fresh, load_words(vector)));
  }
}

/// All planes of a lane tile of a batch of Bits-bit codes.
template <int Bits>
inline void insert_tile(const DepthBatch& depths, const BatchBytes& bytes, const U32x16 (&quads)[4], U32x16 lanes,
                        unsigned char* tile) {
  constexpr Planes planes = planes_of(Bits);
  const int half = int(depths.batch % 2) * 4;
  unsigned char* const block = tile + depths.batch / 2 * (64 * Bits);
  insert_plane<planes.low>(bytes, quads, lanes, block + 64 * (half * planes.low / 8), 0, half);
  if constexpr (planes.high != 0)
    insert_plane<planes.high>(bytes, quads, lanes, block + 64 * (planes.low + half * planes.high / 8), planes.low,
                              half);
}
template <int Bits>
inline void insert_tiles(const PanelLayout& layout, unsigned char* panel, const CodeBatch& batch) {
  const BatchBytes bytes(batch.depths);
  const Index end = batch.lane + batch.lanes;
  const unsigned char* codes = batch.codes;
  for (Index tile = batch.lane / tile_lanes; tile * tile_lanes < end; ++tile, codes += 16 * tile_lanes) {
    U32x16 quads[4];
    load_quads(codes, quads);
    insert_tile<Bits>(batch.depths, bytes, quads,
                      lanes_between(batch.lane - tile * tile_lanes, end - tile * tile_lanes),
                      panel + tile * layout.tile_bytes());
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
