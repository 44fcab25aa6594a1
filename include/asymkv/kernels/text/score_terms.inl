// score_terms.inl: what attention variants do to scores between the products and the softmax. Included once per
// instruction set, after softmax.inl.

/// cap * tanh(x / cap). Error below 4e-7 of the cap.
inline F32x16 softcapped(F32x16 x, float cap) {
  const F32x16 ratio = mul(x, broadcast(1.0f / cap)), zero = broadcast(0.0f), one = broadcast(1.0f);
  const F32x16 power = exp2_nonpositive(mul(absolute(ratio), broadcast(-2.88539008f)));  // e^(-2 |ratio|)
  const F32x16 magnitude = mul(div(sub(one, power), add(one, power)), broadcast(cap));
  return select_less(ratio, zero, sub(zero, magnitude), magnitude);
}

inline void add_terms(float* scores, Index count, const ScoreTerms& terms) {
  alignas(64) static constexpr float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 log2_e = broadcast(1.44269504f), lane = load(lanes);
  for (Index i = 0; i < count; i += 16) {
    F32x16 x = load(scores + i);
    if (terms.softcap > 0.0f) x = softcapped(x, terms.softcap);
    if (terms.mask != nullptr) x = madd(load(terms.mask + i), log2_e, x);
    if (terms.slope != 0.0f)
      x = madd(absolute(sub(broadcast(terms.distance - float(i)), lane)), broadcast(-terms.slope), x);
    store(scores + i, x);
  }
}
