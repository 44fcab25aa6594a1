// kivi_layout.hpp: exchange with KIVI's packed layout (1, 2, 4 and 8 bits, one head). For tools that convert caches;
// the library itself stores panels.
#pragma once

#include <vector>

#include "asymkv/quantize/quantized_matrix.hpp"

ASYMKV_NAMESPACE_BEGIN

/// KIVI's arrays of one head; n = 32/bits codes a word, low bits first, consecutive along the row. Rows are channels
/// for keys (words [channels][tokens/n], metadata [channels][tokens/G]) and tokens for values ([tokens][channels/n],
/// [tokens][channels/G]). scales and minima are binary16 bits.
struct KiviMatrix {
  std::vector<std::uint32_t> words;
  std::vector<std::uint16_t> scales;
  std::vector<std::uint16_t> minima;
};

namespace detail {

inline Status check_kivi(int bits, Index row, Index group_size) noexcept {
  if (bits != 1 && bits != 2 && bits != 4 && bits != 8)
    return Status::error(ErrorCode::unsupported, "bits: KIVI's layout has 1, 2, 4 and 8, not %d", bits);
  if (row % group_size != 0)
    return Status::error(ErrorCode::unsupported, "matrix: rows of %lld are no multiple of the group, %lld",
                         static_cast<long long>(row), static_cast<long long>(group_size));
  return {};
}

/// Visits (row, element of row, token, channel) in KIVI's order.
template <class Function>
inline void for_each_kivi(const QuantizedMatrix& m, Function function) {
  const bool keys = m.side() == Side::keys;
  const Index rows = keys ? m.channels() : m.tokens();
  const Index length = keys ? m.tokens() : m.channels();
  for (Index r = 0; r < rows; ++r)
    for (Index e = 0; e < length; ++e) function(r * length + e, keys ? e : r, keys ? r : e);
}

}  // namespace detail

/// Errors: unsupported (3, 5 or 6 bits; rows that are no multiple of the group; other fits and metadata).
inline Result<KiviMatrix> export_kivi(const QuantizedMatrix& matrix) {
  const Index row = matrix.side() == Side::keys ? matrix.tokens() : matrix.channels();
  if (matrix.format() != Format{matrix.bits(), int(matrix.group_size())})
    return Status::error(ErrorCode::unsupported, "matrix: KIVI's layout has min-max groups with fp16 metadata alone");
  if (Status status = detail::check_kivi(matrix.bits(), row, matrix.group_size()); !status.ok()) return status;
  const Index per_word = 32 / matrix.bits();
  const Index size = matrix.tokens() * matrix.channels();
  KiviMatrix kivi;
  kivi.words.assign(std::size_t(size / per_word), 0);
  kivi.scales.assign(std::size_t(size / matrix.group_size()), 0);
  kivi.minima = kivi.scales;
  const PanelLayout& layout = matrix.layout();
  detail::for_each_kivi(matrix, [&](Index i, Index token, Index channel) {
    kivi.words[std::size_t(i / per_word)] |= std::uint32_t(matrix.code(token, channel))
                                             << (i % per_word * matrix.bits());
    const Index at = matrix.metadata_index(token, channel);
    kivi.scales[std::size_t(i / matrix.group_size())] = float_to_half(stored_scale(layout, matrix.data(), at));
    kivi.minima[std::size_t(i / matrix.group_size())] = float_to_half(stored_zero_point(layout, matrix.data(), at));
  });
  return kivi;
}

/// Errors: as export_kivi; invalid_argument (array sizes), non_finite (scales or minima), out_of_memory.
inline Result<QuantizedMatrix> import_kivi(Side side, int bits, int group_size, Index tokens, Index channels,
                                           const KiviMatrix& kivi) {
  Result<QuantizedMatrix> result = QuantizedMatrix::create(side, Format{bits, group_size}, tokens, channels);
  if (!result.ok()) return result;
  if (Status status = detail::check_kivi(bits, side == Side::keys ? tokens : channels, group_size); !status.ok())
    return status;
  const Index per_word = 32 / bits;
  const Index size = tokens * channels;
  if (Index(kivi.words.size()) != size / per_word || Index(kivi.scales.size()) != size / group_size ||
      kivi.minima.size() != kivi.scales.size())
    return Status::error(ErrorCode::invalid_argument,
                         "kivi: %zu words, %zu scales, %zu minima; must be %lld, %lld, %lld", kivi.words.size(),
                         kivi.scales.size(), kivi.minima.size(), static_cast<long long>(size / per_word),
                         static_cast<long long>(size / group_size), static_cast<long long>(size / group_size));
  for (std::size_t i = 0; i < kivi.scales.size(); ++i)
    if ((kivi.scales[i] & 0x7c00) == 0x7c00 || (kivi.minima[i] & 0x7c00) == 0x7c00)
      return Status::error(ErrorCode::non_finite, "kivi: scale or minimum %zu is not finite", i);
  const PanelLayout& layout = result->layout();
  detail::for_each_kivi(*result, [&](Index i, Index token, Index channel) {
    const std::uint32_t word = kivi.words[std::size_t(i / per_word)];
    const Index lane = side == Side::keys ? token : channel;
    const Index depth = side == Side::keys ? channel : token;
    insert_code(layout, result->data(), lane, depth, int(word >> (i % per_word * bits) & ((1u << bits) - 1u)));
    const Index at = result->metadata_index(token, channel);
    store_metadata(layout, result->data(), at, half_to_float(kivi.scales[std::size_t(i / group_size)]),
                   half_to_float(kivi.minima[std::size_t(i / group_size)]));
  });
  return result;
}

ASYMKV_NAMESPACE_END
