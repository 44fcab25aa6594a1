// write_rows.inl: a batch of min-max values into a panel, in the order in which they lie: a vector is 16 lanes of one
// depth, so nothing is transposed but the extremes of groups. The same fits and codes as quantize.inl's, to the bit.
// Included once per instruction set, after quantize.inl and pack.inl.

/// The 16 depths of a batch, each with its lanes side by side. Those that are not in the batch repeat others.
template <ScalarType Type>
class DepthRows {
 public:
  DepthRows(const PanelSource& source, const DepthBatch& batch) : depths(batch), stored(batch) {
    for (Index d = 0; d < tile_lanes; ++d) {
      const Index row = std::min(std::max<Index>(d - depths.first, 0), depths.count() - 1);
      rows_[d] = static_cast<const char*>(source.data) + row * source.depth_stride * scalar_bytes(Type);
    }
  }
  F32x16 load(Index depth, Index lane) const { return load_as<Type>(rows_[depth], lane); }

  const DepthBatch& depths;
  const BatchBytes stored;

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

/// What a coder of 16 groups has for each of them, in all lanes.
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

/// Codes of 16 depths of a lane tile: code(d) gives those of depth d.
template <int Bits, ScalarType Type, class Code>
inline void write_tile(const DepthRows<Type>& rows, unsigned char* tile, Code code) {
  U32x16 quads[4];
  ASYMKV_UNROLL
  for (Index q = 0; q < 4; ++q) {
    quads[q] = code(4 * q);
    ASYMKV_UNROLL
    for (Index i = 1; i < 4; ++i) quads[q] = bit_or(quads[q], shift_left(code(4 * q + i), int(8 * i)));
  }
  insert_tile<Bits>(rows.depths, rows.stored, quads, lanes_between(0, 16), tile);
}
template <int Bits, ScalarType Type, int Levels>
inline void code_tile(const DepthRows<Type>& rows, Index lane, const CoderLanes<MinMaxSteps<Levels>>& coders,
                      unsigned char* tile) {
  write_tile<Bits>(rows, tile, [&](Index d) { return coders[d].code(rows.load(d, lane)); });
}
template <int Bits, ScalarType Type>
inline void code_tile(const DepthRows<Type>& rows, Index lane, const CoderLanes<MinMaxRatios>& coders,
                      unsigned char* tile) {
  HalfRows halves;
  const auto coder = [&](Index d) { return coders[d]; };
  halves.set_ratios(16, [&](Index d) { return rows.load(d, lane); }, coder);
  write_tile<Bits>(rows, tile, [&](Index d) { return coders[d].code(halves[d]); });
}

/// Groups of a row that are written together, for the reason that fit_groups has.
struct RowGroups {
  const PanelLayout& layout;
  Index first, count;

  Index begin(Index g) const { return (first + g) * layout.group_size(); }
  Index end(Index g) const { return std::min(begin(g + 1), layout.lanes); }
};

/// make(fit) is a coder.
template <int Bits, ScalarType Type, class Make>
inline void code_groups(const DepthRows<Type>& rows, const RowGroups& groups, const MinMaxFit* fitted,
                        unsigned char* panel, Make make) {
  CoderLanes<decltype(make(*fitted))> coders[most_groups];
  for (Index g = 0; g < groups.count; ++g) coders[g].set(make(fitted[g]));
  for (Index g = 0; g < groups.count; ++g)
    for (Index lane = groups.begin(g); lane < groups.end(g); lane += 16)
      code_tile<Bits>(rows, lane, coders[g], panel + lane / 16 * groups.layout.tile_bytes());
}

template <int Bits, ScalarType Type>
inline void write_groups(const DepthRows<Type>& rows, const RowGroups& groups, unsigned char* panel) {
  constexpr int greatest_code = (1 << Bits) - 1;
  const PanelLayout& layout = groups.layout;
  const F32x16 levels = broadcast(float(greatest_code));
  MinMaxFit fitted[most_groups] = {};
  for (Index g = 0; g < groups.count; ++g) {
    fitted[g] = fit_rows(rows, groups.begin(g), groups.end(g), levels, layout.format.metadata);
    float scales[16], zero_points[16];
    store(scales, fitted[g].scale);
    store(zero_points, fitted[g].zero_point);
    store_metadata(layout, panel, (groups.first + g) * layout.depth_stride() + rows.depths.begin(), rows.depths.count(),
                   scales + rows.depths.first, zero_points + rows.depths.first);
  }
  if constexpr (Bits <= 2)
    if (layout.format.metadata == Metadata::fp16 && MinMaxSteps<greatest_code>::serves(fitted, groups.count))
      return code_groups<Bits>(rows, groups, fitted, panel,
                               [](const MinMaxFit& fit) { return MinMaxSteps<greatest_code>(fit); });
  code_groups<Bits>(rows, groups, fitted, panel, [&](const MinMaxFit& fit) { return MinMaxRatios(fit, levels); });
}

inline void write_rows(const PanelLayout& layout, unsigned char* panel, const PanelSource& source,
                       const DepthBatch& depths) {
  with_packed_bits(layout.format.bits, [&](auto bits) {
    with_type(source.type, [&](auto type) {
      const DepthRows<type()> rows(source, depths);
      for (Index group = 0; group < layout.groups(); group += most_groups)
        write_groups<bits()>(rows, RowGroups{layout, group, std::min(layout.groups() - group, most_groups)}, panel);
    });
  });
}
