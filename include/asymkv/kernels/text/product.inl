// product.inl: rows times a packed panel. Included once per instruction set, after dot.inl and tile.inl.
//
// Few rows (decode) multiply with the codes themselves, in whole numbers. For more rows (GQA beyond 4, prefill) 32 lanes
// are dequantized once into a tile that stays in the first-level cache, and every row multiplies with that.

template <int Bits>
inline void tiled_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* tile) {
  const Index lanes = round_up(panel.lanes, tile_lanes);
  const PlaneOrder order = plane_order(panel);
  for (Index lane = 0; lane < lanes; lane += kTileLanes) {
    const Index width = lanes - lane < kTileLanes ? lanes - lane : kTileLanes;
    for (Index t = 0; t < width; t += tile_lanes)
      dequantize_tile<Bits>(panel, order, (lane + t) / tile_lanes, tile + t, kTileLanes);
    tile_product(rows, panel.depth, tile, width, {result.data + lane, result.stride});
  }
}

template <int Bits>
inline void packed_product_of(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  switch (rows.count) {
    case 1:
      return dot_product<Bits, 1>(panel, rows, result, scratch);
    case 2:
      return dot_product<Bits, 2>(panel, rows, result, scratch);
    case 3:
      return dot_product<Bits, 3>(panel, rows, result, scratch);
    case 4:
      return dot_product<Bits, 4>(panel, rows, result, scratch);
    default:
      return tiled_product<Bits>(panel, rows, result, scratch);
  }
}

inline void packed_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  with_bits(panel.layout.format, [&](auto bits) { packed_product_of<bits()>(panel, rows, result, scratch); });
}
