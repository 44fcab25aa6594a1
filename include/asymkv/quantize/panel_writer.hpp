// panel_writer.hpp: quantizes a rectangle of tokens x channels into a panel. The one road from numbers to codes: used
// by the stand-alone quantizers and by the cache when it seals.
#pragma once

#include "asymkv/kernels/dispatch.hpp"
#include "asymkv/quantize/hadamard.hpp"
#include "asymkv/quantize/mixed_widths.hpp"
#include "asymkv/tensor.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Largest magnitude that a packed side takes: max - min of a group must not overflow binary16, nor the scale of a
/// symmetric group, 2.6 times the mean magnitude; rotation makes an element sqrt(size of its block) times as large.
inline float magnitude_limit(const Format& format, Index dim) noexcept {
  constexpr float affine = 32752.0f, symmetric = 23000.0f;
  if (format.zero_point == ZeroPoint::symmetric) return symmetric;  // rotation keeps the root mean square
  return format.rotation == Rotation::none ? affine : affine / std::sqrt(float(hadamard_size(dim)));
}

/// Where the elements of a panel come from: element (lane, depth) is data[lane*lane_stride + depth*depth_stride].
struct PanelSource {
  const void* data;
  ScalarType type;
  Index lane_stride;
  Index depth_stride;
};

/// The source of a panel whose rows are tokens `token_stride` apart and whose channels are `channel_stride` apart.
constexpr PanelSource panel_source(Side side, const void* data, ScalarType type, Index token_stride,
                                   Index channel_stride) noexcept {
  return side == Side::keys ? PanelSource{data, type, token_stride, channel_stride}
                            : PanelSource{data, type, channel_stride, token_stride};
}

namespace detail {

/// x[lane][i] = source(lane, first + i) for i < count, else 0; lanes of one group.
inline void gather_groups(const kernels::Table& kernels, const PanelSource& source, Index lanes, Index count,
                          float* x) {
  const char* base = static_cast<const char*>(source.data);
  const Index size = scalar_bytes(source.type);
  std::memset(x, 0, sizeof(float) * std::size_t(lanes * tile_lanes));
  if (source.depth_stride == 1) {
    for (Index lane = 0; lane < lanes; ++lane)
      kernels.to_floats(base + size * lane * source.lane_stride, source.type, count, x + lane * tile_lanes);
  } else if (source.lane_stride == 1) {
    float row[page_tokens];
    for (Index i = 0; i < count; ++i) {
      kernels.to_floats(base + size * i * source.depth_stride, source.type, lanes, row);
      for (Index lane = 0; lane < lanes; ++lane) x[lane * tile_lanes + i] = row[lane];
    }
  } else {
    for (Index lane = 0; lane < lanes; ++lane)
      for (Index i = 0; i < count; ++i)
        x[lane * tile_lanes + i] = load_scalar(base, source.type, lane * source.lane_stride + i * source.depth_stride);
  }
}

}  // namespace detail

namespace detail {

/// Distance of the levels of a symmetric format over the mean magnitude: 1.3 and 1.2 times the least-squares distance
/// of Gaussian data at 1 and 2 bits, up to 1.05 times it above (measured on models; quantize.inl says why).
inline float symmetric_step(int bits) noexcept {
  constexpr float steps[9] = {0.0f, 2.6f, 1.5f, 0.77f, 0.43f, 0.24f, 0.132f, 0.0f, 0.04f};
  return steps[bits];
}

inline kernels::GroupCoding coding_of(const Format& format) noexcept {
  kernels::GroupCoding coding{format.fit, format.metadata, format.zero_point, symmetric_step(format.bits), {}};
  for (float& levels : coding.levels) levels = float((1 << format.bits) - 1);
  return coding;
}

}  // namespace detail

