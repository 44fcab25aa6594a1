// avx2_products.hpp: products of bytes without dot-product instructions, for the vectors of avx2.hpp. Meanings as in
// simd/scalar.hpp. Included inside namespace kernels::avx2 by targets.hpp alone; no include guard, no includes.

constexpr int kPanelTiles = 1;
constexpr int kDotRows = 2;
constexpr int kSumsInFlight = 1;
constexpr Index kFewRowsOf8Bits = 4;  // even and odd bytes go apart: slower than float from some 4 rows on

/// Products of up to six bits fit 16 bits in pairs; of eight, even and odd bytes go apart.
template <int Bits>
inline __m256i dot_bytes_256(__m256i sums, __m256i codes, __m256i row) {
  if constexpr (Bits <= 6)
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, row), _mm256_set1_epi16(1)));
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(row, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(row, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}
template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  return {dot_bytes_256<Bits>(sums.lo, codes.lo, row.lo), dot_bytes_256<Bits>(sums.hi, codes.hi, row.hi)};
}
/// A quad adds two products to each halfword, each at most 128 times the greatest code.
constexpr int narrow_quads(int bits) { return 32767 / (2 * 128 * ((1 << bits) - 1)); }
/// The empty statement keeps GCC from making a tree of a chain of sums, for which there are too few registers.
inline __m256i dot_narrow_256(__m256i sums, __m256i codes, __m256i row) {
  sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, row));
  __asm__("" : "+x"(sums));
  return sums;
}
inline U32x16 dot_narrow(U32x16 sums, U32x16 codes, U32x16 row) {
  return {dot_narrow_256(sums.lo, codes.lo, row.lo), dot_narrow_256(sums.hi, codes.hi, row.hi)};
}
inline U32x16 add_narrow(U32x16 sums, U32x16 narrow) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sums.lo, _mm256_madd_epi16(narrow.lo, ones)),
          _mm256_add_epi32(sums.hi, _mm256_madd_epi16(narrow.hi, ones))};
}
