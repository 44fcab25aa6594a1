// mixed_widths.hpp: how many bits each channel of a page of keys gets, 0 to 8, and how that is stored. Channels of real
// keys differ widely in variance; at a given number of bits, giving them to those that vary most halves the damage.
// Used by the panels' writer and by the kernels.
#pragma once

#include <algorithm>

#include "asymkv/quantize/panel.hpp"

ASYMKV_NAMESPACE_BEGIN

/// A channel's code is cut into planes of 8, 4, 2 and 1 bits, each at most once, the low bits in the widest; its width
/// is their sum. 8 stands alone. So all widths from 0 to 8 are read by the kernels of four.
constexpr int plane_count = 4;
constexpr int plane_bits[plane_count] = {8, 4, 2, 1};
/// Channels that a vector of each plane holds.
constexpr Index plane_channels[plane_count] = {4, 8, 16, 32};

/// Rows in the order of mixed codes have a section for each plane: an element for each channel that has it, and 64
/// behind them.
constexpr Index mixed_section(Index depth) noexcept { return round_up(depth, 64) + 64; }
constexpr Index mixed_slots(Index depth) noexcept { return plane_count * mixed_section(depth); }

/// Channels of each plane in the order of their slots.
struct PlaneOrder {
  Index count[plane_count] = {};
  std::uint16_t channels[plane_count][mixed_depth_limit] = {};
  Index vectors(int plane) const noexcept { return (count[plane] + plane_channels[plane] - 1) / plane_channels[plane]; }
};

/// Which of the 16 channels from 16 * batch on are in a set, as bits.
inline std::uint32_t set_mask(const unsigned char* set, Index batch) noexcept {
  return std::uint32_t(set[2 * batch]) | std::uint32_t(set[2 * batch + 1]) << 8;
}

/// O(depth).
inline PlaneOrder read_plane_order(const PanelLayout& layout, const unsigned char* widths) noexcept {
  PlaneOrder order;
  for (int plane = 0; plane < plane_count; ++plane)
    for (Index batch = 0; batch < layout.depth_stride() / tile_lanes; ++batch)
      for (std::uint32_t mask = set_mask(widths + plane * layout.width_set_bytes(), batch); mask != 0; mask &= mask - 1)
        order.channels[plane][order.count[plane]++] = std::uint16_t(16 * batch + __builtin_ctz(mask));
  return order;
}

/// Greatest code of each channel, for depth_stride channels.
inline void greatest_codes(const PanelLayout& layout, const PlaneOrder& order, float* levels) noexcept {
  std::uint8_t width[mixed_depth_limit] = {};
  for (int p = 0; p < plane_count; ++p)
    for (Index i = 0; i < order.count[p]; ++i)
      width[order.channels[p][i]] = std::uint8_t(width[order.channels[p][i]] + plane_bits[p]);
  for (Index c = 0; c < layout.depth_stride(); ++c) levels[c] = float((1 << width[c]) - 1);
}

namespace detail {

/// Mean squared error of a Gaussian channel at 0..8 bits, in 2^-16 of its variance (fitted levels).
constexpr std::uint64_t width_distortion[9] = {65536, 23808, 7680, 2261, 768, 229, 66, 19, 3};

/// Channels in order of their variances, largest first; whole numbers, so that every machine chooses alike.
struct SortedVariances {
  Index depth = 0;
  std::uint64_t variance[mixed_depth_limit];  ///< in 2^-36 of the greatest
  std::uint8_t channel[mixed_depth_limit];

