// product.inl: rows times a packed panel, and rows times a float tile. Included once per instruction set, after its
// vector layer.
//
// Few rows (decode): the scales fold into the rows once per group, result = (row * scale) . codes + row . zero points,
// and codes go from packed words to multiply-adds in registers. More rows (GQA beyond 4, prefill): 32 lanes are
// dequantized once into a tile that stays in the first-level cache, and every row multiplies with that.

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

/// Vectors of each plane in a lane tile.
struct MixedSections {
  Index vectors[plane_count] = {};
};

/// Folded rows times Tiles neighbouring lane tiles of one group.
template <int Bits, int RowCount, int Tiles>
inline void multiply_folded(const PanelView& panel, Index tile, const float* folded, Index folded_stride,
                            const float* bias, const MixedSections& sections, const ResultRows& result) {
  constexpr int chains = RowCount * Tiles >= 4 ? 1 : 4 / (RowCount * Tiles) > 2 ? 4 : 2;
  F32x16 sums[RowCount][Tiles][chains];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) ASYMKV_UNROLL
  for (int c = 0; c < chains; ++c) sums[r][t][c] = broadcast(0.0f);
  const Index tile_bytes = panel.layout.tile_bytes();
  const unsigned char* codes = panel.panel + tile * tile_bytes;
  if constexpr (Bits == kMixed) {
    const Index* vectors = sections.vectors;
    add_quads<8>(codes, tile_bytes, vectors[0], folded, folded_stride, sums);
    add_quads<4>(codes += 64 * vectors[0], tile_bytes, 2 * vectors[1], folded, folded_stride, sums);
    add_quads<2>(codes += 64 * vectors[1], tile_bytes, 4 * vectors[2], folded, folded_stride, sums);
    add_quads<1>(codes += 64 * vectors[2], tile_bytes, 8 * vectors[3], folded, folded_stride, sums);
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

/// Folded rows in the order of the slots, zero where a slot pads: compressed by the sets of channels themselves, since a
/// list of channels would be as long to make as the page to read. What a channel's next plane is worth is folded in: after
/// a plane of w bits, 2^w times as much; `folded` is left so.
inline MixedSections reorder(const PanelView& panel, float* folded, Index rows, Index stride, float* to) {
  const Index batches = panel.layout.depth_stride() / tile_lanes;
  MixedSections sections;
  Index slot = 0;
  for (Index r = 0; r < rows; ++r)
    for (Index i = 0; i < mixed_slots(panel.depth); i += 16) store(to + r * stride + i, broadcast(0.0f));
  for (int plane = 0; plane < plane_count; ++plane) {
    const float next_weight = float(1 << plane_bits[plane]);
    Index next = slot;
    for (Index batch = 0; batch < batches; ++batch) {
      const std::uint32_t mask = plane_mask(panel.layout, panel.widths(), plane, batch);
      for (Index r = 0; r < rows; ++r) {
        float* from = folded + r * stride + 16 * batch;
        const F32x16 x = load(from);
        store_compressed(to + r * stride + next, mask, x);
        store(from, mul_masked(x, mask, next_weight));
      }
      next += __builtin_popcount(mask);
    }
    sections.vectors[plane] = (next - slot + plane_channels[plane] - 1) / plane_channels[plane];
    slot += sections.vectors[plane] * plane_channels[plane];
  }
  return sections;
}

template <int Bits, int RowCount>
inline void folded_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  const Index stride = Bits == kMixed ? mixed_slots(panel.depth) + tile_lanes : round_up(panel.depth, block_depth);
  const Index tiles_in_group = panel.layout.group_size() / tile_lanes;
  const float* folded = scratch;
  const Index tiles = (panel.lanes + tile_lanes - 1) / tile_lanes;
  MixedSections sections;
  float bias[RowCount];
  for (Index tile = 0; tile < tiles;) {
    if (tile % tiles_in_group == 0) {
      fold(panel, tile / tiles_in_group, rows, scratch, stride, bias);
      if constexpr (Bits == kMixed) {
        sections = reorder(panel, scratch, RowCount, stride, scratch + RowCount * stride);
        folded = scratch + RowCount * stride;
      }
    }
    if (tile + kTiles <= tiles && (tile + kTiles - 1) / tiles_in_group == tile / tiles_in_group) {
      multiply_folded<Bits, RowCount, kTiles>(panel, tile, folded, stride, bias, sections, result);
      tile += kTiles;
    } else {
      multiply_folded<Bits, RowCount, 1>(panel, tile, folded, stride, bias, sections, result);
      ++tile;
    }
  }
}

