// dot.inl: few rows (decode) times the packed panels of a page, in whole numbers. Included once per instruction set,
// after dequantize.inl.
//
// The scales fold into the rows once per group: result = (row * scale) . codes + row . zero points. Folded rows are
// rounded to 16256 steps of their greatest magnitude, so that they meet the codes in whole numbers: one shift and mask
// makes 64 unsigned bytes of codes, and 4-way dot products of bytes add them up exactly. So the only error beside that
// of float sums is the rows' rounding.
//
// For codes of three bits and more an element is cut into two signed bytes, 128 * high + low, and off by at most
// 1/32512 of the greatest. For codes of one and two bits, which are rough themselves, one byte does, 128 * coarse, with
// half the products. An element is off by less than 1/127 of the greatest then, and what it has lost is carried to the
// next one in its vector lane: the losses of a lane add up to less than one unit of a byte, and many small elements are
// not lost, as they would be if each were rounded for itself. Tests hold the error of attention below a fifth of what
// quantization costs.
//
// Rows of mixed widths come in the order of a panel's channels, and its vectors are read one kind after the other.
// Folding is a chain of dependent steps, so up to four rows are folded side by side before their products.

/// Of the greatest element: 128 * 127, what two signed bytes hold.
constexpr float kSteps = 16256.0f;

/// The vectors of a panel of mixed widths, and the first element in the rows of each width. all_fit: narrow sums, if
/// the instruction set has them, hold all products.
struct MixedTile {
  VectorCounts vectors;
  Index first[greatest_width + 1];
  bool all_fit;
};

/// Bytes of a row's element that codes of 1 to 8 bits are multiplied with.
constexpr int terms_of(int bits) { return bits <= 2 ? 1 : 2; }

/// A row times the scales of its group, first as floats, then as bytes in the order of the codes: an element is step *
/// (128 * high + low), or about step * 128 * coarse. Those that no code needs are not set.
struct FoldedRow {
  float* elements;  ///< [padded_depth], zero beyond depth
  std::int8_t* high;
  std::int8_t* low;
  std::int8_t* coarse;
  F32x16 greatest;  ///< magnitudes, lane by lane
  F32x16 biases;    ///< sum up to row . zero points
  float step;
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
  MixedTile mixed;
};

/// Whole sums for Tiles neighbouring lane tiles of one group: of products with high or coarse, and with low bytes.
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
/// The same in pairs of halfwords, for as many products as narrow_quads says. A template, since few instruction sets
/// have them.
template <class Words>
struct NarrowSums {
  static Words add(Words sums, Words codes, Words row) { return dot_narrow(sums, codes, row); }
};

/// Quads of a row's bytes in order, as mixed widths have them; those of other rows lie as PackedQuads says.
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

/// Four elements of each row: high or coarse bytes, and low ones if there are two terms.
template <int RowCount, int Terms>
struct RowQuads {
  U32x16 high[RowCount], low[Terms == 2 ? RowCount : 1];
  __attribute__((always_inline)) RowQuads(const FoldedRow* rows, Index at) {
    ASYMKV_UNROLL
    for (int r = 0; r < RowCount; ++r) {
      high[r] = broadcast_quad((Terms == 2 ? rows[r].high : rows[r].coarse) + at);
      if constexpr (Terms == 2) low[r] = broadcast_quad(rows[r].low + at);
    }
  }
};

/// Adds the products of row quads with the codes of neighbouring tiles.
template <class Sums, int RowCount, int Terms, int Tiles>
__attribute__((always_inline)) inline void add_tile(int t, U32x16 bytes, const RowQuads<RowCount, Terms>& quads,
                                                    TileSums<RowCount, Tiles>& sums) {
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) {
    sums.high[r][t] = Sums::add(sums.high[r][t], bytes, quads.high[r]);
    if constexpr (Terms == 2) sums.low[r][t] = Sums::add(sums.low[r][t], bytes, quads.low[r]);
  }
}

/// Adds narrow sums to the others and clears them.
template <int RowCount, int Tiles>
__attribute__((always_inline)) inline void empty(TileSums<RowCount, Tiles>& narrow, TileSums<RowCount, Tiles>& sums) {
  if constexpr (narrow_quads(1) > 0) {
    ASYMKV_UNROLL
    for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t) {
      sums.high[r][t] = add_narrow(sums.high[r][t], narrow.high[r][t]);
      sums.low[r][t] = add_narrow(sums.low[r][t], narrow.low[r][t]);
    }
    clear(narrow);
  }
}

