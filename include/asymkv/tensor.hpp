// tensor.hpp: how an engine hands over its memory: [tokens, heads, dim] views with any strides over float, half or
// bfloat16, made from a pointer or from an Eigen matrix. The library copies in and out; it never keeps such a view.
#pragma once

#include <type_traits>
#include <utility>

#include "asymkv/scalar.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Read-only view of a [tokens, heads, dim] tensor. Strides count elements and may be any value, negative included.
struct ConstTensor {
  const void* data = nullptr;
  ScalarType type = ScalarType::f32;
  Index tokens = 0, heads = 0, dim = 0;
  Index token_stride = 0, head_stride = 0, dim_stride = 1;

  /// Address of element (token, head, 0).
  const void* row(Index token, Index head) const noexcept {
    return static_cast<const char*>(data) + scalar_bytes(type) * (token * token_stride + head * head_stride);
  }
};

/// Writable view of a [tokens, heads, dim] tensor; else as ConstTensor.
struct Tensor {
  void* data = nullptr;
  ScalarType type = ScalarType::f32;
  Index tokens = 0, heads = 0, dim = 0;
  Index token_stride = 0, head_stride = 0, dim_stride = 1;

  void* row(Index token, Index head) const noexcept {
    return static_cast<char*>(data) + scalar_bytes(type) * (token * token_stride + head * head_stride);
  }
  operator ConstTensor() const noexcept {
    return {data, type, tokens, heads, dim, token_stride, head_stride, dim_stride};
  }
};

/// View of contiguous memory in the order [tokens, heads, dim]; for other orders set the strides of the result.
template <class T>
ConstTensor tensor(const T* data, Index tokens, Index heads, Index dim) noexcept {
  return {data, ScalarTypeOf<T>::value, tokens, heads, dim, heads * dim, dim, 1};
}
template <class T>
Tensor tensor(T* data, Index tokens, Index heads, Index dim) noexcept {
  return {data, ScalarTypeOf<T>::value, tokens, heads, dim, heads * dim, dim, 1};
}

namespace detail {

/// Tensor where data() of the matrix is writable, else ConstTensor.
template <class Matrix>
using TensorOf = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(std::declval<Matrix&>().data())>>,
                                    ConstTensor, Tensor>;

template <class Matrix>
TensorOf<Matrix> matrix_tensor(Matrix& m, Index heads) noexcept {
  const Index dim = heads > 0 && m.cols() % heads == 0 ? Index(m.cols()) / heads : 0;
  return {m.data(),
          ScalarTypeOf<typename Matrix::Scalar>::value,
          Index(m.rows()),
          heads,
          dim,
          Index(m.rowStride()),
          dim * Index(m.colStride()),
          Index(m.colStride())};
}

}  // namespace detail

/// View of an Eigen matrix, map, ref or block with direct access, any storage order and strides: one token a row, its
/// columns being the heads one after the other. cols() must be a multiple of `heads`; a view with dim 0 results
/// otherwise, which every call refuses. Writable where the matrix is.
template <class Derived>
ConstTensor tensor(const Eigen::DenseBase<Derived>& matrix, Index heads = 1) noexcept {
  return detail::matrix_tensor(matrix.derived(), heads);
}
template <class Derived>
detail::TensorOf<Derived> tensor(Eigen::DenseBase<Derived>& matrix, Index heads = 1) noexcept {
  return detail::matrix_tensor(matrix.derived(), heads);
}

ASYMKV_NAMESPACE_END
