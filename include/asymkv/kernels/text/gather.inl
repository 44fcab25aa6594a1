// gather.inl: elements of a panel's source as columns of 16 depths, and their rotation: what quantize.inl reads.
// Included once per instruction set, after dense.inl.

/// Depths side by side in memory, as channels of keys are: rows of 16 are copied.
template <ScalarType Type>
inline void gather_rows(const PanelSource& source, Index lanes, float* x) {
  for (Index lane = 0; lane < lanes; ++lane)
    store(x + 16 * lane, load_as<Type>(source.data, lane * source.lane_stride));
}

/// Lanes side by side, as channels of values are: blocks of 16 x 16 are transposed. Returns how many lanes it did.
template <ScalarType Type>
inline Index gather_columns(const PanelSource& source, Index lanes, Index count, float* x) {
  Index lane = 0;
  for (; lane + 16 <= lanes; lane += 16) {
    F32x16 block[16];
    for (Index i = 0; i < 16; ++i)
      block[i] = i < count ? load_as<Type>(source.data, lane + i * source.depth_stride) : broadcast(0.0f);
    transpose(block);
    for (Index i = 0; i < 16; ++i) store(x + 16 * (lane + i), block[i]);
  }
  return lane;
}

inline void gather(const PanelSource& source, Index lanes, Index count, float* x) {
  Index done = 0;
  with_type(source.type, [&](auto type) {
    if (source.depth_stride == 1 && count == 16) {
      gather_rows<type()>(source, lanes, x);
      done = lanes;
    } else if (source.lane_stride == 1) {
      done = gather_columns<type()>(source, lanes, count, x);
    }
  });
  for (Index lane = done; lane < lanes; ++lane)
    for (Index i = 0; i < 16; ++i)
      x[16 * lane + i] =
          i < count ? load_scalar(source.data, source.type, lane * source.lane_stride + i * source.depth_stride) : 0.0f;
}

/// The steps of distances `half` and 2 * half.
inline void rotate_twice(float* x, Index size, Index half) {
  for (Index block = 0; block < size; block += 4 * half)
    for (Index i = block; i < block + half; ++i) {
      F32x16 a[4];
      for (int k = 0; k < 4; ++k) a[k] = load(x + 16 * (i + k * half));
      const F32x16 b[4] = {add(a[0], a[1]), sub(a[0], a[1]), add(a[2], a[3]), sub(a[2], a[3])};
      store(x + 16 * i, add(b[0], b[2]));
      store(x + 16 * (i + half), add(b[1], b[3]));
      store(x + 16 * (i + 2 * half), sub(b[0], b[2]));
      store(x + 16 * (i + 3 * half), sub(b[1], b[3]));
    }
}

/// As rotate_hadamard (hadamard.hpp), operation for operation, of 16 columns at once.
inline void rotate_columns(float* x, Index dim) {
  while (dim > 0) {
    const Index size = hadamard_size(dim);
    Index half = 1;
    for (; 4 * half <= size; half *= 4) rotate_twice(x, size, half);
    // the factor goes with the last step, if it is left, without a pass of its own
    const F32x16 factor = broadcast(1.0f / std::sqrt(float(size)));
    if (half == size) {
      for (Index i = 0; i < size; ++i) store(x + 16 * i, mul(load(x + 16 * i), factor));
    } else {
      for (Index i = 0; i < half; ++i) {
        const F32x16 a = load(x + 16 * i), b = load(x + 16 * (i + half));
        store(x + 16 * i, mul(add(a, b), factor));
        store(x + 16 * (i + half), mul(sub(a, b), factor));
      }
    }
    x += 16 * size;
    dim -= size;
  }
}
