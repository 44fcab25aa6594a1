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

/// The source of a panel whose rows are tokens `token_stride` apart and whose channels are `channel_stride` apart.
constexpr kernels::PanelSource panel_source(Side side, const void* data, ScalarType type, Index token_stride,
                                            Index channel_stride) noexcept {
  return side == Side::keys ? kernels::PanelSource{data, type, token_stride, channel_stride}
                            : kernels::PanelSource{data, type, channel_stride, token_stride};
}

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

/// Floats of scratch that writing a panel needs: a batch of 16 depths of all lanes that are written together; of a page
/// of mixed widths all depths, and their codes.
constexpr Index writer_scratch(const PanelLayout& layout) noexcept {
  if (layout.format.mixed()) return page_tokens * layout.depth_stride() * 5 / 4;
  return tile_lanes * (layout.format.rotation == Rotation::none ? kernels::most_lanes : layout.lanes);
}

/// A rectangle of a panel that is written together.
struct PanelRange {
  Index lane, lanes;
  Index depth, depths;
};

namespace detail {

inline kernels::PanelSource shifted(const kernels::PanelSource& source, Index lanes, Index depths) noexcept {
  kernels::PanelSource to = source;
  to.data = static_cast<const char*>(source.data) +
            scalar_bytes(source.type) * (lanes * source.lane_stride + depths * source.depth_stride);
  return to;
}

/// Lanes of a batch as columns: where they are already, if they lie so, or gathered in `x`.
inline kernels::Columns columns_of(const kernels::Table& kernels, const kernels::PanelSource& source,
                                   const kernels::CodeBatch& batch, Index group_size, float* x) noexcept {
  const bool in_place =
      source.type == ScalarType::f32 && source.depth_stride == 1 && batch.depths.count() == tile_lanes;
  if (in_place)
    return {static_cast<const float*>(source.data), source.lane_stride, batch.lane, batch.lanes, group_size};
  kernels.gather(source, batch.lanes, batch.depths.count(), x);
  return {x, tile_lanes, batch.lane, batch.lanes, group_size};
}

/// Writes lanes of a batch of 16 depths. `codes` has room for whole tiles of most_lanes, and a row more: rows are
/// stored from the first depth on, and so run into the next one's front.
inline void write_columns(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                          const kernels::Columns& x, kernels::CodeBatch batch) noexcept {
  alignas(64) unsigned char codes[(kernels::most_lanes + 1) * tile_lanes];
  float scales[kernels::most_groups * tile_lanes], zero_points[kernels::most_groups * tile_lanes];
  kernels.quantize(coding_of(layout.format), x, scales, zero_points,
                   codes + batch.lane % tile_lanes * tile_lanes + batch.depths.first);
  for (Index g = 0, group = batch.lane / layout.group_size(); g < x.groups(); ++g, ++group)
    kernels.store_metadata(layout, panel, group * layout.depth_stride() + batch.depths.begin(), batch.depths.count(),
                           scales + tile_lanes * g, zero_points + tile_lanes * g);
  batch.codes = codes;
  kernels.insert_codes(layout, panel, batch);
}

/// Writes a batch of depths, of all lanes of the range.
inline void write_batch(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                        const kernels::PanelSource& source, const PanelRange& range, const kernels::DepthBatch& depths,
                        float* x) noexcept {
  const bool rotated = layout.format.rotation != Rotation::none;
  const bool whole_rows = range.lanes == layout.lanes && layout.lanes % tile_lanes == 0 && source.lane_stride == 1;
  if (whole_rows && !rotated && layout.format.fit == Fit::min_max)
    return kernels.write_rows(layout, panel, source, depths);
  if (rotated) {
    kernels.gather(source, range.lanes, depths.count(), x);
    kernels.rotate_columns(x, range.lanes);
  }
  const Index end = range.lane + range.lanes;
  kernels::CodeBatch batch{nullptr, 0, 0, depths};
  for (batch.lane = range.lane; batch.lane < end; batch.lane += batch.lanes) {
    const Index done = batch.lane - range.lane;
    batch.lanes = std::min(round_up(batch.lane + 1, kernels::most_lanes), end) - batch.lane;
    const kernels::Columns columns =
        rotated ? kernels::Columns{x + tile_lanes * done, tile_lanes, batch.lane, batch.lanes, layout.group_size()}
                : columns_of(kernels, shifted(source, done, 0), batch, layout.group_size(), x);
    write_columns(kernels, layout, panel, columns, batch);
  }
}

}  // namespace detail

/// Quantizes a rectangle of a panel without mixed widths. `source` is the address of its first element; its elements
/// are finite and within magnitude_limit. Its lanes end with a group or with the panel, and start with a group or
/// behind lanes of the first group that stay empty; rotated formats take all lanes. `scratch` has writer_scratch
/// floats.
inline void write_panel(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                        const kernels::PanelSource& source, const PanelRange& range, float* scratch) noexcept {
  const Index end = range.depth + range.depths;
  for (Index d = range.depth; d < end;) {
    const Index batch = d / tile_lanes;
    const kernels::DepthBatch depths{batch, d % tile_lanes, std::min(end - batch * tile_lanes, tile_lanes)};
    detail::write_batch(kernels, layout, panel, detail::shifted(source, 0, d - range.depth), range, depths, scratch);
    d += depths.count();
  }
}

