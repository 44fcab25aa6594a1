// avx512_madd.hpp: dot products of bytes without VNNI, after avx512.hpp; no include guard, no includes. As in avx2.hpp.

template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  if constexpr (Bits <= 6) {
    const __m512i pairs = _mm512_maddubs_epi16(codes.v, row.v);
    return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(codes.v, _mm512_set1_epi16(255)),
                                         _mm512_srai_epi16(_mm512_slli_epi16(row.v, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes.v, 8), _mm512_srai_epi16(row.v, 8));
  return {_mm512_add_epi32(sums.v, _mm512_add_epi32(even, odd))};
}
