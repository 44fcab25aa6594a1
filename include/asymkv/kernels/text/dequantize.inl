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
template <int Bits>
ASYMKV_INLINE U32x16 unpack_bytes(const unsigned char* block, int q) {
  constexpr Planes planes = planes_of(Bits);
  constexpr int fields = 8 / planes.low;
  const U32x16 low = load_words(block + 64 * (q / fields));
  if constexpr (Bits == 8) return low;
  const U32x16 codes = byte_fields(low, planes.low * (q % fields), planes.low, 0);
  if constexpr (planes.high == 0) return codes;
  if constexpr (planes.high != 0) {
    constexpr int high_fields = 8 / planes.high;
    const U32x16 high = load_words(block + 64 * (planes.low + q / high_fields));
    return bit_or(codes, byte_fields(high, planes.high * (q % high_fields), planes.high, planes.low));
  }
}

/// The same as floats.
template <int Bits>
inline void unpack_quad(const unsigned char* block, int q, F32x16 codes[4]) {
  const U32x16 bytes = unpack_bytes<Bits>(block, q);
  ASYMKV_UNROLL
  for (int i = 0; i < 4; ++i) codes[i] = to_floats(bit_and(shift_right(bytes, 8 * i), 255u));
}

/// Adds one plane of `count` channels to their codes, out[channel], and makes their weights those of the next plane.
template <int Width>
inline void add_plane(const unsigned char* codes, const std::uint16_t* channels, Index count, float* weights,
                      float* out, Index out_stride) {
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

/// One lane tile of mixed widths, all depths: code * scale + zero point, as dequantize_tile.
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

/// What dequantizing needs to know of a whole panel: the order of its planes, nothing where widths are not mixed.
struct NoOrder {};
template <int Bits>
inline auto plane_order(const PanelView& panel) {
  if constexpr (Bits == kMixed)
    return read_plane_order(panel.layout, panel.panel + panel.layout.widths_offset());
  else
    return NoOrder();
}

/// One lane tile, depths 0..panel.depth-1: out[d][out_stride] = fma(code, scale[d], zero point[d]). `order` is
/// plane_order's.
template <int Bits, class Order>
inline void dequantize_tile(const PanelView& panel, const PanelMetadata& metadata, const Order& order, Index tile,
                            float* out, Index out_stride) {
  const unsigned char* codes = panel.panel + tile * panel.layout.tile_bytes();
  const Index group = tile * tile_lanes / panel.layout.group_size();
  const float* scales = metadata.scales + group * panel.layout.depth_stride();
  const float* zero_points = metadata.zero_points + group * panel.layout.depth_stride();
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

inline void dequantize(const PanelView& panel, const PanelMetadata& metadata, Index tile, float* out) {
  with_bits(panel.layout.format, [&](auto bits) {
    dequantize_tile<bits()>(panel, metadata, plane_order<bits()>(panel), tile, out, tile_lanes);
  });
}
