// dot.inl: few rows (decode) times the packed panels of a page, in whole numbers. Included once per instruction set,
// after dequantize.inl.
//
// The scales fold into the rows once per group: result = (row * scale) . codes + row . zero points. Folded rows are
// rounded to 16256 steps of their greatest magnitude, and each element is cut into two signed bytes, 128 * high + low.
// One shift and mask makes 64 unsigned bytes of codes, and 4-way dot products of bytes add them up exactly. So the only
// error beside that of float sums is the rows' rounding: each folded element is off by at most 1/32512 of the greatest.
//
// Mixed widths: elements are compressed into the order of the codes, plane by plane. Where channels have several
// planes, each plane has its own step, and the whole sums are shifted from one to the next.
// Folding is a chain of dependent steps, so up to four rows are folded side by side before their products.

/// Of the greatest element: 128 * 127, what two signed bytes hold.
constexpr float kSteps = 16256.0f;

/// The channels that have each plane of mixed widths, 64 a word, and the vectors of each in a lane tile.
struct MixedSets {
  std::uint64_t words[mixed_depth_limit / 64][plane_count];
  Index vectors[plane_count];
  bool several;  ///< some channel has more than one plane
};

/// A row times the scales of its group, first as floats, then as bytes in the order of the codes: an element is step *
/// (128 * high + low). An element of mixed widths is worth 2^w times as much after a plane of w bits; so where channels
/// have several planes, later ones have steps that are as much larger as shifts say.
struct FoldedRow {
  float* elements;  ///< [padded_depth], zero beyond depth
  std::int8_t* high;
  std::int8_t* low;
  F32x16 greatest;                    ///< magnitudes, lane by lane
  F32x16 biases;                      ///< sum up to row . zero points
  float plane_greatest[plane_count];  ///< magnitudes, where channels have several planes
  int shifts[plane_count];            ///< powers of two by which the step of plane p + 1 exceeds that of plane p
  float step;                         ///< of plane 0
  float bias;
};

/// One group of a panel, and some of the panel's rows.
struct GroupOfRows {
  Index panel, number, first_row;
};

/// These rows, folded with the scales of the group.
template <int RowCount>
struct FoldedGroup : GroupOfRows {
  FoldedRow rows[RowCount];
  MixedSets sets;
};

/// Whole sums for Tiles neighbouring lane tiles of one group.
template <int RowCount, int Tiles>
struct TileSums {
  U32x16 high[RowCount][Tiles], low[RowCount][Tiles];
};

/// Where prefetches go: the first-level cache has few requests to spare, and waits when they are taken.
constexpr int kSecondLevel = 2;

/// The codes of a lane tile. Pages lie apart in memory, so the next one's are asked for as these are read.
struct CodeStream {
  const unsigned char* at;
  const unsigned char* next;
  Index tile_bytes;
};

/// Sums of products in words.
template <int Bits>
struct WideSums {
  static U32x16 add(U32x16 sums, U32x16 codes, U32x16 row) { return dot_bytes<Bits>(sums, codes, row); }
};
/// The same in pairs of halfwords, for as many products as kNarrowQuads says. A template, since few instruction sets
/// have them.
template <class Words>
struct NarrowSums {
  static Words add(Words sums, Words codes, Words row) { return dot_narrow(sums, codes, row); }
};

/// Quads of a row's bytes as they are compressed; those of other rows lie as PackedQuads says.
struct QuadsInOrder {
  static Index base(Index depth) { return depth; }
  static constexpr int offset(int q) { return 4 * q; }
};

template <int RowCount, int Tiles>
__attribute__((always_inline)) inline void clear(TileSums<RowCount, Tiles>& sums) {
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) sums.high[r][t] = sums.low[r][t] = zero_words();
}