/// The next vectors of all tiles.
__attribute__((always_inline)) inline void advance(CodeStream& codes, Index vectors) {
  codes.at += 64 * vectors;
  codes.next += 64 * vectors;
}

/// Blocks of Quads quads of one width. `depth` is that of the first one's elements in the rows.
template <class Order, int Bits, int Quads>
struct BlocksOf {
  static constexpr Index vectors = Bits * Quads / 8;
  static constexpr int greatest_bits = Bits;
  static constexpr int narrow_run = narrow_quads(Bits) / Quads;
  Index depth;

  template <class Sums, int RowCount, int Tiles>
  __attribute__((always_inline)) void add(const CodeStream& codes, const FoldedRow* rows,
                                          TileSums<RowCount, Tiles>& sums) {
    const Index base = Order::base(depth);
    const unsigned char* at = codes.at;
    ASYMKV_UNROLL
    for (int q = 0; q < Quads; ++q) {
      const RowQuads<RowCount, terms_of(Bits)> quads(rows, base + Order::offset(q));
      // with many sums there are no registers to keep the vectors of two planes: they are loaded anew for each quad
      if constexpr (planes_of(Bits).high > 0 && RowCount * Tiles > 4) __asm__("" : "+r"(at));
      ASYMKV_UNROLL
      for (int t = 0; t < Tiles; ++t) {
        const U32x16 bytes = unpack_bytes<Bits, Quads>(at + t * codes.tile_bytes, q);
        if (q < vectors) __builtin_prefetch(codes.next + t * codes.tile_bytes + 64 * q, 0, kSecondLevel);
        add_tile<Sums>(t, bytes, quads, sums);
      }
    }
    depth += 4 * Quads;
  }
};

/// Some neighbouring quads of a vector, of one width.
template <int Width, int Quads>
struct Part {
  static constexpr int width = Width, quads = Quads;
  static constexpr int greatest_sum = Quads * ((1 << Width) - 1);
};

/// Vectors of two or three parts, the widest first. `depths` are those of the first elements of each in the rows.
template <class... Parts>
struct VectorsOf {
  static constexpr Index vectors = 1;
  static constexpr int greatest_bits = std::max({Parts::width...});
  static constexpr int narrow_run = narrow_quads(1) / (Parts::greatest_sum + ...);
  Index depths[sizeof...(Parts)];

  template <class Sums, int RowCount, int Tiles>
  __attribute__((always_inline)) void add(const CodeStream& codes, const FoldedRow* rows,
                                          TileSums<RowCount, Tiles>& sums) {
    ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t) __builtin_prefetch(codes.next + t * codes.tile_bytes, 0, kSecondLevel);
    int shift = 0, part = 0;
    (add_part<Sums, Parts>(codes, rows, depths[part++], shift, sums), ...);
  }

 private:
  template <class Sums, class Quads, int RowCount, int Tiles>
  __attribute__((always_inline)) static void add_part(const CodeStream& codes, const FoldedRow* rows, Index& depth,
                                                      int& shift, TileSums<RowCount, Tiles>& sums) {
    ASYMKV_UNROLL
    for (int q = 0; q < Quads::quads; ++q, shift += Quads::width, depth += 4) {
      const RowQuads<RowCount, terms_of(Quads::width)> quads(rows, depth);
      ASYMKV_UNROLL
      for (int t = 0; t < Tiles; ++t) {
        const U32x16 vector = load_words(codes.at + t * codes.tile_bytes);
        add_tile<Sums>(t, byte_fields(vector, shift, Quads::width, 0), quads, sums);
      }
    }
  }
};

/// sums += others
template <int RowCount, int Tiles>
__attribute__((always_inline)) inline void merge(const TileSums<RowCount, Tiles>& others,
                                                 TileSums<RowCount, Tiles>& sums) {
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) {
    sums.high[r][t] = add(sums.high[r][t], others.high[r][t]);
    sums.low[r][t] = add(sums.low[r][t], others.low[r][t]);
  }
}

