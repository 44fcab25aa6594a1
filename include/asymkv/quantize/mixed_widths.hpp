// mixed_widths.hpp: how many bits each channel of a page of keys gets, 0 to 8, and in which order the page keeps them.
// Channels of real keys differ widely in variance; at a given number of bits, giving them to those that vary most
// halves the damage. Used by the panels' writer and reader, the kernels and the attention.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "asymkv/quantize/panel.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Widths that a channel may have, in the order in which a page keeps its channels.
constexpr int greatest_width = 8;
constexpr int width_order[] = {8, 6, 5, 4, 3, 2, 1, 0};

/// Quads of each width, none of 7. A quad is four channels of one width; channels beyond key_dim, which fill the last,
/// are zero.
struct QuadCounts {
  Index quads[greatest_width + 1] = {};
};

/// The vectors of a lane tile by kind, in this order (panel.hpp): each is full, but there may be fewer than a tile has
/// room for, and how many there are of each kind follows from how many quads there are of each width. Quads of 5 bits
/// lie together by eights, in blocks of five vectors, those of 6 bits by fours, in blocks of three, and what is left of
/// them with one of 3 or 2. Quads of one bit lie together by eights, and what is left of them each with 3 + 2 + 2 bits.
/// Other quads of 3 bits lie together by eights, in blocks of three vectors, and what is left of them in pairs with one
/// of 2.
struct VectorCounts {
  Index eights, fours, twos, ones;  ///< 8 | 4 4 | 2 2 2 2 | 1 1 1 1 1 1 1 1
  Index threes, fives, sixes;       ///< blocks of three, five and three vectors
  Index fives_threes;               ///< 5 3, at most 7
  Index sixes_twos;                 ///< 6 2, at most 3
  Index threes_two;                 ///< 3 3 2, at most 3
  Index three_twos_one;             ///< 3 2 2 1, at most 7

  static VectorCounts of(const QuadCounts& counts) noexcept {
    VectorCounts v{};
    v.eights = counts.quads[8];
    v.sixes = counts.quads[6] / 4;
    v.sixes_twos = counts.quads[6] % 4;
    v.fives = counts.quads[5] / 8;
    v.fives_threes = counts.quads[5] % 8;
    v.fours = counts.quads[4] / 2;
    v.ones = counts.quads[1] / 8;
    v.three_twos_one = counts.quads[1] % 8;
    v.set_pairs_of_threes((counts.quads[3] - v.fives_threes - v.three_twos_one) / 2);
    v.twos = (counts.quads[2] - v.sixes_twos - v.threes_two - 2 * v.three_twos_one) / 4;
    return v;
  }
  void set_pairs_of_threes(Index pairs) noexcept {
    threes = pairs / 4;
    threes_two = pairs % 4;
  }
  Index vectors() const noexcept {
    return eights + fours + twos + ones + 3 * threes + 5 * fives + 3 * sixes + fives_threes + sixes_twos + threes_two +
           three_twos_one;
  }
  int kinds() const noexcept {
    int count = 0;
    for (Index n :
         {eights, fours, twos, ones, threes, fives, sixes, fives_threes, sixes_twos, threes_two, three_twos_one})
      count += n > 0;
    return count;
  }
  QuadCounts quads() const noexcept {
    QuadCounts counts;
    counts.quads[8] = eights;
    counts.quads[6] = 4 * sixes + sixes_twos;
    counts.quads[5] = 8 * fives + fives_threes;
    counts.quads[4] = 2 * fours;
    counts.quads[3] = 8 * threes + fives_threes + 2 * threes_two + three_twos_one;
    counts.quads[2] = 4 * twos + sixes_twos + threes_two + 2 * three_twos_one;
    counts.quads[1] = 8 * ones + three_twos_one;
    return counts;
  }
};

/// Where a lane tile keeps a quad: `low_width` bits of it in one vector, and the others, if any, in another.
struct QuadPlace {
  std::uint8_t width, low_width;
  std::uint8_t low_vector, low_shift;
  std::uint8_t high_vector, high_shift;
};

