// gfni_byte_fields.hpp: what byte_fields.hpp does, by GFNI, for the vectors of avx512.hpp. Included inside the
// namespace of an instruction set by targets.hpp alone, after its vector layer; no include guard, no includes.

/// A matrix of bits times each byte does shift and mask at once. Byte 7 - i of the matrix says
/// which bits of the byte make bit i of the result: those of the identity, bytes moved, and `width` bytes of it kept.
inline U32x16 byte_fields(U32x16 a, int shift, int width, int to) {
  constexpr std::uint64_t identity = 0x0102040810204080u, all = ~std::uint64_t(0);
  const std::uint64_t moved = shift < to ? identity >> 8 * (to - shift) : identity << 8 * (shift - to);
  const std::uint64_t matrix = moved & (all << 8 * (8 - width) >> 8 * to);
  return {_mm512_gf2p8affine_epi64_epi8(a.v, _mm512_set1_epi64(static_cast<long long>(matrix)), 0)};
}
