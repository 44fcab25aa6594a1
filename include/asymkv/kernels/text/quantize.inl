// quantize.inl: fitting and rounding of 16 groups at once, one group a lane, so that every instruction set and every
// way of splitting the input does the same operations in the same order. Products that are added are explicit fma, for
// the same reason. Included once per instruction set.
//
// A fit is a class with two functions: fit (from x[count][16] to scale and zero point, as stored) and store_codes.

/// The compact scale nearest on a logarithmic axis, for scales that are not negative; +0 only for those too small for
/// code 1, and the greatest for all above it.
inline F32x16 round_compact(F32x16 scale) {
  const U32x16 bits = as_words(scale);
  const F32x16 octave = as_floats(bit_and(bits, 0x7f800000u)), one = broadcast(1.0f);
  const F32x16 mantissa = as_floats(bit_or(bit_and(bits, 0x7fffffu), as_words(one)));
  F32x16 rounded = broadcast(2.0f);
  ASYMKV_UNROLL
  for (int i = 7; i >= 0; --i)
    rounded = select_less(mantissa, broadcast(detail::compact_thresholds[i]), broadcast(detail::compact_mantissas[i]),
                          rounded);
  rounded = min(mul(rounded, octave), broadcast(compact_scales.value[255]));
  return select_less(rounded, broadcast(compact_scales.value[1]), broadcast(0.0f), rounded);
}

/// Scales as the metadata can hold them.
inline F32x16 round_scale(F32x16 scale, Metadata metadata) {
  return metadata == Metadata::fp16 ? round_half(scale) : round_compact(scale);
}

/// Nearest codes of 0..levels for a scale that may be 0.
inline F32x16 nearest_codes(F32x16 x, F32x16 zero_point, F32x16 inverse, F32x16 levels) {
  return round_even(max(min(mul(sub(x, zero_point), inverse), levels), broadcast(0.0f)));
}
inline F32x16 inverse_or_zero(F32x16 scale) {
  const F32x16 zero = broadcast(0.0f), one = broadcast(1.0f);
  return select_less(zero, scale, div(one, select_less(zero, scale, scale, one)), zero);
}

/// codes[i][16] = code(i) for i < count. Four at once, since what reads them loads 64 bytes.
template <class Code>
inline void store_rows(unsigned char* codes, Index count, Code code) {
  Index i = 0;
  for (; i + 4 <= count; i += 4) store_four_bytes(codes + 16 * i, code(i), code(i + 1), code(i + 2), code(i + 3));
  for (; i < count; ++i) store_bytes(codes + 16 * i, code(i));
}

/// Least and greatest of each lane, in two chains of comparisons, since each waits for the one before.
struct Extremes {
  F32x16 least, greatest;

  Extremes(const float* x, Index count) : least(load(x)), greatest(least) {
    F32x16 other_least = least, other_greatest = least;
    Index i = 0;
    for (; i + 2 <= count; i += 2) {
      const F32x16 one = load(x + 16 * i), other = load(x + 16 * (i + 1));
      least = min(least, one);
      greatest = max(greatest, one);
      other_least = min(other_least, other);
      other_greatest = max(other_greatest, other);
    }
    if (i < count) {
      least = min(least, load(x + 16 * i));
      greatest = max(greatest, load(x + 16 * i));
    }
    least = min(least, other_least);
    greatest = max(greatest, other_greatest);
  }
};

/// KIVI's min-max quantizer, every step rounded to binary16 (paper.md of the method: mn, s = (mx - mn)/M, t = x - mn,
/// r = t/s, clamp, round half to even). A binary32 operation rounded to binary16 equals the binary16 operation, since
/// 24 >= 2*11 + 2. With compact metadata the scale is rounded once more.
///
/// t/s is not divided: q = t * (1/s) with one step of Newton, q + (t - q*s) * (1/s), lies within 2^-23.9 of it. That is
/// near enough, since t and s have 11 bits: where t/s is not a number halfway between two of binary16, which q then is,
/// it differs from all of these by 2^-23 or more. Quotients below binary16's normal range all become code 0.
struct MinMaxFit {
  F32x16 scale, zero_point, range;

