// neondot_products.hpp: products of bytes by the dot products of armv8.2, for the vectors of neon.hpp. Meanings as in
// simd/scalar.hpp. Included inside namespace kernels::neondot by targets.hpp alone; no include guard, no includes.

constexpr int kPanelTiles = 1;
constexpr int kDotRows = 2;
constexpr int kSumsInFlight = 1;

/// Codes of up to 7 bits are signed bytes too; of 8, they are after 128 is taken off, which two products with 64 give
/// back. Not usdot, which fewer processors have.
template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  return quarters<U32x16>([&](int i) {
    const int8x16_t elements = vreinterpretq_s8_u32(row.v[i]);
    int32x4_t sum = vreinterpretq_s32_u32(sums.v[i]);
    if constexpr (Bits <= 7) {
      sum = vdotq_s32(sum, vreinterpretq_s8_u32(codes.v[i]), elements);
    } else {
      const uint32x4_t less = veorq_u32(codes.v[i], vdupq_n_u32(0x80808080u));
      sum = vdotq_s32(sum, vreinterpretq_s8_u32(less), elements);
      const int32x4_t half = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(64), elements);
      sum = vaddq_s32(sum, vaddq_s32(half, half));
    }
    return vreinterpretq_u32_s32(sum);
  });
}

constexpr int narrow_quads(int) { return 0; }