  SortedVariances(const float* variances, Index count) noexcept : depth(count) {
    float greatest = 1e-30f;
    for (Index c = 0; c < depth; ++c) greatest = std::max(greatest, variances[c]);
    // the low 8 bits make equal ones sort by channel
    for (Index c = 0; c < depth; ++c)
      variance[c] = std::uint64_t(double(variances[c]) / double(greatest) * 0x1p36) << 8 | std::uint64_t(255 - c);
    std::sort(variance, variance + depth, [](std::uint64_t a, std::uint64_t b) { return a > b; });
    for (Index i = 0; i < depth; ++i) {
      channel[i] = std::uint8_t(255 - (variance[i] & 255));
      variance[i] >>= 8;
    }
  }
};

/// Vectors of each plane in a lane tile.
struct VectorSplit {
  Index vectors[plane_count] = {};
};

/// The best split where every channel has one plane or none. All are tried, O(vectors^3) of at most 48: what one vector
/// gains depends on the others.
inline VectorSplit split_by_single_planes(const SortedVariances& sorted, Index vectors) noexcept {
  // error = sum of d(width) * variance; saved against 0 bits, by where the runs of equal width end
  constexpr const std::uint64_t* d = width_distortion;
  constexpr std::uint64_t gain[plane_count] = {d[4] - d[8], d[2] - d[4], d[1] - d[2], d[0] - d[1]};
  std::uint64_t sums[mixed_depth_limit + 1] = {}, most = 0;
  for (Index i = 0; i < sorted.depth; ++i) sums[i + 1] = sums[i] + sorted.variance[i];
  const auto reach = [&](Index from, Index channels) { return std::min(sorted.depth, from + channels); };
  VectorSplit best;
  for (Index eight = 0, last8 = 0; eight <= vectors && last8 < sorted.depth; ++eight) {
    const Index end8 = last8 = reach(0, 4 * eight);
    for (Index four = 0, last4 = end8; eight + four <= vectors && (four == 0 || last4 < sorted.depth); ++four) {
      const Index end4 = last4 = reach(end8, 8 * four);
      const std::uint64_t above = gain[0] * sums[end8] + gain[1] * sums[end4];
      for (Index two = 0; eight + four + two <= vectors; ++two) {
        const Index end2 = reach(end4, 16 * two), end1 = reach(end2, 32 * (vectors - eight - four - two));
        const std::uint64_t saved = above + gain[2] * sums[end2] + gain[3] * sums[end1];
        if (saved <= most) continue;
        most = saved;
        best = {{eight, four, two, vectors - eight - four - two}};
      }
    }
  }
  return best;
}

/// First index of the greatest number.
inline int index_of_greatest(const std::uint64_t* numbers, int count) noexcept {
  int best = 0;
  std::uint64_t most = numbers[0];
  for (int i = 1; i < count; ++i) {
    best = numbers[i] > most ? i : best;
    most = numbers[i] > most ? numbers[i] : most;
  }
  return best;
}

/// Single bits, each given to the channel that gains most by it.
struct BitsGiven {
  Index ends[9] = {};  ///< ends[w]: channels of w bits or more
  Index left;

  BitsGiven(const SortedVariances& sorted, Index bits) noexcept : left(bits) {
    ends[0] = sorted.depth;
    for (std::uint64_t least = std::uint64_t(1) << 52; least > 0 && give_octave(sorted, least);) least /= 2;
    std::uint64_t gain[9] = {};
    for (int w = 1; w <= 8; ++w) gain[w] = gain_of(sorted, w, ends);
    for (; left > 0; --left) {
      const int best = index_of_greatest(gain, 9);
      if (gain[best] == 0) break;
      ++ends[best];
      gain[best] = gain_of(sorted, best, ends);
      if (best < 8) gain[best + 1] = gain_of(sorted, best + 1, ends);
    }
  }

 private:
  static std::uint64_t gain_of(const SortedVariances& sorted, int width, const Index* ends) noexcept {
    if (ends[width] == ends[width - 1]) return 0;
    return sorted.variance[ends[width]] * (width_distortion[width - 1] - width_distortion[width]);
  }
  /// Gives all bits that gain at least so much; false, and nothing given, where they are too many.
  bool give_octave(const SortedVariances& sorted, std::uint64_t least) noexcept {
    Index next[9], rest = left;
    std::copy(ends, ends + 9, next);
    for (int w = 1; w <= 8; ++w)
      for (; gain_of(sorted, w, next) >= least; ++next[w]) --rest;
    if (rest < 0) return false;
    std::copy(next, next + 9, ends);
    left = rest;
    return true;
  }
};

/// The split nearest to what single bits would do.
inline VectorSplit split_by_single_bits(const SortedVariances& sorted, Index vectors) noexcept {
  const BitsGiven given(sorted, 32 * vectors);
  const Index* ends = given.ends;
  const Index wanted[plane_count] = {ends[8], ends[4] - ends[8], ends[2] - ends[4] + ends[6] - ends[8],
                                     ends[1] - ends[2] + ends[3] - ends[4] + ends[5] - ends[6] + ends[7] - ends[8]};
  VectorSplit split;
  Index left = vectors, rest[plane_count];
  for (int p = 0; p < plane_count; ++p) {
    split.vectors[p] = wanted[p] / plane_channels[p];
    rest[p] = wanted[p] % plane_channels[p] * plane_bits[p];
    left -= split.vectors[p];
  }
  for (; left > 0; --left) {  // to the planes that fill most of a vector
    const int p = int(std::max_element(rest, rest + plane_count) - rest);
    ++split.vectors[p];
    rest[p] -= 32;
  }
  return split;
}

/// Neighbours in order of variance with the same width.
struct WidthRun {
  Index begin, end;
  int width;
};

/// Widths of all channels, in runs of equal width.
struct WidthPlan {
  static constexpr int most_runs = 9;  ///< one for each width
  WidthRun runs[most_runs];
  int run_count = 0;

