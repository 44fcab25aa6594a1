// neon.hpp: the vector layer for aarch64's Advanced SIMD: 16 lanes as four registers. Meanings as in simd/scalar.hpp;
// products of bytes are in neon_products.hpp and neondot_products.hpp. Included inside namespaces kernels::neon and
// kernels::neondot and their target regions by targets.hpp alone; no include guard, no includes.

struct F32x16 {
  float32x4_t v[4];
};
struct U32x16 {
  uint32x4_t v[4];
};

// of 32 registers a vector takes four
constexpr int kAccumulators = 4;
constexpr int kTiles = 1;
constexpr int kRows = 4;

template <class Vector, class Function>
inline Vector quarters(Function function) {
  return {{function(0), function(1), function(2), function(3)}};
}

inline F32x16 broadcast(float x) {
  return quarters<F32x16>([&](int) { return vdupq_n_f32(x); });
}
inline F32x16 load(const float* p) {
  return quarters<F32x16>([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline F32x16 load_half(const std::uint16_t* p) {
  return quarters<F32x16>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline U32x16 load_halfwords(const void* p) {
  const std::uint16_t* h = static_cast<const std::uint16_t*>(p);
  return quarters<U32x16>([&](int i) { return vmovl_u16(vld1_u16(h + 4 * i)); });
}
inline F32x16 load_bfloat16(const std::uint16_t* p) {
  return quarters<F32x16>([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
/// Of four codes. The eight mantissas are looked up byte by byte.
inline float32x4_t compact_quarter(uint32x4_t code) {
  const uint8x16x2_t mantissas = {{vreinterpretq_u8_f32(vld1q_f32(detail::compact_mantissas)),
                                   vreinterpretq_u8_f32(vld1q_f32(detail::compact_mantissas + 4))}};
  const uint32x4_t number = vandq_u32(code, vdupq_n_u32(7));
  const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), number, vdupq_n_u32(0x04040404u));
  const uint32x4_t mantissa = vreinterpretq_u32_u8(vqtbl2q_u8(mantissas, vreinterpretq_u8_u32(bytes)));
  const uint32x4_t exponent = vshlq_n_u32(vsubq_u32(vshrq_n_u32(code, 3), vdupq_n_u32(16)), 23);
  return vreinterpretq_f32_u32(vandq_u32(vaddq_u32(mantissa, exponent), vtstq_u32(code, code)));
}
inline F32x16 load_compact(const unsigned char* p) {
  const uint8x16_t codes = vld1q_u8(p);
  const uint16x8_t front = vmovl_u8(vget_low_u8(codes)), back = vmovl_u8(vget_high_u8(codes));
  return {{compact_quarter(vmovl_u16(vget_low_u16(front))), compact_quarter(vmovl_u16(vget_high_u16(front))),
           compact_quarter(vmovl_u16(vget_low_u16(back))), compact_quarter(vmovl_u16(vget_high_u16(back)))}};
}
inline void store(float* p, F32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline F32x16 blend(std::uint32_t mask, F32x16 a, F32x16 b) {
  const uint32x4_t bits = {1, 2, 4, 8};
  return quarters<F32x16>(
      [&](int i) { return vbslq_f32(vtstq_u32(vdupq_n_u32(mask >> 4 * i), bits), a.v[i], b.v[i]); });
}
inline void store_half(void* p, F32x16 a) {
  std::uint16_t* to = static_cast<std::uint16_t*>(p);
  for (int i = 0; i < 4; ++i) vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return quarters<F32x16>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return quarters<F32x16>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return quarters<F32x16>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline F32x16 div(F32x16 a, F32x16 b) {
  return quarters<F32x16>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return quarters<F32x16>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]); });
}
// not vminq and vmaxq, which have rules of their own for NaN and for zeros of two signs
inline F32x16 min(F32x16 a, F32x16 b) { return select_less(a, b, a, b); }
inline F32x16 max(F32x16 a, F32x16 b) { return select_less(b, a, a, b); }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return quarters<F32x16>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline F32x16 madd(F32x16 a, F32x16 b, F32x16 c) { return fma(a, b, c); }
inline F32x16 round_even(F32x16 a) {
  return quarters<F32x16>([&](int i) { return vrndnq_f32(a.v[i]); });
}
inline F32x16 round_half(F32x16 a) {
  return quarters<F32x16>([&](int i) { return vcvt_f32_f16(vcvt_f16_f32(a.v[i])); });
}
inline F32x16 times_power_of_two(F32x16 p, F32x16 n) {
  return quarters<F32x16>([&](int i) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127));
    return vmulq_f32(p.v[i], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  });
}
/// Column `quarter` of blocks of 4 x 4, as rows.
inline F32x16 transpose_block(const F32x16* rows, int quarter) {
  const float32x4_t a = rows[0].v[quarter], b = rows[1].v[quarter], c = rows[2].v[quarter], d = rows[3].v[quarter];
  const float32x4_t ac = vzip1q_f32(a, c), bd = vzip1q_f32(b, d), ac_2 = vzip2q_f32(a, c), bd_2 = vzip2q_f32(b, d);
  return {{vzip1q_f32(ac, bd), vzip2q_f32(ac, bd), vzip1q_f32(ac_2, bd_2), vzip2q_f32(ac_2, bd_2)}};
}
inline void transpose(F32x16 (&x)[16]) {
  F32x16 y[16];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const F32x16 block = transpose_block(x + 4 * i, j);
      for (int k = 0; k < 4; ++k) y[4 * j + k].v[i] = block.v[k];
    }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}
