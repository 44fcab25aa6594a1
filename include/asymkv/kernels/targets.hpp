// targets.hpp: compiles the one kernel text once per instruction set. The regions let a unit built without any -m flag
// hold AVX2, AVX-512 and dot-product code; no header is included inside one. Used by dispatch.hpp alone.
#pragma once

#include <limits>
#include <type_traits>

#include "asymkv/kernels/table.hpp"
#include "asymkv/quantize/hadamard.hpp"

#if defined(__x86_64__)
#define ASYMKV_X86 1
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns from inside its own AVX-512 header
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#else
#define ASYMKV_X86 0
#endif

#if defined(__aarch64__) && defined(__ARM_NEON)
#define ASYMKV_NEON 1
#include <arm_neon.h>
#else
#define ASYMKV_NEON 0
#endif
// Clang 14 declares the dot products only where the whole unit may use them
#if ASYMKV_NEON && (defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__))
#define ASYMKV_NEONDOT 1
#else
#define ASYMKV_NEONDOT 0
#endif

// Target names of each instruction set, with all that it comes after
#define ASYMKV_TARGET_AVX2 "avx2,fma,f16c,popcnt"
#define ASYMKV_TARGET_AVXVNNI "avx2,fma,f16c,popcnt,avxvnni"
#define ASYMKV_TARGET_AVX512 "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl"
#define ASYMKV_TARGET_AVX512VNNI "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,gfni"
#define ASYMKV_TARGET_AMX "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,gfni,amx-tile,amx-bf16"
#define ASYMKV_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ASYMKV_UNROLL_FULLY _Pragma("clang loop unroll(full)")
#define ASYMKV_REGION(names) ASYMKV_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define ASYMKV_REGION_END _Pragma("clang attribute pop")
#else
#define ASYMKV_UNROLL_FULLY _Pragma("GCC unroll 16")
#define ASYMKV_REGION(names) _Pragma("GCC push_options") ASYMKV_PRAGMA(GCC target(names))
#define ASYMKV_REGION_END _Pragma("GCC pop_options")
#endif
#if defined(__ARM_FEATURE_DOTPROD)  // as the unit is, which may have more than the region would
#define ASYMKV_REGION_NEONDOT
#define ASYMKV_REGION_NEONDOT_END
#else
// GCC 12's dot products want the architecture named, +dotprod alone is not enough
#define ASYMKV_REGION_NEONDOT _Pragma("GCC push_options") _Pragma("GCC target(\"arch=armv8.2-a+dotprod\")")
#define ASYMKV_REGION_NEONDOT_END ASYMKV_REGION_END
#endif

