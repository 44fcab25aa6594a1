// mixed_widths.hpp: which channels of a page of keys get 8, 4, 2, 1 and 0 bits, and how that is stored. Channels of
// real keys differ widely in variance; at a given number of bits, giving them to those that vary most halves the
// damage. Used by the panels' writer and by the kernels.
#pragma once

#include <algorithm>

#include "asymkv/quantize/panel.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Widths that have codes, in the order of their vectors, and how many channels a vector of each holds.
constexpr int width_count = 4;
constexpr int mixed_widths[width_count] = {8, 4, 2, 1};
constexpr Index mixed_channels[width_count] = {4, 8, 16, 32};

/// Slots of a panel of mixed widths, padding in each width's last vector included, are at most so many.
constexpr Index mixed_slots(Index depth) noexcept { return round_up(depth, block_depth) + 64; }

/// Channels in the order of their codes, `count[i]` of width i, then those without codes.
struct SlotOrder {
  Index count[width_count] = {};
  std::uint16_t channels[mixed_depth_limit] = {};
  Index vectors(int width) const noexcept { return (count[width] + mixed_channels[width] - 1) / mixed_channels[width]; }
};

/// 16 channels of one of the sets in `widths`, from channel 16 * batch on.
inline std::uint32_t width_mask(const PanelLayout& layout, const unsigned char* widths, int width,
                                Index batch) noexcept {
  const unsigned char* at = widths + width * layout.width_set_bytes() + 2 * batch;
  return std::uint32_t(at[0]) | std::uint32_t(at[1]) << 8;
}

/// O(depth).
inline SlotOrder read_slot_order(const PanelLayout& layout, const unsigned char* widths) noexcept {
  SlotOrder order;
  Index next = 0;
  const Index batches = layout.depth_stride() / tile_lanes;
  for (int width = 0; width <= width_count; ++width) {
    const Index first = next;
    for (Index batch = 0; batch < batches; ++batch) {
      std::uint32_t mask = 0;
      if (width < width_count) {
        mask = width_mask(layout, widths, width, batch);
      } else {
        for (int w = 0; w < width_count; ++w) mask |= width_mask(layout, widths, w, batch);
        mask = ~mask & 0xffffu;
      }
      for (; mask != 0; mask &= mask - 1) {
        const Index channel = 16 * batch + __builtin_ctz(mask);
        if (channel < layout.depth) order.channels[next++] = std::uint16_t(channel);
      }
    }
    if (width < width_count) order.count[width] = next - first;
  }
  return order;
}

namespace detail {

/// Mean squared error of a Gaussian channel at 8, 4, 2, 1 and 0 bits, in 2^-16 of its variance (fitted levels).
constexpr std::uint64_t mixed_distortion[width_count + 1] = {3, 768, 7680, 23808, 65536};

/// Splits `vectors` vectors among the widths so that the error is least: ends[i] is the number of channels that have
/// width i or more; sums[i] is the sum of the i largest variances. Whole numbers, so that every machine chooses alike.
/// All splits are tried: what one vector gains depends on those before it.
inline void split_vectors(Index depth, Index vectors, const std::uint64_t* sums, Index* ends) noexcept {
  constexpr const std::uint64_t* d = mixed_distortion;
  // sum over widths of d[i] * (sums[end[i]] - sums[end[i-1]]), regrouped by the ends
  constexpr std::uint64_t gain[width_count] = {d[1] - d[0], d[2] - d[1], d[3] - d[2], d[4] - d[3]};
  const auto reach = [depth](Index from, Index channels) { return std::min(depth, from + channels); };
  std::uint64_t most = 0;
  std::fill(ends, ends + width_count, 0);
  for (Index eight = 0; eight <= vectors; ++eight) {
    const Index end8 = reach(0, 4 * eight);
    for (Index four = 0; eight + four <= vectors; ++four) {
      const Index end4 = reach(end8, 8 * four);
      const std::uint64_t above = gain[0] * sums[end8] + gain[1] * sums[end4];
      for (Index two = 0; eight + four + two <= vectors; ++two) {
        const Index end2 = reach(end4, 16 * two), end1 = reach(end2, 32 * (vectors - eight - four - two));
        const std::uint64_t saved = above + gain[2] * sums[end2] + gain[3] * sums[end1];
        if (saved <= most) continue;
        most = saved;
        ends[0] = end8, ends[1] = end4, ends[2] = end2, ends[3] = end1;
      }
      if (end4 == depth) break;
    }
    if (end8 == depth) break;
  }
}

/// Chooses the width of each channel and writes the sets.
inline void write_widths(const PanelLayout& layout, const float* variances, unsigned char* widths) noexcept {
  const Index depth = layout.depth;
  float greatest = 1e-30f;
  for (Index c = 0; c < depth; ++c) greatest = std::max(greatest, variances[c]);
  // 36 bits of variance above 8 bits that make equal ones sort by channel
  std::uint64_t sorted[mixed_depth_limit], sums[mixed_depth_limit + 1] = {};
  for (Index c = 0; c < depth; ++c)
    sorted[c] = std::uint64_t(double(variances[c]) / double(greatest) * 0x1p36) << 8 | std::uint64_t(255 - c);
  std::sort(sorted, sorted + depth, [](std::uint64_t a, std::uint64_t b) { return a > b; });
  for (Index i = 0; i < depth; ++i) sums[i + 1] = sums[i] + (sorted[i] >> 8);
  Index ends[width_count];
  split_vectors(depth, layout.tile_vectors(), sums, ends);
  std::memset(widths, 0, std::size_t(layout.widths_bytes()));
  Index at = 0;
  for (int width = 0; width < width_count; ++width)
    for (; at < ends[width]; ++at) {
      const Index channel = 255 - Index(sorted[at] & 255);
      unsigned char& byte = widths[width * layout.width_set_bytes() + channel / 8];
      byte = static_cast<unsigned char>(byte | 1u << (channel % 8));
    }
}

}  // namespace detail
ASYMKV_NAMESPACE_END