  static MinMaxFit fit(const GroupCoding& coding, const float* x, Index count) {
    const Extremes extremes(x, count);
    const F32x16 least = round_half(extremes.least);
    const F32x16 range = round_half(sub(round_half(extremes.greatest), least));
    const F32x16 distance = round_half(div(range, load(coding.levels)));
    // + 0 makes a zero point of -0 into +0: which zero is the minimum must not depend on the order of comparison
    return {round_scale(distance, coding.metadata), add(least, broadcast(0.0f)), range};
  }

  /// Elements of the group. A scale of 0 (constant group, or underflow) gives 0, or the top code where x is above the
  /// zero point: the inverse is so large then that every ratio but 0 is infinite.
  void store_codes(const GroupCoding& coding, const float* x, Index count, unsigned char* codes) const {
    const F32x16 zero = broadcast(0.0f), one = broadcast(1.0f), minus_scale = sub(zero, scale);
    const F32x16 inverse =
        select_less(zero, scale, div(one, select_less(zero, scale, scale, one)), broadcast(0x1p100f));
    store_rows(codes, count, [&](Index i) {
      const F32x16 t = round_half(sub(round_half(load(x + 16 * i)), zero_point)), near = mul(t, inverse);
      const F32x16 ratio = round_half(fma(fma(near, minus_scale, t), inverse, near));
      return round_even(min(ratio, load(coding.levels)));
    });
  }
};

/// MinMaxFit's codes 0 to Levels, exactly, by comparing elements with the places where the code rises, which are found
/// once a group. Scales must be numbers of binary16 that are not below least_scale, but where the range is 0: such
/// groups, and columns without one, have codes of 0.
///
/// The code is at least j where the ratio t/s, rounded to binary16, is above j - 1/2 (or at it where j is even), so
/// where t > m * s with m half a unit in the last place above j - 1/2 (or below it), an exact product of 12 and 11 bits
/// that no t of 11 bits is equal to. The next number of binary16, T, is the least such t. t is x - mn rounded, at least
/// T where x - mn is above b, half a unit in the last place below T, or at it where T is even: where x >= b + mn, whose
/// rounding error says on which side of it the nearest number of binary32 lies.
template <int Levels>
class MinMaxSteps {
 public:
  static constexpr float least_scale = 0x1p-13f;  // T has all its bits

  explicit MinMaxSteps(const MinMaxFit& fitted) {
    const F32x16 none = broadcast(std::numeric_limits<float>::infinity());
    ASYMKV_UNROLL
    for (int j = 1; j <= Levels; ++j)
      first_[j - 1] = select_less(broadcast(0.0f), fitted.range, first_element(j, fitted), none);
  }
  void store_codes(const float* x, Index count, unsigned char* codes) const {
    store_rows(codes, count, [&](Index i) {
      const F32x16 rounded = round_half(load(x + 16 * i));
      F32x16 code = broadcast(0.0f);
      ASYMKV_UNROLL
      for (int j = 1; j <= Levels; ++j) code = select_less(rounded, first_[j - 1], code, broadcast(float(j)));
      return code;
    });
  }

 private:
  static constexpr std::uint32_t half_unit = 0x1000;  // of binary16, in the bits of binary32

