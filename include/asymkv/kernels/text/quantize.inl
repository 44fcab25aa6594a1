// quantize.inl: fitting and rounding of 16 columns at once, a group each, so that every instruction set and every way
// of splitting the input does the same operations in the same order. Products that are added are explicit fma, for the
// same reason. Included once per instruction set, after gather.inl.
//
// A fit is a class with two functions: fit (from a Group to scale and zero point, as stored) and store_codes. Min-max
// leaves the second to a coder, which write_rows.inl uses too.

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
inline U32x16 nearest_codes(F32x16 x, F32x16 zero_point, F32x16 inverse, F32x16 levels) {
  return round_words(max(min(mul(sub(x, zero_point), inverse), levels), broadcast(0.0f)));
}
/// 1 / scale, or `other` where the scale is 0.
inline F32x16 inverse_or(F32x16 scale, float other) {
  const F32x16 zero = broadcast(0.0f), one = broadcast(1.0f);
  return select_less(zero, scale, div(one, select_less(zero, scale, scale, one)), broadcast(other));
}

/// 16 columns of `count` numbers, a group each.
struct Group {
  const float* data;
  Index stride;
  Index count;

  F32x16 operator[](Index i) const { return load(data + stride * i); }
};

/// codes[i][16] = code(i) for i < count. Four at once, since what reads them loads 64 bytes.
template <class Code>
inline void store_rows(Index count, unsigned char* codes, Code code) {
  Index i = 0;
  for (; i + 4 <= count; i += 4) store_four_bytes(codes + 16 * i, code(i), code(i + 1), code(i + 2), code(i + 3));
  for (; i < count; ++i) store_bytes(codes + 16 * i, code(i));
}

/// Least and greatest of each column.
struct Extremes {
  F32x16 least, greatest;

  explicit Extremes(const Group& x) {
    F32x16 low = x[0], high = low;
    for (Index i = 1; i < x.count; ++i) {
      const F32x16 element = x[i];
      low = min(low, element);
      high = max(high, element);
    }
    least = low;
    greatest = high;
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

  MinMaxFit() = default;
  MinMaxFit(F32x16 x_least, F32x16 x_greatest, F32x16 levels, Metadata metadata) {
    const F32x16 least = round_half(x_least);
    range = round_half(sub(round_half(x_greatest), least));
    scale = round_scale(round_half(div(range, levels)), metadata);
    // + 0 makes a zero point of -0 into +0: which zero is the minimum must not depend on the order of comparison
    zero_point = add(least, broadcast(0.0f));
  }
  static MinMaxFit fit(const GroupCoding& coding, const Group& x) {
    const Extremes extremes(x);
    return {extremes.least, extremes.greatest, load(coding.levels), coding.metadata};
  }
};

/// MinMaxFit's codes of elements, by division. A scale of 0 (constant group, or underflow) gives 0, or the top code
/// where x is above the zero point: the inverse is so large then that every ratio but 0 is infinite.
struct MinMaxRatios {
  F32x16 zero_point, minus_scale, inverse, levels;

  MinMaxRatios() = default;
  MinMaxRatios(const MinMaxFit& fitted, F32x16 greatest_codes)
      : zero_point(fitted.zero_point),
        minus_scale(sub(broadcast(0.0f), fitted.scale)),
        inverse(inverse_or(fitted.scale, 0x1p100f)),
        levels(greatest_codes) {}
  F32x16 ratio(F32x16 t) const {
    const F32x16 near = mul(t, inverse);
    return fma(fma(near, minus_scale, t), inverse, near);
  }
  U32x16 code(F32x16 rounded_ratio) const { return round_words(min(rounded_ratio, levels)); }
  void store_codes(const Group& x, unsigned char* codes) const;
};

/// Rows of numbers on their way to codes, each step rounded to binary16. They are stored as such: converting from
/// memory takes half the instructions of converting from a register.
class HalfRows {
 public:
  F32x16 operator[](Index i) const { return load_half(rows_[i]); }
  /// Ratios of element(i), i < count <= most_lanes, by ratios(i).
  template <class Element, class Ratios>
  void set_ratios(Index count, Element element, Ratios ratios) {
    for (Index i = 0; i < count; ++i) store_half(rows_[i], element(i));
    for (Index i = 0; i < count; ++i) store_half(rows_[i], sub((*this)[i], ratios(i).zero_point));
    for (Index i = 0; i < count; ++i) store_half(rows_[i], ratios(i).ratio((*this)[i]));
  }