/// All quads that have bits, in the order of the slots.
class QuadPlaces {
 public:
  explicit QuadPlaces(const QuadCounts& counts) noexcept {
    for (int width : width_order) {
      next_[width] = count_;
      if (width > 0) count_ += counts.quads[width];
    }
    const VectorCounts v = VectorCounts::of(counts);
    add_vectors(v.eights, {8});
    add_vectors(v.fours, {4, 4});
    add_vectors(v.twos, {2, 2, 2, 2});
    add_vectors(v.ones, {1, 1, 1, 1, 1, 1, 1, 1});
    for (Index block = 0; block < v.threes; ++block, vector_ += 3)
      for (int i = 0; i < 8; ++i) add({3, 2, at(i / 4), std::uint8_t(i % 4 * 2), at(2), std::uint8_t(i)});
    for (Index block = 0; block < v.fives; ++block, vector_ += 5)
      for (int i = 0; i < 8; ++i) add({5, 4, at(i / 2), std::uint8_t(i % 2 * 4), at(4), std::uint8_t(i)});
    for (Index block = 0; block < v.sixes; ++block, vector_ += 3)
      for (int i = 0; i < 4; ++i) add({6, 4, at(i / 2), std::uint8_t(i % 2 * 4), at(2), std::uint8_t(i * 2)});
    add_vectors(v.fives_threes, {5, 3});
    add_vectors(v.sixes_twos, {6, 2});
    add_vectors(v.threes_two, {3, 3, 2});
    add_vectors(v.three_twos_one, {3, 2, 2, 1});
  }
  Index count() const noexcept { return count_; }
  const QuadPlace& operator[](Index quad) const noexcept { return places_[quad]; }

 private:
  void add_vectors(Index count, std::initializer_list<int> widths) noexcept {
    for (; count > 0; --count, ++vector_) {
      int shift = 0;
      for (int width : widths) {
        add({std::uint8_t(width), std::uint8_t(width), at(0), std::uint8_t(shift), 0, 0});
        shift += width;
      }
    }
  }
  std::uint8_t at(Index i) const noexcept { return static_cast<std::uint8_t>(vector_ + i); }
  void add(const QuadPlace& place) noexcept { places_[next_[place.width]++] = place; }

  QuadPlace places_[mixed_depth_limit / 4];
  Index count_ = 0;
  Index vector_ = 0;
  Index next_[greatest_width + 1] = {};  ///< of each width
};

/// Channels of a page in the order in which it keeps them: those of a width side by side, ascending.
struct ChannelOrder : QuadCounts {
  std::uint8_t channels[mixed_depth_limit + 8] = {};  ///< in each slot; what is beyond slots() means nothing
};

namespace detail {

/// 64 channels' widths, a word for each binary digit.
struct WidthDigits {
  static constexpr int count = 4;
  std::uint64_t words[count];

  /// Channels 64 * word to 64 * word + 63, as far as there are. Set number i, of the channels whose width has digit
  /// 8 >> i, is bit c%8 of byte c/8.
  static WidthDigits read(const PanelLayout& layout, const unsigned char* widths, Index word) noexcept {
    WidthDigits digits{};
    const Index bytes = layout.width_set_bytes(), first = 8 * word;
    const Index count_bytes = bytes - first < 8 ? bytes - first : 8;
    for (int i = 0; i < count; ++i) {
      const unsigned char* from = widths + i * bytes + first;
      if (count_bytes == 8)
        std::memcpy(&digits.words[i], from, 8);
      else
        std::memcpy(&digits.words[i], from, std::size_t(count_bytes));
    }
    return digits;
  }
  std::uint64_t channels_of(int width) const noexcept {
    std::uint64_t channels = ~std::uint64_t(0);
    for (int i = 0; i < count; ++i) channels &= (width & 8 >> i) != 0 ? words[i] : ~words[i];
    return channels;
  }
};

/// The members of each set of eight, ascending, a byte each; zeros behind.
struct SetMembers {
  std::uint8_t members[256][8] = {};
  std::uint8_t count[256] = {};
  constexpr SetMembers() {
    for (int set = 0; set < 256; ++set)
      for (int i = 0; i < 8; ++i)
        if ((set >> i & 1) != 0) members[set][count[set]++] = static_cast<std::uint8_t>(i);
  }
};
inline constexpr SetMembers set_members;

}  // namespace detail

