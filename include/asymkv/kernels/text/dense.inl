// dense.inl: rows times full-precision tokens: the residual window, f16 and f32 layers, dense caches. Included once per
// instruction set, after tile.inl.

template <ScalarType Type>
inline F32x16 load_as(const void* data, Index i) {
  if constexpr (Type == ScalarType::f32) return load(static_cast<const float*>(data) + i);
  if constexpr (Type == ScalarType::f16) return load_half(static_cast<const std::uint16_t*>(data) + i);
  if constexpr (Type == ScalarType::bf16) return load_bfloat16(static_cast<const std::uint16_t*>(data) + i);
}

/// Calls function(std::integral_constant<ScalarType, type>).
template <class Function>
inline void with_type(ScalarType type, Function function) {
  switch (type) {
    case ScalarType::f32:
      return function(std::integral_constant<ScalarType, ScalarType::f32>());
    case ScalarType::f16:
      return function(std::integral_constant<ScalarType, ScalarType::f16>());
    default:
      return function(std::integral_constant<ScalarType, ScalarType::bf16>());
  }
}

template <ScalarType Type, int RowCount, int Tokens>
inline void dot_tokens(const DenseView& dense, Index token, Index dim, const Rows& rows, const ResultRows& result) {
  F32x16 sums[RowCount][Tokens];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tokens; ++t) sums[r][t] = broadcast(0.0f);
  for (Index d = 0; d < dim; d += 16) {
    F32x16 x[Tokens];
    ASYMKV_UNROLL
    for (int t = 0; t < Tokens; ++t) x[t] = load_as<Type>(dense.data, (token + t) * dense.stride + d);
    ASYMKV_UNROLL
    for (int r = 0; r < RowCount; ++r) {
      const F32x16 row = load(rows.data + r * rows.stride + d);
      ASYMKV_UNROLL
      for (int t = 0; t < Tokens; ++t) sums[r][t] = madd(row, x[t], sums[r][t]);
    }
  }
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tokens; ++t) result.data[r * result.stride + token + t] += sum_lanes(sums[r][t]);
}

template <ScalarType Type, int RowCount>
inline void dot_rows(const DenseView& dense, Index dim, const Rows& rows, const ResultRows& result) {
  constexpr int tokens = kAccumulators / RowCount >= 4 ? 4 : kAccumulators / RowCount >= 2 ? 2 : 1;
  Index token = 0;
  for (; token + tokens <= dense.count; token += tokens)
    dot_tokens<Type, RowCount, tokens>(dense, token, dim, rows, result);
  for (; token < dense.count; ++token) dot_tokens<Type, RowCount, 1>(dense, token, dim, rows, result);
}

/// tile[d][32] = tokens [first, first + 32) transposed, zero beyond the last.
template <ScalarType Type>
inline void transpose_tokens(const DenseView& dense, Index first, Index dim, float* tile) {
  float row[16];
  for (Index t = 0; t < kTileLanes; ++t)
    for (Index d = 0; d < dim; d += 16) {
      store(row, first + t < dense.count ? load_as<Type>(dense.data, (first + t) * dense.stride + d) : broadcast(0.0f));
      for (Index i = 0; i < 16; ++i) tile[(d + i) * kTileLanes + t] = row[i];
    }
}

template <ScalarType Type>
inline void dense_scores_of(const DenseView& dense, Index dim, const Rows& rows, const ResultRows& result,
                            float* tile) {
  switch (rows.count) {
    case 1:
      return dot_rows<Type, 1>(dense, dim, rows, result);
    case 2:
      return dot_rows<Type, 2>(dense, dim, rows, result);
    case 3:
      return dot_rows<Type, 3>(dense, dim, rows, result);
    case 4:
      return dot_rows<Type, 4>(dense, dim, rows, result);
    default:
      for (Index token = 0; token < dense.count; token += kTileLanes) {
        transpose_tokens<Type>(dense, token, dim, tile);
        tile_product(rows, dim, tile, kTileLanes, {result.data + token, result.stride});
      }
  }
}

inline void dense_scores(const DenseView& dense, Index dim, const Rows& rows, const ResultRows& result,
                         float* scratch) {
  with_type(dense.type, [&](auto type) { dense_scores_of<type()>(dense, dim, rows, result, scratch); });
}

/// Summed apart, as in multiply_tile.
template <ScalarType Type, int RowCount, int Tiles>
inline void sum_tokens(const DenseView& dense, Index channel, const Rows& rows, const ResultRows& result) {
  F32x16 sums[RowCount][Tiles];
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) sums[r][t] = broadcast(0.0f);
  for (Index token = 0; token < dense.count; ++token) {
    F32x16 x[Tiles];
    ASYMKV_UNROLL
    for (int t = 0; t < Tiles; ++t) x[t] = load_as<Type>(dense.data, token * dense.stride + channel + 16 * t);
    ASYMKV_UNROLL
    for (int r = 0; r < RowCount; ++r) {
      const F32x16 weight = broadcast(rows.data[r * rows.stride + token]);
      ASYMKV_UNROLL
      for (int t = 0; t < Tiles; ++t) sums[r][t] = madd(weight, x[t], sums[r][t]);
    }
  }
  ASYMKV_UNROLL
  for (int r = 0; r < RowCount; ++r) ASYMKV_UNROLL
  for (int t = 0; t < Tiles; ++t) {
    float* to = result.data + r * result.stride + channel + 16 * t;
    store(to, add(load(to), sums[r][t]));
  }
}

