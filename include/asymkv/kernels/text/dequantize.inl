// dequantize.inl: packed codes to floats. Included once per instruction set, after its vector layer.

/// Stands for the number of bits where widths are mixed.
constexpr int kMixed = 0;

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

/// Where the metadata of one group of a panel lie.
struct GroupMetadata {
  const unsigned char* scales;
  const unsigned char* zero_points;
  bool compact, symmetric;
  float symmetric_zero_point;
};
inline GroupMetadata group_metadata(const PanelLayout& layout, const unsigned char* panel, Index group) {
  const Index first = group * layout.depth_stride();
  return {panel + layout.scale_offset() + first * layout.scale_bytes(), panel + layout.zero_point_offset() + 2 * first,
          layout.format.metadata == Metadata::compact, layout.format.zero_point == ZeroPoint::symmetric,
          symmetric_zero_point(layout.format.bits)};
}
/// Those of depths d to d + 15.
inline F32x16 load_half_metadata(const unsigned char* metadata, Index d) {
  return load_half(reinterpret_cast<const std::uint16_t*>(metadata) + d);
}
inline F32x16 load_scales(const GroupMetadata& group, Index d) {
  return group.compact ? load_compact(group.scales + d) : load_half_metadata(group.scales, d);
}
inline F32x16 load_zero_points(const GroupMetadata& group, Index d, F32x16 scales) {
  return group.symmetric ? mul(scales, broadcast(group.symmetric_zero_point))
                         : load_half_metadata(group.zero_points, d);
}

inline void expand_metadata(const PanelView& panel, const PanelMetadata& metadata) {
  const Index stride = panel.layout.depth_stride();
  for (Index group = 0; group * panel.layout.group_size() < panel.lanes; ++group) {
    const GroupMetadata from = group_metadata(panel.layout, panel.panel, group);
    for (Index d = 0; d < stride; d += 16) {
      const F32x16 scales = load_scales(from, d);
      store(metadata.scales + group * stride + d, scales);
      store(metadata.zero_points + group * stride + d, load_zero_points(from, d, scales));
    }
  }
}

/// Codes of 16 lanes at the four depths of quad q of a block, in the bytes of words.
template <int Bits, int Quads = 8>
ASYMKV_INLINE U32x16 unpack_bytes(const unsigned char* block, int q) {
  constexpr Planes planes = planes_of(Bits);
  constexpr int fields = 8 / planes.low;
  const U32x16 low = load_words(block + 64 * (q / fields));
  if constexpr (Bits == 8) return low;
  const U32x16 codes = byte_fields(low, planes.low * (q % fields), planes.low, 0);
  if constexpr (planes.high == 0) return codes;
  if constexpr (planes.high != 0) {
    constexpr int high_fields = 8 / planes.high;
    const U32x16 high = load_words(block + 64 * (planes.low * Quads / 8 + q / high_fields));
    return bit_or(codes, byte_fields(high, planes.high * (q % high_fields), planes.high, planes.low));
  }
}

/// Codes of 16 lanes of a quad of mixed widths, in the bytes of words.
inline U32x16 mixed_bytes(const unsigned char* tile, const QuadPlace& place) {
  const U32x16 low = byte_fields(load_words(tile + 64 * place.low_vector), place.low_shift, place.low_width, 0);
  const int rest = place.width - place.low_width;
  if (rest == 0) return low;
  return bit_or(low, byte_fields(load_words(tile + 64 * place.high_vector), place.high_shift, rest, place.low_width));
}

/// What dequantizing needs to know of a whole panel: where its quads are, nothing where widths are not mixed.
struct NoPlaces {};
template <int Bits>
inline auto quad_places(const PanelView& panel) {
  if constexpr (Bits == kMixed)
    return QuadPlaces(read_quad_counts(panel.layout, panel.panel + panel.layout.widths_offset()));
  else
    return NoPlaces();
}

/// One lane tile, depths 0..panel.depth-1: out[d][out_stride] = fma(code, scale[d], zero point[d]). `places` are
/// quad_places'.
template <int Bits, class Places>
inline void dequantize_tile(const PanelView& panel, const PanelMetadata& metadata, const Places& places, Index tile,
                            float* out, Index out_stride) {
  const unsigned char* codes = panel.panel + tile * panel.layout.tile_bytes();
  const Index group = tile * tile_lanes / panel.layout.group_size();
  const float* scales = metadata.scales + group * panel.layout.depth_stride();
  const float* zero_points = metadata.zero_points + group * panel.layout.depth_stride();
  const auto store_quad = [&](Index d, U32x16 bytes) {
    const Index count = panel.depth - d < 4 ? panel.depth - d : 4;
    for (Index i = 0; i < count; ++i) {
      const F32x16 code = to_floats(bit_and(shift_right(bytes, int(8 * i)), 255u));
      store(out + (d + i) * out_stride, fma(code, broadcast(scales[d + i]), broadcast(zero_points[d + i])));
    }
  };
  if constexpr (Bits == kMixed) {
    for (Index d = 0; d < panel.depth; d += 4)
      store_quad(d, d / 4 < places.count() ? mixed_bytes(codes, places[d / 4]) : zero_words());
  } else {
    for (Index d = 0; d < panel.depth; d += 4)
      store_quad(d, unpack_bytes<Bits>(codes + d / block_depth * (Bits * 64), int(d % block_depth / 4)));
  }
}

inline void dequantize(const PanelView& panel, const PanelMetadata& metadata, Index tile, float* out) {
  with_bits(panel.layout.format, [&](auto bits) {
    dequantize_tile<bits()>(panel, metadata, quad_places<bits()>(panel), tile, out, tile_lanes);
  });
}