/// Adds `blocks` blocks to words: where there are too few sums to hide the latency of their products, as many blocks at
/// once as it takes, each to sums of its own.
template <class Blocks, int RowCount, int Tiles>
__attribute__((always_inline)) inline void add_wide_blocks(CodeStream codes, Index blocks, Blocks block,
                                                           const FoldedRow* rows, TileSums<RowCount, Tiles>& sums) {
  using Sums = WideSums<Blocks::greatest_bits>;
  constexpr int sums_of_tiles = RowCount * Tiles * terms_of(Blocks::greatest_bits);
  constexpr int at_once = std::min(4, std::max(1, kSumsInFlight / sums_of_tiles));
  if constexpr (at_once > 1) {
    TileSums<RowCount, Tiles> others[at_once - 1];
    ASYMKV_UNROLL
    for (int i = 1; i < at_once; ++i) clear(others[i - 1]);
    for (; blocks >= at_once; blocks -= at_once) {
      ASYMKV_UNROLL
      for (int i = 0; i < at_once; ++i, advance(codes, Blocks::vectors))
        block.template add<Sums>(codes, rows, i == 0 ? sums : others[i - 1]);
    }
    ASYMKV_UNROLL
    for (int i = 1; i < at_once; ++i) merge(others[i - 1], sums);
  }
  for (; blocks > 0; --blocks, advance(codes, Blocks::vectors)) block.template add<Sums>(codes, rows, sums);
}

/// Adds `blocks` blocks, in narrow sums as long as these hold, where the instruction set has them. This and what it
/// calls are inlined by force: the sums must stay in registers.
template <class Blocks, int RowCount, int Tiles>
__attribute__((always_inline)) inline void add_blocks(CodeStream codes, Index blocks, Blocks block,
                                                      const FoldedRow* rows, TileSums<RowCount, Tiles>& sums) {
  constexpr Index run = Blocks::narrow_run;
  if constexpr (run == 0) {
    add_wide_blocks(codes, blocks, block, rows, sums);
  } else {
    TileSums<RowCount, Tiles> narrow;
    clear(narrow);
    while (blocks > 0) {
      for (Index end = blocks < run ? 0 : blocks - run; blocks > end; --blocks, advance(codes, Blocks::vectors))
        block.template add<NarrowSums<U32x16>>(codes, rows, narrow);
      empty(narrow, sums);
    }
  }
}

/// The same where narrow sums hold all that there is.
template <class Blocks, int RowCount, int Tiles>
__attribute__((always_inline)) inline void add_narrow_blocks(CodeStream codes, Index blocks, Blocks block,
                                                             const FoldedRow* rows, TileSums<RowCount, Tiles>& narrow) {
  for (; blocks > 0; --blocks, advance(codes, Blocks::vectors))
    block.template add<NarrowSums<U32x16>>(codes, rows, narrow);
}

/// Sums of all lane tiles of a page, Tiles at once.
template <int RowCount>
struct PageSums {
  static constexpr int tiles = std::max(1, kPanelTiles / RowCount);
  static constexpr int count = int(page_tokens / tile_lanes) / tiles;
  static_assert(count * tiles * tile_lanes == page_tokens);
  TileSums<RowCount, tiles> sums[count];
};

/// One kind of vectors of mixed widths, in neighbouring tiles. Where all fit there are none that narrow sums do not
/// hold: one block of these alone would be too much.
template <class Blocks, int RowCount, int Tiles>
__attribute__((always_inline)) inline void add_kind(const CodeStream& codes, Index blocks, Blocks block,
                                                    const FoldedGroup<RowCount>& group,
                                                    TileSums<RowCount, Tiles>& sums) {
  if constexpr (Blocks::narrow_run > 0) {
    if (group.mixed.all_fit) return add_narrow_blocks(codes, blocks, block, group.rows, sums);
  }
  add_blocks(codes, blocks, block, group.rows, sums);
}

/// The same in all tiles. The kinds are the outer loop: how many there are of each differs from panel to panel, and a
/// loop's end that was not foreseen costs more than sums kept in memory.
template <class Blocks, int RowCount>
__attribute__((noinline)) inline void add_kind_to_page(CodeStream codes, Index blocks, Blocks block,
                                                       const FoldedGroup<RowCount>& group, PageSums<RowCount>& page) {
  for (auto& kept : page.sums) {
    auto sums = kept;
    add_kind(codes, blocks, block, group, sums);
    kept = sums;
    codes.at += PageSums<RowCount>::tiles * codes.tile_bytes;
    codes.next += PageSums<RowCount>::tiles * codes.tile_bytes;
  }
}

