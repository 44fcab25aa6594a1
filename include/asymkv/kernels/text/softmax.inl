// softmax.inl: one row of an online softmax in base 2. Included once per instruction set, after its vector layer.

/// 2^x for x <= 0; 0 below -126. Taylor series of 2^f, |f| <= 1/2, to the sixth power: relative error below 2e-7.
inline F32x16 exp2_nonpositive(F32x16 x) {
  const F32x16 clamped = max(x, broadcast(-126.0f));
  const F32x16 n = round_even(clamped);
  const F32x16 f = sub(clamped, n);
  F32x16 p = broadcast(1.5403530e-4f);
  p = madd(p, f, broadcast(1.3333558e-3f));
  p = madd(p, f, broadcast(9.6181291e-3f));
  p = madd(p, f, broadcast(5.5504109e-2f));
  p = madd(p, f, broadcast(2.4022651e-1f));
  p = madd(p, f, broadcast(6.9314718e-1f));
  p = madd(p, f, broadcast(1.0f));
  return select_less(x, broadcast(-126.0f), broadcast(0.0f), times_power_of_two(p, n));
}

inline float softmax(float* scores, Index count, float& running_max, float& running_sum) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const Index padded = round_up(count, 16);
  for (Index i = count; i < padded; ++i) scores[i] = lowest;
  F32x16 greatest = broadcast(running_max);
  for (Index i = 0; i < padded; i += 16) greatest = max(greatest, load(scores + i));
  const float new_max = max_lanes(greatest);
  const F32x16 offset = broadcast(new_max == lowest ? 0.0f : new_max);
  F32x16 sum = broadcast(0.0f);
  for (Index i = 0; i < padded; i += 16) {
    const F32x16 weight = exp2_nonpositive(sub(load(scores + i), offset));
    store(scores + i, weight);
    sum = add(sum, weight);
  }
  float factor = 1.0f;
  if (running_max == lowest) {
    factor = 0.0f;
  } else if (new_max != running_max) {
    float ratio[16];
    store(ratio, exp2_nonpositive(broadcast(running_max - new_max)));
    factor = ratio[0];
  }
  running_max = new_max;
  running_sum = running_sum * factor + sum_lanes(sum);
  return factor;
}

inline void multiply(float* data, Index count, float factor) {
  const F32x16 f = broadcast(factor);
  for (Index i = 0; i < count; i += 16) store(data + i, mul(load(data + i), f));
}