 private:
  alignas(64) std::uint16_t rows_[most_lanes][16];
};

inline void MinMaxRatios::store_codes(const Group& x, unsigned char* codes) const {
  HalfRows rows;
  rows.set_ratios(x.count, [&](Index i) { return x[i]; }, [&](Index) { return *this; });
  store_rows(x.count, codes, [&](Index i) { return code(rows[i]); });
}

/// MinMaxFit's codes 0 to Levels, exactly, by comparing elements with the least ones of each code, which are found once
/// a group. Scales must be numbers of binary16 that serves() finds large enough; groups whose range is 0, and columns
/// without one, have codes of 0.
///
/// The code is at least j where the ratio t/s, rounded to binary16, is above j - 1/2 (or at it where j is even), so
/// where t > m * s with m half a unit in the last place above j - 1/2 (or below it), an exact product of 12 and 11 bits
/// that no t of 11 bits is equal to. The next number of binary16, T, is the least such t, that is x - mn rounded, with
/// x in binary16, too. So the least x lies near mn + T, less half a unit in the last place of T: the nearest number of
/// binary16 is it, or the one above. The least element is the middle between it and the one below, if that is rounded
/// to it, or the next number of binary32.
template <int Levels>
class MinMaxSteps {
 public:
  MinMaxSteps() = default;
  MinMaxSteps(const MinMaxFit& fitted, F32x16 /*levels*/) {
    const F32x16 none = broadcast(std::numeric_limits<float>::infinity());
    ASYMKV_UNROLL
    for (int j = 1; j <= Levels; ++j)
      first_[j - 1] = select_less(broadcast(0.0f), fitted.range, first_element(j, fitted), none);
  }
  U32x16 code(F32x16 x) const {
    U32x16 n = zero_words();
    ASYMKV_UNROLL
    for (int j = 0; j < Levels; ++j) n = count_unless_less(n, x, first_[j]);
    return n;
  }
  void store_codes(const Group& x, unsigned char* codes) const {
    store_rows(x.count, codes, [&](Index i) { return code(x[i]); });
  }
  /// Whether all scales are large enough.
  static bool serves(const MinMaxFit* fitted, Index count) {
    const F32x16 zero = broadcast(0.0f);
    F32x16 too_small = zero;  // ranges of scales that are
    for (Index g = 0; g < count; ++g)
      too_small = max(too_small, select_less(fitted[g].scale, broadcast(least_scale), fitted[g].range, zero));
    return !(max_lanes(too_small) > 0.0f);
  }

 private:
  static constexpr float least_scale = 0x1p-13f;      // T has all its bits
  static constexpr std::uint32_t half_unit = 0x1000;  // of binary16, in the bits of binary32

  static F32x16 first_element(int j, const MinMaxFit& fitted) {
    const std::uint32_t middle = float_bits(float(j) - 0.5f);
    const F32x16 m = broadcast(bits_float(j % 2 == 0 ? middle - half_unit : middle + half_unit));
    const F32x16 least = mul(fitted.scale, m), near = round_half(least);
    const U32x16 t = as_words(select_less(near, least, as_floats(add(as_words(near), words(2 * half_unit))), near));
    const F32x16 mn = fitted.zero_point, x = round_half(add(as_floats(add(t, words(-half_unit))), mn));
    // five quarters to five eighths of the distance of numbers of binary16 at x
    const F32x16 distance = max(mul(absolute(x), broadcast(1.25f * 0x1p-11f)), broadcast(0x1p-24f));
    const F32x16 to_other = select_less(round_half(sub(x, mn)), as_floats(t), distance, sub(broadcast(0.0f), distance));
    const F32x16 other = round_half(add(x, to_other)), between = mul(broadcast(0.5f), add(x, other));
    return select_less(round_half(between), max(x, other), next_above(between), between);
  }
  /// Of numbers other than 0.
  static F32x16 next_above(F32x16 x) {
    const U32x16 bits = as_words(x);
    return select_less(x, broadcast(0.0f), as_floats(add(bits, words(~0u))), as_floats(add(bits, words(1))));
  }
  static U32x16 words(std::uint32_t n) {
    std::uint32_t all[16];
    std::fill(all, all + 16, n);
    return load_words(all);
  }