template <ScalarType Type, int RowCount>
inline void sum_rows(const DenseView& dense, Index dim, const Rows& rows, const ResultRows& result) {
  constexpr int tiles = kAccumulators / RowCount >= 4 ? 4 : kAccumulators / RowCount >= 2 ? 2 : 1;
  Index channel = 0;
  for (; channel + 16 * tiles <= dim; channel += 16 * tiles)
    sum_tokens<Type, RowCount, tiles>(dense, channel, rows, result);
  for (; channel < dim; channel += 16) sum_tokens<Type, RowCount, 1>(dense, channel, rows, result);
}

template <ScalarType Type>
inline void tiled_sums(const DenseView& dense, Index dim, const Rows& rows, const ResultRows& result, float* tile) {
  for (Index channel = 0; channel < dim; channel += kTileLanes) {
    const Index width = dim - channel < kTileLanes ? dim - channel : kTileLanes;
    for (Index token = 0; token < dense.count; ++token)
      for (Index t = 0; t < width; t += 16)
        store(tile + token * kTileLanes + t, load_as<Type>(dense.data, token * dense.stride + channel + t));
    tile_product(rows, dense.count, tile, width, {result.data + channel, result.stride});
  }
}

template <ScalarType Type>
inline void dense_sums_of(const DenseView& dense, Index dim, const Rows& rows, const ResultRows& result, float* tile) {
  switch (rows.count) {
    case 1:
      return sum_rows<Type, 1>(dense, dim, rows, result);
    case 2:
      return sum_rows<Type, 2>(dense, dim, rows, result);
    case 3:
      return sum_rows<Type, 3>(dense, dim, rows, result);
    case 4:
      return sum_rows<Type, 4>(dense, dim, rows, result);
    default:
      return tiled_sums<Type>(dense, dim, rows, result, tile);
  }
}

inline void dense_sums(const DenseView& dense, Index dim, const Rows& rows, const ResultRows& result, float* scratch) {
  with_type(dense.type, [&](auto type) { dense_sums_of<type()>(dense, dim, rows, result, scratch); });
}

template <ScalarType Type>
inline void store_as(void* data, Index i, F32x16 x) {
  if constexpr (Type == ScalarType::f32) {
    store(static_cast<float*>(data) + i, x);
  } else if constexpr (Type == ScalarType::f16) {
    store_half(static_cast<std::uint16_t*>(data) + i, x);
  } else {
    const U32x16 bits = as_words(x), odd = bit_and(shift_right(bits, 16), 1u);
    const U32x16 below_half = as_words(broadcast(bits_float(0x7fffu)));
    store_halfwords(static_cast<std::uint16_t*>(data) + i, shift_right(add(bits, add(below_half, odd)), 16));
  }
}

inline void convert(const void* from, ScalarType from_type, void* to, ScalarType to_type, Index count) {
  const Index whole = count / 16 * 16;
  if (from_type == to_type) {
    std::memcpy(to, from, std::size_t(count * scalar_bytes(to_type)));
    return;
  }
  with_type(from_type, [&](auto type_in) {
    with_type(to_type, [&](auto type_out) {
      for (Index i = 0; i < whole; i += 16) store_as<type_out()>(to, i, load_as<type_in()>(from, i));
    });
  });
  for (Index i = whole; i < count; ++i) store_scalar(to, to_type, i, load_scalar(from, from_type, i));
}

inline std::uint32_t greatest_magnitude(const void* data, ScalarType type, Index count) {
  const Index whole = count / 16 * 16;
  U32x16 greatest = zero_words();
  if (type == ScalarType::f32) {
    const float* from = static_cast<const float*>(data);
    for (Index i = 0; i < whole; i += 16) greatest = max_words(greatest, bit_and(load_words(from + i), 0x7fffffffu));
  } else {
    const std::uint16_t* from = static_cast<const std::uint16_t*>(data);
    for (Index i = 0; i < whole; i += 16) greatest = max_words(greatest, bit_and(load_halfwords(from + i), 0x7fffu));
  }
  std::uint32_t result = max_word(greatest);
  for (Index i = whole; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, static_cast<const char*>(data) + i * scalar_bytes(type), std::size_t(scalar_bytes(type)));
    bits &= type == ScalarType::f32 ? 0x7fffffffu : 0x7fffu;
    result = bits > result ? bits : result;
  }
  return result;
}
