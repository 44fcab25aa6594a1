// mixed_widths.hpp: which channels of a page of keys get 4, 2, 1 and 0 bits, and how that is stored. Channels of real
// keys differ widely in variance; at a given number of bits, giving them to those that vary most halves the damage.
// Used by the panels' writer and readers.
#pragma once

#include <algorithm>

#include "asymkv/kernels/table.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

constexpr int mixed_widths[3] = {4, 2, 1};
/// Channels that a vector of each width holds.
constexpr Index mixed_channels[3] = {8, 16, 32};
/// Mean squared error of a Gaussian channel at 4, 2, 1 and 0 bits, in 1/1024 of its variance (fitted levels).
constexpr std::uint64_t mixed_distortion[4] = {12, 120, 372, 1024};

/// Number of channels of each width.
struct WidthPlan {
  Index channels[3] = {};
  Index vectors[3] = {};
};

/// Fills `vectors[0]` vectors with the first channels, and so on, as far as the channels reach.
inline WidthPlan make_plan(Index depth, Index four, Index two, Index one) noexcept {
  WidthPlan plan;
  const Index vectors[3] = {four, two, one};
  Index left = depth;
  for (int i = 0; i < 3; ++i) {
    plan.channels[i] = std::min(left, vectors[i] * mixed_channels[i]);
    plan.vectors[i] = (plan.channels[i] + mixed_channels[i] - 1) / mixed_channels[i];
    left -= plan.channels[i];
  }
  return plan;
}

/// The plan of `vectors` vectors with the least error, for channels with those summed variances: sums[i] is the sum of
/// the i largest. Whole numbers, so that every machine chooses alike.
inline WidthPlan best_plan(Index depth, Index vectors, const std::uint64_t* sums) noexcept {
  WidthPlan best;
  std::uint64_t least = ~std::uint64_t(0);
  for (Index four = 0; four <= vectors && (four == 0 || 8 * (four - 1) < depth); ++four)
    for (Index two = 0; four + two <= vectors; ++two) {
      const WidthPlan plan = make_plan(depth, four, two, vectors - four - two);
      std::uint64_t error = 0;
      Index at = 0;
      for (int i = 0; i < 3; at += plan.channels[i++])
        error += mixed_distortion[i] * (sums[at + plan.channels[i]] - sums[at]);
      error += mixed_distortion[3] * (sums[depth] - sums[at]);
      if (error >= least) continue;
      least = error;
      best = plan;
    }
  return best;
}

/// Chooses the width of each channel: classes[c] is 0, 1, 2 or 3 for 0, 1, 2 or 4 bits.
inline void choose_widths(const PanelLayout& layout, const float* variances, std::uint8_t* classes) noexcept {
  const Index depth = layout.depth;
  float greatest = 1e-30f;
  for (Index c = 0; c < depth; ++c) greatest = std::max(greatest, variances[c]);
  // 40 bits of variance above 8 bits that make equal ones sort by channel
  std::uint64_t sorted[mixed_depth_limit], sums[mixed_depth_limit + 1] = {};
  for (Index c = 0; c < depth; ++c)
    sorted[c] = std::uint64_t(double(variances[c]) / double(greatest) * 0x1p40) << 8 | std::uint64_t(255 - c);
  std::sort(sorted, sorted + depth, [](std::uint64_t a, std::uint64_t b) { return a > b; });
  for (Index i = 0; i < depth; ++i) sums[i + 1] = sums[i] + (sorted[i] >> 8);
  const WidthPlan plan = best_plan(depth, layout.tile_vectors(), sums);
  Index at = 0;
  for (int i = 0; i < 3; ++i)
    for (Index end = at + plan.channels[i]; at < end; ++at) classes[255 - (sorted[at] & 255)] = std::uint8_t(3 - i);
  for (; at < depth; ++at) classes[255 - (sorted[at] & 255)] = 0;
}

inline int stored_class(const PanelLayout& layout, const unsigned char* panel, Index channel) noexcept {
  return panel[layout.widths_offset() + channel / 4] >> (channel % 4 * 2) & 3;
}

}  // namespace detail

/// Order of the codes of a panel of mixed widths. O(depth).
inline void read_slot_order(const PanelLayout& layout, const unsigned char* panel, kernels::SlotOrder& order) noexcept {
  Index counts[4] = {};
  for (Index c = 0; c < layout.depth; ++c) ++counts[3 - detail::stored_class(layout, panel, c)];
  Index next[4] = {0, counts[0], counts[0] + counts[1], counts[0] + counts[1] + counts[2]};
  order.used = next[3];
  for (int i = 0; i < 3; ++i)
    order.vectors[i] = (counts[i] + detail::mixed_channels[i] - 1) / detail::mixed_channels[i];
  for (Index c = 0; c < layout.depth; ++c)
    order.channels[next[3 - detail::stored_class(layout, panel, c)]++] = std::uint16_t(c);
}

ASYMKV_NAMESPACE_END