  F32x16 first_[Levels];
};

template <class Coder, class Use>
inline void make_coders(const MinMaxFit* fitted, Index count, F32x16 levels, Use use) {
  Coder coders[most_groups];
  for (Index g = 0; g < count; ++g) coders[g] = Coder(fitted[g], levels);
  use(coders);
}
/// Calls use(coders of these groups), codes 0 to greatest_code: steps for codes of one and two bits, unless their
/// scales are too small or may be no numbers of binary16.
template <class Use>
inline void with_coders(const MinMaxFit* fitted, Index count, float greatest_code, Metadata metadata, Use use) {
  const F32x16 levels = broadcast(greatest_code);
  const bool half_scales = metadata == Metadata::fp16;
  if (half_scales && greatest_code == 1.0f && MinMaxSteps<1>::serves(fitted, count))
    make_coders<MinMaxSteps<1>>(fitted, count, levels, use);
  else if (half_scales && greatest_code == 3.0f && MinMaxSteps<3>::serves(fitted, count))
    make_coders<MinMaxSteps<3>>(fitted, count, levels, use);
  else
    make_coders<MinMaxRatios>(fitted, count, levels, use);
}

/// Sum of element(x[i]), as four sums of every fourth one, since each addition waits for the one before.
template <class Element>
inline F32x16 sum_of(const Group& x, Element element) {
  F32x16 sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  const float* row = x.data;
  Index left = x.count;
  for (; left >= 4; left -= 4) ASYMKV_UNROLL
  for (int c = 0; c < 4; ++c, row += x.stride) sums[c] = add(sums[c], element(load(row)));
  for (; left > 0; --left, row += x.stride) sums[0] = add(sums[0], element(load(row)));
  return add(add(sums[0], sums[1]), add(sums[2], sums[3]));
}

/// Least, greatest, mean and mean magnitude about the mean of each column; of symmetric formats the mean magnitude
/// alone.
struct Moments {
  F32x16 least, greatest, mean, deviation;

  static Moments of(const Group& x, ZeroPoint zero_point) {
    const F32x16 n = broadcast(float(x.count)), zero = broadcast(0.0f);
    if (zero_point == ZeroPoint::symmetric)
      return {zero, zero, zero, div(sum_of(x, [](F32x16 element) { return absolute(element); }), n)};
    const Extremes extremes(x);
    const F32x16 mean = div(sum_of(x, [](F32x16 element) { return element; }), n);
    const F32x16 deviation = div(sum_of(x, [&](F32x16 element) { return absolute(sub(element, mean)); }), n);
    return {extremes.least, extremes.greatest, mean, deviation};
  }
};

/// Levels inside the range: of a few candidates, the one with the least sum of |error|^3 (quality.md of the method: a
/// norm between squares, which let rare large keys go, and the maximum, which min-max serves). Candidates are the range
/// and shrinkings of it about its middle, by steps that suit the number of levels; the last of one-bit columns is
/// mean +- deviation instead, which skewed groups want. Columns of 0 levels keep their mean alone.
struct FittedFit {
  F32x16 scale, zero_point, inverse;

  static FittedFit fit(const GroupCoding& coding, const Group& x) {
    const F32x16 levels = load(coding.levels), zero = broadcast(0.0f), half = broadcast(0.5f), two = broadcast(2.0f);
    const Moments m = Moments::of(x, ZeroPoint::affine);
    const F32x16 middle = mul(half, add(m.least, m.greatest));
    const F32x16 divisor = max(levels, broadcast(1.0f));
    const F32x16 whole = div(sub(m.greatest, m.least), divisor), step = mul(whole, shrink_step(levels));
    Candidate best(coding, whole, middle, levels);
    Candidate other(coding, fma(step, broadcast(-1.0f), whole), middle, levels);
    measure(x, levels, best, other);
    best.take_better(other);
    for (float steps : {2.0f, 4.0f}) {
      Candidate first(coding, fma(step, broadcast(-steps), whole), middle, levels);
      const F32x16 last = fma(step, broadcast(-steps - 1.0f), whole);
      Candidate second(coding, steps == 4.0f ? select_less(levels, two, mul(two, m.deviation), last) : last,
                       steps == 4.0f ? select_less(levels, two, m.mean, middle) : middle, levels);
      measure(x, levels, first, second);
      best.take_better(first);
      best.take_better(second);
    }
    const F32x16 s = select_less(zero, levels, best.distance, zero);
    // + 0 for the reason that MinMaxFit has
    const F32x16 lowest = add(select_less(zero, levels, best.lowest, round_half(m.mean)), zero);
    return {s, lowest, inverse_or(s, 0.0f)};
  }

