// panel_writer.hpp: quantizes a rectangle of tokens x channels into a panel. The one road from numbers to codes: used
// by the stand-alone quantizers and by the cache when it seals.
#pragma once

#include "asymkv/kernels/dispatch.hpp"
#include "asymkv/tensor.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Largest magnitude that a packed format takes: then max - min of a group does not overflow binary16.
constexpr float packed_limit = 32752.0f;

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

/// Quantizes lanes [lane, lane + lanes) at depths [depth, depth + depths) of a panel. `source` is the address of
/// element (lane, depth); its elements are finite and within packed_limit. `lane` starts a group; the range ends with a
/// group or with the panel.
inline void write_panel(const kernels::Table& kernels, const Format& format, const PanelLayout& layout,
                        unsigned char* panel, const PanelSource& source, Index lane, Index lanes, Index depth,
                        Index depths) noexcept {
  alignas(64) float x[page_tokens * tile_lanes];
  alignas(64) unsigned char codes[page_tokens * tile_lanes];
  float scales[tile_lanes], zero_points[tile_lanes];
  const Index size = scalar_bytes(source.type);
  for (Index d = depth; d < depth + depths;) {
    const Index batch = d / tile_lanes;
    const Index first = d % tile_lanes;
    const Index last =
        depth + depths - batch * tile_lanes < tile_lanes ? depth + depths - batch * tile_lanes : tile_lanes;
    for (Index l = lane; l < lane + lanes; l += layout.group_size) {
      const Index group = l / layout.group_size;
      const Index count = layout.group_lanes(group) < lane + lanes - l ? layout.group_lanes(group) : lane + lanes - l;
      PanelSource from = source;
      from.data = static_cast<const char*>(source.data) +
                  size * ((l - lane) * source.lane_stride + (d - depth) * source.depth_stride);
      detail::gather_groups(kernels, from, count, last - first, x);
      kernels.quantize(format.fit, format.bits, x, count, scales, zero_points, codes);
      for (Index i = first; i < last; ++i) {
        const Index at = group * layout.depth_stride() + batch * tile_lanes + i;
        set_metadata_bits(panel, layout.scale_offset(), at, float_to_half(scales[i - first]));
        set_metadata_bits(panel, layout.zero_point_offset(), at, float_to_half(zero_points[i - first]));
      }
      for (Index i = 0; i < count; ++i) {
        unsigned char placed[tile_lanes] = {};
        std::memcpy(placed + first, codes + i * tile_lanes, std::size_t(last - first));
        insert_codes(layout, panel, l + i, batch, first, last, placed);
      }
    }
    d = batch * tile_lanes + last;
  }
}

/// Metadata of `groups` groups as floats: scales, then zero points, each [groups][depth_stride].
inline void expand_metadata(const kernels::Table& kernels, const PanelLayout& layout, const unsigned char* panel,
                            Index groups, float* scales, float* zero_points) noexcept {
  const Index count = groups * layout.depth_stride();
  kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(panel + layout.scale_offset()), count, scales);
  kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(panel + layout.zero_point_offset()), count,
                         zero_points);
}

/// Reads tokens [first, first + count) of a panel back into out (element (token, channel) by its strides).
inline void read_panel(const kernels::Table& kernels, Side side, const PanelLayout& layout, const unsigned char* panel,
                       Index first, Index count, const Tensor& out, Index out_token) noexcept {
  alignas(64) float values[page_tokens * tile_lanes];
  alignas(64) float scales[page_tokens], zero_points[page_tokens];
  const bool keys = side == Side::keys;
  const Index first_lane = keys ? first : 0, lanes = keys ? count : layout.lanes;
  const Index first_depth = keys ? 0 : first, depths = keys ? layout.depth : count;
  for (Index tile = first_lane / tile_lanes; tile * tile_lanes < first_lane + lanes; ++tile) {
    const Index group = tile * tile_lanes / layout.group_size;
    for (Index d = first_depth / block_depth * block_depth; d < first_depth + depths; d += page_tokens) {
      const Index span = layout.depth_stride() - d < page_tokens ? layout.depth_stride() - d : page_tokens;
      const Index at = 2 * (group * layout.depth_stride() + d);
      kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(panel + layout.scale_offset() + at), span, scales);
      kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(panel + layout.zero_point_offset() + at), span,
                             zero_points);
      const Index end = first_depth + depths - d < span ? first_depth + depths - d : span;
      const unsigned char* codes = panel + tile * layout.tile_bytes() + d / block_depth * layout.block_bytes();
      kernels.dequantize(layout.bits, codes, scales, zero_points, end, values);
      for (Index i = 0; i < end; ++i) {
        if (d + i < first_depth) continue;
        for (Index l = 0; l < tile_lanes; ++l) {
          const Index lane = tile * tile_lanes + l;
          if (lane < first_lane || lane >= first_lane + lanes) continue;
          const Index token = out_token + (keys ? lane - first_lane : d + i - first_depth);
          const Index channel = keys ? d + i : lane;
          store_scalar(out.data, out.type, token * out.token_stride + channel * out.dim_stride,
                       values[i * tile_lanes + l]);
        }
      }
    }
  }
}

ASYMKV_NAMESPACE_END
