// product.inl: rows times a packed panel, and rows times a float tile. Included once per instruction set, after its
// vector layer.
//
// Few rows (decode): the scales fold into the rows once per group, result = (row * scale) . codes + row . zero points,
// and codes go from packed words to multiply-adds in registers. More rows (GQA beyond 4, prefill): 32 lanes are
// dequantized once into a tile that stays in the first-level cache, and every row multiplies with that.

/// Most rows for which folding beats the tile.
constexpr Index kFoldedRows = 4;
constexpr Index kTileLanes = 32;

/// Codes of 16 lanes at the four depths of quad q of a block, as floats.
template <int Bits>
inline void unpack_quad(const unsigned char* block, int q, F32x16 codes[4]) {
  constexpr Planes planes = planes_of(Bits);
  constexpr int fields = 8 / planes.low;
  const U32x16 low = shift_right(load_words(block + 64 * (q / fields)), planes.low * (q % fields));
  ASYMKV_UNROLL
  for (int i = 0; i < 4; ++i) codes[i] = field<planes.low, 0>(shift_right(low, 8 * i));
  if constexpr (planes.high != 0) {
    constexpr int high_fields = 8 / planes.high;
    const U32x16 high =
        shift_right(load_words(block + 64 * (planes.low + q / high_fields)), planes.high * (q % high_fields));
    ASYMKV_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = add(codes[i], field<planes.high, planes.low>(shift_right(high, 8 * i)));
  }
}

/// folded[r] = row * scale of one group, zero beyond depth up to a whole block; bias[r] = row . zero points.
inline void fold(const PanelView& panel, Index group, const Rows& rows, float* folded, Index folded_stride,
                 float* bias) {
  const float* scales = panel.scales + group * panel.layout.depth_stride();
  const float* zero_points = panel.zero_points + group * panel.layout.depth_stride();
  const Index whole = panel.depth / 16 * 16;
  for (Index r = 0; r < rows.count; ++r) {
    const float* row = rows.data + r * rows.stride;
    float* to = folded + r * folded_stride;
    F32x16 sum = broadcast(0.0f);
    for (Index d = 0; d < whole; d += 16) {
      const F32x16 x = load(row + d);
      store(to + d, mul(x, load(scales + d)));
      sum = madd(x, load(zero_points + d), sum);
    }
    bias[r] = sum_lanes(sum);
    for (Index d = whole; d < round_up(panel.depth, block_depth); ++d) {
      to[d] = d < panel.depth ? row[d] * scales[d] : 0.0f;
      if (d < panel.depth) bias[r] += row[d] * zero_points[d];
    }
  }
}

/// sums += folded rows times the codes of `quads` quads of depths, for Tiles neighbouring lane tiles of one group.
/// `weights` runs on.
template <int Bits, int RowCount, int Tiles, int Chains>
inline void add_quads(const unsigned char* block, Index tile_bytes, Index quads, const float*& weights,
                      Index folded_stride, F32x16 (&sums)[RowCount][Tiles][Chains]) {
  for (; quads > 0; quads -= 8, block += Bits * 64) {
    const int in_block = quads < 8 ? int(quads) : 8;
    for (int q = 0; q < in_block; ++q, weights += 4) {
      F32x16 codes[Tiles][4];
      ASYMKV_UNROLL
      for (int t = 0; t < Tiles; ++t) unpack_quad<Bits>(block + t * tile_bytes, q, codes[t]);
      ASYMKV_UNROLL
      for (int i = 0; i < 4; ++i) ASYMKV_UNROLL
      for (int r = 0; r < RowCount; ++r) {
        const F32x16 weight = broadcast(weights[r * folded_stride + i]);
        ASYMKV_UNROLL
        for (int t = 0; t < Tiles; ++t) sums[r][t][i % Chains] = madd(weight, codes[t][i], sums[r][t][i % Chains]);
      }
    }
  }
}

/// Stands for the number of bits where widths are mixed.
constexpr int kMixed = 0;

