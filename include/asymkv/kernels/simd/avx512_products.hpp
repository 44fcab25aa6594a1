// avx512_products.hpp: products of bytes without dot-product instructions, for the vectors of avx512.hpp. Meanings as
// in simd/scalar.hpp. Included inside namespace kernels::avx512 by targets.hpp alone; no include guard, no includes.

constexpr int kPanelTiles = 8;
constexpr int kDotRows = 4;
constexpr int kSumsInFlight = 1;
constexpr Index kFewRowsOf8Bits = 4;  // even and odd bytes go apart: slower than float from some 4 rows on

/// Products of up to six bits fit 16 bits in pairs; of eight, even and odd bytes go apart.
template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  if constexpr (Bits <= 6) {
    const __m512i pairs = _mm512_maddubs_epi16(codes.v, row.v);
    return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  } else {
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(codes.v, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(row.v, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes.v, 8), _mm512_srai_epi16(row.v, 8));
    return {_mm512_add_epi32(sums.v, _mm512_add_epi32(even, odd))};
  }
}
/// A quad adds two products to each halfword, each at most 128 times the greatest code.
constexpr int narrow_quads(int bits) { return 32767 / (2 * 128 * ((1 << bits) - 1)); }
inline U32x16 dot_narrow(U32x16 sums, U32x16 codes, U32x16 row) {
  return {_mm512_add_epi16(sums.v, _mm512_maddubs_epi16(codes.v, row.v))};
}
inline U32x16 add_narrow(U32x16 sums, U32x16 narrow) {
  return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(narrow.v, _mm512_set1_epi16(1)))};
}
