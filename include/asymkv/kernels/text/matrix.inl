// matrix.inl: many rows times the packed panels of a page in tile registers. Included after dequantize.inl, where there
// are some.
//
// As for few rows, scales fold into the rows once per group: result = (row * scale) . codes + row . zero points. Codes
// are exact in bfloat16. A folded element is cut into two bfloat16, the upper half of the float and the rest rounded:
// it is off by at most 2^-16 of itself, and twice the products are still cheaper than rows that show their rounding.

/// The codes of a quad as two pairs: its first two depths at `to`, the others in the next vector.
inline void store_pairs(unsigned char* to, U32x16 bytes) {
  const auto code = [&](int i) { return as_words(to_floats(bit_and(shift_right(bytes, 8 * i), 255u))); };
  store_words(to, bit_or(shift_right(code(0), 16), code(1)));
  store_words(to + 64, bit_or(shift_right(code(2), 16), code(3)));
}

/// All codes of a panel's first lane tiles as registers of pairs, [tiles][depth / 2][16 lanes].
template <int Bits>
inline void unpack_pairs(const PanelView& panel, Index tiles, Index depth, unsigned char* pairs) {
  const Index tile_bytes = panel.layout.tile_bytes(), tile_pairs = 32 * depth;
  if constexpr (Bits == kMixed) {
    const QuadPlaces places = quad_places<Bits>(panel);
    for (Index q = 0; q < depth / 4; ++q)
      for (Index t = 0; t < tiles; ++t)
        store_pairs(pairs + t * tile_pairs + 128 * q,
                    q < places.count() ? mixed_bytes(panel.panel + t * tile_bytes, places[q]) : zero_words());
  } else {
    for (Index t = 0; t < tiles; ++t)
      for (Index block = 0; block < depth / block_depth; ++block) {
        ASYMKV_UNROLL
        for (int q = 0; q < 8; ++q)
          store_pairs(pairs + t * tile_pairs + (8 * block + q) * 128,
                      unpack_bytes<Bits>(panel.panel + t * tile_bytes + block * Bits * 64, q));
      }
  }
}

/// One group's metadata, for `depth` elements of rows.
struct GroupFactors {
  const float* scales;
  const float* zero_points;
  Index depth;
};

/// Folds a row and stores it in its register's line at `to`, registers of both terms in turn. Returns row . zero
/// points. What the row holds beyond depth plays no part.
inline float fold_pairs(const float* row, const GroupFactors& group, unsigned char* to) {
  F32x16 biases = broadcast(0.0f);
  const auto folded = [&](Index d) {
    if (d >= group.depth) return broadcast(0.0f);
    F32x16 x = load(row + d);
    if (d + 16 > group.depth) x = blend((1u << (group.depth - d)) - 1u, x, broadcast(0.0f));
    biases = madd(x, load(group.zero_points + d), biases);
    return mul(x, load(group.scales + d));
  };
  const auto upper = [](F32x16 x) { return as_floats(bit_and(as_words(x), 0xffff0000u)); };
  const auto rounded = [](F32x16 x) { return as_floats(add(as_words(x), as_words(broadcast(bits_float(0x8000u))))); };
  for (Index d = 0; d < group.depth; d += kRegisterDepth, to += 2 * kRegisterBytes) {
    const F32x16 a = folded(d), b = folded(d + 16);
    store_upper_halves(to, a, b);
    store_upper_halves(to + kRegisterBytes, rounded(sub(a, upper(a))), rounded(sub(b, upper(b))));
  }
  return sum_lanes(biases);
}

/// Lane tiles [tile, end) of `pairs` times the rows, all of one or two blocks.
template <int Blocks>
inline void multiply_lanes(const Registers& rows, const Registers& pairs, Index depth, Index tile, Index end,
                           const ResultRows& result) {
  for (; tile < end; tile += 2) {
    const Registers tiles{pairs.at + tile * pairs.stride, pairs.stride};
    float* const lanes = result.data + tile * tile_lanes;
    if (tile + 2 <= end)
      multiply_registers<Blocks, 2>(rows, tiles, depth, lanes, result.stride);
    else
      multiply_registers<Blocks, 1>(rows, tiles, depth, lanes, result.stride);
  }
}

/// At most matrix_rows rows, for which tiles are configured, times a panel; `folded` has room for them.
inline void multiply_rows(const PanelView& panel, const PanelMetadata& metadata, const Registers& pairs, Index depth,
                          const Rows& rows, const ResultRows& result, unsigned char* folded) {
  const Index tiles = (panel.lanes + tile_lanes - 1) / tile_lanes;
  const Index tiles_in_group = panel.layout.group_size() / tile_lanes;
  const Registers registers{folded, 2 * kRegisterBytes * (depth / kRegisterDepth)};
  for (Index tile = 0, first = 0; tile < tiles; tile += tiles_in_group, first += panel.layout.depth_stride()) {
    const Index end = tiles < tile + tiles_in_group ? tiles : tile + tiles_in_group;
    const GroupFactors group{metadata.scales + first, metadata.zero_points + first, panel.depth};
    for (Index r = 0; r < rows.count; ++r) {
      const F32x16 bias = broadcast(
          fold_pairs(rows.data + r * rows.stride, group,
                     folded + r / kRegisterRows * registers.stride + r % kRegisterRows * 64));
      float* const lanes = result.data + r * result.stride;
      for (Index i = tile * tile_lanes; i < end * tile_lanes; i += 16) store(lanes + i, add(load(lanes + i), bias));
    }
    if (rows.count > kRegisterRows)
      multiply_lanes<2>(registers, pairs, depth, tile, end, result);
    else
      multiply_lanes<1>(registers, pairs, depth, tile, end, result);
  }
}

/// All rows times one panel. `configured` is how many rows tiles are configured for.
template <int Bits>
inline void matrix_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch,
                           Index& configured) {
  const Index count = panel.layout.metadata_count(), depth = round_up(panel.depth, kRegisterDepth);
  const Index tiles = (panel.lanes + tile_lanes - 1) / tile_lanes;
  const PanelMetadata metadata{scratch, scratch + count};
  unsigned char* const pairs = reinterpret_cast<unsigned char*>(scratch + 2 * count);
  expand_metadata(panel, metadata);
  unpack_pairs<Bits>(panel, tiles, depth, pairs);
  for (Index first = 0; first < rows.count; first += matrix_rows) {
    const Index together = std::min(matrix_rows, rows.count - first);
    if (together != configured) configure_tiles(configured = together);
    multiply_rows(panel, metadata, {pairs, 32 * depth}, depth, {rows.data + first * rows.stride, rows.stride, together},
                  {result.data + first * result.stride, result.stride}, pairs + tiles * 32 * depth);
  }
}

inline void many_rows_product(const PanelView& panels, const Rows& rows, const ResultRows& result, float* scratch) {
  Index configured = 0;
  with_bits(panels.layout.format, [&](auto bits) {
    for (Index i = 0; i < panels.count; ++i) {
      const Index first = i * rows.count;
      matrix_product<bits()>(panels.single(i), {rows.data + first * rows.stride, rows.stride, rows.count},
                             {result.data + first * result.stride, result.stride}, scratch, configured);
    }
  });
  release_tiles();
}
