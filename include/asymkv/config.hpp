// config.hpp: version, supported compilers, and the namespace that every declaration of the library lives in.
// Included first by every other header.
#pragma once

#define ASYMKV_VERSION_MAJOR 0
#define ASYMKV_VERSION_MINOR 3
#define ASYMKV_VERSION_PATCH 0

#if defined(_MSC_VER) && !defined(__clang__)
#error "asymkv: MSVC is not supported; use GCC 12 or newer, or Clang 14 or newer"
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "asymkv: packed pages are little-endian; this target is not"
#endif
#if !defined(__SIZEOF_POINTER__) || __SIZEOF_POINTER__ != 8
#error "asymkv: needs a 64-bit target"
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "asymkv: -ffast-math removes the NaN and infinity checks and changes codes; build without it"
#endif

#include "asymkv/abi.hpp"

#define ASYMKV_NAMESPACE_BEGIN \
  namespace asymkv {           \
  inline namespace ASYMKV_ABI {
#define ASYMKV_NAMESPACE_END \
  }                          \
  }
