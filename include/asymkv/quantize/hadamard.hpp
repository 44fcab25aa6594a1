// hadamard.hpp: the rotation of Rotation::hadamard. Used by the attention for outputs and by the cache for tokens that
// are read back; kernels/text/gather.inl rotates what is sealed.
#pragma once

#include <cmath>

#include "asymkv/scalar.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Size of the first block: the largest power of two that is at most dim.
constexpr Index hadamard_size(Index dim) noexcept {
  Index size = 1;
  while (2 * size <= dim) size *= 2;
  return size;
}

/// Multiplies x[dim] by a block-diagonal matrix of orthonormal Hadamard matrices, whose sizes are the powers of two
/// that add up to dim, largest first. Its own inverse. O(dim log dim); additions and one product, so the same on all
/// machines.
inline void rotate_hadamard(float* x, Index dim) noexcept {
  while (dim > 0) {
    const Index size = hadamard_size(dim);
    for (Index half = 1; half < size; half *= 2)
      for (Index block = 0; block < size; block += 2 * half)
        for (Index i = block; i < block + half; ++i) {
          const float a = x[i], b = x[i + half];
          x[i] = a + b;
          x[i + half] = a - b;
        }
    const float factor = 1.0f / std::sqrt(float(size));
    for (Index i = 0; i < size; ++i) x[i] *= factor;
    x += size;
    dim -= size;
  }
}

ASYMKV_NAMESPACE_END
