// table.inl: the table of one instruction set. Included last, once per instruction set.

inline const Table* table() {
  static constexpr Table kernels{kIsa,     packed_product, dense_scores, dense_sums, softmax,   multiply,
                                 half_to_floats, to_floats,      dequantize,   quantize,   variances, greatest_magnitude};
  return &kernels;
}
