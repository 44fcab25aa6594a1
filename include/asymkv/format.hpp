// format.hpp: how one side (keys or values) of one layer is stored. Bytes, names, page layout and kernels derive from
// it.
#pragma once

#include "asymkv/scalar.hpp"
#include "asymkv/status.hpp"

ASYMKV_NAMESPACE_BEGIN

enum class Side : std::uint8_t { keys, values };
constexpr const char* side_name(Side side) noexcept { return side == Side::keys ? "keys" : "values"; }

/// How scale and zero point of a group are chosen. min_max stretches the levels from least to largest element and is
/// bit-exact to KIVI for f16 input.
enum class Fit : std::uint8_t { min_max };

/// How scale and zero point are stored. fp16: two binary16 numbers a group.
enum class Metadata : std::uint8_t { fp16 };

/// bits: 1..6 or 8 packed; 16 or 32 keep the side in f16 or f32, where the other fields mean nothing.
/// group_size: elements that share a scale, 32, 64 or 128, along tokens for keys and along channels for values.
struct Format {
  int bits = 2;
  int group_size = 32;
  Fit fit = Fit::min_max;
  Metadata metadata = Metadata::fp16;

  constexpr bool packed() const noexcept { return bits <= 8; }
  friend constexpr bool operator==(const Format& a, const Format& b) noexcept {
    if (a.bits != b.bits) return false;
    return !a.packed() || (a.group_size == b.group_size && a.fit == b.fit && a.metadata == b.metadata);
  }
  friend constexpr bool operator!=(const Format& a, const Format& b) noexcept { return !(a == b); }
};

constexpr bool is_packed_bits(int bits) noexcept { return (bits >= 1 && bits <= 6) || bits == 8; }

inline Status check(const Format& format) noexcept {
  if (!is_packed_bits(format.bits) && format.bits != 16 && format.bits != 32)
    return Status::error(ErrorCode::invalid_argument, "format: bits is %d; use 1..6, 8, 16 (f16) or 32 (f32)",
                         format.bits);
  if (format.packed() && format.group_size != 32 && format.group_size != 64 && format.group_size != 128)
    return Status::error(ErrorCode::invalid_argument, "format: group_size is %d; use 32, 64 or 128", format.group_size);
  return {};
}

ASYMKV_NAMESPACE_END