/// O(depth / 64). Kernels ask for each panel, so it is inlined where counting bits is an instruction.
__attribute__((always_inline)) inline QuadCounts read_quad_counts(const PanelLayout& layout,
                                                                  const unsigned char* widths) noexcept {
  Index eights = 0, fours = 0, twos = 0, ones = 0, sixes = 0, fives = 0, threes = 0;
  const auto count = [](std::uint64_t set) { return Index(__builtin_popcountll(set)); };
  for (Index word = 0; 64 * word < layout.slots(); ++word) {
    const detail::WidthDigits digits = detail::WidthDigits::read(layout, widths, word);
    const std::uint64_t four = digits.words[1], two = digits.words[2], one = digits.words[3];
    eights += count(digits.words[0]);
    fours += count(four);
    twos += count(two);
    ones += count(one);
    sixes += count(four & two);
    fives += count(four & one);
    threes += count(two & one);
  }
  fours -= sixes + fives;
  twos -= sixes + threes;
  ones -= fives + threes;
  const Index none = layout.slots() - (eights + sixes + fives + fours + threes + twos + ones);
  return {{none / 4, ones / 4, twos / 4, threes / 4, fours / 4, fives / 4, sixes / 4, 0, eights / 4}};
}

/// O(depth). By sets of eight channels: a loop over the channels of one width would have an unpredictable end, which
/// costs more than stores that the next ones overwrite.
inline ChannelOrder read_channel_order(const PanelLayout& layout, const unsigned char* widths) noexcept {
  constexpr std::uint64_t ones = 0x0101010101010101u;
  ChannelOrder order;
  Index slot = 0;
  for (int width : width_order) {
    const Index first_slot = slot;
    for (Index word = 0; 64 * word < layout.slots(); ++word) {
      const Index channels = layout.slots() - 64 * word;
      std::uint64_t mask = detail::WidthDigits::read(layout, widths, word).channels_of(width);
      if (channels < 64) mask &= (std::uint64_t(1) << channels) - 1;
      if (mask == 0) continue;
      for (Index i = 0; i < 64 && i < channels; i += 8) {
        const std::uint64_t set = mask >> i & 255u;
        std::uint64_t members;
        std::memcpy(&members, detail::set_members.members[set], 8);
        members += ones * std::uint64_t(64 * word + i);
        std::memcpy(order.channels + slot, &members, 8);
        slot += detail::set_members.count[set];
      }
    }
    order.quads[width] = (slot - first_slot) / 4;
  }
  return order;
}

/// Greatest code of each channel, for depth_stride channels.
inline void greatest_codes(const PanelLayout& layout, const ChannelOrder& order, float* levels) noexcept {
  std::fill(levels, levels + layout.depth_stride(), 0.0f);
  Index slot = 0;
  for (int width : width_order)
    for (const Index end = slot + 4 * order.quads[width]; slot < end; ++slot)
      levels[order.channels[slot]] = float((1 << width) - 1);
}

namespace detail {

/// Mean squared error of a Gaussian channel at 0..8 bits, in 2^-16 of its variance (fitted levels).
constexpr std::uint64_t width_distortion[greatest_width + 1] = {65536, 23808, 7680, 2261, 768, 229, 66, 19, 3};

/// Channels in order of their variances, largest first; whole numbers, so that every machine chooses alike.
struct SortedVariances {
  Index slots;
  std::uint64_t variance[mixed_depth_limit];  ///< in 2^-36 of the greatest
  std::uint8_t channel[mixed_depth_limit];

