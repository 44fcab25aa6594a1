// tile.inl: rows times a tile of floats: what products of many rows, over packed or full-precision tokens, come down
// to. Included once per instruction set, after its vector layer.

constexpr Index kTileLanes = 32;

/// result[RowCount][16 * Tiles] += rows . tile[depth][tile_stride]. Products are summed apart: added one by one to the
/// sums of a long context, small ones would be lost.
template <int RowCount, int Tiles>
inline void multiply_tile(const float* rows, Index row_stride, Index depth, const float* tile, Index tile_stride,
                          float* result, Index result_stride) {
  F32x16 sums[RowCount][Tiles];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) sums[r][t] = broadcast(0.0f);
  for (Index d = 0; d < depth; ++d, tile += tile_stride) {
    F32x16 x[Tiles];
    ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t) x[t] = load(tile + 16 * t);
    ASYMKV_UNROLL
    for (int r = 0; r < RowCount; ++r) {
      const F32x16 weight = broadcast(rows[r * row_stride + d]);
      ASYMKV_UNROLL
      for (int t = 0; t < Tiles; ++t) sums[r][t] = madd(weight, x[t], sums[r][t]);
    }
  }
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) {
    float* to = result + r * result_stride + 16 * t;
    store(to, add(load(to), sums[r][t]));
  }
}

/// All rows times a tile of 16 or 32 lanes, in blocks of kRows, kRows/2, ... rows.
template <int RowCount = kRows>
inline void tile_product(const Rows& rows, Index depth, const float* tile, Index lanes, const ResultRows& result) {
  Index r = 0;
  for (; r + RowCount <= rows.count; r += RowCount)
    for (Index lane = 0; lane < lanes;) {
      const float* left = rows.data + r * rows.stride;
      float* to = result.data + r * result.stride + lane;
      if (lane + 16 * kTiles <= lanes) {
        multiply_tile<RowCount, kTiles>(left, rows.stride, depth, tile + lane, kTileLanes, to, result.stride);
        lane += 16 * kTiles;
      } else {
        multiply_tile<RowCount, 1>(left, rows.stride, depth, tile + lane, kTileLanes, to, result.stride);
        lane += 16;
      }
    }
  if constexpr (RowCount > 1)
    if (r < rows.count)
      tile_product<RowCount / 2>({rows.data + r * rows.stride, rows.stride, rows.count - r}, depth, tile, lanes,
                                 {result.data + r * result.stride, result.stride});
}