  static F32x16 first_element(int j, const MinMaxFit& fitted) {
    const std::uint32_t middle = float_bits(float(j) - 0.5f);
    const F32x16 least = mul(fitted.scale, broadcast(bits_float(j % 2 == 0 ? middle - half_unit : middle + half_unit)));
    const F32x16 near = round_half(least);
    const U32x16 t = as_words(select_less(near, least, as_floats(add(as_words(near), words(2 * half_unit))), near));
    const F32x16 b = as_floats(add(t, words(-half_unit))), mn = fitted.zero_point;
    const F32x16 sum = add(b, mn), of_b = sub(sum, mn), error = add(sub(b, of_b), sub(mn, sub(sum, of_b)));
    // b and mn are multiples of 2^-25, and so is the error
    const F32x16 odd = as_floats(shift_left(bit_and(t, 2 * half_unit), 17)), unit = broadcast(0x1p-25f);
    const F32x16 zero = broadcast(0.0f), most_error = select_less(zero, odd, mul(unit, broadcast(-0.5f)), zero);
    const F32x16 above = max(as_floats(add(as_words(sum), words(1))), unit);
    const F32x16 below_zero = as_floats(add(as_words(sum), words(~0u)));
    return select_less(most_error, error, select_less(sum, zero, below_zero, above), sum);
  }
  static U32x16 words(std::uint32_t n) {
    std::uint32_t all[16];
    std::fill(all, all + 16, n);
    return load_words(all);
  }

  F32x16 first_[Levels];
};

/// Sum of element(i) for i < count, as four sums of every fourth one, since each addition waits for the one before.
template <class Element>
inline F32x16 sum_of(Index count, Element element) {
  F32x16 sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  Index i = 0;
  for (; i + 4 <= count; i += 4) ASYMKV_UNROLL
  for (int c = 0; c < 4; ++c) sums[c] = add(sums[c], element(i + c));
  for (; i < count; ++i) sums[0] = add(sums[0], element(i));
  return add(add(sums[0], sums[1]), add(sums[2], sums[3]));
}

/// Least, greatest, mean and mean magnitude about the mean of each lane; of symmetric formats the mean magnitude alone.
struct Moments {
  F32x16 least, greatest, mean, deviation;

  static Moments of(const float* x, Index count, ZeroPoint zero_point) {
    Moments m;
    const F32x16 n = broadcast(float(count)), zero = broadcast(0.0f);
    m.least = m.greatest = m.mean = zero;
    if (zero_point == ZeroPoint::affine) {
      const Extremes extremes(x, count);
      m.least = extremes.least;
      m.greatest = extremes.greatest;
      m.mean = div(sum_of(count, [&](Index i) { return load(x + 16 * i); }), n);
    }
    m.deviation = div(sum_of(count, [&](Index i) { return absolute(sub(load(x + 16 * i), m.mean)); }), n);
    return m;
  }
};

/// Levels inside the range: of a few candidates, the one with the least sum of |error|^3 (quality.md of the method: a
/// norm between squares, which let rare large keys go, and the maximum, which min-max serves). Candidates are the range
/// and shrinkings of it about its middle, by steps that suit the number of levels; the last of one-bit lanes is mean +-
/// deviation instead, which skewed groups want. Lanes of 0 levels keep their mean alone.
struct FittedFit {
  F32x16 scale, zero_point, inverse;

  static FittedFit fit(const GroupCoding& coding, const float* x, Index count) {
    const F32x16 levels = load(coding.levels), zero = broadcast(0.0f), half = broadcast(0.5f), two = broadcast(2.0f);
    const Moments m = Moments::of(x, count, ZeroPoint::affine);
    const F32x16 middle = mul(half, add(m.least, m.greatest));
    const F32x16 divisor = max(levels, broadcast(1.0f));
    const F32x16 whole = div(sub(m.greatest, m.least), divisor), step = mul(whole, shrink_step(levels));
    Candidate best(coding, whole, middle, levels);
    Candidate other(coding, fma(step, broadcast(-1.0f), whole), middle, levels);
    measure(x, count, levels, best, other);
    best.take_better(other);
    for (float steps : {2.0f, 4.0f}) {
      Candidate first(coding, fma(step, broadcast(-steps), whole), middle, levels);
      const F32x16 last = fma(step, broadcast(-steps - 1.0f), whole);
      Candidate second(coding, steps == 4.0f ? select_less(levels, two, mul(two, m.deviation), last) : last,
                       steps == 4.0f ? select_less(levels, two, m.mean, middle) : middle, levels);
      measure(x, count, levels, first, second);
      best.take_better(first);
      best.take_better(second);
    }
    const F32x16 s = select_less(zero, levels, best.distance, zero);
    return {s, select_less(zero, levels, best.lowest, round_half(m.mean)), inverse_or_zero(s)};
  }