  SortedVariances(const float* variances, Index count) noexcept : slots(count) {
    float greatest = 1e-30f;
    for (Index c = 0; c < slots; ++c) greatest = std::max(greatest, variances[c]);
    // the low 8 bits make equal ones sort by channel
    for (Index c = 0; c < slots; ++c)
      variance[c] = std::uint64_t(double(variances[c]) / double(greatest) * 0x1p36) << 8 | std::uint64_t(255 - c);
    std::sort(variance, variance + slots, [](std::uint64_t a, std::uint64_t b) { return a > b; });
    for (Index i = 0; i < slots; ++i) {
      channel[i] = std::uint8_t(255 - (variance[i] & 255));
      variance[i] >>= 8;
    }
  }
};

/// The error of quads in order of their variances, the widest first, by prefix sums.
class QuadErrors {
 public:
  explicit QuadErrors(const SortedVariances& sorted) noexcept : quads_(sorted.slots / 4) {
    for (Index q = 0; q < quads_; ++q) {
      sums_[q + 1] = sums_[q];
      for (Index i = 4 * q; i < 4 * q + 4; ++i) sums_[q + 1] += sorted.variance[i];
    }
  }
  Index quads() const noexcept { return quads_; }
  std::uint64_t of(const QuadCounts& counts) const noexcept {
    std::uint64_t error = 0;
    Index begin = 0;
    for (int width = greatest_width; width >= 0; --width) {
      const Index end = width == 0 ? quads_ : begin + counts.quads[width];
      error += width_distortion[width] * (sums_[end] - sums_[begin]);
      begin = end;
    }
    return error;
  }
  /// What each bit gives where it is given to the quad that gains most: the best if quads could lie anyhow.
  QuadCounts best(Index bits) const noexcept {
    Index ends[greatest_width + 2] = {quads_};  // quads of so many bits or more
    std::uint64_t gain[greatest_width + 1] = {};
    const auto update = [&](int w) {
      const Index q = ends[w];
      gain[w] = q == ends[w - 1] ? 0 : (sums_[q + 1] - sums_[q]) * (width_distortion[w - 1] - width_distortion[w]);
    };
    for (int w = 1; w <= greatest_width; ++w) update(w);
    for (; bits > 0; --bits) {
      const int w = int(std::max_element(gain, gain + greatest_width + 1) - gain);
      if (gain[w] == 0) break;
      ++ends[w];
      update(w);
      if (w < greatest_width) update(w + 1);
    }
    QuadCounts counts;
    for (int w = 0; w <= greatest_width; ++w) counts.quads[w] = ends[w] - ends[w + 1];
    return counts;
  }

 private:
  Index quads_;
  std::uint64_t sums_[mixed_depth_limit / 4 + 1] = {};
};

/// How many vectors there are of each kind, but for those of ones alone, which are what is left.
struct VectorChoice {
  static constexpr int kinds = 7;
  Index of[kinds];  ///< eights, quads of six and of five, fours, pairs of threes, twos, three_twos_one

  /// False if there are not so many vectors or quads.
  bool counts(Index vectors, Index quads, VectorCounts& v) const noexcept {
    if (*std::min_element(of, of + kinds) < 0 || of[6] > 7) return false;
    v = {of[0], of[3], of[5], 0, 0, of[2] / 8, of[1] / 4, of[2] % 8, of[1] % 4, 0, of[6]};
    v.set_pairs_of_threes(of[4]);
    Index quads_left = quads;
    for (Index n : v.quads().quads) quads_left -= n;
    const Index vectors_left = vectors - v.vectors();
    v.ones = std::min(vectors_left, quads_left / 8);
    return vectors_left >= 0 && quads_left >= 0;
  }
};

/// The vectors that give least error, where each kind costs a 64th of it, since kernels read one kind after the other.
/// A round tries some 200 choices of O(1) each: 5 to 50 microseconds for a panel of 128 channels, where widths change.
class VectorSearch {
 public:
  VectorSearch(const QuadErrors& errors, Index vectors) noexcept : errors_(errors), vectors_(vectors) {
    const QuadCounts wanted = errors.best(8 * vectors);
    const Index* q = wanted.quads;
    const Index pairs = std::max<Index>(0, q[3] - q[5]) / 2;
    // what single bits would do; the same with quads of five and six bits in blocks; nothing
    start_from({{q[8] + q[7] / 2, q[6], q[5], q[4] / 2, pairs, q[2] / 4, 0}});
    start_from({{q[8] + q[7] / 2, q[6] / 4 * 4, (q[5] + 7) / 8 * 8, q[4] / 2, q[3] / 2, q[2] / 4, 0}});
    start_from({});
  }
  const VectorCounts& best() const noexcept { return best_; }

