// avx512.hpp: the vector layer for AVX-512 (F, BW, DQ, VL): 16 lanes in one register. Meanings as in simd/scalar.hpp;
// products of bytes are in avx512_products.hpp and avx512vnni_products.hpp. Included inside namespaces kernels::avx512,
// kernels::avx512vnni and kernels::amx and their target regions by targets.hpp alone; no include guard, no includes.

struct F32x16 {
  __m512 v;
};
struct U32x16 {
  __m512i v;
};

constexpr int kAccumulators = 16;
constexpr int kTiles = 2;
constexpr int kRows = 8;

inline F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline F32x16 load_half(const std::uint16_t* p) { return {_mm512_cvtph_ps(load_256(p))}; }
inline U32x16 load_halfwords(const void* p) { return {_mm512_cvtepu16_epi32(load_256(p))}; }
inline F32x16 load_bfloat16(const std::uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(load_halfwords(p).v, 16))};
}
inline F32x16 load_compact(const unsigned char* p) {
  const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i mantissas = _mm512_castps_si512(_mm512_broadcast_f32x8(_mm256_loadu_ps(detail::compact_mantissas)));
  const __m512i lowest = _mm512_sub_epi32(mantissas, _mm512_set1_epi32(16 << 23));  // a mantissa at code 0..7
  const __m512i octave = _mm512_and_si512(_mm512_slli_epi32(code, 20), _mm512_set1_epi32(31 << 23));
  return {_mm512_castsi512_ps(
      _mm512_maskz_add_epi32(_mm512_test_epi32_mask(code, code), _mm512_permutexvar_epi32(code, lowest), octave))};
}
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline void store_half(void* p, F32x16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline F32x16 blend(std::uint32_t mask, F32x16 a, F32x16 b) { return {_mm512_mask_mov_ps(b.v, __mmask16(mask), a.v)}; }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 madd(F32x16 a, F32x16 b, F32x16 c) { return fma(a, b, c); }
inline F32x16 round_even(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32x16 round_half(F32x16 a) { return {_mm512_cvtph_ps(_mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT))}; }
inline F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
inline F32x16 times_power_of_two(F32x16 p, F32x16 n) { return {_mm512_scalef_ps(p.v, n.v)}; }
inline void transpose(F32x16 (&x)[16]) {
  __m512 pairs[16], quads[16], eights[16];
  ASYMKV_UNROLL
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  ASYMKV_UNROLL
  for (int i = 0; i < 16; i += 4) ASYMKV_UNROLL
  for (int j = 0; j < 2; ++j) {  // quads[i + c]: in each 128-bit lane l, column 4*l + c of rows i..i+3
    quads[i + 2 * j] = _mm512_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
    quads[i + 2 * j + 1] = _mm512_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
  }
  ASYMKV_UNROLL
  for (int c = 0; c < 4; ++c) ASYMKV_UNROLL
  for (int half = 0; half < 2; ++half) {
    eights[8 * half + c] = _mm512_shuffle_f32x4(quads[8 * half + c], quads[8 * half + 4 + c], 0x88);
    eights[8 * half + 4 + c] = _mm512_shuffle_f32x4(quads[8 * half + c], quads[8 * half + 4 + c], 0xdd);
  }
  ASYMKV_UNROLL
  for (int c = 0; c < 4; ++c) {
    x[c].v = _mm512_shuffle_f32x4(eights[c], eights[8 + c], 0x88);
    x[8 + c].v = _mm512_shuffle_f32x4(eights[c], eights[8 + c], 0xdd);
    x[4 + c].v = _mm512_shuffle_f32x4(eights[4 + c], eights[12 + c], 0x88);
    x[12 + c].v = _mm512_shuffle_f32x4(eights[4 + c], eights[12 + c], 0xdd);
  }
}
template <class Op>
inline F32x16 reduce_rows(F32x16 (&x)[16], Op op) {
  F32x16 pairs[8], quads[4], eights[2];
  ASYMKV_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m512 a = x[2 * i].v, b = x[2 * i + 1].v;
    pairs[i] = op(F32x16{_mm512_unpacklo_ps(a, b)}, F32x16{_mm512_unpackhi_ps(a, b)});
  }
  ASYMKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512 a = pairs[2 * i].v, b = pairs[2 * i + 1].v;
    quads[i] = op(F32x16{_mm512_shuffle_ps(a, b, 0x44)}, F32x16{_mm512_shuffle_ps(a, b, 0xee)});
  }
  const auto halves = [&](F32x16 a, F32x16 b) {
    return op(F32x16{_mm512_shuffle_f32x4(a.v, b.v, 0x88)}, F32x16{_mm512_shuffle_f32x4(a.v, b.v, 0xdd)});
  };
  for (int i = 0; i < 2; ++i) eights[i] = halves(quads[2 * i], quads[2 * i + 1]);
  return halves(eights[0], eights[1]);
}
inline float sum_lanes(F32x16 a) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
inline float max_lanes(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

inline U32x16 zero_words() { return {_mm512_setzero_si512()}; }
inline U32x16 load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_words(void* p, U32x16 a) { _mm512_storeu_si512(p, a.v); }
inline void store_halfwords(void* p, U32x16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
inline void load_quads(const unsigned char* rows, U32x16 (&quads)[4]) {
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
  const __m512i a = load_words(rows).v, b = load_words(rows + 64).v;
  const __m512i c = load_words(rows + 128).v, d = load_words(rows + 192).v;
  for (int half = 0; half < 2; ++half) {  // quads 2*half and 2*half + 1 of 8 rows each
    const __m512i front = _mm512_permutex2var_epi32(a, half == 0 ? first : second, b);
    const __m512i back = _mm512_permutex2var_epi32(c, half == 0 ? first : second, d);
    quads[2 * half].v = _mm512_shuffle_i64x2(front, back, 0x44);
    quads[2 * half + 1].v = _mm512_shuffle_i64x2(front, back, 0xee);
  }
}
inline void store_bytes(unsigned char* p, U32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
inline void store_four_bytes(unsigned char* p, U32x16 a, U32x16 b, U32x16 c, U32x16 d) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(a.v, b.v), _mm512_packus_epi32(c.v, d.v));
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}
inline U32x16 round_words(F32x16 a) {
  return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline U32x16 count_unless_less(U32x16 n, F32x16 a, F32x16 b) {
  return {_mm512_mask_add_epi32(n.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ), n.v, _mm512_set1_epi32(1))};
}
inline U32x16 shift_right(U32x16 a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
inline U32x16 shift_left(U32x16 a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
inline U32x16 bit_and(U32x16 a, std::uint32_t mask) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(int(mask)))}; }
inline U32x16 add(U32x16 a, U32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline U32x16 bit_or(U32x16 a, U32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline U32x16 blend_bits(U32x16 mask, U32x16 a, U32x16 b) {
  return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xca)};
}
inline U32x16 as_words(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
inline F32x16 as_floats(U32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline U32x16 max_words(U32x16 a, U32x16 b) { return {_mm512_max_epu32(a.v, b.v)}; }
inline std::uint32_t max_word(U32x16 a) { return _mm512_reduce_max_epu32(a.v); }

inline F32x16 absolute(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 max_magnitude(F32x16 a, F32x16 b) { return {_mm512_range_ps(a.v, b.v, 0x0b)}; }
inline F32x16 to_floats(U32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
struct Wholes {
  __m512i lo, hi;
};
struct Bytes {
  __m512i v;
};
struct ByteTerms {
  Bytes high, low;
};
inline Wholes round_wholes(const float* p, F32x16 factor) {
  const auto words = [&](int i) { return _mm512_cvtps_epi32(mul(load(p + i), factor).v); };
  return {_mm512_packs_epi32(words(0), words(16)), _mm512_packs_epi32(words(32), words(48))};
}
inline ByteTerms split_terms(Wholes a) {
  const __m512i low_bits = _mm512_set1_epi16(127);
  return {{_mm512_packs_epi16(_mm512_srai_epi16(a.lo, 7), _mm512_srai_epi16(a.hi, 7))},
          {_mm512_packs_epi16(_mm512_and_si512(a.lo, low_bits), _mm512_and_si512(a.hi, low_bits))}};
}
struct Carry {
  __m512i v;
};
inline Carry first_carry() { return {load_words(first_carries).v}; }
inline Bytes coarse_bytes(Wholes a, Carry& carry) {
  const __m512i low_bits = _mm512_set1_epi16(127);
  const __m512i lo = _mm512_add_epi16(a.lo, carry.v);
  const __m512i hi = _mm512_add_epi16(a.hi, _mm512_and_si512(lo, low_bits));
  carry.v = _mm512_and_si512(hi, low_bits);
  return {_mm512_packs_epi16(_mm512_srai_epi16(lo, 7), _mm512_srai_epi16(hi, 7))};
}
/// 16 quads are a 4 x 4 matrix, transposed.
struct PackedQuads {
  static Index base(Index depth) { return depth / 64 * 64 + depth % 64 / 4; }
  static constexpr int offset(int q) { return 16 * (q % 4) + 4 * (q / 4); }
};
inline Bytes in_order(Bytes a) {
  return {_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), a.v)};
}
inline void store(std::int8_t* p, Bytes a) { _mm512_storeu_si512(p, a.v); }
inline U32x16 broadcast_quad(const std::int8_t* p) {
  int quad;
  std::memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