/// Adds `blocks` blocks of Quads quads, whose first element in the rows is `depth`. This and what it is called by are
/// inlined by force: the sums must stay in registers.
template <class Sums, class Order, int Bits, int Quads, int RowCount, int Tiles>
__attribute__((always_inline)) inline void add_products(CodeStream& codes, Index blocks, const FoldedRow* rows,
                                                        Index depth, TileSums<RowCount, Tiles>& sums) {
  constexpr Index block_bytes = 8 * Quads * Bits;
  for (; blocks > 0; --blocks, codes.at += block_bytes, codes.next += block_bytes, depth += 4 * Quads) {
    const Index base = Order::base(depth);
    ASYMKV_UNROLL
    for (int q = 0; q < Quads; ++q) {
      U32x16 high[RowCount], low[RowCount];
      ASYMKV_UNROLL
      for (int r = 0; r < RowCount; ++r) {
        high[r] = broadcast_quad(rows[r].high + base + Order::offset(q));
        low[r] = broadcast_quad(rows[r].low + base + Order::offset(q));
      }
      ASYMKV_UNROLL
      for (int t = 0; t < Tiles; ++t) {
        const U32x16 bytes = unpack_bytes<Bits>(codes.at + t * codes.tile_bytes, q);
        if (64 * q < block_bytes) __builtin_prefetch(codes.next + t * codes.tile_bytes + 64 * q, 0, kSecondLevel);
        ASYMKV_UNROLL
        for (int r = 0; r < RowCount; ++r) {
          sums.high[r][t] = Sums::add(sums.high[r][t], bytes, high[r]);
          sums.low[r][t] = Sums::add(sums.low[r][t], bytes, low[r]);
        }
      }
    }
  }
}

/// The same, in narrow sums as long as these hold, where the instruction set has them.
template <class Order, int Bits, int Quads, int RowCount, int Tiles>
__attribute__((always_inline)) inline void add_blocks(CodeStream& codes, Index blocks, const FoldedRow* rows,
                                                      Index depth, TileSums<RowCount, Tiles>& sums) {
  constexpr Index run = kNarrowQuads<Bits> / Quads;
  if constexpr (run == 0) {
    add_products<WideSums<Bits>, Order, Bits, Quads>(codes, blocks, rows, depth, sums);
  } else {
    for (; blocks > 0; blocks -= run, depth += 4 * Quads * run) {
      TileSums<RowCount, Tiles> narrow;
      clear(narrow);
      add_products<NarrowSums<U32x16>, Order, Bits, Quads>(codes, blocks < run ? blocks : run, rows, depth, narrow);
      ASYMKV_UNROLL
      for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
      for (int t = 0; t < Tiles; ++t) {
        sums.high[r][t] = add_narrow(sums.high[r][t], narrow.high[r][t]);
        sums.low[r][t] = add_narrow(sums.low[r][t], narrow.low[r][t]);
      }
    }
  }
}

/// Makes sums of plane p + 1 those of plane p.
template <int RowCount, int Tiles>
__attribute__((always_inline)) inline void shift_sums(const FoldedRow* rows, int p, TileSums<RowCount, Tiles>& sums) {
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) {
    sums.high[r][t] = shift_left(sums.high[r][t], rows[r].shifts[p]);
    sums.low[r][t] = shift_left(sums.low[r][t], rows[r].shifts[p]);
  }
}

/// All planes of mixed widths, the last one first.
template <int RowCount, int Tiles>
__attribute__((always_inline)) inline void add_planes(const CodeStream& codes, Index depth,
                                                      const FoldedGroup<RowCount>& group,
                                                      TileSums<RowCount, Tiles>& sums) {
  const Index* vectors = group.sets.vectors;
  const Index section = mixed_section(depth);
  CodeStream plane = codes;
  const auto seek = [&](Index vector) {
    plane.at = codes.at + 64 * vector;
    plane.next = codes.next + 64 * vector;
  };
  seek(vectors[0] + vectors[1] + vectors[2]);
  add_blocks<QuadsInOrder, 1, 8>(plane, vectors[3], group.rows, section * 3, sums);
  if (group.sets.several) shift_sums(group.rows, 2, sums);
  seek(vectors[0] + vectors[1]);
  add_blocks<QuadsInOrder, 2, 4>(plane, vectors[2], group.rows, section * 2, sums);
  if (group.sets.several) shift_sums(group.rows, 1, sums);
  seek(vectors[0]);
  add_blocks<QuadsInOrder, 4, 2>(plane, vectors[1], group.rows, section, sums);
  if (group.sets.several) shift_sums(group.rows, 0, sums);
  seek(0);
  add_blocks<QuadsInOrder, 8, 1>(plane, vectors[0], group.rows, 0, sums);
}