/// All vectors of mixed widths.
template <int RowCount>
__attribute__((always_inline)) inline void add_mixed(CodeStream codes, const FoldedGroup<RowCount>& group,
                                                     PageSums<RowCount>& page) {
  const VectorCounts& v = group.mixed.vectors;
  const Index* first = group.mixed.first;
  const auto add = [&](Index count, auto block) __attribute__((always_inline)) {
    if constexpr (PageSums<RowCount>::count == 1)  // in registers from kind to kind
      add_kind(codes, count, block, group, page.sums[0]);
    else if (count > 0)
      add_kind_to_page(codes, count, block, group, page);
    advance(codes, count * block.vectors);
  };
  add(v.eights, BlocksOf<QuadsInOrder, 8, 1>{first[8]});
  add(v.fours, BlocksOf<QuadsInOrder, 4, 2>{first[4]});
  add(v.twos, BlocksOf<QuadsInOrder, 2, 4>{first[2]});
  add(v.ones, BlocksOf<QuadsInOrder, 1, 8>{first[1]});
  add(v.threes, BlocksOf<QuadsInOrder, 3, 8>{first[3]});
  add(v.fives, BlocksOf<QuadsInOrder, 5, 8>{first[5]});
  add(v.sixes, BlocksOf<QuadsInOrder, 6, 4>{first[6]});
  Index threes = first[3] + 32 * v.threes, twos = first[2] + 16 * v.twos;
  add(v.fives_threes, VectorsOf<Part<5, 1>, Part<3, 1>>{{first[5] + 32 * v.fives, threes}});
  threes += 4 * v.fives_threes;
  add(v.sixes_twos, VectorsOf<Part<6, 1>, Part<2, 1>>{{first[6] + 16 * v.sixes, twos}});
  twos += 4 * v.sixes_twos;
  add(v.threes_two, VectorsOf<Part<3, 2>, Part<2, 1>>{{threes, twos}});
  threes += 8 * v.threes_two;
  twos += 4 * v.threes_two;
  add(v.three_twos_one, VectorsOf<Part<3, 1>, Part<2, 2>, Part<1, 1>>{{threes, twos, first[1] + 32 * v.ones}});
  if (!group.mixed.all_fit) return;
  for (auto& sums : page.sums) {
    auto narrow = sums;
    clear(sums);
    empty(narrow, sums);
  }
}

/// Adds sums, bias included, to the results of neighbouring lane tiles.
template <int RowCount, int Tiles>
inline void add_sums(const TileSums<RowCount, Tiles>& sums, const FoldedRow* rows, const ResultRows& result) {
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) {
    const F32x16 step = broadcast(rows[r].step), bias = broadcast(rows[r].bias);
    ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t) {
      const F32x16 whole = madd(to_floats(sums.high[r][t]), broadcast(128.0f), to_floats(sums.low[r][t]));
      float* lanes = result.data + r * result.stride + t * tile_lanes;
      store(lanes, add(load(lanes), madd(whole, step, bias)));
    }
  }
}

/// Adds the products of Tiles neighbouring lane tiles to the results.
template <int Bits, int RowCount, int Tiles>
inline void dot_tiles(const PanelView& panel, Index tile, const FoldedGroup<RowCount>& group,
                      const ResultRows& result) {
  TileSums<RowCount, Tiles> sums;
  clear(sums);
  const Index tile_bytes = panel.layout.tile_bytes();
  add_blocks(CodeStream{panel.panel + tile * tile_bytes, panel.next + tile * tile_bytes, tile_bytes},
             (panel.depth + block_depth - 1) / block_depth, BlocksOf<PackedQuads, Bits, 8>{0}, group.rows, sums);
  add_sums(sums, group.rows, {result.data + tile * tile_lanes, result.stride});
}

/// Adds those of a whole panel of mixed widths.
template <int RowCount>
inline void dot_mixed(const PanelView& panel, const FoldedGroup<RowCount>& group, const ResultRows& result) {
  PageSums<RowCount> page;
  for (auto& sums : page.sums) clear(sums);
  add_mixed({panel.panel, panel.next, panel.layout.tile_bytes()}, group, page);
  for (int i = 0; i < page.count; ++i)
    add_sums(page.sums[i], group.rows, {result.data + i * page.tiles * tile_lanes, result.stride});
}

