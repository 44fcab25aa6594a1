// avx512vnni_products.hpp: products of bytes by the dot products of AVX-512 VNNI, for the vectors of avx512.hpp.
// Meanings as in simd/scalar.hpp. Included inside namespace kernels::avx512vnni by targets.hpp alone; no include guard,
// no includes.

constexpr int kPanelTiles = 8;
constexpr int kDotRows = 4;
constexpr int kSumsInFlight = 8;

template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  return {_mm512_dpbusd_epi32(sums.v, codes.v, row.v)};
}
constexpr int narrow_quads(int) { return 0; }
