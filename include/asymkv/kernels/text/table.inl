// table.inl: the table of one instruction set. Included last, once per instruction set.

inline const Table* table() {
  static constexpr Table kernels{kIsa,      packed_product, dense_scores,    dense_sums,
                                 softmax,   multiply,       expand_metadata, dequantize,
                                 gather,    rotate_columns, quantize,        store_metadata,
                                 variances, insert_codes,   pack_mixed,      greatest_magnitude};
  return &kernels;
}