  void store_codes(const GroupCoding& coding, const float* x, Index count, unsigned char* codes) const {
    const F32x16 levels = load(coding.levels);
    store_rows(codes, count, [&](Index i) { return nearest_codes(load(x + 16 * i), zero_point, inverse, levels); });
  }

 private:
  /// Shares of the range that a step takes off: optima of Gaussian groups lie near 0.3, 0.6, 0.8 and 0.95 of the range
  /// at 1 to 4 bits, and five steps reach at least there.
  static F32x16 shrink_step(F32x16 levels) {
    F32x16 step = broadcast(0.02f);
    step = select_less(levels, broadcast(16.0f), broadcast(0.04f), step);
    step = select_less(levels, broadcast(8.0f), broadcast(0.07f), step);
    step = select_less(levels, broadcast(4.0f), broadcast(0.11f), step);
    return select_less(levels, broadcast(2.0f), broadcast(0.175f), step);
  }

  struct Candidate {
    F32x16 distance, lowest, error;

    Candidate(const GroupCoding& coding, F32x16 wanted, F32x16 middle, F32x16 levels)
        : distance(round_scale(wanted, coding.metadata)),
          lowest(round_half(fma(distance, mul(levels, broadcast(-0.5f)), middle))),
          error(broadcast(0.0f)) {}

    void take_better(const Candidate& other) {
      distance = select_less(other.error, error, other.distance, distance);
      lowest = select_less(other.error, error, other.lowest, lowest);
      error = min(other.error, error);
    }
  };

  /// Errors of two candidates in one pass: the loads are shared, and neither waits for the other's sum. They are summed
  /// in units of the distance.
  static void measure(const float* x, Index count, F32x16 levels, Candidate& a, Candidate& b) {
    const F32x16 zero = broadcast(0.0f);
    const F32x16 inverse_a = inverse_or_zero(a.distance), inverse_b = inverse_or_zero(b.distance);
    const F32x16 shift_a = mul(sub(zero, a.lowest), inverse_a), shift_b = mul(sub(zero, b.lowest), inverse_b);
    const auto error = [&](F32x16 value, F32x16 per_distance, F32x16 shift, F32x16 sum) {
      const F32x16 t = fma(value, per_distance, shift);
      const F32x16 e = absolute(sub(t, min(max(round_even(t), zero), levels)));
      return fma(mul(e, e), e, sum);
    };
    for (Index i = 0; i < count; ++i) {
      const F32x16 value = load(x + 16 * i);
      a.error = error(value, inverse_a, shift_a, a.error);
      b.error = error(value, inverse_b, shift_b, b.error);
    }
    for (Candidate* c : {&a, &b}) c->error = mul(c->error, mul(c->distance, mul(c->distance, c->distance)));
  }
};

/// Levels evenly around 0, their distance a multiple of the mean magnitude. The multiples are above those of least
/// squares: values are averaged over many tokens, where a scale too small is a bias that stays, and noise goes.
struct SymmetricFit {
  F32x16 scale, zero_point, inverse;

  static SymmetricFit fit(const GroupCoding& coding, const float* x, Index count) {
    const Moments m = Moments::of(x, count, ZeroPoint::symmetric);
    const F32x16 s = round_scale(mul(m.deviation, broadcast(coding.symmetric_step)), coding.metadata);
    return {s, mul(s, mul(load(coding.levels), broadcast(-0.5f))), inverse_or_zero(s)};
  }
  void store_codes(const GroupCoding& coding, const float* x, Index count, unsigned char* codes) const {
    const F32x16 levels = load(coding.levels), middle = mul(levels, broadcast(0.5f)), zero = broadcast(0.0f);
    store_rows(codes, count, [&](Index i) {
      return round_even(max(min(fma(load(x + 16 * i), inverse, middle), levels), zero));
    });
  }
};

