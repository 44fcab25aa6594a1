// Mixed widths of keys: where the bits go, against all ways to fill vectors tried one by one, and where they lie, from
// the bytes of pages by hand.
#include <algorithm>
#include <array>
#include <functional>

#include "support/cache.hpp"

namespace {

using namespace asymkv;
using support::append;
using support::ForcedIsa;
using support::kHeads;
using support::make_cache;
using support::read;
using support::RowMatrix;
using support::Tokens;

constexpr Index kDim = 80;  // no multiple of 32: panels have padding
constexpr CacheShape kShape{1, kHeads, kDim, kDim};

/// A panel of mixed widths as panel.hpp describes its bytes.
struct MixedPanel {
  const PanelLayout& layout;
  const unsigned char* bytes;

  int width(Index channel) const {
    int width = 0;
    for (Index set = 0; set < 4; ++set)
      width = 2 * width +
              (bytes[layout.widths_offset() + set * layout.depth_stride() / 8 + channel / 8] >> (channel % 8) & 1);
    return width;
  }
  Index count(int of_width) const {
    Index channels = 0;
    for (Index c = 0; c < layout.slots(); ++c) channels += width(c) == of_width;
    return channels;
  }
  /// Wider channels come first, and earlier ones of the same width.
  Index slot(Index channel) const {
    Index before = 0;
    for (Index c = 0; c < layout.slots(); ++c) {
      const int difference = width(c) - width(channel);
      before += difference > 0 || (difference == 0 && c < channel);
    }
    return before;
  }