/// Adds the products of Tiles neighbouring lane tiles, bias included, to the results.
template <int Bits, int RowCount, int Tiles>
inline void dot_tiles(const PanelView& panel, Index tile, const FoldedGroup<RowCount>& group,
                      const ResultRows& result) {
  TileSums<RowCount, Tiles> sums;
  clear(sums);
  const Index tile_bytes = panel.layout.tile_bytes();
  CodeStream codes{panel.panel + tile * tile_bytes, panel.next + tile * tile_bytes, tile_bytes};
  if constexpr (Bits == kMixed)
    add_planes(codes, panel.layout.depth, group, sums);
  else
    add_blocks<PackedQuads, Bits, 8>(codes, (panel.depth + block_depth - 1) / block_depth, group.rows, 0, sums);
  float* to = result.data + tile * tile_lanes;
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) {
    const F32x16 step = broadcast(group.rows[r].step), bias = broadcast(group.rows[r].bias);
    ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t) {
      const F32x16 whole = madd(to_floats(sums.high[r][t]), broadcast(128.0f), to_floats(sums.low[r][t]));
      float* lanes = to + r * result.stride + t * tile_lanes;
      store(lanes, add(load(lanes), madd(whole, step, bias)));
    }
  }
}

/// The first stage of a folded row: elements, greatest and biases. What the row holds beyond depth plays no part.
/// scales(d) and zero_points(d, scales) load those of 16 depths.
template <class Scales, class ZeroPoints>
inline void fold_with(Scales scales, ZeroPoints zero_points, Index depth, const float* row, FoldedRow& to) {
  F32x16 greatest = broadcast(0.0f), biases = broadcast(0.0f);
  const auto add_batch = [&](Index d, F32x16 x) {
    const F32x16 s = scales(d), folded = mul(x, s);
    store(to.elements + d, folded);
    greatest = max_magnitude(greatest, folded);
    biases = madd(x, zero_points(d, s), biases);
  };
  Index d = 0;
  for (; d + 16 <= depth; d += 16) add_batch(d, load(row + d));
  if (d < depth) {
    add_batch(d, blend((1u << (depth - d)) - 1u, load(row + d), broadcast(0.0f)));
    d += 16;
  }
  for (; d < padded_depth(depth); d += 16) store(to.elements + d, broadcast(0.0f));
  to.greatest = greatest;
  to.biases = biases;
}

/// A loop for each kind of metadata, and a function for all widths.
__attribute__((noinline)) inline void fold(const GroupMetadata& metadata, Index depth, const float* row,
                                           FoldedRow& to) {
  const auto with_scales = [&](auto scales) {
    const auto affine = [&](Index d, F32x16) { return load_half_metadata(metadata.zero_points, d); };
    const auto symmetric = [&](Index, F32x16 s) { return mul(s, broadcast(metadata.symmetric_zero_point)); };
    if (metadata.symmetric)
      fold_with(scales, symmetric, depth, row, to);
    else
      fold_with(scales, affine, depth, row, to);
  };
  if (metadata.compact)
    with_scales([&](Index d) { return load_compact(metadata.scales + d); });
  else
    with_scales([&](Index d) { return load_half_metadata(metadata.scales, d); });
}

