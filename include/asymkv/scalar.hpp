// scalar.hpp: the scalar types of engine tensors, and exact conversions to and from their bits. The conversions are our
// own because Eigen's are plain inline functions that a unit with other -m flags could replace at link time.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <cstring>

#include "asymkv/config.hpp"

ASYMKV_NAMESPACE_BEGIN

using Index = std::int64_t;

enum class ScalarType : std::uint8_t { f32, f16, bf16 };

constexpr Index scalar_bytes(ScalarType type) noexcept { return type == ScalarType::f32 ? 4 : 2; }
constexpr const char* scalar_name(ScalarType type) noexcept {
  return type == ScalarType::f32 ? "f32" : type == ScalarType::f16 ? "f16" : "bf16";
}

/// ScalarType of a C++ type: float, Eigen::half or Eigen::bfloat16.
template <class T>
struct ScalarTypeOf {
  static_assert(sizeof(T) == 0, "tensors are of float, Eigen::half or Eigen::bfloat16");
};
template <>
struct ScalarTypeOf<float> {
  static constexpr ScalarType value = ScalarType::f32;
};
template <>
struct ScalarTypeOf<Eigen::half> {
  static constexpr ScalarType value = ScalarType::f16;
};
template <>
struct ScalarTypeOf<Eigen::bfloat16> {
  static constexpr ScalarType value = ScalarType::bf16;
};

inline std::uint32_t float_bits(float x) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(std::uint32_t bits) noexcept {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// IEEE binary16 bits to float, exact.
inline float half_to_float(std::uint16_t half) noexcept {
  const std::uint32_t sign = std::uint32_t(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return bits_float(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = float(magnitude) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

/// Float to IEEE binary16 bits, round half to even; overflow gives infinity, NaN stays a quiet NaN.
inline std::uint16_t float_to_half(float x) noexcept {
  const std::uint32_t bits = float_bits(x);
  const std::uint16_t sign = std::uint16_t(bits >> 16 & 0x8000u);
  std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return std::uint16_t(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
  if (magnitude >= 0x477ff000u) return std::uint16_t(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal or zero: the addition rounds at bit 2^-24
    const float shifted = bits_float(magnitude) + 0.5f;
    return std::uint16_t(sign | (float_bits(shifted) - 0x3f000000u));
  }
  magnitude += 0xfffu + (magnitude >> 13 & 1u);
  return std::uint16_t(sign | ((magnitude - (112u << 23)) >> 13));
}

inline float bfloat16_to_float(std::uint16_t b) noexcept { return bits_float(std::uint32_t(b) << 16); }

/// Float to bfloat16 bits, round half to even; NaN stays a quiet NaN.
inline std::uint16_t float_to_bfloat16(float x) noexcept {
  const std::uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return std::uint16_t(bits >> 16 | 0x40u);
  return std::uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/// Element `i` of an array of scalars of the given type, as float (exact).
inline float load_scalar(const void* data, ScalarType type, Index i) noexcept {
  if (type == ScalarType::f32) {
    float x;
    std::memcpy(&x, static_cast<const char*>(data) + 4 * i, 4);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(data) + 2 * i, 2);
  return type == ScalarType::f16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

/// Writes `x`, rounded to the given type, as element `i`.
inline void store_scalar(void* data, ScalarType type, Index i, float x) noexcept {
  if (type == ScalarType::f32) {
    std::memcpy(static_cast<char*>(data) + 4 * i, &x, 4);
    return;
  }
  const std::uint16_t bits = type == ScalarType::f16 ? float_to_half(x) : float_to_bfloat16(x);
  std::memcpy(static_cast<char*>(data) + 2 * i, &bits, 2);
}

ASYMKV_NAMESPACE_END
