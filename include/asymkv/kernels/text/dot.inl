// dot.inl: few rows (decode) times a packed panel, in whole numbers. Included once per instruction set, after
// dequantize.inl.
//
// The scales fold into the rows once per group: result = (row * scale) . codes + row . zero points. Folded rows are
// rounded to 16256 steps of their greatest magnitude, and each element is cut into two signed bytes, 128 * high + low.
// One shift and mask makes 64 unsigned bytes of codes, and 4-way dot products of bytes add them up exactly. So the only
// error beside that of float sums is the rows' rounding: each folded element is off by at most 1/32512 of the greatest.

/// folded[r] = row * scale of one group, zero beyond depth up to a whole block; bias[r] = row . zero points.
inline void fold(const PanelView& panel, Index group, const Rows& rows, float* folded, Index folded_stride,
                 float* bias) {
  const Index first = group * panel.layout.depth_stride(), whole = panel.depth / 16 * 16;
  const bool symmetric = panel.zero_points == nullptr;
  const float* scales = panel.scales + first;
  const float* weights = symmetric ? scales : panel.zero_points + first;
  for (Index r = 0; r < rows.count; ++r) {
    const float* row = rows.data + r * rows.stride;
    float* to = folded + r * folded_stride;
    F32x16 sum = broadcast(0.0f);
    for (Index d = 0; d < whole; d += 16) {
      const F32x16 x = load(row + d);
      store(to + d, mul(x, load(scales + d)));
      sum = madd(x, load(weights + d), sum);
    }
    float total = sum_lanes(sum);
    for (Index d = whole; d < round_up(panel.depth, block_depth); ++d) {
      to[d] = d < panel.depth ? row[d] * scales[d] : 0.0f;
      if (d < panel.depth) total += row[d] * weights[d];
    }
    bias[r] = symmetric ? total * symmetric_zero_point(panel.layout.format.bits) : total;
  }
}

/// Folded rows as bytes, in the order of the codes: [rows][stride]. An element of plane p of row r is
/// step[p][r] * (128 * high + low); without mixed widths all are of plane 0.
struct ByteRows {
  std::int8_t* high;
  std::int8_t* low;
  Index stride;
  float step[plane_count][kDotRows];
};

/// Of the greatest element: 128 * 127, what two signed bytes hold.
constexpr float kSteps = 16256.0f;

/// Rounds `count` elements, a multiple of 16, and returns the step. Below 1e-30 all is zero.
inline float round_row(const float* folded, Index count, std::int8_t* high, std::int8_t* low) {
  F32x16 magnitudes = broadcast(0.0f);
  for (Index i = 0; i < count; i += 16) magnitudes = max(magnitudes, absolute(load(folded + i)));
  const float greatest = max_lanes(magnitudes);
  const bool zero = greatest < 1e-30f;
  const F32x16 inverse = broadcast(zero ? 0.0f : kSteps / greatest);
  for (Index i = 0; i < count; i += 16)
    store_terms(high + i, low + i, round_even(mul(load(folded + i), inverse)));
  return zero ? 0.0f : greatest * (1.0f / kSteps);
}

/// The planes of mixed widths: vectors of each in a lane tile, its first element in the rows, its channels.
struct MixedSections {
  Index vectors[plane_count] = {};
  Index first[plane_count] = {};
  const unsigned char* sets[plane_count] = {};
};

/// What the rows of one group have become.
struct FoldedGroup {
  ByteRows rows;
  float bias[kDotRows];
  MixedSections sections;
};

/// Sums for Tiles neighbouring lane tiles of one group.
template <int RowCount, int Tiles>
struct TileSums {
  F32x16 lanes[RowCount][Tiles];
};

/// Where prefetches go: the first-level cache has few requests to spare, and waits when they are taken.
constexpr int kSecondLevel = 2;

/// The codes of a lane tile. Pages lie apart in memory, so the next one's are asked for as these are read.
struct CodeStream {
  const unsigned char* at;
  const unsigned char* next;
  Index tile_bytes;
};