/// Adds one plane of `count` channels to their codes, out[channel], and makes their weights those of the next plane.
template <int Width>
inline void add_plane(const unsigned char* codes, const std::uint16_t* channels, Index count, float* weights, float* out,
                      Index out_stride) {
  for (Index slot = 0; slot < count; slot += 4) {
    F32x16 quad[4];
    unpack_quad<Width>(codes + slot / 32 * (Width * 64), int(slot % 32 / 4), quad);
    for (Index i = 0; i < 4 && slot + i < count; ++i) {
      float* to = out + channels[slot + i] * out_stride;
      float& weight = weights[channels[slot + i]];
      store(to, fma(quad[i], broadcast(weight), load(to)));
      weight *= float(1 << Width);
    }
  }
}

inline void dequantize_mixed(const PanelView& panel, const PlaneOrder& order, const unsigned char* codes,
                             const float* scales, const float* zero_points, float* out, Index out_stride) {
  float weights[mixed_depth_limit];
  for (Index d = 0; d < panel.depth; ++d) {
    weights[d] = 1.0f;
    store(out + d * out_stride, broadcast(0.0f));
  }
  const auto plane = [&](auto bits, int i) {
    add_plane<bits()>(codes, order.channels[i], order.count[i], weights, out, out_stride);
    codes += 64 * order.vectors(i);
  };
  plane(std::integral_constant<int, 8>(), 0);
  plane(std::integral_constant<int, 4>(), 1);
  plane(std::integral_constant<int, 2>(), 2);
  plane(std::integral_constant<int, 1>(), 3);
  for (Index d = 0; d < panel.depth; ++d)
    store(out + d * out_stride, fma(load(out + d * out_stride), broadcast(scales[d]), broadcast(zero_points[d])));
}

inline PlaneOrder plane_order(const PanelView& panel) {
  return panel.layout.format.mixed() ? read_plane_order(panel.layout, panel.widths()) : PlaneOrder();
}

/// One lane tile, depths 0..panel.depth-1: out[d][out_stride] = fma(code, scale[d], zero point[d]). `order` is that of
/// mixed widths.
template <int Bits>
inline void dequantize_tile(const PanelView& panel, const PlaneOrder& order, Index tile, float* out, Index out_stride) {
  const unsigned char* codes = panel.panel + tile * panel.layout.tile_bytes();
  const Index metadata = tile * tile_lanes / panel.layout.group_size() * panel.layout.depth_stride();
  const float* scales = panel.scales + metadata;
  const float* zero_points = panel.zero_points + metadata;
  if constexpr (Bits == kMixed) {
    dequantize_mixed(panel, order, codes, scales, zero_points, out, out_stride);
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

/// Calls function(std::integral_constant<int, bits>).
template <class Function>
inline void with_packed_bits(int bits, Function function) {
  switch (bits) {
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

/// The same for formats: kMixed for mixed widths.
template <class Function>
inline void with_bits(const Format& format, Function function) {
  if (format.mixed()) return function(std::integral_constant<int, kMixed>());
  with_packed_bits(format.bits, function);
}

inline void packed_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  with_bits(panel.layout.format, [&](auto bits) { packed_product_of<bits()>(panel, rows, result, scratch); });
}

inline void dequantize(const PanelView& panel, Index tile, float* out) {
  const PlaneOrder order = plane_order(panel);
  with_bits(panel.layout.format, [&](auto bits) { dequantize_tile<bits()>(panel, order, tile, out, tile_lanes); });
}