template <class FitClass>
inline FitClass store_fit(const GroupCoding& coding, const float* x, Index count, float* scales, float* zero_points) {
  const FitClass fitted = FitClass::fit(coding, x, count);
  store(scales, fitted.scale);
  store(zero_points, fitted.zero_point);
  return fitted;
}
template <class FitClass>
inline void quantize_groups(const GroupCoding& coding, const float* x, Index count, float* scales, float* zero_points,
                            unsigned char* codes) {
  store_fit<FitClass>(coding, x, count, scales, zero_points).store_codes(coding, x, count, codes);
}

/// Codes 0 to Levels.
template <int Levels>
inline void quantize_min_max(const GroupCoding& coding, const float* x, Index count, float* scales, float* zero_points,
                             unsigned char* codes) {
  const MinMaxFit fitted = store_fit<MinMaxFit>(coding, x, count, scales, zero_points);
  const F32x16 zero = broadcast(0.0f), least_scale = broadcast(MinMaxSteps<Levels>::least_scale);
  if (max_lanes(select_less(fitted.scale, least_scale, fitted.range, zero)) > 0.0f)
    fitted.store_codes(coding, x, count, codes);
  else
    MinMaxSteps<Levels>(fitted).store_codes(x, count, codes);
}

inline void quantize(const GroupCoding& coding, const float* x, Index count, float* scales, float* zero_points,
                     unsigned char* codes) {
  if (coding.fit == Fit::min_max) {
    const bool half_scales = coding.metadata == Metadata::fp16;
    if (half_scales && coding.levels[0] == 1.0f)
      return quantize_min_max<1>(coding, x, count, scales, zero_points, codes);
    if (half_scales && coding.levels[0] == 3.0f)
      return quantize_min_max<3>(coding, x, count, scales, zero_points, codes);
    return quantize_groups<MinMaxFit>(coding, x, count, scales, zero_points, codes);
  }
  if (coding.zero_point == ZeroPoint::affine)
    return quantize_groups<FittedFit>(coding, x, count, scales, zero_points, codes);
  quantize_groups<SymmetricFit>(coding, x, count, scales, zero_points, codes);
}

/// Scales and zero points number first..first+count-1 of a panel.
inline void store_metadata(const PanelLayout& layout, unsigned char* panel, Index first, Index count,
                           const float* scales, const float* zero_points) {
  if (count < 16) {
    for (Index i = 0; i < count; ++i) ASYMKV_ABI::store_metadata(layout, panel, first + i, scales[i], zero_points[i]);
    return;
  }
  unsigned char* const to = panel + layout.scale_offset() + layout.scale_bytes() * first;
  if (layout.format.metadata == Metadata::fp16)
    store_half(to, load(scales));
  else
    for (Index i = 0; i < 16; ++i) to[i] = compact_code(scales[i]);
  if (layout.format.zero_point == ZeroPoint::affine)
    store_half(panel + layout.zero_point_offset() + 2 * first, load(zero_points));
}

/// Variance of each lane, in one pass over differences to the first element. That one is in the sample, so its squared
/// distance from the mean is `count` variances at most, and the difference of the two sums keeps the leading digits.
inline void variances(const float* x, Index count, float* result) {
  const F32x16 n = broadcast(float(count)), zero = broadcast(0.0f), first = load(x);
  F32x16 sums[2] = {zero, zero}, squares[2] = {zero, zero};  // of two halves, neither of which waits for the other
  const auto add_element = [&](Index i, int half) {
    const F32x16 d = sub(load(x + 16 * i), first);
    sums[half] = add(sums[half], d);
    squares[half] = fma(d, d, squares[half]);
  };
  Index i = 0;
  for (; i + 2 <= count; i += 2) {
    add_element(i, 0);
    add_element(i + 1, 1);
  }
  if (i < count) add_element(i, 0);
  const F32x16 mean = div(add(sums[0], sums[1]), n), mean_square = div(add(squares[0], squares[1]), n);
  store(result, max(fma(sub(zero, mean), mean, mean_square), zero));
}
