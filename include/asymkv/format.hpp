// format.hpp: how one side (keys or values) of one layer is stored. Bytes, names, page layout and kernels derive from
// it.
#pragma once

#include "asymkv/scalar.hpp"
#include "asymkv/status.hpp"

ASYMKV_NAMESPACE_BEGIN

enum class Side : std::uint8_t { keys, values };
constexpr const char* side_name(Side side) noexcept { return side == Side::keys ? "keys" : "values"; }

/// How scale and zero point of a group are chosen. min_max stretches the levels from least to largest element and is
/// bit-exact to KIVI for f16 input. fitted places them inside: affine groups where, of a few placements, the sum of
/// |error|^3 is least; symmetric ones at a fixed multiple of the mean magnitude (quantize.inl).
enum class Fit : std::uint8_t { min_max, fitted };

/// How scale and zero point are stored. fp16: two binary16 numbers a group. compact: the scale in 8 bits, as a power of
/// 2^(1/8) from 1.6e-5 to 6e4 (no super-scale: tokens seal one by one, and a huge channel costs its neighbours
/// nothing); the zero point in binary16, since 8 bits of it would shift whole channels of models whose keys have large
/// offsets.
enum class Metadata : std::uint8_t { fp16, compact };

/// affine: a zero point is stored. symmetric: levels lie evenly around 0, the zero point follows from the scale.
enum class ZeroPoint : std::uint8_t { affine, symmetric };

/// hadamard: rows of a head are rotated by a Hadamard matrix before they are quantized, and outputs rotated back; block
/// diagonal where the dimension is no power of two. For values alone: rotating keys spreads a few large channels over
/// all others and made every key format worse on a model with QK norms.
enum class Rotation : std::uint8_t { none, hadamard };

/// How one side is stored.
/// bits: 1..6 or 8 packed; 16 or 32 keep the side in f16 or f32, where the other fields mean nothing.
/// group_size: elements that share a scale, 32, 64 or 128, along tokens for keys and along channels for values.
/// mixed_halves: 0, or, for keys with the fitted compact format and groups of 128: channels of a page get 0 to 8
/// bits each by their variance in it, mixed_halves / 2 bits on average; 1..12. bits is 8 then, the most of them.
struct Format {
  int bits = 2;
  int group_size = 32;
  Fit fit = Fit::min_max;
  Metadata metadata = Metadata::fp16;
  ZeroPoint zero_point = ZeroPoint::affine;
  Rotation rotation = Rotation::none;
  int mixed_halves = 0;

  constexpr bool packed() const noexcept { return bits <= 8; }
  constexpr bool mixed() const noexcept { return packed() && mixed_halves != 0; }
  constexpr double payload_bits() const noexcept { return mixed() ? 0.5 * mixed_halves : double(bits); }

  /// Mixed widths of `halves` / 2 bits on average.
  static constexpr Format mixed_keys(int halves) noexcept {
    return {8, 128, Fit::fitted, Metadata::compact, ZeroPoint::affine, Rotation::none, halves};
  }
  /// Rotated symmetric values with one compact scale per `group_size` channels.
  static constexpr Format rotated_values(int bits, int group_size = 128) noexcept {
    return {bits, group_size, Fit::fitted, Metadata::compact, ZeroPoint::symmetric, Rotation::hadamard, 0};
  }

  friend constexpr bool operator==(const Format& a, const Format& b) noexcept {
    if (a.bits != b.bits) return false;
    return !a.packed() ||
           (a.group_size == b.group_size && a.fit == b.fit && a.metadata == b.metadata &&
            a.zero_point == b.zero_point && a.rotation == b.rotation && a.mixed_halves == b.mixed_halves);
  }
  friend constexpr bool operator!=(const Format& a, const Format& b) noexcept { return !(a == b); }
};

constexpr bool is_packed_bits(int bits) noexcept { return (bits >= 1 && bits <= 6) || bits == 8; }

/// A side's part of a policy's name: k2g64fc, km1.5, v16; of formats that pass check().
struct FormatName {
  char text[24];
  FormatName(const Format& f, Side side) noexcept {
    const char letter = side == Side::keys ? 'k' : 'v';
    if (f.mixed()) {
      std::snprintf(text, sizeof text, "%cm%d%s", letter, f.mixed_halves / 2, f.mixed_halves % 2 != 0 ? ".5" : "");
      return;
    }
    const int end = std::snprintf(text, sizeof text, "%c%d", letter, f.bits);
    if (f.packed()) add_parts(text + end, f);
  }

 private:
  static void add_parts(char* to, const Format& f) noexcept {
    if (f.group_size != 32) to += std::snprintf(to, 5, "g%d", f.group_size);
    if (f.fit == Fit::fitted) *to++ = 'f';
    if (f.metadata == Metadata::compact) *to++ = 'c';
    if (f.zero_point == ZeroPoint::symmetric) *to++ = 's';
    if (f.rotation == Rotation::hadamard) *to++ = 'r';
    *to = '\0';
  }
};

/// Whether a side can be stored so. Errors: invalid_argument, unsupported.
inline Status check(const Format& format, Side side) noexcept {
  if (!is_packed_bits(format.bits) && format.bits != 16 && format.bits != 32)
    return Status::error(ErrorCode::invalid_argument, "format: bits is %d; use 1..6, 8, 16 (f16) or 32 (f32)",
                         format.bits);
  if (!format.packed()) return {};
  if (format.group_size != 32 && format.group_size != 64 && format.group_size != 128)
    return Status::error(ErrorCode::invalid_argument, "format: group_size is %d; use 32, 64 or 128", format.group_size);
  if (format.zero_point == ZeroPoint::symmetric && format.fit == Fit::min_max)
    return Status::error(ErrorCode::unsupported, "format: symmetric codes need the fitted scale");
  if (format.rotation != Rotation::none && side == Side::keys)
    return Status::error(ErrorCode::unsupported, "format: keys are not rotated, values alone");
  if (!format.mixed()) return {};
  if (side == Side::values) return Status::error(ErrorCode::unsupported, "format: mixed widths are for keys alone");
  if (format.mixed_halves < 1 || format.mixed_halves > 12 || format != Format::mixed_keys(format.mixed_halves))
    return Status::error(ErrorCode::invalid_argument,
                         "format: mixed_halves is %d; use 1..12, and what mixed_keys() sets beside it",
                         format.mixed_halves);
  return {};
}

ASYMKV_NAMESPACE_END