  void store_codes(const GroupCoding& coding, const Group& x, unsigned char* codes) const {
    const F32x16 levels = load(coding.levels);
    store_rows(x.count, codes, [&](Index i) { return nearest_codes(x[i], zero_point, inverse, levels); });
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
  static void measure(const Group& x, F32x16 levels, Candidate& a, Candidate& b) {
    const F32x16 zero = broadcast(0.0f);
    const F32x16 inverse_a = inverse_or(a.distance, 0.0f), inverse_b = inverse_or(b.distance, 0.0f);
    const F32x16 shift_a = mul(sub(zero, a.lowest), inverse_a), shift_b = mul(sub(zero, b.lowest), inverse_b);
    const auto error = [&](F32x16 value, F32x16 per_distance, F32x16 shift, F32x16 sum) {
      const F32x16 t = fma(value, per_distance, shift);
      const F32x16 e = absolute(sub(t, min(max(round_even(t), zero), levels)));
      return fma(mul(e, e), e, sum);
    };
    for (Index i = 0; i < x.count; ++i) {
      const F32x16 value = x[i];
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

  static SymmetricFit fit(const GroupCoding& coding, const Group& x) {
    const Moments m = Moments::of(x, ZeroPoint::symmetric);
    const F32x16 s = round_scale(mul(m.deviation, broadcast(coding.symmetric_step)), coding.metadata);
    return {s, mul(s, mul(load(coding.levels), broadcast(-0.5f))), inverse_or(s, 0.0f)};
  }
  void store_codes(const GroupCoding& coding, const Group& x, unsigned char* codes) const {
    const F32x16 levels = load(coding.levels), middle = mul(levels, broadcast(0.5f)), zero = broadcast(0.0f);
    store_rows(x.count, codes,
               [&](Index i) { return round_words(max(min(fma(x[i], inverse, middle), levels), zero)); });
  }
};

/// Group number g of the columns, and where its codes go.
inline Group group_of(const Columns& x, Index g) {
  const Index begin = std::max<Index>(x.group_begin(g), 0), end = std::min(x.group_begin(g + 1), x.count);
  return {x.data + begin * x.stride, x.stride, end - begin};
}
inline unsigned char* codes_of(const Columns& x, Index g, unsigned char* codes) {
  return codes + 16 * std::max<Index>(x.group_begin(g), 0);
}

/// Fits all groups before any is coded: a fit is a chain in which each step waits for the one before, and so several
/// are under way at once.
template <class FitClass>
inline void fit_groups(const GroupCoding& coding, const Columns& x, FitClass* fitted, float* scales,
                       float* zero_points) {
  for (Index g = 0; g < x.groups(); ++g) {
    fitted[g] = FitClass::fit(coding, group_of(x, g));
    store(scales + 16 * g, fitted[g].scale);
    store(zero_points + 16 * g, fitted[g].zero_point);
  }
}
template <class FitClass>
inline void quantize_groups(const GroupCoding& coding, const Columns& x, float* scales, float* zero_points,
                            unsigned char* codes) {
  FitClass fitted[most_groups];
  fit_groups(coding, x, fitted, scales, zero_points);
  for (Index g = 0; g < x.groups(); ++g) fitted[g].store_codes(coding, group_of(x, g), codes_of(x, g, codes));
}

inline void quantize_min_max(const GroupCoding& coding, const Columns& x, float* scales, float* zero_points,
                             unsigned char* codes) {
  MinMaxFit fitted[most_groups];
  fit_groups(coding, x, fitted, scales, zero_points);
  with_coders(fitted, x.groups(), coding.levels[0], coding.metadata, [&](const auto* coders) {
    for (Index g = 0; g < x.groups(); ++g) coders[g].store_codes(group_of(x, g), codes_of(x, g, codes));
  });
}

inline void quantize(const GroupCoding& coding, const Columns& x, float* scales, float* zero_points,
                     unsigned char* codes) {
  if (coding.fit == Fit::min_max) return quantize_min_max(coding, x, scales, zero_points, codes);
  if (coding.zero_point == ZeroPoint::affine)
    return quantize_groups<FittedFit>(coding, x, scales, zero_points, codes);
  quantize_groups<SymmetricFit>(coding, x, scales, zero_points, codes);
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

/// Variance of each column, in one pass over differences to the first element. That one is in the sample, so its
/// squared distance from the mean is `count` variances at most, and the difference of the two sums keeps the leading
/// digits.
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