/// Stores scales and zero points of all channels in the order of their slots.
inline void store_mixed_metadata(const kernels::Table& kernels, const PanelLayout& layout, const ChannelOrder& order,
                                 const float* scales, const float* zero_points, unsigned char* panel) noexcept {
  for (Index first = 0; first < layout.slots(); first += tile_lanes) {
    const Index count = std::min(tile_lanes, layout.slots() - first);
    float ordered_scales[tile_lanes] = {}, ordered_zero_points[tile_lanes] = {};
    for (Index i = 0; i < count; ++i) {
      ordered_scales[i] = scales[order.channels[first + i]];
      ordered_zero_points[i] = zero_points[order.channels[first + i]];
    }
    kernels.store_metadata(layout, panel, first, count, ordered_scales, ordered_zero_points);
  }
}

/// Quantizes lanes [lane, lane + lanes) of a page of keys into a panel of mixed widths, which is written whole: the
/// other lanes get codes of 0. All channels are gathered before any is quantized, since widths depend on all: as floats
/// they lie in the second-level cache, from where they come faster than from the source once more. `source` is the
/// address of element (lane, 0), `previous` the panel of the page before, or null. `scratch` has writer_scratch floats.
inline void write_mixed_panel(const kernels::Table& kernels, const PanelLayout& layout, const unsigned char* previous,
                              unsigned char* panel, const kernels::PanelSource& source, Index lane, Index lanes,
                              float* scratch) noexcept {
  float variances[mixed_depth_limit];
  for (Index d = 0; d < layout.depth; d += tile_lanes) {
    float* const x = scratch + d * page_tokens;
    kernels.gather(detail::shifted(source, 0, d), lanes, std::min(tile_lanes, layout.depth - d), x);
    kernels.variances(x, lanes, variances + d);
  }
  detail::write_widths(layout, variances, previous == nullptr ? nullptr : previous + layout.widths_offset(),
                       panel + layout.widths_offset());
  const ChannelOrder order = read_channel_order(layout, panel + layout.widths_offset());
  float levels[mixed_depth_limit], scales[mixed_depth_limit], zero_points[mixed_depth_limit];
  greatest_codes(layout, order, levels);
  unsigned char* codes = reinterpret_cast<unsigned char*>(scratch + page_tokens * layout.depth_stride());
  kernels::GroupCoding coding = detail::coding_of(layout.format);
  for (Index d = 0; d < layout.depth; d += tile_lanes) {
    unsigned char* batch = codes + d * page_tokens;
    std::memcpy(coding.levels, levels + d, sizeof coding.levels);
    const kernels::Columns columns{scratch + d * page_tokens, tile_lanes, lane, lanes, page_tokens};
    kernels.quantize(coding, columns, scales + d, zero_points + d, batch + lane * tile_lanes);
    std::memset(batch, 0, std::size_t(lane * tile_lanes));
    std::memset(batch + (lane + lanes) * tile_lanes, 0, std::size_t((page_tokens - lane - lanes) * tile_lanes));
  }
  store_mixed_metadata(kernels, layout, order, scales, zero_points, panel);
  kernels.pack_mixed(layout, order, codes, panel);
}

/// Floats of scratch that reading a panel needs.
constexpr Index reader_scratch(const PanelLayout& layout) noexcept {
  return 2 * layout.metadata_count() + tile_lanes * layout.depth_stride();
}

/// Reads tokens [first, first + count) of a panel back into out (element (token, channel) by its strides). `scratch`
/// has reader_scratch floats.
inline void read_panel(const kernels::Table& kernels, Side side, const PanelLayout& layout, const unsigned char* panel,
                       Index first, Index count, const Tensor& out, Index out_token, float* scratch) noexcept {
  const bool keys = side == Side::keys;
  const Index first_lane = keys ? first : 0, lanes = keys ? count : layout.lanes;
  const Index first_depth = keys ? 0 : first, end_depth = keys ? layout.slots() : first + count;
  const Index metadata_count = layout.metadata_count();
  const kernels::PanelMetadata metadata{scratch, scratch + metadata_count};
  float* values = scratch + 2 * metadata_count;
  const kernels::PanelView view{layout, panel, layout.bytes(), 1, layout.lanes, end_depth, panel};
  kernels.expand_metadata(view, metadata);
  const bool mixed = layout.format.mixed();
  const ChannelOrder order = mixed ? read_channel_order(layout, panel + layout.widths_offset()) : ChannelOrder();
  for (Index tile = first_lane / tile_lanes; tile * tile_lanes < first_lane + lanes; ++tile) {
    kernels.dequantize(view, metadata, tile, values);
    const Index begin = std::max(first_lane, tile * tile_lanes);
    const Index end = std::min(first_lane + lanes, (tile + 1) * tile_lanes);
    for (Index d = first_depth; d < end_depth; ++d)
      for (Index lane = begin; lane < end; ++lane) {
        const Index token = out_token + (keys ? lane : d) - first;
        const Index channel = mixed ? order.channels[d] : keys ? d : lane;
        if (keys && channel >= layout.depth) continue;
        store_scalar(out.data, out.type, token * out.token_stride + channel * out.dim_stride,
                     values[d * tile_lanes + lane % tile_lanes]);
      }
  }
}

ASYMKV_NAMESPACE_END
