// panel_check.hpp: whether a panel that comes from outside may be read: kernels believe what a panel says of its scales
// and widths. Used by load.hpp.
#pragma once

#include "asymkv/quantize/mixed_widths.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// Whether the kernels can read the widths of a panel: of channels that it has, in quads that fill the vectors of a
/// tile in the one way that follows from their counts. Widths of the writer always do.
inline bool has_sound_widths(const PanelLayout& layout, const unsigned char* panel) noexcept {
  const unsigned char* const widths = panel + layout.widths_offset();
  QuadCounts counts;
  for (Index channel = 0; channel < layout.depth_stride(); ++channel) {
    const int width = stored_width(layout, widths, channel);
    if (width > greatest_width || width == 7 || (width != 0 && channel >= layout.slots())) return false;
    ++counts.quads[width];
  }
  for (Index& quads : counts.quads) {
    if (quads % 4 != 0 && &quads != counts.quads) return false;  // channels, so far
    quads /= 4;
  }
  const VectorCounts v = VectorCounts::of(counts);
  QuadCounts placed = v.quads();
  placed.quads[0] = counts.quads[0];  // they have no vectors
  return v.threes >= 0 && v.threes_two >= 0 && v.twos >= 0 && v.vectors() <= layout.tile_vectors() &&
         std::memcmp(placed.quads, counts.quads, sizeof counts.quads) == 0;
}

/// Whether the kernels can read a panel of a packed format, and its scales and zero points are numbers up to `limit` in
/// magnitude. Codes may be any.
inline bool is_sound(const PanelLayout& layout, const unsigned char* panel, float limit) noexcept {
  if (layout.format.mixed() && !has_sound_widths(layout, panel)) return false;
  const bool affine = layout.format.zero_point == ZeroPoint::affine;
  for (Index i = 0; i < layout.metadata_count(); ++i) {
    if (!(std::fabs(stored_scale(layout, panel, i)) <= limit)) return false;
    if (affine && !(std::fabs(stored_zero_point(layout, panel, i)) <= limit)) return false;
  }
  return true;
}

}  // namespace detail
ASYMKV_NAMESPACE_END
