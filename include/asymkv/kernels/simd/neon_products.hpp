// neon_products.hpp: products of bytes without dot-product instructions, for the vectors of neon.hpp. Meanings as in
// simd/scalar.hpp, where all words of a row are the same. Included inside namespace kernels::neon by targets.hpp alone;
// no include guard, no includes.

constexpr int kPanelTiles = 1;
constexpr int kDotRows = 2;
constexpr int kSumsInFlight = 1;
constexpr Index kFewRowsOf8Bits = 4;  // even and odd bytes go apart: slower than float from some 4 rows on

/// A quad adds two products to each halfword, each at most 128 times the greatest code.
constexpr int narrow_quads(int bits) { return 32767 / (2 * 128 * ((1 << bits) - 1)); }

/// Codes of up to 7 bits are signed bytes too. Their first and last halves of words go apart, so that multiplying also
/// adds; that costs a shuffle, which all rows share.
inline U32x16 dot_narrow(U32x16 sums, U32x16 codes, U32x16 row) {
  const int16x8_t quad = vreinterpretq_s16_u32(row.v[0]);
  const int8x16_t row_first = vreinterpretq_s8_s16(vdupq_laneq_s16(quad, 0));
  const int8x16_t row_last = vreinterpretq_s8_s16(vdupq_laneq_s16(quad, 1));
  ASYMKV_UNROLL
  for (int i = 0; i < 4; i += 2) {
    const int16x8_t a = vreinterpretq_s16_u32(codes.v[i]), b = vreinterpretq_s16_u32(codes.v[i + 1]);
    const int8x16_t first = vreinterpretq_s8_s16(vuzp1q_s16(a, b)), last = vreinterpretq_s8_s16(vuzp2q_s16(a, b));
    int16x8_t front = vreinterpretq_s16_u32(sums.v[i]), back = vreinterpretq_s16_u32(sums.v[i + 1]);
    front = vmlal_s8(front, vget_low_s8(first), vget_low_s8(row_first));
    front = vmlal_s8(front, vget_low_s8(last), vget_low_s8(row_last));
    back = vmlal_high_s8(back, first, row_first);
    back = vmlal_high_s8(back, last, row_last);
    sums.v[i] = vreinterpretq_u32_s16(front);
    sums.v[i + 1] = vreinterpretq_u32_s16(back);
  }
  return sums;
}
inline U32x16 add_narrow(U32x16 sums, U32x16 narrow) {
  return quarters<U32x16>([&](int i) {
    return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sums.v[i]), vreinterpretq_s16_u32(narrow.v[i])));
  });
}

/// For codes of 8 bits: halfwords, each byte of the words apart.
inline U32x16 dot_halfwords(U32x16 sums, U32x16 codes, U32x16 row) {
  const int16x4_t quad = vget_low_s16(vmovl_s8(vget_low_s8(vreinterpretq_s8_u32(row.v[0]))));
  ASYMKV_UNROLL
  for (int i = 0; i < 4; i += 2) {
    const uint16x8_t a = vreinterpretq_u16_u32(codes.v[i]), b = vreinterpretq_u16_u32(codes.v[i + 1]);
    const int16x8_t even_a = vreinterpretq_s16_u16(vandq_u16(a, vdupq_n_u16(255)));
    const int16x8_t even_b = vreinterpretq_s16_u16(vandq_u16(b, vdupq_n_u16(255)));
    const int16x8_t odd_a = vreinterpretq_s16_u16(vshrq_n_u16(a, 8)), odd_b = vreinterpretq_s16_u16(vshrq_n_u16(b, 8));
    const int16x8_t bytes[4] = {vuzp1q_s16(even_a, even_b), vuzp1q_s16(odd_a, odd_b), vuzp2q_s16(even_a, even_b),
                                vuzp2q_s16(odd_a, odd_b)};
    int32x4_t front = vreinterpretq_s32_u32(sums.v[i]), back = vreinterpretq_s32_u32(sums.v[i + 1]);
    front = vmlal_lane_s16(front, vget_low_s16(bytes[0]), quad, 0);
    front = vmlal_lane_s16(front, vget_low_s16(bytes[1]), quad, 1);
    front = vmlal_lane_s16(front, vget_low_s16(bytes[2]), quad, 2);
    front = vmlal_lane_s16(front, vget_low_s16(bytes[3]), quad, 3);
    back = vmlal_high_lane_s16(back, bytes[0], quad, 0);
    back = vmlal_high_lane_s16(back, bytes[1], quad, 1);
    back = vmlal_high_lane_s16(back, bytes[2], quad, 2);
    back = vmlal_high_lane_s16(back, bytes[3], quad, 3);
    sums.v[i] = vreinterpretq_u32_s32(front);
    sums.v[i + 1] = vreinterpretq_u32_s32(back);
  }
  return sums;
}

/// Of up to 7 bits, two products fit 16 bits.
template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  if constexpr (Bits <= 7)
    return add_narrow(sums, dot_narrow(zero_words(), codes, row));
  else
    return dot_halfwords(sums, codes, row);
}
