// write_rows.inl: a batch of min-max values into a panel, in the order in which they lie: a vector is 16 lanes of one
// depth, so nothing is transposed but the extremes of groups. The same fits and codes as quantize.inl's, to the bit.
// Included once per instruction set, after quantize.inl and pack.inl.

/// The 16 depths of a batch, each with its lanes side by side. Those that are not in the batch repeat others.
template <ScalarType Type>
class DepthRows {
 public:
  DepthRows(const PanelSource& source, const DepthBatch& batch) {
    for (Index d = 0; d < tile_lanes; ++d) {
      const Index row = std::min(std::max<Index>(d - batch.first, 0), batch.count() - 1);
      rows_[d] = static_cast<const char*>(source.data) + row * source.depth_stride * scalar_bytes(Type);
    }
  }
  F32x16 load(Index depth, Index lane) const { return load_as<Type>(rows_[depth], lane); }

 private:
  const void* rows_[tile_lanes];
};

/// The fits of 16 depths, of lanes [begin, end).
template <ScalarType Type>
inline MinMaxFit fit_rows(const DepthRows<Type>& rows, Index begin, Index end, F32x16 levels, Metadata metadata) {
  F32x16 least[16], greatest[16];
  for (Index d = 0; d < 16; ++d) {
    F32x16 row_least = rows.load(d, begin), row_greatest = row_least;
    for (Index lane = begin + 16; lane < end; lane += 16) {
      const F32x16 x = rows.load(d, lane);
      row_least = min(row_least, x);
      row_greatest = max(row_greatest, x);
    }
    least[d] = row_least;
    greatest[d] = row_greatest;
  }
  return {reduce_rows(least, [](auto a, auto b) { return min(a, b); }),
          reduce_rows(greatest, [](auto a, auto b) { return max(a, b); }), levels, metadata};
}

/// The coders of 16 depths, one at a time in all lanes.
template <class Coder>
class CoderLanes {
 public:
  void set(const Coder& coder) { std::memcpy(numbers_, &coder, sizeof coder); }
  Coder operator[](Index lane) const {
    F32x16 parts[sizeof(Coder) / sizeof(F32x16)];
    ASYMKV_UNROLL
    for (std::size_t i = 0; i < sizeof(Coder) / sizeof(F32x16); ++i) parts[i] = broadcast(numbers_[16 * i + lane]);
    Coder coder;
    std::memcpy(&coder, parts, sizeof coder);
    return coder;
  }

 private:
  float numbers_[sizeof(Coder) / sizeof(float)];
};

/// Where codes go: a batch of depths of a panel.
struct RowTarget {
  const PanelLayout& layout;
  unsigned char* panel;
  DepthBatch depths;
  BatchBytes bytes;

  /// Codes of the lane tile that begins at `lane`: code(d) gives those of depth d.
  template <int Bits, class Code>
  void insert(Index lane, Code code) const {
    U32x16 quads[4];
    ASYMKV_UNROLL
    for (Index q = 0; q < 4; ++q) {
      quads[q] = zero_words();
      if (bytes.quads[q] == 0) continue;
      ASYMKV_UNROLL
      for (Index i = 0; i < 4; ++i) quads[q] = bit_or(quads[q], shift_left(code(4 * q + i), int(8 * i)));
    }
    insert_tile<Bits>(depths, bytes, quads, lanes_between(0, 16), panel + lane / 16 * layout.tile_bytes());
  }
};

template <ScalarType Type, int Levels>
inline void code_tile(const DepthRows<Type>& rows, Index lane, const CoderLanes<MinMaxSteps<Levels>>& coders,
                      const RowTarget& to) {
  to.insert<Levels == 1 ? 1 : 2>(lane, [&](Index d) { return coders[d].code(rows.load(d, lane)); });
}
template <ScalarType Type>
inline void code_tile(const DepthRows<Type>& rows, Index lane, const CoderLanes<MinMaxRatios>& coders,
                      const RowTarget& to) {
  HalfRows ratios;
  ratios.set_ratios(16, [&](Index d) { return rows.load(d, lane); }, [&](Index d) { return coders[d]; });
  with_packed_bits(to.layout.format.bits,
                   [&](auto bits) { to.insert<bits()>(lane, [&](Index d) { return coders[d].code(ratios[d]); }); });
}

/// Up to most_groups groups of the rows, from lane `begin` on. All are fitted before any is coded, as in fit_groups.
template <ScalarType Type>
inline void write_groups(const DepthRows<Type>& rows, Index begin, const RowTarget& to) {
  const PanelLayout& layout = to.layout;
  const Index size = layout.group_size(), first = begin / size, count = std::min(layout.groups() - first, most_groups);
  const auto end_of = [&](Index g) { return std::min((first + g + 1) * size, layout.lanes); };
  const float greatest_code = float((1 << layout.format.bits) - 1);
  MinMaxFit fitted[most_groups] = {};
  for (Index g = 0; g < count; ++g) {
    fitted[g] = fit_rows(rows, begin + g * size, end_of(g), broadcast(greatest_code), layout.format.metadata);
    float scales[16], zero_points[16];
    store(scales, fitted[g].scale);
    store(zero_points, fitted[g].zero_point);
    store_metadata(layout, to.panel, (first + g) * layout.depth_stride() + to.depths.begin(), to.depths.count(),
                   scales + to.depths.first, zero_points + to.depths.first);
  }
  with_coders(fitted, count, greatest_code, layout.format.metadata, [&](const auto* coders) {
    CoderLanes<std::decay_t<decltype(*coders)>> coders_of_depths[most_groups];
    for (Index g = 0; g < count; ++g) coders_of_depths[g].set(coders[g]);
    for (Index g = 0; g < count; ++g)
      for (Index lane = begin + g * size; lane < end_of(g); lane += 16) code_tile(rows, lane, coders_of_depths[g], to);
  });
}

inline void write_rows(const PanelLayout& layout, unsigned char* panel, const PanelSource& source,
                       const DepthBatch& depths) {
  const RowTarget to{layout, panel, depths, BatchBytes(depths)};
  with_type(source.type, [&](auto type) {
    const DepthRows<type()> rows(source, depths);
    for (Index lane = 0; lane < layout.lanes; lane += most_groups * layout.group_size()) write_groups(rows, lane, to);
  });
}
