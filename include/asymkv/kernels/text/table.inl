// table.inl: the table of one instruction set. Included last, once per instruction set that has the whole text.

inline constexpr Table table{kIsa,         few_rows_product, many_rows_product, kFewRowsOf8Bits, dense_scores,
                             dense_sums,   is_mask,          add_terms,         softmax,         multiply,
                             expand_metadata, dequantize,    gather,            rotate_columns,  quantize,
                             store_metadata, variances,      insert_codes,      write_rows,      pack_mixed,
                             convert,      greatest_magnitude};