ASYMKV_NAMESPACE_BEGIN
namespace kernels {

/// The carry before the first of coarse bytes (dot.inl). Even over the first 8, 16 and 32 lanes, and over those that 16
/// elements of a row take, so that of many elements too small for a byte about as many as their sum says become 1.
inline constexpr std::int16_t first_carries[32] = {2,  66, 34, 98,  18, 82, 50, 114, 26, 90, 58, 122, 10, 74, 42, 106,
                                                   14, 78, 46, 110, 30, 94, 62, 126, 22, 86, 54, 118, 6,  70, 38, 102};

#define ASYMKV_UNROLL  // a lane each would be unrolled too
#define ASYMKV_INLINE inline
namespace scalar {
constexpr Isa kIsa = Isa::scalar;
// clang-format off
#include "asymkv/kernels/simd/scalar.hpp"
#include "asymkv/kernels/simd/byte_fields.hpp"
#include "asymkv/kernels/text/all.inl"
// clang-format on
}  // namespace scalar
#undef ASYMKV_UNROLL
#define ASYMKV_UNROLL ASYMKV_UNROLL_FULLY

#if ASYMKV_X86

ASYMKV_REGION(ASYMKV_TARGET_AVX2)
namespace avx2 {
constexpr Isa kIsa = Isa::avx2;
// clang-format off
#include "asymkv/kernels/simd/avx2.hpp"
#include "asymkv/kernels/simd/byte_fields.hpp"
#include "asymkv/kernels/simd/avx2_products.hpp"
#include "asymkv/kernels/text/all.inl"
// clang-format on
}  // namespace avx2
ASYMKV_REGION_END

ASYMKV_REGION(ASYMKV_TARGET_AVXVNNI)
namespace avxvnni {
constexpr Isa kIsa = Isa::avxvnni;
// clang-format off
#include "asymkv/kernels/simd/avx2.hpp"
#include "asymkv/kernels/simd/byte_fields.hpp"
#include "asymkv/kernels/simd/avxvnni_products.hpp"
#include "asymkv/kernels/text/dequantize.inl"
#include "asymkv/kernels/text/dot.inl"
// clang-format on
inline constexpr Table table = avx2::table.with_few_rows(kIsa, few_rows_product);
}  // namespace avxvnni
ASYMKV_REGION_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

ASYMKV_REGION(ASYMKV_TARGET_AVX512)
namespace avx512 {
constexpr Isa kIsa = Isa::avx512;
// clang-format off
#include "asymkv/kernels/simd/avx512.hpp"
#include "asymkv/kernels/simd/byte_fields.hpp"
#include "asymkv/kernels/simd/avx512_products.hpp"
#include "asymkv/kernels/text/all.inl"
// clang-format on
}  // namespace avx512
ASYMKV_REGION_END

ASYMKV_REGION(ASYMKV_TARGET_AVX512VNNI)
namespace avx512vnni {
constexpr Isa kIsa = Isa::avx512vnni;
// clang-format off
#include "asymkv/kernels/simd/avx512.hpp"
#include "asymkv/kernels/simd/gfni_byte_fields.hpp"
#include "asymkv/kernels/simd/avx512vnni_products.hpp"
#include "asymkv/kernels/text/dequantize.inl"
#include "asymkv/kernels/text/dot.inl"
// clang-format on
inline constexpr Table table = avx512::table.with_few_rows(kIsa, few_rows_product);
}  // namespace avx512vnni
ASYMKV_REGION_END

ASYMKV_REGION(ASYMKV_TARGET_AMX)
namespace amx {
constexpr Isa kIsa = Isa::amx;
// clang-format off
#include "asymkv/kernels/simd/avx512.hpp"
#include "asymkv/kernels/simd/gfni_byte_fields.hpp"
#include "asymkv/kernels/simd/amx.hpp"
#include "asymkv/kernels/text/dequantize.inl"
#include "asymkv/kernels/text/matrix.inl"
// clang-format on
inline constexpr Table table = avx512vnni::table.with_many_rows(kIsa, many_rows_product);
}  // namespace amx
ASYMKV_REGION_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif

// Vectors of four registers make functions that are called in the midst of sums too long for GCC's taste
#undef ASYMKV_INLINE
#define ASYMKV_INLINE __attribute__((always_inline)) inline

#if ASYMKV_NEON

namespace neon {
constexpr Isa kIsa = Isa::neon;
// clang-format off
#include "asymkv/kernels/simd/neon.hpp"
#include "asymkv/kernels/simd/byte_fields.hpp"
#include "asymkv/kernels/simd/neon_products.hpp"
#include "asymkv/kernels/text/all.inl"
// clang-format on
}  // namespace neon

#endif

#if ASYMKV_NEONDOT

ASYMKV_REGION_NEONDOT
namespace neondot {
constexpr Isa kIsa = Isa::neondot;
// clang-format off
#include "asymkv/kernels/simd/neon.hpp"
#include "asymkv/kernels/simd/byte_fields.hpp"
#include "asymkv/kernels/simd/neondot_products.hpp"
#include "asymkv/kernels/text/dequantize.inl"
#include "asymkv/kernels/text/dot.inl"
// clang-format on
inline constexpr Table table = neon::table.with_few_rows(kIsa, few_rows_product);
}  // namespace neondot
ASYMKV_REGION_NEONDOT_END

#endif

}  // namespace kernels
ASYMKV_NAMESPACE_END
