// config.hpp: version, supported compilers, and the namespace that every declaration of the library lives in.
// Included first by every other header.
#pragma once

#define ASYMKV_VERSION_MAJOR 0
#define ASYMKV_VERSION_MINOR 1
#define ASYMKV_VERSION_PATCH 0

#if defined(_MSC_VER) && !defined(__clang__)
#error "asymkv: MSVC is not supported; use GCC 12 or newer, or Clang 14 or newer"
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "asymkv: packed pages are little-endian; this target is not"
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "asymkv: -ffast-math removes the NaN and infinity checks and changes codes; build without it"
#endif

// Two units built with different -m flags may meet in one program. Plain inline functions would then be merged by the
// linker, and the generic unit could run the AVX-512 one. So the inline namespace carries the version and one mark for
// each flag that changes code: a mix is separate symbols, or a link error, never an illegal instruction.
#if defined(__SSE4_2__)
#define ASYMKV_MARK_SSE42 _sse42
#else
#define ASYMKV_MARK_SSE42
#endif
#if defined(__AVX__)
#define ASYMKV_MARK_AVX _avx
#else
#define ASYMKV_MARK_AVX
#endif
#if defined(__F16C__)
#define ASYMKV_MARK_F16C _f16c
#else
#define ASYMKV_MARK_F16C
#endif
#if defined(__FMA__)
#define ASYMKV_MARK_FMA _fma
#else
#define ASYMKV_MARK_FMA
#endif
#if defined(__AVX2__)
#define ASYMKV_MARK_AVX2 _avx2
#else
#define ASYMKV_MARK_AVX2
#endif
#if defined(__BMI2__)
#define ASYMKV_MARK_BMI2 _bmi2
#else
#define ASYMKV_MARK_BMI2
#endif
#if defined(__AVX512F__)
#define ASYMKV_MARK_AVX512F _avx512f
#else
#define ASYMKV_MARK_AVX512F
#endif
#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ASYMKV_MARK_AVX512X _avx512x
#else
#define ASYMKV_MARK_AVX512X
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define ASYMKV_MARK_VNNI _vnni
#else
#define ASYMKV_MARK_VNNI
#endif
#if defined(__AVX512BF16__) || defined(__AVX512FP16__)
#define ASYMKV_MARK_16 _x16
#else
#define ASYMKV_MARK_16
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define ASYMKV_MARK_DOT _dot
#else
#define ASYMKV_MARK_DOT
#endif

#define ASYMKV_PASTE_(v, a, b, c, d, e, f, g, h, i, j, k) v##a##b##c##d##e##f##g##h##i##j##k
#define ASYMKV_PASTE(v, a, b, c, d, e, f, g, h, i, j, k) ASYMKV_PASTE_(v, a, b, c, d, e, f, g, h, i, j, k)
#define ASYMKV_ABI                                                                                            \
  ASYMKV_PASTE(v0_1, ASYMKV_MARK_SSE42, ASYMKV_MARK_AVX, ASYMKV_MARK_F16C, ASYMKV_MARK_FMA, ASYMKV_MARK_AVX2, \
               ASYMKV_MARK_BMI2, ASYMKV_MARK_AVX512F, ASYMKV_MARK_AVX512X, ASYMKV_MARK_VNNI, ASYMKV_MARK_16,  \
               ASYMKV_MARK_DOT)

#define ASYMKV_NAMESPACE_BEGIN \
  namespace asymkv {           \
  inline namespace ASYMKV_ABI {
#define ASYMKV_NAMESPACE_END \
  }                          \
  }
