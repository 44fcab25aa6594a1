// product.inl: many rows (prefill) times the packed panels of a page: 32 lanes are dequantized once into a tile that
// stays in the first-level cache, and every row multiplies with that. Included once per instruction set, after
// dequantize.inl and tile.inl.

/// Dequantizes each 32 lanes of one panel once, for all rows.
template <int Bits>
inline void tiled_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  const Index lanes = round_up(panel.lanes, tile_lanes), count = panel.layout.metadata_count();
  const PanelMetadata metadata{scratch, scratch + count};
  float* tile = scratch + 2 * count;
  expand_metadata(panel, metadata);
  const auto places = quad_places<Bits>(panel);
  for (Index lane = 0; lane < lanes; lane += kTileLanes) {
    const Index width = lanes - lane < kTileLanes ? lanes - lane : kTileLanes;
    for (Index t = 0; t < width; t += tile_lanes)
      dequantize_tile<Bits>(panel, metadata, places, (lane + t) / tile_lanes, tile + t, kTileLanes);
    tile_product(rows, panel.depth, tile, width, {result.data + lane, result.stride});
  }
}

inline void many_rows_product(const PanelView& panels, const Rows& rows, const ResultRows& result, float* scratch) {
  with_bits(panels.layout.format, [&](auto bits) {
    for (Index i = 0; i < panels.count; ++i) {
      const Index first = i * rows.count;
      tiled_product<bits()>(panels.single(i), {rows.data + first * rows.stride, rows.stride, rows.count},
                            {result.data + first * result.stride, result.stride}, scratch);
    }
  });
}