/// Folded rows times Tiles neighbouring lane tiles of one group.
template <int Bits, int RowCount, int Tiles>
inline void multiply_folded(const PanelView& panel, Index tile, const float* folded, Index folded_stride,
                            const float* bias, const ResultRows& result) {
  constexpr int chains = RowCount * Tiles >= 4 ? 1 : 4 / (RowCount * Tiles) > 2 ? 4 : 2;
  F32x16 sums[RowCount][Tiles][chains];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) ASYMKV_UNROLL
  for (int c = 0; c < chains; ++c) sums[r][t][c] = broadcast(0.0f);
  const Index tile_bytes = panel.layout.tile_bytes();
  const unsigned char* codes = panel.codes + tile * tile_bytes;
  if constexpr (Bits == kMixed) {
    const Index(&vectors)[3] = panel.order->vectors;
    add_quads<4>(codes, tile_bytes, 2 * vectors[0], folded, folded_stride, sums);
    add_quads<2>(codes + 64 * vectors[0], tile_bytes, 4 * vectors[1], folded, folded_stride, sums);
    add_quads<1>(codes + 64 * (vectors[0] + vectors[1]), tile_bytes, 8 * vectors[2], folded, folded_stride, sums);
  } else {
    add_quads<Bits>(codes, tile_bytes, 8 * ((panel.depth + block_depth - 1) / block_depth), folded, folded_stride,
                    sums);
  }
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) {
    F32x16 sum = sums[r][t][0];
    ASYMKV_UNROLL
    for (int c = 1; c < chains; ++c) sum = add(sum, sums[r][t][c]);
    float* to = result.data + r * result.stride + (tile + t) * tile_lanes;
    store(to, add(load(to), add(sum, broadcast(bias[r]))));
  }
}

/// Folded rows in the order of the codes, zero where a slot has no channel.
inline void reorder(const SlotOrder& order, const float* folded, Index rows, Index stride, float* to) {
  const Index slots = 8 * order.vectors[0] + 16 * order.vectors[1] + 32 * order.vectors[2];
  for (Index r = 0; r < rows; ++r, folded += stride, to += stride) {
    for (Index i = 0; i < order.used; ++i) to[i] = folded[order.channels[i]];
    for (Index i = order.used; i < slots; ++i) to[i] = 0.0f;
  }
}

template <int Bits, int RowCount>
inline void folded_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  const Index stride = round_up(panel.depth, block_depth) + (Bits == kMixed ? block_depth : 0);
  const Index tiles_in_group = panel.layout.group_size() / tile_lanes;
  const float* folded = scratch;
  const Index tiles = (panel.lanes + tile_lanes - 1) / tile_lanes;
  float bias[RowCount];
  for (Index tile = 0; tile < tiles;) {
    if (tile % tiles_in_group == 0) {
      fold(panel, tile / tiles_in_group, rows, scratch, stride, bias);
      if constexpr (Bits == kMixed) {
        reorder(*panel.order, scratch, RowCount, stride, scratch + RowCount * stride);
        folded = scratch + RowCount * stride;
      }
    }
    if (tile + kTiles <= tiles && (tile + kTiles - 1) / tiles_in_group == tile / tiles_in_group) {
      multiply_folded<Bits, RowCount, kTiles>(panel, tile, folded, stride, bias, result);
      tile += kTiles;
    } else {
      multiply_folded<Bits, RowCount, 1>(panel, tile, folded, stride, bias, result);
      ++tile;
    }
  }
}

/// Channels of `vectors` vectors of one width, from slot `slot` on: out[channel] = fma(code, scale, zero point).
template <int Width>
inline void dequantize_vectors(const PanelView& panel, const unsigned char* codes, Index vectors, Index slot,
                               const float* scales, const float* zero_points, float* out, Index out_stride) {
  for (Index q = 0; q < vectors * (8 / Width); ++q, slot += 4) {
    F32x16 quad[4];
    unpack_quad<Width>(codes + q / 8 * (Width * 64), int(q % 8), quad);
    for (Index i = 0; i < 4 && slot + i < panel.order->used; ++i) {
      const Index d = panel.order->channels[slot + i];
      store(out + d * out_stride, fma(quad[i], broadcast(scales[d]), broadcast(zero_points[d])));
    }
  }
}

