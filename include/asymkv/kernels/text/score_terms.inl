// score_terms.inl: what attention variants do to scores between the products and the softmax. Included once per
// instruction set, after softmax.inl.

/// cap * tanh(x / cap), within 5e-7 of itself: (1 - e^-2r) / (1 + e^-2r), and below r = 0.3, where that loses digits,
/// the series.
inline F32x16 softcapped(F32x16 x, float cap) {
  const F32x16 ratio = mul(x, broadcast(1.0f / cap)), square = mul(ratio, ratio), one = broadcast(1.0f);
  F32x16 series = broadcast(62.0f / 2835.0f);
  series = madd(series, square, broadcast(-17.0f / 315.0f));
  series = madd(series, square, broadcast(2.0f / 15.0f));
  series = madd(series, square, broadcast(-1.0f / 3.0f));
  series = madd(series, square, one);
  const F32x16 power = exp2_nonpositive(mul(absolute(ratio), broadcast(-2.88539008f)));  // e^-2r
  const F32x16 magnitude = mul(div(sub(one, power), add(one, power)), broadcast(cap));
  const F32x16 zero = broadcast(0.0f), far = select_less(ratio, zero, sub(zero, magnitude), magnitude);
  return select_less(absolute(ratio), broadcast(0.3f), mul(x, series), far);
}

inline void add_terms(float* scores, Index count, const ScoreTerms& terms) {
  alignas(64) static constexpr float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 log2_e = broadcast(1.44269504f), lane = load(lanes);
  const F32x16 hides = broadcast(-0x1p100f), lowest = broadcast(-std::numeric_limits<float>::infinity());
  for (Index i = 0; i < count; i += 16) {
    F32x16 x = load(scores + i);
    if (terms.softcap > 0.0f) x = softcapped(x, terms.softcap);
    if (terms.mask != nullptr) {
      const F32x16 mask = load(terms.mask + i);
      x = select_less(mask, hides, lowest, madd(mask, log2_e, x));
    }
    if (terms.slope != 0.0f)
      x = madd(absolute(sub(broadcast(terms.distance - float(i)), lane)), broadcast(-terms.slope), x);
    store(scores + i, x);
  }
}

/// Whether all numbers are at most 2^100: none is greater, none is NaN.
inline bool is_mask(const void* data, ScalarType type, Index count) {
  const F32x16 beyond = broadcast(0x1.000002p100f), zero = broadcast(0.0f), one = broadcast(1.0f);
  const Index whole = count / 16 * 16;
  F32x16 wrong = zero;
  with_type(type, [&](auto of) {
    for (Index i = 0; i < whole; i += 16) wrong = max(wrong, select_less(load_as<of()>(data, i), beyond, zero, one));
  });
  bool right = max_lanes(wrong) == 0.0f;
  for (Index i = whole; i < count; ++i) right &= load_scalar(data, type, i) <= 0x1p100f;
  return right;
}