/// Adds `blocks` blocks of Quads quads of plane `plane`, whose first element in the rows is `depth`.
template <int Bits, int Quads, int RowCount, int Tiles>
inline void add_blocks(CodeStream& codes, Index blocks, const ByteRows& rows, int plane, Index depth,
                       TileSums<RowCount, Tiles>& sums) {
  U32x16 highs[RowCount][Tiles], lows[RowCount][Tiles];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) highs[r][t] = lows[r][t] = zero_words();
  constexpr Index block_bytes = 8 * Quads * Bits;
  for (; blocks > 0; --blocks, codes.at += block_bytes, codes.next += block_bytes, depth += 4 * Quads) ASYMKV_UNROLL
  for (int q = 0; q < Quads; ++q) {
    U32x16 high[RowCount], low[RowCount];
    ASYMKV_UNROLL
    for (int r = 0; r < RowCount; ++r) {
      high[r] = broadcast_quad(rows.high + r * rows.stride + depth + 4 * q);
      low[r] = broadcast_quad(rows.low + r * rows.stride + depth + 4 * q);
    }
    ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t) {
      const U32x16 bytes = unpack_bytes<Bits>(codes.at + t * codes.tile_bytes, q);
      if (64 * q < block_bytes) __builtin_prefetch(codes.next + t * codes.tile_bytes + 64 * q, 0, kSecondLevel);
      ASYMKV_UNROLL
      for (int r = 0; r < RowCount; ++r) {
        highs[r][t] = dot_bytes<Bits>(highs[r][t], bytes, high[r]);
        lows[r][t] = dot_bytes<Bits>(lows[r][t], bytes, low[r]);
      }
    }
  }
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) {
    const F32x16 step = broadcast(rows.step[plane][r]);
    ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t)
      sums.lanes[r][t] = madd(madd(to_floats(highs[r][t]), broadcast(128.0f), to_floats(lows[r][t])), step,
                              sums.lanes[r][t]);
  }
}

/// Adds the products of Tiles neighbouring lane tiles, bias included, to the results.
template <int Bits, int RowCount, int Tiles>
inline void dot_tiles(const PanelView& panel, Index tile, const FoldedGroup& group, const ResultRows& result) {
  TileSums<RowCount, Tiles> sums;
  float* to = result.data + tile * tile_lanes;
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t)
    sums.lanes[r][t] = add(load(to + r * result.stride + t * tile_lanes), broadcast(group.bias[r]));
  const Index tile_bytes = panel.layout.tile_bytes();
  CodeStream codes{panel.panel + tile * tile_bytes, panel.next + tile * tile_bytes, tile_bytes};
  if constexpr (Bits == kMixed) {
    const MixedSections& planes = group.sections;
    if (planes.vectors[0] > 0)
      add_blocks<8, 1>(codes, planes.vectors[0], group.rows, 0, planes.first[0], sums);
    if (planes.vectors[1] > 0)
      add_blocks<4, 2>(codes, planes.vectors[1], group.rows, 1, planes.first[1], sums);
    if (planes.vectors[2] > 0)
      add_blocks<2, 4>(codes, planes.vectors[2], group.rows, 2, planes.first[2], sums);
    if (planes.vectors[3] > 0)
      add_blocks<1, 8>(codes, planes.vectors[3], group.rows, 3, planes.first[3], sums);
  } else {
    add_blocks<Bits, 8>(codes, (panel.depth + block_depth - 1) / block_depth, group.rows, 0, 0, sums);
  }
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) store(to + r * result.stride + t * tile_lanes, sums.lanes[r][t]);
}

/// Channels of a set of `bytes` bytes.
inline Index set_size(const unsigned char* set, Index bytes) {
  Index count = 0, i = 0;
  for (std::uint64_t word; i + 8 <= bytes; i += 8) {
    std::memcpy(&word, set + i, 8);
    count += __builtin_popcountll(word);
  }
  for (; i < bytes; ++i) count += __builtin_popcount(set[i]);
  return count;
}

/// Where the planes' elements of mixed widths go in the rows: behind each are plane_slack free ones.
inline MixedSections mixed_sections(const PanelView& panel) {
  MixedSections sections;
  const Index bytes = panel.layout.width_set_bytes();
  for (int p = 0, first = 0; p < plane_count; ++p) {
    sections.sets[p] = panel.widths() + p * bytes;
    const Index count = set_size(sections.sets[p], bytes);
    sections.vectors[p] = (count + plane_channels[p] - 1) / plane_channels[p];
    sections.first[p] = first;
    first += int(round_up(count, tile_lanes) + plane_slack);
  }
  return sections;
}

