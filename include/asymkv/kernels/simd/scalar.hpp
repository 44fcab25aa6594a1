// scalar.hpp: the vector layer without vector instructions: 16 lanes as an array. Also the definition, lane for lane,
// of what the other layers must compute. Included inside namespace kernels::scalar by targets.hpp alone; no include
// guard, no includes.

struct F32x16 {
  float v[16];
};
struct U32x16 {
  std::uint32_t v[16];
};

/// Register budget: result vectors that a product keeps at once.
constexpr int kAccumulators = 4;
/// Lane tiles that a product over packed codes handles together, of one row, where each takes two sums; and rows that
/// share the unpacking.
constexpr int kPanelTiles = 1;
constexpr int kDotRows = 1;
/// Sums that must be under way at once for byte products to run at their rate. Nothing needs them here, but so tests
/// see two blocks at once.
constexpr int kSumsInFlight = 4;
/// Most rows that multiply with codes of 8 bits as they are.
constexpr Index kFewRowsOf8Bits = few_rows;
/// Vectors side by side of a product over a float tile.
constexpr int kTiles = 1;
/// Most rows of a product over a float tile.
constexpr int kRows = 4;

template <class Function>
inline F32x16 each_lane(Function function) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = function(i);
  return r;
}

inline F32x16 broadcast(float x) {
  return each_lane([&](int) { return x; });
}
inline F32x16 load(const float* p) {
  return each_lane([&](int i) { return p[i]; });
}
inline F32x16 load_half(const std::uint16_t* p) {
  return each_lane([&](int i) { return half_to_float(p[i]); });
}
inline F32x16 load_bfloat16(const std::uint16_t* p) {
  return each_lane([&](int i) { return bfloat16_to_float(p[i]); });
}
/// 16 compact scales (compact_scale.hpp).
inline F32x16 load_compact(const unsigned char* p) {
  return each_lane([&](int i) { return compact_scales.value[p[i]]; });
}
inline void store(float* p, F32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}
/// Lanes of a whose bit is set in `mask`, the others of b.
inline F32x16 blend(std::uint32_t mask, F32x16 a, F32x16 b) {
  return each_lane([&](int i) { return (mask >> i & 1u) != 0 ? a.v[i] : b.v[i]; });
}
/// As 16 numbers of binary16.
inline void store_half(void* p, F32x16 a) {
  std::uint16_t halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = float_to_half(a.v[i]);
  std::memcpy(p, halves, sizeof halves);
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline F32x16 div(F32x16 a, F32x16 b) {
  return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
inline F32x16 min(F32x16 a, F32x16 b) {
  return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
/// a*b + c with one rounding on every instruction set: where stored or read-back bits depend on it.
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each_lane([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
/// a*b + c with one rounding or two, whichever is fast: for sums.
inline F32x16 madd(F32x16 a, F32x16 b, F32x16 c) {
  return each_lane([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
/// Nearest whole number, ties to even; |a| < 2^22. Adding 1.5 * 2^23 leaves the whole part in the low bits.
inline F32x16 round_even(F32x16 a) {
  return each_lane([&](int i) {
    const volatile float shifted = a.v[i] + 12582912.0f;
    return shifted - 12582912.0f;
  });
}
/// Rounds to binary16 and back.
inline F32x16 round_half(F32x16 a) {
  return each_lane([&](int i) { return half_to_float(float_to_half(a.v[i])); });
}
/// a < b ? x : y
inline F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return each_lane([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
}
/// p * 2^n for whole n in -126..127
inline F32x16 times_power_of_two(F32x16 p, F32x16 n) {
  return each_lane([&](int i) { return p.v[i] * bits_float(std::uint32_t(int(n.v[i]) + 127) << 23); });
}
/// Element (i, j) of 16 rows of 16 lanes becomes element (j, i).
inline void transpose(F32x16 (&x)[16]) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) {
      const float t = x[i].v[j];
      x[i].v[j] = x[j].v[i];
      x[j].v[i] = t;
    }
}
/// Lane i: all lanes of row i, combined by op, which works lane by lane and in any order.
template <class Op>
inline F32x16 reduce_rows(F32x16 (&x)[16], Op op) {
  transpose(x);
  for (int i = 1; i < 16; ++i) x[0] = op(x[0], x[i]);
  return x[0];
}
inline float sum_lanes(F32x16 a) {
  float s[4];
  for (int i = 0; i < 4; ++i) s[i] = (a.v[i] + a.v[i + 8]) + (a.v[i + 4] + a.v[i + 12]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
inline float max_lanes(F32x16 a) {
  float m = a.v[0];
  for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}

inline U32x16 zero_words() { return {}; }
inline U32x16 load_words(const void* p) {
  U32x16 r;
  std::memcpy(r.v, p, 64);
  return r;
}
/// 16 halfwords, widened.
inline U32x16 load_halfwords(const void* p) {
  std::uint16_t h[16];
  std::memcpy(h, p, 32);
  U32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = h[i];
  return r;
}
inline void store_words(void* p, U32x16 a) { std::memcpy(p, a.v, 64); }
/// The lower halves of words.
inline void store_halfwords(void* p, U32x16 a) {
  std::uint16_t halfwords[16];
  for (int i = 0; i < 16; ++i) halfwords[i] = std::uint16_t(a.v[i]);
  std::memcpy(p, halfwords, sizeof halfwords);
}
/// Words are 0..255.
inline void store_bytes(unsigned char* p, U32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<unsigned char>(a.v[i]);
}
/// The same of four, one after the other.
inline void store_four_bytes(unsigned char* p, U32x16 a, U32x16 b, U32x16 c, U32x16 d) {
  store_bytes(p, a);
  store_bytes(p + 16, b);
  store_bytes(p + 32, c);
  store_bytes(p + 48, d);
}
/// Nearest whole numbers, ties to even; 0 <= a < 2^22.
inline U32x16 round_words(F32x16 a) {
  const F32x16 rounded = round_even(a);
  U32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = std::uint32_t(rounded.v[i]);
  return r;
}
/// n + 1 where not a < b.
inline U32x16 count_unless_less(U32x16 n, F32x16 a, F32x16 b) {
  for (int i = 0; i < 16; ++i) n.v[i] += a.v[i] < b.v[i] ? 0 : 1;
  return n;
}
/// 16 rows of 16 bytes: word l of quads[q] is bytes 4q..4q+3 of row l.
inline void load_quads(const unsigned char* rows, U32x16 (&quads)[4]) {
  for (int l = 0; l < 16; ++l)
    for (int q = 0; q < 4; ++q) std::memcpy(&quads[q].v[l], rows + 16 * l + 4 * q, 4);
}
inline U32x16 shift_right(U32x16 a, int n) {
  for (int i = 0; i < 16; ++i) a.v[i] >>= n;
  return a;
}
inline U32x16 shift_left(U32x16 a, int n) {
  for (int i = 0; i < 16; ++i) a.v[i] <<= n;
  return a;
}
inline U32x16 bit_and(U32x16 a, std::uint32_t mask) {
  for (int i = 0; i < 16; ++i) a.v[i] &= mask;
  return a;
}
inline U32x16 add(U32x16 a, U32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
}
inline U32x16 bit_or(U32x16 a, U32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] |= b.v[i];
  return a;
}
/// Bits of a where the mask is set, of b elsewhere.
inline U32x16 blend_bits(U32x16 mask, U32x16 a, U32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] = (a.v[i] & mask.v[i]) | (b.v[i] & ~mask.v[i]);
  return a;
}
// number by number: copied as a whole, GCC 12 for aarch64 at -O3 reads the floats from before they were rounded
inline U32x16 as_words(F32x16 a) {
  U32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = float_bits(a.v[i]);
  return r;
}
inline F32x16 as_floats(U32x16 a) {
  return each_lane([&](int i) { return bits_float(a.v[i]); });
}
inline U32x16 max_words(U32x16 a, U32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
inline std::uint32_t max_word(U32x16 a) {
  std::uint32_t m = 0;
  for (int i = 0; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
inline F32x16 absolute(F32x16 a) {
  return each_lane([&](int i) { return a.v[i] < 0.0f ? -a.v[i] : a.v[i]; });
}
/// The greater of a, which is not negative, and the magnitude of b.
inline F32x16 max_magnitude(F32x16 a, F32x16 b) { return max(a, absolute(b)); }
/// Words as signed numbers.
inline F32x16 to_floats(U32x16 a) {
  return each_lane([&](int i) { return float(std::int32_t(a.v[i])); });
}
/// 64 whole numbers; and as bytes, 128 * high + low, where low is 0..127.
struct Wholes {
  std::int16_t v[64];
};
struct Bytes {
  std::int8_t v[64];
};
struct ByteTerms {
  Bytes high, low;
};
/// 64 floats times factor, rounded to even. What is beyond 16256 in magnitude, and below 2^22, becomes any number.
inline Wholes round_wholes(const float* p, F32x16 factor) {
  Wholes wholes;
  for (int i = 0; i < 64; i += 16) {
    const F32x16 rounded = round_even(mul(load(p + i), factor));
    for (int j = 0; j < 16; ++j) wholes.v[i + j] = std::int16_t(std::int32_t(rounded.v[j]));
  }
  return wholes;
}
inline ByteTerms split_terms(const Wholes& a) {
  ByteTerms terms;
  for (int i = 0; i < 64; ++i) {
    terms.high.v[i] = std::int8_t(a.v[i] >> 7);
    terms.low.v[i] = std::int8_t(a.v[i] & 127);
  }
  return terms;
}
/// What coarse bytes have left, 0..127 in each lane of a vector of halfwords.
struct Carry {
  std::int16_t v[32];
};
inline Carry first_carry() {
  Carry carry;
  std::memcpy(carry.v, first_carries, sizeof carry.v);
  return carry;
}
/// One byte of each whole number in units of 128, in the order of split_terms; what that leaves is added to the next
/// number in the same lane. How many lanes there are (8 to 32), and which numbers meet in one, differ from one
/// instruction set to the other, and so do the bytes. The same on all: in each lane the numbers add up to the bytes
/// times 128 and what the carry has grown by.
inline Bytes coarse_bytes(const Wholes& a, Carry& carry) {
  Bytes bytes;
  for (int i = 0; i < 64; ++i) {
    const int sum = a.v[i] + carry.v[i % 32];
    bytes.v[i] = std::int8_t(sum >> 7);
    carry.v[i % 32] = std::int16_t(sum & 127);
  }
  return bytes;
}
/// Where split_terms leaves quads of its bytes: quad q of a block that begins at element `depth`, a multiple of 32, at
/// base(depth) + offset(q). Packing instructions change the order, and putting it right would cost more than reading it
/// as it is.
struct PackedQuads {
  static Index base(Index depth) { return depth; }
  static constexpr int offset(int q) { return 4 * q; }
};
/// The same bytes in order.
inline Bytes in_order(const Bytes& a) { return a; }
inline void store(std::int8_t* p, const Bytes& a) { std::memcpy(p, a.v, sizeof a.v); }
/// Four bytes in each word.
inline U32x16 broadcast_quad(const std::int8_t* p) {
  U32x16 r;
  for (std::uint32_t& word : r.v) std::memcpy(&word, p, 4);
  return r;
}
/// Adds, in each word, the products of four unsigned bytes of Bits bits with four signed ones, exactly.
template <int Bits>
inline U32x16 dot_bytes(U32x16 sums, U32x16 codes, U32x16 row) {
  for (int i = 0; i < 16; ++i)
    for (int b = 0; b < 32; b += 8)
      sums.v[i] += (codes.v[i] >> b & 255u) * std::uint32_t(std::int8_t(row.v[i] >> b & 255u));
  return sums;
}
/// Quads of products of `bits`-bit codes that dot_narrow may add before add_narrow has to add them to sums in words; 0
/// where there are none.
constexpr int narrow_quads(int) { return 0; }