/// Quantizes lanes [lane, lane + lanes) at depths [depth, depth + depths) of a panel without mixed widths. `source` is
/// the address of element (lane, depth); its elements are finite and within magnitude_limit. `lane` starts a group; the
/// range ends with a group or with the panel.
inline void write_panel(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                        const PanelSource& source, Index lane, Index lanes, Index depth, Index depths) noexcept {
  alignas(64) float x[page_tokens * tile_lanes];
  alignas(64) unsigned char codes[page_tokens * tile_lanes];
  float scales[tile_lanes], zero_points[tile_lanes];
  const kernels::GroupCoding coding = detail::coding_of(layout.format);
  const Index size = scalar_bytes(source.type);
  for (Index d = depth; d < depth + depths;) {
    const Index batch = d / tile_lanes;
    const Index first = d % tile_lanes;
    const Index last = std::min(depth + depths - batch * tile_lanes, tile_lanes);
    for (Index l = lane; l < lane + lanes; l += layout.group_size()) {
      const Index group = l / layout.group_size();
      const Index count = std::min(layout.group_lanes(group), lane + lanes - l);
      PanelSource from = source;
      from.data = static_cast<const char*>(source.data) +
                  size * ((l - lane) * source.lane_stride + (d - depth) * source.depth_stride);
      detail::gather_groups(kernels, from, count, last - first, x);
      kernels.quantize(coding, x, count, scales, zero_points, codes);
      for (Index i = first; i < last; ++i)
        store_metadata(layout, panel, group * layout.depth_stride() + batch * tile_lanes + i, scales[i - first],
                       zero_points[i - first]);
      for (Index i = 0; i < count; ++i) {
        unsigned char placed[tile_lanes] = {};
        std::memcpy(placed + first, codes + i * tile_lanes, std::size_t(last - first));
        insert_codes(layout, panel, l + i, batch, first, last, placed);
      }
    }
    d = batch * tile_lanes + last;
  }
}

namespace detail {

/// Variances of the channels of a page, and from them the widths, written to the panel.
inline void write_widths(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                         const PanelSource& source) noexcept {
  alignas(64) float x[page_tokens * tile_lanes];
  float variances[mixed_depth_limit];
  std::uint8_t classes[mixed_depth_limit];
  PanelSource from = source;
  for (Index d = 0; d < layout.depth; d += tile_lanes) {
    gather_groups(kernels, from, page_tokens, std::min(tile_lanes, layout.depth - d), x);
    kernels.variances(x, page_tokens, variances + d);
    from.data = static_cast<const char*>(from.data) + scalar_bytes(source.type) * tile_lanes * source.depth_stride;
  }
  choose_widths(layout, variances, classes);
  unsigned char* widths = panel + layout.widths_offset();
  std::memset(widths, 0, std::size_t(layout.widths_bytes()));
  for (Index c = 0; c < layout.depth; ++c)
    widths[c / 4] = static_cast<unsigned char>(widths[c / 4] | classes[c] << (c % 4 * 2));
}

/// Where the codes of a channel are: bytes `at` of the words of a tile, at bit `shift`.
struct SlotPlace {
  Index at = -1;  ///< -1: the channel has no codes
  int shift = 0;
};

inline void locate_slots(const kernels::SlotOrder& order, SlotPlace* places) noexcept {
  Index slot = 0, vector = 0;
  for (int i = 0; i < 3; vector += order.vectors[i++]) {
    const Index end = std::min(order.used, slot + order.vectors[i] * mixed_channels[i]);
    for (Index in_section = 0; slot < end; ++slot, ++in_section) {
      const Index in_vector = in_section % mixed_channels[i];
      places[order.channels[slot]] = {64 * (vector + in_section / mixed_channels[i]) + in_vector % 4,
                                      mixed_widths[i] * int(in_vector / 4)};
    }
  }
}

}  // namespace detail