/// As fold, with the elements in the order of the codes: compressed by the sets of channels themselves, since a list
/// of channels would be as long to make as the page to read. An element is worth 2^w times as much after a plane of w
/// bits.
inline void fold_mixed(const PanelView& panel, const Rows& rows, const MixedSections& sections, float* folded,
                       Index folded_stride, float* bias) {
  const Index batches = panel.layout.depth_stride() / tile_lanes;
  for (Index r = 0; r < rows.count; ++r) {
    float* ends[plane_count];
    for (int p = 0; p < plane_count; ++p) ends[p] = folded + r * folded_stride + sections.first[p];
    F32x16 sum = broadcast(0.0f);
    for (Index batch = 0; batch < batches; ++batch) {
      const F32x16 row = load(rows.data + r * rows.stride + 16 * batch);
      sum = madd(row, load(panel.zero_points + 16 * batch), sum);
      F32x16 x = mul(row, load(panel.scales + 16 * batch));
      ASYMKV_UNROLL
      for (int p = 0; p < plane_count; ++p) {
        if (sections.vectors[p] == 0) continue;
        const std::uint32_t mask = set_mask(sections.sets[p], batch);
        store_compressed(ends[p], mask, x);
        ends[p] += __builtin_popcount(mask);
        x = mul_masked(x, mask, float(1 << plane_bits[p]));
      }
    }
    bias[r] = sum_lanes(sum);
    for (float* end : ends)
      for (Index i = 0; i < plane_slack; i += 16) store(end + i, broadcast(0.0f));
  }
}

/// Rows of one group, folded, in the order of the codes, and rounded. `scratch` is that of packed_product.
template <int Bits>
inline void fold_group(const PanelView& panel, Index group, const Rows& rows, float* scratch, FoldedGroup& to) {
  const Index stride = Bits == kMixed ? mixed_slots(panel.layout.depth) : round_up(panel.depth, block_depth);
  to.rows.high = reinterpret_cast<std::int8_t*>(scratch + kDotRows * stride);
  to.rows.low = to.rows.high + kDotRows * stride;
  to.rows.stride = stride;
  if constexpr (Bits == kMixed) {
    to.sections = mixed_sections(panel);
    fold_mixed(panel, rows, to.sections, scratch, stride, to.bias);
  } else {
    fold(panel, group, rows, scratch, stride, to.bias);
  }
  for (int p = 0; p < (Bits == kMixed ? plane_count : 1); ++p) {
    const Index first = to.sections.first[p];
    const Index count = Bits == kMixed ? round_up(to.sections.vectors[p] * plane_channels[p], tile_lanes) : stride;
    for (Index r = 0; count > 0 && r < rows.count; ++r) {
      const Index at = r * stride + first;
      to.rows.step[p][r] = round_row(scratch + at, count, to.rows.high + at, to.rows.low + at);
    }
  }
}

/// Tiles [tile, end) of one group, as many at once as registers allow, then two, then one. Returns end.
template <int Bits, int RowCount>
inline Index dot_group(const PanelView& panel, Index tile, Index end, const FoldedGroup& group,
                       const ResultRows& result) {
  constexpr int most = kPanelTiles / RowCount;
  for (; tile + most <= end; tile += most) dot_tiles<Bits, RowCount, most>(panel, tile, group, result);
  if constexpr (most > 2)
    for (; tile + 2 <= end; tile += 2) dot_tiles<Bits, RowCount, 2>(panel, tile, group, result);
  if constexpr (most > 1)
    for (; tile < end; ++tile) dot_tiles<Bits, RowCount, 1>(panel, tile, group, result);
  return tile;
}

/// A function of its own: inlined side by side, the two counts of rows share registers badly.
template <int Bits, int RowCount>
__attribute__((noinline)) inline void dot_rows_of(const PanelView& panel, const Rows& rows, const ResultRows& result,
                                                  float* scratch) {
  const Index tiles = (panel.lanes + tile_lanes - 1) / tile_lanes;
  const Index tiles_in_group = panel.layout.group_size() / tile_lanes;
  FoldedGroup folded;
  for (Index i = panel.layout.scale_offset(); i < panel.layout.bytes(); i += 64)
    __builtin_prefetch(panel.next + i, 0, kSecondLevel);
  for (Index tile = 0, group = 0; tile < tiles; ++group) {
    fold_group<Bits>(panel, group, rows, scratch, folded);
    tile = dot_group<Bits, RowCount>(panel, tile, std::min(tiles, tile + tiles_in_group), folded, result);
  }
}

/// Few rows: four share the unpacking where registers allow, others go one by one.
template <int Bits>
inline void dot_product(const PanelView& panel, const Rows& rows, const ResultRows& result, float* scratch) {
  for (Index r = 0, count; r < rows.count; r += count) {
    count = rows.count - r >= kDotRows ? kDotRows : 1;
    const Rows left{rows.data + r * rows.stride, rows.stride, count};
    const ResultRows to{result.data + r * result.stride, result.stride};
    if (count == kDotRows)
      dot_rows_of<Bits, kDotRows>(panel, left, to, scratch);
    else
      dot_rows_of<Bits, 1>(panel, left, to, scratch);
  }
}
