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

/// Floats of scratch that writing a panel needs: a batch of 16 depths of all lanes that are written together, and codes
/// of mixed widths in their order.
constexpr Index writer_scratch(const PanelLayout& layout) noexcept {
  const Index lanes = layout.format.rotation == Rotation::none ? 128 : layout.lanes;
  return tile_lanes * lanes + (layout.format.mixed() ? page_tokens * mixed_slots(layout.depth) / 4 : 0);
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

/// Writes depths [first, last) of a batch of 16.
inline void write_batch(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                        const kernels::PanelSource& source, const PanelRange& range, CodeBatch batch,
                        float* x) noexcept {
  // rows are stored from batch.first on, and so run into the next row's unused front, or behind the last
  alignas(64) unsigned char codes[page_tokens * tile_lanes + tile_lanes];
  float scales[tile_lanes], zero_points[tile_lanes];
  const kernels::GroupCoding coding = coding_of(layout.format);
  const bool rotated = layout.format.rotation != Rotation::none;
  const Index depths = batch.last - batch.first, end = range.lane + range.lanes;
  if (rotated) {
    kernels.gather(source, range.lanes, depths, x);
    kernels.rotate_columns(x, range.lanes);
  }
  for (Index lane = range.lane, group = lane / layout.group_size(); lane < end; lane += batch.lanes, ++group) {
    batch.lane = lane;
    batch.lanes = std::min((group + 1) * layout.group_size(), end) - lane;
    if (!rotated) kernels.gather(shifted(source, lane - range.lane, 0), batch.lanes, depths, x);
    kernels.quantize(coding, rotated ? x + tile_lanes * (lane - range.lane) : x, batch.lanes, scales, zero_points,
                     codes + batch.first);
    for (Index i = 0; i < depths; ++i)
      store_metadata(layout, panel, group * layout.depth_stride() + batch.batch * tile_lanes + batch.first + i,
                     scales[i], zero_points[i]);
    batch.codes = codes;
    insert_codes(layout, panel, batch);
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
    detail::CodeBatch batch{};
    batch.batch = d / tile_lanes;
    batch.first = d % tile_lanes;
    batch.last = std::min(end - batch.batch * tile_lanes, tile_lanes);
    detail::write_batch(kernels, layout, panel, detail::shifted(source, 0, d - range.depth), range, batch, scratch);
    d = batch.batch * tile_lanes + batch.last;
  }
}

namespace detail {

/// Codes of one width in a word: fields of Width bits in each byte, as the picture in panel.hpp says.
template <int Width>
inline std::uint32_t pack_word(const unsigned char* codes) noexcept {
  std::uint32_t word = 0;
  for (int q = 0; q < 8 / Width; ++q) {
    std::uint32_t quad;
    std::memcpy(&quad, codes + 4 * q, 4);
    word |= quad << (Width * q);
  }
  return word;
}

/// Writes the codes of all vectors of a page: slots[token][slot_stride], padding included.
inline void pack_slots(const PanelLayout& layout, unsigned char* panel, const PlaneOrder& order,
                       const unsigned char* slots, Index slot_stride) noexcept {
  for (Index t = 0; t < page_tokens; ++t, slots += slot_stride) {
    unsigned char* to = panel + t / tile_lanes * layout.tile_bytes() + t % tile_lanes * 4;
    const unsigned char* from = slots;
    const auto pack = [&](auto width, int i) {
      for (Index v = order.vectors(i); v > 0; --v, from += plane_channels[i], to += 64) {
        const std::uint32_t word = pack_word<width()>(from);
        std::memcpy(to, &word, 4);
      }
    };
    pack(std::integral_constant<int, 8>(), 0);
    pack(std::integral_constant<int, 4>(), 1);
    pack(std::integral_constant<int, 2>(), 2);
    pack(std::integral_constant<int, 1>(), 3);
  }
}

/// Where the planes of each channel's codes go.
struct PlanePlaces {
  struct Place {
    std::uint16_t slot;
    std::uint8_t column;  ///< channel in its batch of 16
    std::uint8_t shift, mask;
  };
  Index first[mixed_depth_limit / tile_lanes + 1] = {};  ///< first entry of each batch
  Place places[3 * mixed_depth_limit];
  float levels[mixed_depth_limit] = {};  ///< greatest code of each channel

  PlanePlaces(const PanelLayout& layout, const PlaneOrder& order) noexcept {
    std::uint8_t width[mixed_depth_limit] = {};
    Index section[plane_count], next[plane_count] = {}, slot = 0, entries = 0;
    for (int p = 0; p < plane_count; slot += order.vectors(p) * plane_channels[p], ++p) section[p] = slot;
    for (Index batch = 0; batch < layout.depth_stride() / tile_lanes; ++batch) {
      for (int p = 0; p < plane_count; ++p)
        for (; next[p] < order.count[p] && order.channels[p][next[p]] / tile_lanes == batch; ++next[p]) {
          const Index channel = order.channels[p][next[p]];
          places[entries++] = {std::uint16_t(section[p] + next[p]), std::uint8_t(channel % tile_lanes), width[channel],
                               std::uint8_t((1 << plane_bits[p]) - 1)};
          width[channel] = std::uint8_t(width[channel] + plane_bits[p]);
        }
      first[batch + 1] = entries;
    }
    for (Index c = 0; c < layout.depth; ++c) levels[c] = float((1 << width[c]) - 1);
  }

  /// codes[lanes][16] of a batch go to slots[lanes][slot_stride].
  void scatter(Index batch, const unsigned char* codes, Index lanes, unsigned char* slots,
               Index slot_stride) const noexcept {
    for (Index i = first[batch]; i < first[batch + 1]; ++i) {
      const Place place = places[i];
      for (Index t = 0; t < lanes; ++t)
        slots[t * slot_stride + place.slot] =
            static_cast<unsigned char>(codes[t * tile_lanes + place.column] >> place.shift & place.mask);
    }
  }
};

}  // namespace detail

/// Quantizes lanes [lane, lane + lanes) of a page of keys into a fresh (zero) panel of mixed widths; the other lanes
/// stay empty. `source` is the address of element (lane, 0). `scratch` has writer_scratch floats.
inline void write_mixed_panel(const kernels::Table& kernels, const PanelLayout& layout, unsigned char* panel,
                              const kernels::PanelSource& source, Index lane, Index lanes, float* scratch) noexcept {
  float variances[mixed_depth_limit];
  for (Index d = 0; d < layout.depth; d += tile_lanes) {
    kernels.gather(detail::shifted(source, 0, d), lanes, std::min(tile_lanes, layout.depth - d), scratch);
    kernels.variances(scratch, lanes, variances + d);
  }
  detail::write_widths(layout, variances, panel + layout.widths_offset());
  const PlaneOrder order = read_plane_order(layout, panel + layout.widths_offset());
  const detail::PlanePlaces places(layout, order);
  const Index slot_stride = mixed_slots(layout.depth);
  unsigned char* slots = reinterpret_cast<unsigned char*>(scratch + tile_lanes * page_tokens);
  std::memset(slots, 0, std::size_t(page_tokens * slot_stride));
  alignas(64) unsigned char codes[page_tokens * tile_lanes];
  float scales[tile_lanes], zero_points[tile_lanes];
  kernels::GroupCoding coding = detail::coding_of(layout.format);
  for (Index d = 0; d < layout.depth; d += tile_lanes) {
    const Index count = std::min(tile_lanes, layout.depth - d), batch = d / tile_lanes;
    std::memcpy(coding.levels, places.levels + d, sizeof coding.levels);
    kernels.gather(detail::shifted(source, 0, d), lanes, count, scratch);
    kernels.quantize(coding, scratch, lanes, scales, zero_points, codes);
    for (Index i = 0; i < count; ++i) store_metadata(layout, panel, d + i, scales[i], zero_points[i]);
    places.scatter(batch, codes, lanes, slots + lane * slot_stride, slot_stride);
  }
  detail::pack_slots(layout, panel, order, slots, slot_stride);
}

/// Metadata of a panel as the kernels read it.
struct PanelMetadata {
  float* scales;  ///< [groups][depth_stride]
  float* zero_points;
};

/// Expands the metadata of `groups` groups and makes a view of a panel, to read `lanes` lanes at `depth` depths.
inline kernels::PanelView view_panel(const kernels::Table& kernels, const PanelLayout& layout,
                                     const unsigned char* panel, Index groups, Index lanes, Index depth,
                                     const PanelMetadata& metadata) noexcept {
  const Index count = groups * layout.depth_stride();
  const unsigned char* scales = panel + layout.scale_offset();
  if (layout.format.metadata == Metadata::compact)
    kernels.compact_to_floats(scales, count, metadata.scales);
  else
    kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(scales), count, metadata.scales);
  if (layout.format.zero_point == ZeroPoint::affine) {
    kernels.half_to_floats(reinterpret_cast<const std::uint16_t*>(panel + layout.zero_point_offset()), count,
                           metadata.zero_points);
  } else {
    const float factor = symmetric_zero_point(layout.format.bits);
    for (Index i = 0; i < count; ++i) metadata.zero_points[i] = metadata.scales[i] * factor;
  }
  return {layout, panel, metadata.scales, metadata.zero_points, lanes, depth};
}

/// Reads tokens [first, first + count) of a panel back into out (element (token, channel) by its strides). `metadata`
/// and `values` are scratch: 16 floats a depth.
inline void read_panel(const kernels::Table& kernels, Side side, const PanelLayout& layout, const unsigned char* panel,
                       Index first, Index count, const Tensor& out, Index out_token, const PanelMetadata& metadata,
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