/// Quantizes a whole page of keys into a fresh (zero) panel of mixed widths. `source` is the address of element (0, 0).
inline void write_mixed_panel(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                              const PanelSource& source) noexcept {
  detail::write_widths(kernels, layout, panel, source);
  kernels::SlotOrder order;
  read_slot_order(layout, panel, order);
  detail::SlotPlace places[mixed_depth_limit];
  detail::locate_slots(order, places);
  alignas(64) float x[page_tokens * tile_lanes];
  alignas(64) unsigned char codes[page_tokens * tile_lanes];
  float scales[tile_lanes], zero_points[tile_lanes];
  kernels::GroupCoding coding = detail::coding_of(layout.format);
  PanelSource from = source;
  for (Index d = 0; d < layout.depth; d += tile_lanes) {
    const Index count = std::min(tile_lanes, layout.depth - d);
    for (Index i = 0; i < count; ++i) {
      const int width_class = detail::stored_class(layout, panel, d + i);
      coding.levels[i] = width_class == 0 ? 0.0f : float((1 << (1 << (width_class - 1))) - 1);
    }
    detail::gather_groups(kernels, from, page_tokens, count, x);
    kernels.quantize(coding, x, page_tokens, scales, zero_points, codes);
    for (Index i = 0; i < count; ++i) {
      store_metadata(layout, panel, d + i, scales[i], zero_points[i]);
      const detail::SlotPlace place = places[d + i];
      if (place.at < 0) continue;
      for (Index t = 0; t < page_tokens; ++t) {
        unsigned char* at = panel + t / tile_lanes * layout.tile_bytes() + t % tile_lanes * 4 + place.at;
        *at = static_cast<unsigned char>(*at | codes[t * tile_lanes + i] << place.shift);
      }
    }
    from.data = static_cast<const char*>(from.data) + scalar_bytes(source.type) * tile_lanes * source.depth_stride;
  }
}

/// Metadata of a panel as the kernels read it.
struct PanelMetadata {
  float* scales;  ///< [groups][depth_stride]
  float* zero_points;
  kernels::SlotOrder order;
};

/// Expands the metadata of `groups` groups and makes a view of a panel, to read `lanes` lanes at `depth` depths.
inline kernels::PanelView view_panel(const kernels::Table& kernels, const PanelLayout& layout,
                                     const unsigned char* panel, Index groups, Index lanes, Index depth,
                                     PanelMetadata& metadata) noexcept {
  const Index count = groups * layout.depth_stride();
  const unsigned char* scales = panel + layout.scale_offset();
  if (layout.format.metadata == Metadata::compact)
    for (Index i = 0; i < count; ++i) metadata.scales[i] = compact_scales.value[scales[i]];
  else
    kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(scales), count, metadata.scales);
  if (layout.format.zero_point == ZeroPoint::affine) {
    kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(panel + layout.zero_point_offset()), count,
                           metadata.zero_points);
  } else {
    const float factor = symmetric_zero_point(layout.format.bits);
    for (Index i = 0; i < count; ++i) metadata.zero_points[i] = metadata.scales[i] * factor;
  }
  if (layout.format.mixed()) read_slot_order(layout, panel, metadata.order);
  return {layout, panel, metadata.scales, metadata.zero_points, lanes, depth, &metadata.order};
}

/// Reads tokens [first, first + count) of a panel back into out (element (token, channel) by its strides). `metadata`
/// and `values` are scratch: 16 floats a depth.
inline void read_panel(const kernels::Table& kernels, Side side, const PanelLayout& layout, const unsigned char* panel,
                       Index first, Index count, const Tensor& out, Index out_token, PanelMetadata& metadata,
                       float* values) noexcept {
  const bool keys = side == Side::keys;
  const Index first_lane = keys ? first : 0, lanes = keys ? count : layout.lanes;
  const Index first_depth = keys ? 0 : first, end_depth = keys ? layout.depth : first + count;
  const kernels::PanelView view =
      view_panel(kernels, layout, panel, layout.groups(), layout.lanes, end_depth, metadata);
  for (Index tile = first_lane / tile_lanes; tile * tile_lanes < first_lane + lanes; ++tile) {
    kernels.dequantize(view, tile, values);
    const Index begin = std::max(first_lane, tile * tile_lanes);
    const Index end = std::min(first_lane + lanes, (tile + 1) * tile_lanes);
    for (Index d = first_depth; d < end_depth; ++d)
      for (Index lane = begin; lane < end; ++lane) {
        const Index token = out_token + (keys ? lane : d) - first;
        const Index channel = keys ? d : lane;
        store_scalar(out.data, out.type, token * out.token_stride + channel * out.dim_stride,
                     values[d * tile_lanes + lane % tile_lanes]);
      }
  }
}

ASYMKV_NAMESPACE_END