/// The second stage: bias and step. Returns the inverse of the step, 0 where all elements are below 1e-30.
inline float set_step(FoldedRow& row) {
  const float greatest = max_lanes(row.greatest);
  const bool zero = greatest < 1e-30f;
  row.bias = sum_lanes(row.biases);
  row.step = zero ? 0.0f : greatest * (1.0f / kSteps);
  return zero ? 0.0f : kSteps / greatest;
}

/// The third stage: bytes.
inline void round_row(const FoldedRow& row, Index depth, float inverse_step) {
  for (Index d = 0; d < padded_depth(depth); d += 64) {
    const ByteTerms terms = split_terms(round_wholes(row.elements + d, broadcast(inverse_step)));
    store(row.high + d, terms.high);
    store(row.low + d, terms.low);
  }
}

/// Up to 8 bytes.
inline std::uint64_t read_word(const unsigned char* from, Index bytes) {
  std::uint64_t word = 0;
  if (bytes >= 8)
    std::memcpy(&word, from, 8);
  else
    std::memcpy(&word, from, std::size_t(bytes));
  return word;
}

inline void read_sets(const PanelLayout& layout, const unsigned char* panel, MixedSets& sets) {
  const Index bytes = layout.width_set_bytes();
  const unsigned char* set = panel + layout.widths_offset();
  Index channels[plane_count] = {};
  std::uint64_t several = 0;
  for (Index first = 0; first < bytes; first += 8) {
    std::uint64_t* words = sets.words[first / 8];
    std::uint64_t seen = 0;
    ASYMKV_UNROLL
    for (int p = 0; p < plane_count; ++p) {
      words[p] = read_word(set + p * bytes + first, bytes - first);
      channels[p] += __builtin_popcountll(words[p]);
      several |= seen & words[p];
      seen |= words[p];
    }
  }
  ASYMKV_UNROLL
  for (int p = 0; p < plane_count; ++p) sets.vectors[p] = (channels[p] + plane_channels[p] - 1) / plane_channels[p];
  sets.several = several != 0;
}

/// Channels of plane p that have a later one too, where elements are worth 2^w as much.
inline std::uint64_t later_too(const std::uint64_t* words, int p) {
  std::uint64_t later = 0;
  for (int i = p + 1; i < plane_count; ++i) later |= words[i];
  return words[p] & later;
}

/// The 16 channels from d on among those of a plane, as bits.
inline std::uint32_t channels_at(std::uint64_t word, Index d) { return std::uint32_t(word >> d % 64 & 0xffffu); }

/// The first stage where channels have several planes: plane_greatest and greatest, too.
inline void find_greatest(const MixedSets& sets, Index depth, FoldedRow& row) {
  F32x16 greatest[plane_count];
  for (F32x16& plane : greatest) plane = broadcast(0.0f);
  for (Index d = 0; d < depth; d += 16) {
    const std::uint64_t* words = sets.words[d / 64];
    F32x16 x = absolute(load(row.elements + d));
    ASYMKV_UNROLL
    for (int p = 0; p < plane_count; ++p) {
      if (sets.vectors[p] == 0) continue;
      greatest[p] = max(greatest[p], blend(channels_at(words[p], d), x, broadcast(0.0f)));
      if (p + 1 < plane_count)
        x = blend(channels_at(later_too(words, p), d), mul(x, broadcast(float(1 << plane_bits[p]))), x);
    }
  }
  for (int p = 0; p < plane_count; ++p) {
    row.plane_greatest[p] = max_lanes(greatest[p]);
    row.greatest = max(row.greatest, greatest[p]);
  }
}