/// One lane tile, depths 0..panel.depth-1: out[d][out_stride] = fma(code, scale[d], zero point[d]).
template <int Bits>
inline void dequantize_tile(const PanelView& panel, Index tile, float* out, Index out_stride) {
  const unsigned char* codes = panel.codes + tile * panel.layout.tile_bytes();
  const Index metadata = tile * tile_lanes / panel.layout.group_size() * panel.layout.depth_stride();
  const float* scales = panel.scales + metadata;
  const float* zero_points = panel.zero_points + metadata;
  if constexpr (Bits == kMixed) {
    const SlotOrder& order = *panel.order;
    const Index two = order.vectors[0], one = two + order.vectors[1];
    dequantize_vectors<4>(panel, codes, two, 0, scales, zero_points, out, out_stride);
    dequantize_vectors<2>(panel, codes + 64 * two, order.vectors[1], 8 * two, scales, zero_points, out, out_stride);
    dequantize_vectors<1>(panel, codes + 64 * one, order.vectors[2], 8 * two + 16 * order.vectors[1], scales,
                          zero_points, out, out_stride);
    for (Index i = order.used; i < panel.depth; ++i)
      store(out + order.channels[i] * out_stride, broadcast(zero_points[order.channels[i]]));
  } else {
    for (Index d = 0; d < panel.depth; d += 4) {
      F32x16 quad[4];
      unpack_quad<Bits>(codes + d / block_depth * (Bits * 64), int(d % block_depth / 4), quad);
      for (Index i = 0; i < 4 && d + i < panel.depth; ++i)
        store(out + (d + i) * out_stride, fma(quad[i], broadcast(scales[d + i]), broadcast(zero_points[d + i])));
    }
  }
}

/// result[RowCount][16 * Tiles] += rows . tile[depth][tile_stride]
template <int RowCount, int Tiles>
inline void multiply_tile(const float* rows, Index row_stride, Index depth, const float* tile, Index tile_stride,
                          float* result, Index result_stride) {
  F32x16 sums[RowCount][Tiles];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) sums[r][t] = load(result + r * result_stride + 16 * t);
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
  for (int t = 0; t < Tiles; ++t) store(result + r * result_stride + 16 * t, sums[r][t]);
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

template <int Bits>
inline void tiled_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* tile) {
  const Index lanes = round_up(panel.lanes, tile_lanes);
  for (Index lane = 0; lane < lanes; lane += kTileLanes) {
    const Index width = lanes - lane < kTileLanes ? lanes - lane : kTileLanes;
    for (Index t = 0; t < width; t += tile_lanes)
      dequantize_tile<Bits>(panel, (lane + t) / tile_lanes, tile + t, kTileLanes);
    tile_product(rows, panel.depth, tile, width, {result.data + lane, result.stride});
  }
}

template <int Bits>
inline void packed_product_of(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  switch (rows.count) {
    case 1:
      return folded_product<Bits, 1>(panel, rows, result, scratch);
    case 2:
      return folded_product<Bits, 2>(panel, rows, result, scratch);
    case 3:
      return folded_product<Bits, 3>(panel, rows, result, scratch);
    case 4:
      return folded_product<Bits, 4>(panel, rows, result, scratch);
    default:
      return tiled_product<Bits>(panel, rows, result, scratch);
  }
}

/// Calls function(std::integral_constant<int, bits>), kMixed for mixed widths.
template <class Function>
inline void with_bits(const Format& format, Function function) {
  if (format.mixed()) return function(std::integral_constant<int, kMixed>());
  switch (format.bits) {
    case 1:
      return function(std::integral_constant<int, 1>());
    case 2:
      return function(std::integral_constant<int, 2>());
    case 3:
      return function(std::integral_constant<int, 3>());
    case 4:
      return function(std::integral_constant<int, 4>());
    case 5:
      return function(std::integral_constant<int, 5>());
    case 6:
      return function(std::integral_constant<int, 6>());
    default:
      return function(std::integral_constant<int, 8>());
  }
}

inline void packed_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  with_bits(panel.layout.format, [&](auto bits) { packed_product_of<bits()>(panel, rows, result, scratch); });
}

inline void dequantize(const PanelView& panel, Index tile, float* out) {
  with_bits(panel.layout.format, [&](auto bits) { dequantize_tile<bits()>(panel, tile, out, tile_lanes); });
}
