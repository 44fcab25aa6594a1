// avx512_vnni.hpp: dot products of bytes by VNNI, after avx512.hpp; no include guard, no includes.

template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  return {_mm512_dpbusd_epi32(sums.v, codes.v, row.v)};
}