template <class Op>
inline F32x16 reduce_rows(F32x16 (&x)[16], Op op) {
  F32x16 y[4];  // row 4 * i + j in quarter j of y[i], reduced to four lanes
  for (int i = 0; i < 16; ++i) {
    const F32x16 halves =
        op(F32x16{{x[i].v[0], x[i].v[1], x[i].v[0], x[i].v[1]}}, F32x16{{x[i].v[2], x[i].v[3], x[i].v[2], x[i].v[3]}});
    y[i / 4].v[i % 4] = op(halves, F32x16{{halves.v[1], halves.v[0], halves.v[1], halves.v[0]}}).v[0];
  }
  F32x16 columns[4];  // lane i of columns[k]: lane k of row i
  for (int i = 0; i < 4; ++i) {
    const float32x4_t* rows = y[i].v;
    const float32x4_t ac = vzip1q_f32(rows[0], rows[2]), bd = vzip1q_f32(rows[1], rows[3]);
    const float32x4_t ac_2 = vzip2q_f32(rows[0], rows[2]), bd_2 = vzip2q_f32(rows[1], rows[3]);
    columns[0].v[i] = vzip1q_f32(ac, bd);
    columns[1].v[i] = vzip2q_f32(ac, bd);
    columns[2].v[i] = vzip1q_f32(ac_2, bd_2);
    columns[3].v[i] = vzip2q_f32(ac_2, bd_2);
  }
  return op(op(columns[0], columns[1]), op(columns[2], columns[3]));
}
inline float sum_lanes(F32x16 a) {
  const float32x4_t s4 = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
  return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}
/// Of numbers: a NaN counts as less than any.
inline float max_lanes(F32x16 a) {
  return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a.v[0], a.v[1]), vmaxnmq_f32(a.v[2], a.v[3])));
}