/// The first stage of folded rows: elements, greatest and biases. Rows share the group's scales and zero points, and
/// what they hold beyond depth plays no part. scales(d) and zero_points(d, scales) load those of 16 depths.
template <int RowCount, class Scales, class ZeroPoints>
inline void fold_with(Scales scales, ZeroPoints zero_points, Index depth, const Rows& rows, FoldedRow* to) {
  F32x16 greatest[RowCount], biases[RowCount];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) greatest[r] = biases[r] = broadcast(0.0f);
  const auto add_batch = [&](Index d, auto elements) {
    const F32x16 s = scales(d), z = zero_points(d, s);
    ASYMKV_UNROLL
    for (int r = 0; r < RowCount; ++r) {
      const F32x16 x = elements(rows.data + r * rows.stride + d), folded = mul(x, s);
      store(to[r].elements + d, folded);
      greatest[r] = max_magnitude(greatest[r], folded);
      biases[r] = madd(x, z, biases[r]);
    }
  };
  Index d = 0;
  for (; d + 16 <= depth; d += 16) add_batch(d, [](const float* x) { return load(x); });
  if (d < depth) {
    const std::uint32_t inside = (1u << (depth - d)) - 1u;
    add_batch(d, [&](const float* x) { return blend(inside, load(x), broadcast(0.0f)); });
    d += 16;
  }
  for (int r = 0; r < RowCount; ++r) {
    for (Index beyond = d; beyond < padded_depth(depth); beyond += 16)
      store(to[r].elements + beyond, broadcast(0.0f));
    to[r].greatest = greatest[r];
    to[r].biases = biases[r];
  }
}