/// The second stage where channels have several planes: inverse_steps[p] is that of plane p. Sums are shifted by at
/// most 8 in all, so they stay below 2^29.
inline void set_plane_steps(FoldedRow& row, float* inverse_steps) {
  const float last = set_step(row), greatest = row.step * kSteps;
  int shift = 0;  // of the plane after p
  for (int p = plane_count - 1; p >= 0; --p) {
    float until = 0.0f;  // the greatest of the planes up to p, whose steps are not larger
    for (int i = 0; i <= p; ++i) until = std::max(until, row.plane_greatest[i]);
    const float ratio = until * 256.0f < greatest ? 256.0f : greatest / until;
    const int wanted = row.plane_greatest[p] > 0.0f ? int(float_bits(ratio) >> 23) - 127 : shift;
    row.shifts[p] = wanted > shift ? wanted - shift : 0;
    shift += row.shifts[p];
    inverse_steps[p] = last * float(1 << shift);
  }
  row.step /= float(1 << shift);
}

/// Elements of the channels in `again` times 2^bits.
inline void multiply_again(float* elements, std::uint64_t again, int bits) {
  for (Index i = 0; i < 64; i += 16) {
    const F32x16 x = load(elements + i);
    store(elements + i, blend(channels_at(again, i), mul(x, broadcast(float(1 << bits))), x));
  }
}

/// As round_row, with the elements in the order of the codes: compressed by the sets of channels themselves, since a
/// list of channels would be as long to make as the page to read. What stands behind a plane's elements does not
/// matter: codes that are padding are 0. The elements are used up.
inline void round_planes(FoldedRow& row, const MixedSets& sets, Index depth, const float* inverse_steps) {
  const Index section = mixed_section(depth);
  Index at[plane_count] = {0, section, 2 * section, 3 * section};
  for (Index d = 0; d < depth; d += 64) {
    const std::uint64_t* words = sets.words[d / 64];
    ByteTerms terms{};  // set below in any case, which GCC does not see
    const auto round = [&](float inverse_step) {
      terms = split_terms(round_wholes(row.elements + d, broadcast(inverse_step)));
      terms = {in_order(terms.high), in_order(terms.low)};
    };
    if (!sets.several) round(inverse_steps[0]);
    ASYMKV_UNROLL
    for (int p = 0; p < plane_count; ++p) {
      if (words[p] == 0) continue;
      if (sets.several) round(inverse_steps[p]);
      store_compressed(row.high + at[p], words[p], terms.high);
      store_compressed(row.low + at[p], words[p], terms.low);
      at[p] += __builtin_popcountll(words[p]);
      if (const std::uint64_t again = later_too(words, p); again != 0)
        multiply_again(row.elements + d, again, plane_bits[p]);
    }
  }
}

/// The first stage of all rows of a group.
template <int Bits, int RowCount>
inline void fold_rows(const PanelView& panels, const Rows& rows, FoldedGroup<RowCount>& group) {
  const unsigned char* panel = panels.panel + group.panel * panels.bytes;
  const GroupMetadata metadata = group_metadata(panels.layout, panel, group.number);
  if constexpr (Bits == kMixed) read_sets(panels.layout, panel, group.sets);
  for (int r = 0; r < RowCount; ++r) {
    const float* row = rows.data + (group.panel * rows.count + group.first_row + r) * rows.stride;
    fold(metadata, panels.depth, row, group.rows[r]);
    if constexpr (Bits == kMixed)
      if (group.sets.several) find_greatest(group.sets, panels.depth, group.rows[r]);
  }
}

/// Folds the rows of some groups, stage by stage.
template <int Bits, int RowCount>
inline void fold_groups(const PanelView& panels, const Rows& rows, FoldedGroup<RowCount>* groups, Index count) {
  float inverse_steps[few_rows][plane_count];
  for (Index i = 0; i < count; ++i) fold_rows<Bits, RowCount>(panels, rows, groups[i]);
  for (Index i = 0; i < count; ++i)
    for (int r = 0; r < RowCount; ++r) {
      float* inverse = inverse_steps[i * RowCount + r];
      if constexpr (Bits == kMixed) {
        if (groups[i].sets.several) {
          set_plane_steps(groups[i].rows[r], inverse);
          continue;
        }
      }
      inverse[0] = set_step(groups[i].rows[r]);
    }
  for (Index i = 0; i < count; ++i)
    for (int r = 0; r < RowCount; ++r) {
      const float* inverse = inverse_steps[i * RowCount + r];
      if constexpr (Bits == kMixed)
        round_planes(groups[i].rows[r], groups[i].sets, panels.depth, inverse);
      else
        round_row(groups[i].rows[r], panels.depth, inverse[0]);
    }
}