 private:
  /// Some vectors more or less of a kind or of two as long as that is better; at first less until there is room.
  void start_from(VectorChoice choice) noexcept {
    VectorCounts v{};
    for (int k = 0; k < VectorChoice::kinds; ++k)
      while (choice.of[k] > 0 && !choice.counts(vectors_, errors_.quads(), v)) --choice.of[k];
    if (!choice.counts(vectors_, errors_.quads(), v)) return;
    std::uint64_t least = cost_of(v);
    keep(v, least);
    for (bool better = true; better;) {
      better = false;
      const VectorChoice from = choice;
      // `count` fewer of kind `less` and more of kind `more`; a negative kind is none
      const auto try_change = [&](int less, int more, Index count) {
        VectorChoice changed = from;
        if (less >= 0 && (changed.of[less] -= count) < 0) return;
        if (more >= 0) changed.of[more] += count;
        if (!changed.counts(vectors_, errors_.quads(), v)) return;
        const std::uint64_t cost = cost_of(v);
        if (cost >= least) return;
        least = cost;
        keep(v, cost);
        choice = changed;
        better = true;
      };
      for (int less = -1; less < VectorChoice::kinds; ++less) {
        const Index all = less < 0 ? 0 : from.of[less];
        for (int more = -1; more < VectorChoice::kinds; ++more) {
          if (more == less) continue;
          for (Index count : {Index(1), Index(4), Index(8)}) try_change(less, more, count);
          if (all > 1 && all != 4 && all != 8) try_change(less, more, all);
        }
      }
    }
  }
  std::uint64_t cost_of(const VectorCounts& v) const noexcept {
    const std::uint64_t error = errors_.of(v.quads());
    return error + error / 64 * std::uint64_t(v.kinds());
  }
  void keep(const VectorCounts& v, std::uint64_t cost) noexcept {
    if (cost >= least_) return;
    least_ = cost;
    best_ = v;
  }

  const QuadErrors& errors_;
  Index vectors_;
  VectorCounts best_{};
  std::uint64_t least_ = ~std::uint64_t(0);
};

/// Width of one channel.
inline int stored_width(const PanelLayout& layout, const unsigned char* widths, Index channel) noexcept {
  int width = 0;
  for (int i = 0; i < WidthDigits::count; ++i)
    width = 2 * width + (widths[i * layout.width_set_bytes() + channel / 8] >> channel % 8 & 1);
  return width;
}

/// Chooses the width of each channel, of slots() `variances`, and writes them. Those of the page before, which may be
/// null, are kept as long as nothing could save more than an eleventh of their error: queries then lie in the order
/// that they have already, and which is best is mostly a matter of chance.
inline void write_widths(const PanelLayout& layout, const float* variances, const unsigned char* previous,
                         unsigned char* widths) noexcept {
  const SortedVariances sorted(variances, layout.slots());
  const QuadErrors errors(sorted);
  if (previous != nullptr) {
    const std::uint64_t least = errors.of(errors.best(8 * layout.tile_vectors()));
    std::uint64_t kept = 0;
    for (Index i = 0; i < layout.slots(); ++i)
      kept += sorted.variance[i] * width_distortion[stored_width(layout, previous, sorted.channel[i])];
    if (kept <= least + least / 10) {
      std::memcpy(widths, previous, std::size_t(layout.widths_bytes()));
      return;
    }
  }
  const QuadCounts counts = VectorSearch(errors, layout.tile_vectors()).best().quads();
  std::memset(widths, 0, std::size_t(layout.widths_bytes()));
  Index i = 0;
  for (int width : width_order)
    for (const Index end = width == 0 ? layout.slots() : i + 4 * counts.quads[width]; i < end; ++i)
      for (int digit = 0; digit < WidthDigits::count; ++digit) {
        unsigned char& byte = widths[digit * layout.width_set_bytes() + sorted.channel[i] / 8];
        if ((width & 8 >> digit) != 0) byte = static_cast<unsigned char>(byte | 1u << sorted.channel[i] % 8);
      }
}

}  // namespace detail
ASYMKV_NAMESPACE_END
