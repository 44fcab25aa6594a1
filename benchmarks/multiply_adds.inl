// multiply_adds.inl: the loop of fma_peak, compiled once per instruction set by limits.hpp, as the library's kernels
// are. `floats`, the width of its registers, is named around it.

/// `rounds` times `chains` times `floats` multiply-adds, each of which waits for the one before in its chain alone.
inline float multiply_adds(Index rounds, float factor, float term) noexcept {
  using Register = float __attribute__((vector_size(4 * floats)));
  Register sums[chains];
  for (int i = 0; i < chains; ++i) sums[i] = Register{} + float(i);  // equal chains would be computed once
  for (Index round = 0; round < rounds; ++round) {
    ASYMKV_UNROLL_FULLY
    for (int i = 0; i < chains; ++i) sums[i] = sums[i] * factor + term;
  }
  Register all = {};
  for (int i = 0; i < chains; ++i) all += sums[i];
  return all[0];
}