  /// The code of (token, channel): the bits of its quad are collected from all vectors, as they are filled.
  int code(Index token, Index channel) const {
    Index quads[9] = {}, vector = 0;
    for (int w = 0; w < 9; ++w) quads[w] = count(w) / 4;
    const int wanted = width(channel);
    Index ahead = slot(channel);
    for (int w = 8; w > wanted; --w) ahead -= count(w);
    const Index byte = ahead % 4;
    ahead /= 4;  // quads of this width before
    int code = -1;
    const auto field = [&](Index in_vector, int shift, int bits) {
      const unsigned char* word = bytes + token / 16 * layout.tile_bytes() + 64 * in_vector + token % 16 * 4;
      return word[byte] >> shift & ((1 << bits) - 1);
    };
    Index used[9] = {};
    const auto full_vectors = [&](Index number, std::vector<int> widths) {
      for (; number > 0; --number, ++vector) {
        int shift = 0;
        for (int w : widths) {
          if (w == wanted && used[w] == ahead) code = field(vector, shift, w);
          ++used[w];
          shift += w;
        }
        EXPECT_EQ(shift, 8);
      }
    };
    const Index with_six = quads[6] % 4, with_five = quads[5] % 8, with_one = quads[1] % 8;
    const Index pairs = (quads[3] - with_five - with_one) / 2, with_two = pairs % 4;
    full_vectors(quads[8], {8});
    full_vectors(quads[4] / 2, {4, 4});
    full_vectors((quads[2] - with_six - with_two - 2 * with_one) / 4, {2, 2, 2, 2});
    full_vectors(quads[1] / 8, {1, 1, 1, 1, 1, 1, 1, 1});
    const auto blocks = [&](Index number, int each, int low, int high) {  // of quads that are cut in two
      const int low_vectors = low * each / 8;
      for (; number > 0; --number, vector += low_vectors + 1)
        for (int i = 0; i < each; ++i, ++used[low + high])
          if (wanted == low + high && used[wanted] == ahead)
            code = field(vector + i * low / 8, i * low % 8, low) | field(vector + low_vectors, i * high, high) << low;
    };
    blocks(pairs / 4, 8, 2, 1);
    blocks(quads[5] / 8, 8, 4, 1);
    blocks(quads[6] / 4, 4, 4, 2);
    full_vectors(with_five, {5, 3});
    full_vectors(with_six, {6, 2});
    full_vectors(with_two, {3, 3, 2});
    full_vectors(with_one, {3, 2, 2, 1});
    for (int w = 1; w < 9; ++w) EXPECT_EQ(used[w], quads[w]) << w;
    EXPECT_LE(vector, layout.tile_vectors());
    return code;
  }
};

/// Error of a Gaussian channel at 0..8 bits, in 2^-16 of its variance.
constexpr double kShare[] = {65536.0, 23808.0, 7680.0, 2261.0, 768.0, 229.0, 66.0, 19.0, 3.0};

/// Error if `bits` bits may go anywhere, one after the other to the channel that gains most: no layout can be better.
double least_of_all(const std::vector<double>& variances, Index bits) {
  std::vector<int> widths(variances.size());
  for (; bits > 0; --bits) {
    std::size_t best = 0;
    double most = -1.0;
    for (std::size_t i = 0; i < variances.size(); ++i) {
      const double gain = widths[i] == 8 ? 0.0 : variances[i] * (kShare[widths[i]] - kShare[widths[i] + 1]);
      if (gain > most) most = gain, best = i;
    }
    ++widths[best];
  }
  double error = 0.0;
  for (std::size_t i = 0; i < variances.size(); ++i) error += variances[i] * kShare[widths[i]];
  return error;
}

/// Least error of all ways to fill `vectors` vectors of a tile, tried one by one.
double least_of_vectors(std::vector<double> variances, Index vectors) {
  std::sort(variances.rbegin(), variances.rend());
  std::vector<double> sums(1);  // of the first so many quads
  for (std::size_t i = 0; i < variances.size(); i += 4)
    sums.push_back(sums.back() + variances[i] + variances[i + 1] + variances[i + 2] + variances[i + 3]);
  struct Kind {
    Index vectors;
    std::array<Index, 9> quads;  // of each width
  };
  const Kind kinds[] = {{1, {0, 0, 0, 0, 0, 0, 0, 0, 1}},
                        {1, {0, 0, 0, 0, 2}},
                        {1, {0, 0, 4}},
                        {1, {0, 8}},
                        {3, {0, 0, 0, 8}},
                        {5, {0, 0, 0, 0, 0, 8}},
                        {3, {0, 0, 0, 0, 0, 0, 4}},
                        {1, {0, 0, 0, 1, 0, 1}},
                        {1, {0, 0, 1, 0, 0, 0, 1}},
                        {1, {0, 0, 1, 2}},
                        {1, {0, 1, 2, 1}}};
  double least = INFINITY;
  std::array<Index, 9> quads{};
  const std::function<void(std::size_t, Index)> fill = [&](std::size_t kind, Index left) {
    if (kind == std::size(kinds)) {
      double error = 0.0;
      std::size_t begin = 0;
      for (int w = 8; w >= 0; --w) {
        const std::size_t end =
            w == 0 ? sums.size() - 1 : std::min(sums.size() - 1, begin + std::size_t(quads[std::size_t(w)]));
        error += (sums[end] - sums[begin]) * kShare[w];
        begin = end;
      }
      least = std::min(least, error);
      return;
    }
    const std::array<Index, 9> before = quads;
    for (; left >= 0; left -= kinds[kind].vectors) {
      fill(kind + 1, left);
      for (std::size_t w = 0; w < 9; ++w) quads[w] += kinds[kind].quads[w];
    }
    quads = before;
  };
  fill(0, vectors);
  return least;
}

/// Widths and codes of one panel whose tokens are rows of `tokens` (rows without tokens on top stand for sinks). Widths
/// may be kept from the page before while they cost a tenth more.
void expect_mixed_panel(const PanelLayout& layout, const unsigned char* panel, const RowMatrix& tokens,
                        const RowMatrix& back, bool kept) {
  const MixedPanel mixed{layout, panel};
  std::vector<double> variances(kDim);
  double error = 0.0;
  for (Index c = 0; c < kDim; ++c) {
    const Eigen::ArrayXd x = tokens.col(c).cast<double>().array();
    const int width = mixed.width(c);
    ASSERT_TRUE(width <= 6 || width == 8) << width;
    variances[std::size_t(c)] = (x - x.mean()).square().mean();
    error += variances[std::size_t(c)] * kShare[width];
    if (width == 0) {
      EXPECT_NEAR(back(5, c), x.mean(), 1e-3 * std::max(1.0, std::fabs(x.mean())));
      continue;
    }
    const Index slot = mixed.slot(c);
    const double scale = compact_scales.value[panel[layout.scale_offset() + slot]];
    std::uint16_t zero = 0;
    std::memcpy(&zero, panel + layout.zero_point_offset() + 2 * slot, 2);
    const Index empty = page_tokens - tokens.rows();
    for (Index t = 0; t < tokens.rows(); ++t)
      EXPECT_NEAR(back(t, c), mixed.code(empty + t, c) * scale + double(half_to_float(zero)), 1e-5) << c;
    for (Index t = 0; t < empty; ++t) EXPECT_EQ(mixed.code(t, c), 0);
  }
  EXPECT_LE(error, least_of_all(variances, 32 * layout.tile_vectors()) * 1.4);
  if (layout.tile_vectors() > 10) return;  // too many to try
  EXPECT_LE(error, least_of_vectors(variances, layout.tile_vectors()) * (kept ? 1.12 : 1.06));
}

TEST(MixedWidths, GoWhereTheVarianceIs) {
  Tokens tokens(300, 5, kShape);
  for (Index c = 0; c < tokens.keys.cols(); ++c) tokens.keys.col(c) *= std::exp2(float(c * 37 % 17) / 4.0f - 2.0f);
  for (const char* policy : {"km0.5v32", "km1.5v32@6", "km4v32", "km6v32"})
    for (Isa isa : support::machine_isas()) {
      ForcedIsa forced(isa);
      AsymKVCache cache = make_cache(policy, {}, kShape);
      append(cache, tokens, 0, 300);
      ASSERT_TRUE(cache.seal().ok());
      const SideStore& side = cache.side(0, Side::keys);
      ASSERT_EQ(side.sealed(), 256);
      for (Index head = 0; head < kHeads; ++head)
        for (Index page = 0; page < 2; ++page) {
          const Index first = page == 0 ? side.sinks().count() : 128, count = 128 * (page + 1) - first;
          expect_mixed_panel(side.pages().own_format().layout, side.pages().panel(page, head),
                             tokens.keys.block(first, head * kDim, count, kDim),
                             read(cache, Side::keys, head, first, count), page > 0);
        }
    }
}

}  // namespace