/// A loop for each kind of metadata, and a function for all widths.
template <int RowCount>
__attribute__((noinline)) inline void fold(const GroupMetadata& metadata, Index depth, const Rows& rows,
                                           FoldedRow* to) {
  const auto with_scales = [&](auto scales) {
    const auto affine = [&](Index d, F32x16) { return load_half_metadata(metadata.zero_points, d); };
    const auto symmetric = [&](Index, F32x16 s) { return mul(s, broadcast(metadata.symmetric_zero_point)); };
    if (metadata.symmetric)
      fold_with<RowCount>(scales, symmetric, depth, rows, to);
    else
      fold_with<RowCount>(scales, affine, depth, rows, to);
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

/// The third stage: bytes. Those of mixed widths lie in order, others as the vector layer leaves them.
template <int Bits>
inline void store_rounded(std::int8_t* to, const Bytes& bytes) {
  store(to, Bits == kMixed ? in_order(bytes) : bytes);
}
template <int Bits>
inline void round_to_terms(const FoldedRow& row, Index end, float inverse_step) {
  for (Index d = 0; d < end; d += 64) {
    const ByteTerms terms = split_terms(round_wholes(row.elements + d, broadcast(inverse_step)));
    store_rounded<Bits>(row.high + d, terms.high);
    store_rounded<Bits>(row.low + d, terms.low);
  }
}
/// From `begin` on, a multiple of 64.
template <int Bits>
inline void round_to_coarse(const FoldedRow& row, Index begin, Index end, float inverse_step) {
  Carry carry = first_carry();
  for (Index d = begin; d < end; d += 64) {
    const Wholes wholes = round_wholes(row.elements + d, broadcast(inverse_step));
    store_rounded<Bits>(row.coarse + d, coarse_bytes(wholes, carry));
  }
}
/// Two terms of the channels of three bits and more, which come first, and coarse bytes of the others, to which those
/// carry nothing.
inline void round_mixed(const FoldedRow& row, Index end, Index first_coarse, float inverse_step) {
  round_to_terms<kMixed>(row, first_coarse, inverse_step);
  const Index begin = first_coarse / 64 * 64;
  std::memset(row.elements + begin, 0, sizeof(float) * std::size_t(first_coarse - begin));
  round_to_coarse<kMixed>(row, begin, end, inverse_step);
}
template <int Bits, int RowCount>
inline void round_rows(const FoldedGroup<RowCount>& group, Index depth, const float* inverse_steps) {
  const Index end = padded_depth(depth);
  for (int r = 0; r < RowCount; ++r) {
    if constexpr (Bits == kMixed)
      round_mixed(group.rows[r], end, group.mixed.first[2], inverse_steps[r]);
    else if constexpr (terms_of(Bits) == 2)
      round_to_terms<Bits>(group.rows[r], end, inverse_steps[r]);
    else
      round_to_coarse<Bits>(group.rows[r], 0, end, inverse_steps[r]);
  }
}

/// Narrow sums hold as many quads of one-bit codes as narrow_quads(1), or as many fewer of wider ones as their greatest
/// code is greater.
inline void read_mixed(const PanelLayout& layout, const unsigned char* panel, MixedTile& mixed) {
  const QuadCounts counts = read_quad_counts(layout, panel + layout.widths_offset());
  mixed.vectors = VectorCounts::of(counts);
  Index first = 0, filled = 0;
  for (int width : width_order) {
    mixed.first[width] = first;
    first += 4 * counts.quads[width];
    filled += counts.quads[width] * ((1 << width) - 1);
  }
  mixed.all_fit = filled <= narrow_quads(1);
}

/// The first stage of all rows of a group.
template <int Bits, int RowCount>
inline void fold_rows(const PanelView& panels, const Rows& rows, FoldedGroup<RowCount>& group) {
  const unsigned char* panel = panels.panel + group.panel * panels.bytes;
  const GroupMetadata metadata = group_metadata(panels.layout, panel, group.number);
  if constexpr (Bits == kMixed) read_mixed(panels.layout, panel, group.mixed);
  const float* const first = rows.data + (group.panel * rows.count + group.first_row) * rows.stride;
  fold<RowCount>(metadata, panels.depth, {first, rows.stride, RowCount}, group.rows);
}

/// Folds the rows of some groups, stage by stage.
template <int Bits, int RowCount>
inline void fold_groups(const PanelView& panels, const Rows& rows, FoldedGroup<RowCount>* groups, Index count) {
  float inverse_steps[folded_rows];
  for (Index i = 0; i < count; ++i) fold_rows<Bits, RowCount>(panels, rows, groups[i]);
  for (Index i = 0; i < count; ++i)
    for (int r = 0; r < RowCount; ++r) inverse_steps[i * RowCount + r] = set_step(groups[i].rows[r]);
  for (Index i = 0; i < count; ++i) round_rows<Bits>(groups[i], panels.depth, inverse_steps + i * RowCount);
}

/// Tiles [tile, end) of one group, as many at once as registers allow, then two, then one; all of mixed widths.
template <int Bits, int RowCount>
inline void dot_group(const PanelView& panel, Index tile, Index end, const FoldedGroup<RowCount>& group,
                      const ResultRows& result) {
  if constexpr (Bits == kMixed) {
    dot_mixed(panel, group, result);
  } else {
    constexpr int of_one_row = std::min(8, kPanelTiles * 2 / terms_of(Bits));
    constexpr int most = std::max(1, of_one_row / RowCount);
    for (; tile + most <= end; tile += most) dot_tiles<Bits, RowCount, most>(panel, tile, group, result);
    if constexpr (most > 2)
      for (; tile + 2 <= end; tile += 2) dot_tiles<Bits, RowCount, 2>(panel, tile, group, result);
    if constexpr (most > 1)
      for (; tile < end; ++tile) dot_tiles<Bits, RowCount, 1>(panel, tile, group, result);
  }
}

/// Gives row number i of folded_rows its part of packed_product's scratch.
inline void place_row(const PanelLayout& layout, float* scratch, Index i, FoldedRow& row) {
  row.elements = scratch + i * row_scratch(layout);
  row.high = reinterpret_cast<std::int8_t*>(row.elements + padded_depth(layout.depth));
  row.low = row.high + padded_depth(layout.depth);
  row.coarse = row.low + padded_depth(layout.depth);
}

/// Rows [first, end) of each panel, RowCount at a time. A function of its own: inlined side by side, the counts of rows
/// share registers badly.
template <int Bits, int RowCount>
__attribute__((noinline)) inline void dot_rows_of(const PanelView& panels, Index first, Index end, const Rows& rows,
                                                  const ResultRows& result, float* scratch) {
  const Index tiles = (panels.lanes + tile_lanes - 1) / tile_lanes;
  const Index tiles_in_group = panels.layout.group_size() / tile_lanes;
  const Index groups = (tiles + tiles_in_group - 1) / tiles_in_group;
  constexpr Index at_once = folded_rows / RowCount;
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

/// Rows from `first` on: RowCount share the unpacking as long as there are so many, of the rest half as many.
template <int Bits, int RowCount>
inline void dot_rows_from(const PanelView& panels, Index first, const Rows& rows, const ResultRows& result,
                          float* scratch) {
  const Index end = first + (rows.count - first) / RowCount * RowCount;
  if (first < end) dot_rows_of<Bits, RowCount>(panels, first, end, rows, result, scratch);
  if constexpr (RowCount > 1)
    if (end < rows.count) dot_rows_from<Bits, RowCount / 2>(panels, end, rows, result, scratch);
}

inline void few_rows_product(const PanelView& panels, const Rows& rows, const ResultRows& result, float* scratch) {
  with_bits(panels.layout.format,
            [&](auto bits) { dot_rows_from<bits(), kDotRows>(panels, 0, rows, result, scratch); });
}