inline U32x16 zero_words() {
  return quarters<U32x16>([](int) { return vdupq_n_u32(0); });
}
inline U32x16 load_words(const void* p) {
  const unsigned char* bytes = static_cast<const unsigned char*>(p);
  return quarters<U32x16>([&](int i) { return vreinterpretq_u32_u8(vld1q_u8(bytes + 16 * i)); });
}
inline void store_words(void* p, U32x16 a) {
  unsigned char* bytes = static_cast<unsigned char*>(p);
  for (int i = 0; i < 4; ++i) vst1q_u8(bytes + 16 * i, vreinterpretq_u8_u32(a.v[i]));
}
inline void store_halfwords(void* p, U32x16 a) {
  for (int i = 0; i < 4; ++i) vst1_u16(static_cast<std::uint16_t*>(p) + 4 * i, vmovn_u32(a.v[i]));
}
inline void store_bytes(unsigned char* p, U32x16 a) {
  const auto halfwords = [&](int i) { return vmovn_u32(a.v[i]); };
  vst1q_u8(p, vcombine_u8(vmovn_u16(vcombine_u16(halfwords(0), halfwords(1))),
                          vmovn_u16(vcombine_u16(halfwords(2), halfwords(3)))));
}
inline void store_four_bytes(unsigned char* p, U32x16 a, U32x16 b, U32x16 c, U32x16 d) {
  store_bytes(p, a);
  store_bytes(p + 16, b);
  store_bytes(p + 32, c);
  store_bytes(p + 48, d);
}
inline U32x16 round_words(F32x16 a) {
  return quarters<U32x16>([&](int i) { return vcvtnq_u32_f32(a.v[i]); });
}
inline U32x16 count_unless_less(U32x16 n, F32x16 a, F32x16 b) {
  return quarters<U32x16>(
      [&](int i) { return vaddq_u32(n.v[i], vaddq_u32(vcltq_f32(a.v[i], b.v[i]), vdupq_n_u32(1))); });
}
inline void load_quads(const unsigned char* rows, U32x16 (&quads)[4]) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4x4_t four = vld4q_u32(reinterpret_cast<const std::uint32_t*>(rows + 64 * i));
    for (int q = 0; q < 4; ++q) quads[q].v[i] = four.val[q];
  }
}
// operators, since the intrinsics shift by constants or by registers, not by what becomes a constant when it is inlined
inline U32x16 shift_right(U32x16 a, int n) {
  return quarters<U32x16>([&](int i) { return a.v[i] >> std::uint32_t(n); });
}
inline U32x16 shift_left(U32x16 a, int n) {
  return quarters<U32x16>([&](int i) { return a.v[i] << std::uint32_t(n); });
}
inline U32x16 bit_and(U32x16 a, std::uint32_t mask) {
  return quarters<U32x16>([&](int i) { return vandq_u32(a.v[i], vdupq_n_u32(mask)); });
}
inline U32x16 add(U32x16 a, U32x16 b) {
  return quarters<U32x16>([&](int i) { return vaddq_u32(a.v[i], b.v[i]); });
}
inline U32x16 bit_or(U32x16 a, U32x16 b) {
  return quarters<U32x16>([&](int i) { return vorrq_u32(a.v[i], b.v[i]); });
}
inline U32x16 blend_bits(U32x16 mask, U32x16 a, U32x16 b) {
  return quarters<U32x16>([&](int i) { return vbslq_u32(mask.v[i], a.v[i], b.v[i]); });
}
inline U32x16 as_words(F32x16 a) {
  return quarters<U32x16>([&](int i) { return vreinterpretq_u32_f32(a.v[i]); });
}
inline F32x16 as_floats(U32x16 a) {
  return quarters<F32x16>([&](int i) { return vreinterpretq_f32_u32(a.v[i]); });
}
inline U32x16 max_words(U32x16 a, U32x16 b) {
  return quarters<U32x16>([&](int i) { return vmaxq_u32(a.v[i], b.v[i]); });
}
inline std::uint32_t max_word(U32x16 a) {
  return vmaxvq_u32(vmaxq_u32(vmaxq_u32(a.v[0], a.v[1]), vmaxq_u32(a.v[2], a.v[3])));
}
inline F32x16 absolute(F32x16 a) {
  return quarters<F32x16>([&](int i) { return vabsq_f32(a.v[i]); });
}
inline F32x16 max_magnitude(F32x16 a, F32x16 b) { return max(a, absolute(b)); }
inline F32x16 to_floats(U32x16 a) {
  return quarters<F32x16>([&](int i) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a.v[i])); });
}
struct Wholes {
  int16x8_t v[8];
};
struct Bytes {
  int8x16_t v[4];
};
struct ByteTerms {
  Bytes high, low;
};
inline Wholes round_wholes(const float* p, F32x16 factor) {
  Wholes wholes;
  ASYMKV_UNROLL
  for (int i = 0; i < 8; ++i) {
    const auto four = [&](int j) { return vmovn_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(p + 4 * j), factor.v[0]))); };
    wholes.v[i] = vcombine_s16(four(2 * i), four(2 * i + 1));
  }
  return wholes;
}
inline ByteTerms split_terms(const Wholes& a) {
  ByteTerms terms;
  ASYMKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int16x8_t front = a.v[2 * i], back = a.v[2 * i + 1];
    terms.high.v[i] = vcombine_s8(vshrn_n_s16(front, 7), vshrn_n_s16(back, 7));
    terms.low.v[i] = vandq_s8(vcombine_s8(vmovn_s16(front), vmovn_s16(back)), vdupq_n_s8(127));
  }
  return terms;
}
struct Carry {
  int16x8_t v;
};
inline Carry first_carry() { return {vld1q_s16(first_carries)}; }
inline Bytes coarse_bytes(const Wholes& a, Carry& carry) {
  Bytes bytes;
  ASYMKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int16x8_t front = vaddq_s16(a.v[2 * i], carry.v);
    const int16x8_t back = vaddq_s16(a.v[2 * i + 1], vandq_s16(front, vdupq_n_s16(127)));
    carry.v = vandq_s16(back, vdupq_n_s16(127));
    bytes.v[i] = vcombine_s8(vshrn_n_s16(front, 7), vshrn_n_s16(back, 7));
  }
  return bytes;
}
struct PackedQuads {
  static Index base(Index depth) { return depth; }
  static constexpr int offset(int q) { return 4 * q; }
};
inline Bytes in_order(const Bytes& a) { return a; }
inline void store(std::int8_t* p, const Bytes& a) {
  for (int i = 0; i < 4; ++i) vst1q_s8(p + 16 * i, a.v[i]);
}
/// Volatile keeps these loads in order: GCC asks for all of a block's at once, for which there are too few registers.
inline U32x16 broadcast_quad(const std::int8_t* p) {
  uint32x4_t quad;
  __asm__ volatile("ld1r {%0.4s}, %1" : "=w"(quad) : "Q"(*reinterpret_cast<const std::int8_t(*)[4]>(p)));
  return {{quad, quad, quad, quad}};
}
