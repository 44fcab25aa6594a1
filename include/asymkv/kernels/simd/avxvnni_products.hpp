// avxvnni_products.hpp: products of bytes by the dot products of AVX-VNNI, for the vectors of avx2.hpp. Meanings as in
// simd/scalar.hpp. Included inside namespace kernels::avxvnni by targets.hpp alone; no include guard, no includes.

constexpr int kPanelTiles = 2;
constexpr int kDotRows = 2;
constexpr int kSumsInFlight = 4;

template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  return {_mm256_dpbusd_avx_epi32(sums.lo, codes.lo, row.lo), _mm256_dpbusd_avx_epi32(sums.hi, codes.hi, row.hi)};
}
constexpr int narrow_quads(int) { return 0; }