  void add(Index begin, Index end, int width) noexcept {
    if (begin < end) runs[run_count++] = {begin, end, width};
  }
  std::uint64_t error(const SortedVariances& sorted) const noexcept {
    std::uint64_t sum = 0;
    for (int r = 0; r < run_count; ++r)
      for (Index i = runs[r].begin; i < runs[r].end; ++i) sum += sorted.variance[i] * width_distortion[runs[r].width];
    return sum;
  }
};

/// Each channel has one plane or none.
inline WidthPlan plan_single_planes(const SortedVariances& sorted, const VectorSplit& split) noexcept {
  WidthPlan plan;
  Index begin = 0;
  for (int p = 0; p < plane_count; ++p) {
    const Index end = std::min(sorted.depth, begin + split.vectors[p] * plane_channels[p]);
    plan.add(begin, end, plane_bits[p]);
    begin = end;
  }
  plan.add(begin, sorted.depth, 0);
  return plan;
}

/// Gives one plane to up to `count` channels, each time where it gains most; the runs are split in two by it, the first
/// part with the plane.
inline WidthPlan give_plane(const SortedVariances& sorted, int bits, Index count, const WidthPlan& plan) noexcept {
  Index taken[WidthPlan::most_runs] = {};
  std::uint64_t gain[WidthPlan::most_runs];
  const auto update = [&](int i) {
    const WidthRun& run = plan.runs[i];
    const bool possible = run.width + bits <= 8 && run.begin + taken[i] < run.end;
    gain[i] = possible ? sorted.variance[run.begin + taken[i]] *
                             (width_distortion[run.width] - width_distortion[run.width + bits])
                       : 0;
  };
  for (int i = 0; i < plan.run_count; ++i) update(i);
  for (; count > 0; --count) {
    const int best = index_of_greatest(gain, plan.run_count);
    if (gain[best] == 0) break;
    ++taken[best];
    update(best);
  }
  WidthPlan split;
  for (int i = 0; i < plan.run_count; ++i) {
    const WidthRun& run = plan.runs[i];
    split.add(run.begin, run.begin + taken[i], run.width + bits);
    split.add(run.begin + taken[i], run.end, run.width);
  }
  return split;
}

/// Channels may have several planes.
inline WidthPlan plan_planes(const SortedVariances& sorted, const VectorSplit& split) noexcept {
  WidthPlan plan;
  plan.add(0, sorted.depth, 0);
  for (int p = 0; p < plane_count; ++p)
    plan = give_plane(sorted, plane_bits[p], split.vectors[p] * plane_channels[p], plan);
  return plan;
}

/// Chooses the width of each channel and writes the sets. A channel of several planes is read several times, so single
/// planes are kept unless others save more than an eighth of the error: below 2.5 bits they rarely do.
inline void write_widths(const PanelLayout& layout, const float* variances, unsigned char* widths) noexcept {
  const SortedVariances sorted(variances, layout.depth);
  const WidthPlan single = plan_single_planes(sorted, split_by_single_planes(sorted, layout.tile_vectors()));
  const WidthPlan several = plan_planes(sorted, split_by_single_bits(sorted, layout.tile_vectors()));
  const WidthPlan& plan = several.error(sorted) < single.error(sorted) / 8 * 7 ? several : single;
  std::memset(widths, 0, std::size_t(layout.widths_bytes()));
  for (int r = 0; r < plan.run_count; ++r)
    for (Index i = plan.runs[r].begin; i < plan.runs[r].end; ++i)
      for (int p = 0; p < plane_count; ++p) {
        if ((plan.runs[r].width & plane_bits[p]) == 0) continue;
        unsigned char& byte = widths[p * layout.width_set_bytes() + sorted.channel[i] / 8];
        byte = static_cast<unsigned char>(byte | 1u << (sorted.channel[i] % 8));
      }
}

}  // namespace detail
ASYMKV_NAMESPACE_END
