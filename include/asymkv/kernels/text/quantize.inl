// quantize.inl: fitting and rounding of 16 groups at once, one group a lane, so that every instruction set and every
// way of splitting the input does the same operations in the same order. Included once per instruction set.
//
// A fit is a class with two functions: fit (from x[count][16] to scale and zero point, as stored) and codes.

/// KIVI's min-max quantizer, every step rounded to binary16 (paper.md of the method: mn, s = (mx - mn)/M, t = x - mn,
/// r = t/s, clamp, round half to even). A binary32 operation rounded to binary16 equals the binary16 operation, since
/// 24 >= 2*11 + 2.
struct MinMaxFit {
  F32x16 scale, zero_point;

  static MinMaxFit fit(const float* x, Index count, float levels) {
    F32x16 least = round_half(load(x));
    F32x16 greatest = least;
    for (Index i = 1; i < count; ++i) {
      const F32x16 value = round_half(load(x + 16 * i));
      least = min(least, value);
      greatest = max(greatest, value);
    }
    const F32x16 range = round_half(sub(greatest, least));
    // + 0 makes a zero point of -0 into +0: which zero is the minimum must not depend on the order of comparison
    return {round_half(div(range, broadcast(levels))), add(least, broadcast(0.0f))};
  }

  /// A scale of 0 (constant group, or underflow) gives 0, or the top code where x is above the zero point.
  F32x16 codes(const float* x, float levels) const {
    const F32x16 zero = broadcast(0.0f);
    const F32x16 top = broadcast(levels);
    const F32x16 t = round_half(sub(round_half(load(x)), zero_point));
    const F32x16 divisor = select_less(zero, scale, scale, broadcast(1.0f));
    const F32x16 ratio = round_half(div(t, divisor));
    const F32x16 rounded = round_even(max(min(ratio, top), zero));
    return select_less(zero, scale, rounded, select_less(zero, t, top, zero));
  }
};

template <class FitClass>
inline void quantize_groups(float levels, const float* x, Index count, float* scales, float* zero_points,
                            unsigned char* codes) {
  const FitClass fitted = FitClass::fit(x, count, levels);
  store(scales, fitted.scale);
  store(zero_points, fitted.zero_point);
  for (Index i = 0; i < count; ++i) store_bytes(codes + 16 * i, fitted.codes(x + 16 * i, levels));
}

inline void quantize(Fit fit, int bits, const float* x, Index count, float* scales, float* zero_points,
                     unsigned char* codes) {
  const float levels = float((1 << bits) - 1);
  switch (fit) {
    case Fit::min_max:
      return quantize_groups<MinMaxFit>(levels, x, count, scales, zero_points, codes);
  }
}
