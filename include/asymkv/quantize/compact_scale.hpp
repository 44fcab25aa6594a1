// compact_scale.hpp: the scales of Metadata::compact: 8 bits, a power of 2^(1/8), so at most 4.4% off, over 31 octaves;
// code 0 is a scale of 0 (below 1.6e-5). The same on every instruction set. Used by the panels and, to round scales, by
// the quantizers.
#pragma once

#include "asymkv/scalar.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// 2^(i/8), and 2^((2i+1)/16), where the next of them is nearer.
constexpr float compact_mantissas[8] = {0x1.000000p0f, 0x1.172b84p0f, 0x1.306fe0p0f, 0x1.4bfdaep0f,
                                        0x1.6a09e6p0f, 0x1.8ace54p0f, 0x1.ae89fap0f, 0x1.d5818ep0f};
constexpr float compact_thresholds[8] = {0x1.0b5586p0f, 0x1.2387a6p0f, 0x1.3dea64p0f, 0x1.5ab07ep0f,
                                         0x1.7a1148p0f, 0x1.9c4918p0f, 0x1.c199bep0f, 0x1.ea4afap0f};

struct CompactScales {
  float value[256];
  constexpr CompactScales() : value() {
    float octave = 0x1p-16f;
    for (int code = 0; code < 256; ++code) {
      value[code] = compact_mantissas[code % 8] * octave;
      if (code % 8 == 7) octave *= 2.0f;
    }
    value[0] = 0.0f;
  }
};

}  // namespace detail

/// The scale of each code: 0, then 2^(code/8 - 16).
inline constexpr detail::CompactScales compact_scales;

/// Code of a scale that is one of compact_scales, 0 being +0: 2^(i/8), i < 8, lies above 1 + (i-1)/8 and not above 1 +
/// i/8, so the exponent and the first three bits of the mantissa, rounded up, count eighths of octaves.
inline std::uint8_t compact_code(float scale) noexcept {
  const std::uint32_t eighths = (float_bits(scale) + 0xfffffu) >> 20;
  return static_cast<std::uint8_t>(eighths == 0 ? 0 : eighths - 8 * (127 - 16));
}

ASYMKV_NAMESPACE_END
