// avx2.hpp: the vector layer for AVX2 with FMA and F16C: 16 lanes as two registers. Meanings as in simd/scalar.hpp;
// products of bytes are in avx2_products.hpp and avxvnni_products.hpp. Included inside namespaces kernels::avx2 and
// kernels::avxvnni and their target regions by targets.hpp alone; no include guard, no includes.

struct F32x16 {
  __m256 lo, hi;
};
struct U32x16 {
  __m256i lo, hi;
};

constexpr int kAccumulators = 6;
constexpr int kTiles = 1;
constexpr int kRows = 4;

inline F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline F32x16 load_half(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
inline U32x16 load_halfwords(const void* p) {
  const std::uint16_t* h = static_cast<const std::uint16_t*>(p);
  return {_mm256_cvtepu16_epi32(load_128(h)), _mm256_cvtepu16_epi32(load_128(h + 8))};
}
inline F32x16 load_bfloat16(const std::uint16_t* p) {
  const U32x16 w = load_halfwords(p);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(w.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.hi, 16))};
}
inline __m256 load_compact_256(const unsigned char* p) {
  const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256 mantissa = _mm256_permutevar8x32_ps(_mm256_loadu_ps(detail::compact_mantissas), code);
  const __m256i exponent = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_srli_epi32(code, 3), _mm256_set1_epi32(16)), 23);
  const __m256i value = _mm256_add_epi32(_mm256_castps_si256(mantissa), exponent);
  return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpeq_epi32(code, _mm256_setzero_si256()), value));
}
inline F32x16 load_compact(const unsigned char* p) { return {load_compact_256(p), load_compact_256(p + 8)}; }
inline void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void store_half(void* p, F32x16 a) {
  __m128i* to = static_cast<__m128i*>(p);
  _mm_storeu_si128(to, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(to + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 blend(std::uint32_t mask, F32x16 a, F32x16 b) {
  const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
  const __m256i bits = _mm256_set1_epi32(int(mask));
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, low), low))),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, high), high)))};
}
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 madd(F32x16 a, F32x16 b, F32x16 c) { return fma(a, b, c); }
inline F32x16 round_even(F32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32x16 round_half(F32x16 a) {
  return {_mm256_cvtph_ps(_mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT)),
          _mm256_cvtph_ps(_mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT))};
}
inline F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F32x16 times_power_of_two(F32x16 p, F32x16 n) { return mul(p, {power_of_two(n.lo), power_of_two(n.hi)}); }
inline void transpose_8(__m256 (&x)[8]) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}
inline void transpose(F32x16 (&x)[16]) {
  __m256 blocks[4][8];
  for (int i = 0; i < 8; ++i) {
    blocks[0][i] = x[i].lo;
    blocks[1][i] = x[i].hi;
    blocks[2][i] = x[i + 8].lo;
    blocks[3][i] = x[i + 8].hi;
  }
  for (auto& block : blocks) transpose_8(block);
  for (int i = 0; i < 8; ++i) {
    x[i] = {blocks[0][i], blocks[2][i]};
    x[i + 8] = {blocks[1][i], blocks[3][i]};
  }
}
/// Of 8 rows, of which op made one register each.
template <class Op>
inline __m256 reduce_8(const __m256* x, Op op) {
  __m256 pairs[4], quads[2];
  for (int i = 0; i < 4; ++i)
    pairs[i] = op(_mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    quads[i] = op(_mm256_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0x44),
                  _mm256_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0xee));
  return op(_mm256_permute2f128_ps(quads[0], quads[1], 0x20), _mm256_permute2f128_ps(quads[0], quads[1], 0x31));
}
template <class Op>
inline F32x16 reduce_rows(F32x16 (&x)[16], Op op) {
  const auto of_8 = [&](__m256 a, __m256 b) { return op(F32x16{a, a}, F32x16{b, b}).lo; };
  __m256 rows[16];
  for (int i = 0; i < 16; ++i) rows[i] = of_8(x[i].lo, x[i].hi);
  return {reduce_8(rows, of_8), reduce_8(rows + 8, of_8)};
}
inline float sum_lanes(F32x16 a) {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
inline float max_lanes(F32x16 a) {
  const __m256 m8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}

inline U32x16 zero_words() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline U32x16 load_words(const void* p) { return {load_256(p), load_256(static_cast<const char*>(p) + 32)}; }
inline void store_words(void* p, U32x16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.hi);
}
inline void store_halfwords(void* p, U32x16 a) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i halfwords = _mm256_packus_epi32(_mm256_and_si256(a.lo, low), _mm256_and_si256(a.hi, low));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(halfwords, 0xd8));
}
inline void store_bytes(unsigned char* p, U32x16 a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a.lo, a.hi), 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline void store_two_bytes(unsigned char* p, U32x16 a, U32x16 b) {
  const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(a.lo, a.hi), _mm256_packus_epi32(b.lo, b.hi));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
}
inline void store_four_bytes(unsigned char* p, U32x16 a, U32x16 b, U32x16 c, U32x16 d) {
  store_two_bytes(p, a, b);
  store_two_bytes(p + 32, c, d);
}
inline U32x16 round_words(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline U32x16 count_unless_less(U32x16 n, F32x16 a, F32x16 b) {
  return {_mm256_sub_epi32(n.lo, _mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ))),
          _mm256_sub_epi32(n.hi, _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ)))};
}
/// Of 8 rows.
inline void load_quads_256(const unsigned char* rows, __m256i (&quads)[4]) {
  __m256i pairs[4], mixed[4];  // pairs[i]: rows i and i + 4
  for (int i = 0; i < 4; ++i)
    pairs[i] =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(rows + 16 * i)), load_128(rows + 16 * i + 64), 1);
  for (int i = 0; i < 2; ++i) {
    mixed[2 * i] = _mm256_unpacklo_epi32(pairs[2 * i], pairs[2 * i + 1]);
    mixed[2 * i + 1] = _mm256_unpackhi_epi32(pairs[2 * i], pairs[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    quads[2 * i] = _mm256_unpacklo_epi64(mixed[i], mixed[2 + i]);
    quads[2 * i + 1] = _mm256_unpackhi_epi64(mixed[i], mixed[2 + i]);
  }
}
inline void load_quads(const unsigned char* rows, U32x16 (&quads)[4]) {
  __m256i front[4], back[4];
  load_quads_256(rows, front);
  load_quads_256(rows + 128, back);
  for (int q = 0; q < 4; ++q) quads[q] = {front[q], back[q]};
}
inline U32x16 shift_right(U32x16 a, int n) {
  const __m128i count = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi32(a.lo, count), _mm256_srl_epi32(a.hi, count)};
}
inline U32x16 shift_left(U32x16 a, int n) {
  const __m128i count = _mm_cvtsi32_si128(n);
  return {_mm256_sll_epi32(a.lo, count), _mm256_sll_epi32(a.hi, count)};
}
inline U32x16 add(U32x16 a, U32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline U32x16 bit_or(U32x16 a, U32x16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline __m256i blend_bits_256(__m256i mask, __m256i a, __m256i b) {
  return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}
inline U32x16 blend_bits(U32x16 mask, U32x16 a, U32x16 b) {
  return {blend_bits_256(mask.lo, a.lo, b.lo), blend_bits_256(mask.hi, a.hi, b.hi)};
}
inline U32x16 as_words(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F32x16 as_floats(U32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline U32x16 bit_and(U32x16 a, std::uint32_t mask) {
  const __m256i m = _mm256_set1_epi32(int(mask));
  return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
inline U32x16 max_words(U32x16 a, U32x16 b) { return {_mm256_max_epu32(a.lo, b.lo), _mm256_max_epu32(a.hi, b.hi)}; }
inline std::uint32_t max_word(U32x16 a) {
  const __m256i m8 = _mm256_max_epu32(a.lo, a.hi);
  const __m128i m4 = _mm_max_epu32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  const __m128i m2 = _mm_max_epu32(m4, _mm_shuffle_epi32(m4, 0x4e));
  return std::uint32_t(_mm_cvtsi128_si32(_mm_max_epu32(m2, _mm_shuffle_epi32(m2, 0xb1))));
}
inline F32x16 absolute(F32x16 a) { return as_floats(bit_and(as_words(a), 0x7fffffffu)); }
inline F32x16 max_magnitude(F32x16 a, F32x16 b) { return max(a, absolute(b)); }
inline F32x16 to_floats(U32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
struct Wholes {
  __m256i v[4];
};
struct Bytes {
  __m256i lo, hi;
};
struct ByteTerms {
  Bytes high, low;
};
inline Wholes round_wholes(const float* p, F32x16 factor) {
  Wholes wholes;
  ASYMKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const F32x16 x = mul(load(p + 16 * i), factor);
    wholes.v[i] = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
  }
  return wholes;
}
inline ByteTerms split_terms(const Wholes& a) {
  const auto high = [&](int i) { return _mm256_srai_epi16(a.v[i], 7); };
  const auto low = [&](int i) { return _mm256_and_si256(a.v[i], _mm256_set1_epi16(127)); };
  return {{_mm256_packs_epi16(high(0), high(1)), _mm256_packs_epi16(high(2), high(3))},
          {_mm256_packs_epi16(low(0), low(1)), _mm256_packs_epi16(low(2), low(3))}};
}
struct Carry {
  __m256i v;
};
inline Carry first_carry() { return {load_256(first_carries)}; }
inline Bytes coarse_bytes(const Wholes& a, Carry& carry) {
  __m256i bytes[4];
  ASYMKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m256i sum = _mm256_add_epi16(a.v[i], carry.v);
    bytes[i] = _mm256_srai_epi16(sum, 7);
    carry.v = _mm256_and_si256(sum, _mm256_set1_epi16(127));
  }
  return {_mm256_packs_epi16(bytes[0], bytes[1]), _mm256_packs_epi16(bytes[2], bytes[3])};
}
/// Of 8 quads, the even ones come first.
struct PackedQuads {
  static Index base(Index depth) { return depth; }
  static constexpr int offset(int q) { return 16 * (q % 2) + 4 * (q / 2); }
};
inline Bytes in_order(Bytes a) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return {_mm256_permutevar8x32_epi32(a.lo, order), _mm256_permutevar8x32_epi32(a.hi, order)};
}
inline void store(std::int8_t* p, Bytes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
}
inline U32x16 broadcast_quad(const std::int8_t* p) {
  int quad;
  std::memcpy(&quad, p, 4);
  return {_mm256_set1_epi32(quad), _mm256_set1_epi32(quad)};
}