/// Tiles [tile, end) of one group, as many at once as registers allow, then two, then one.
template <int Bits, int RowCount>
inline void dot_group(const PanelView& panel, Index tile, Index end, const FoldedGroup<RowCount>& group,
                      const ResultRows& result) {
  constexpr int most = std::max(1, kPanelTiles / RowCount);
  for (; tile + most <= end; tile += most) dot_tiles<Bits, RowCount, most>(panel, tile, group, result);
  if constexpr (most > 2)
    for (; tile + 2 <= end; tile += 2) dot_tiles<Bits, RowCount, 2>(panel, tile, group, result);
  if constexpr (most > 1)
    for (; tile < end; ++tile) dot_tiles<Bits, RowCount, 1>(panel, tile, group, result);
}

/// Gives row number i of few_rows its part of packed_product's scratch.
inline void place_row(const PanelLayout& layout, float* scratch, Index i, FoldedRow& row) {
  row.elements = scratch + i * row_scratch(layout);
  row.high = reinterpret_cast<std::int8_t*>(row.elements + padded_depth(layout.depth));
  row.low = row.high + row_slots(layout);
}

/// Rows [first, end) of each panel, RowCount at a time.
/// A function of its own: inlined side by side, the two counts of rows share registers badly.
template <int Bits, int RowCount>
__attribute__((noinline)) inline void dot_rows_of(const PanelView& panels, Index first, Index end, const Rows& rows,
                                                  const ResultRows& result, float* scratch) {
  const Index tiles = (panels.lanes + tile_lanes - 1) / tile_lanes;
  const Index tiles_in_group = panels.layout.group_size() / tile_lanes;
  const Index groups = (tiles + tiles_in_group - 1) / tiles_in_group;
  constexpr Index at_once = few_rows / RowCount;
  FoldedGroup<RowCount> folded[at_once];
  for (Index i = 0; i < at_once; ++i)
    for (int r = 0; r < RowCount; ++r) place_row(panels.layout, scratch, i * RowCount + r, folded[i].rows[r]);
  GroupOfRows next{0, 0, first};
  while (next.panel < panels.count) {
    Index count = 0;
    for (; count < at_once && next.panel < panels.count; ++count) {
      static_cast<GroupOfRows&>(folded[count]) = next;
      if ((next.first_row += RowCount) < end) continue;
      next.first_row = first;
      if (++next.number < groups) continue;
      next.number = 0;
      ++next.panel;
    }
    fold_groups<Bits, RowCount>(panels, rows, folded, count);
    for (Index i = 0; i < count; ++i) {
      const Index tile = folded[i].number * tiles_in_group;
      const PanelView panel = panels.single(folded[i].panel);
      if (tile == 0 && folded[i].first_row == first)
        for (Index offset = panel.layout.scale_offset(); offset < panel.bytes; offset += 64)
          __builtin_prefetch(panel.next + offset, 0, kSecondLevel);
      const Index row = folded[i].panel * rows.count + folded[i].first_row;
      dot_group<Bits, RowCount>(panel, tile, std::min(tiles, tile + tiles_in_group), folded[i],
                                {result.data + row * result.stride, result.stride});
    }
  }
}

/// Few rows: kDotRows share the unpacking, the rest go one by one.
template <int Bits>
inline void dot_product(const PanelView& panels, const Rows& rows, const ResultRows& result, float* scratch) {
  const Index together = rows.count / kDotRows * kDotRows;
  if (together > 0) dot_rows_of<Bits, kDotRows>(panels, 0, together, rows, result, scratch);
  if (together < rows.count) dot_rows_of<Bits, 1>(panels, together, rows.count, rows, result, scratch);
}
