// abi.hpp: the name of the library's inline namespace. Included by config.hpp alone.
//
// Two units built with different -m flags may meet in one program. Plain inline functions would then be merged by the
// linker, and the generic unit could run the AVX-512 one. So the name carries the version and one mark for each flag
// that changes code: a mix is separate symbols, or a link error, never an illegal instruction.
#pragma once

#define ASYMKV_JOIN_(a, b, c, d) a##b##c##d
#define ASYMKV_JOIN(a, b, c, d) ASYMKV_JOIN_(a, b, c, d)

#if defined(__SSE3__)
#define ASYMKV_MARK_SSE3 _sse3
#else
#define ASYMKV_MARK_SSE3
#endif
#if defined(__SSSE3__)
#define ASYMKV_MARK_SSSE3 _ssse3
#else
#define ASYMKV_MARK_SSSE3
#endif
#if defined(__SSE4_1__)
#define ASYMKV_MARK_SSE4_1 _sse41
#else
#define ASYMKV_MARK_SSE4_1
#endif
#if defined(__SSE4_2__)
#define ASYMKV_MARK_SSE4_2 _sse42
#else
#define ASYMKV_MARK_SSE4_2
#endif
#if defined(__POPCNT__)
#define ASYMKV_MARK_POPCNT _popcnt
#else
#define ASYMKV_MARK_POPCNT
#endif
#if defined(__LZCNT__)
#define ASYMKV_MARK_LZCNT _lzcnt
#else
#define ASYMKV_MARK_LZCNT
#endif
#if defined(__BMI__)
#define ASYMKV_MARK_BMI _bmi
#else
#define ASYMKV_MARK_BMI
#endif
#if defined(__BMI2__)
#define ASYMKV_MARK_BMI2 _bmi2
#else
#define ASYMKV_MARK_BMI2
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
#if defined(__FMA4__)
#define ASYMKV_MARK_FMA4 _fma4
#else
#define ASYMKV_MARK_FMA4
#endif
#if defined(__XOP__)
#define ASYMKV_MARK_XOP _xop
#else
#define ASYMKV_MARK_XOP
#endif
#if defined(__AVX2__)
#define ASYMKV_MARK_AVX2 _avx2
#else
#define ASYMKV_MARK_AVX2
#endif
#if defined(__AVXVNNI__)
#define ASYMKV_MARK_AVXVNNI _avxvnni
#else
#define ASYMKV_MARK_AVXVNNI
#endif
#if defined(__GFNI__)
#define ASYMKV_MARK_GFNI _gfni
#else
#define ASYMKV_MARK_GFNI
#endif
#if defined(__AVX512F__)
#define ASYMKV_MARK_AVX512F _f
#else
#define ASYMKV_MARK_AVX512F
#endif
#if defined(__AVX512BW__)
#define ASYMKV_MARK_AVX512BW _bw
#else
#define ASYMKV_MARK_AVX512BW
#endif
#if defined(__AVX512DQ__)
#define ASYMKV_MARK_AVX512DQ _dq
#else
#define ASYMKV_MARK_AVX512DQ
#endif
#if defined(__AVX512VL__)
#define ASYMKV_MARK_AVX512VL _vl
#else
#define ASYMKV_MARK_AVX512VL
#endif
#if defined(__AVX512CD__)
#define ASYMKV_MARK_AVX512CD _cd
#else
#define ASYMKV_MARK_AVX512CD
#endif
#if defined(__AVX512IFMA__)
#define ASYMKV_MARK_AVX512IFMA _ifma
#else
#define ASYMKV_MARK_AVX512IFMA
#endif
#if defined(__AVX512VBMI__)
#define ASYMKV_MARK_AVX512VBMI _vbmi
#else
#define ASYMKV_MARK_AVX512VBMI
#endif
#if defined(__AVX512VBMI2__)
#define ASYMKV_MARK_AVX512VBMI2 _vbmi2
#else
#define ASYMKV_MARK_AVX512VBMI2
#endif
#if defined(__AVX512BITALG__)
#define ASYMKV_MARK_AVX512BITALG _bitalg
#else
#define ASYMKV_MARK_AVX512BITALG
#endif
#if defined(__AVX512VPOPCNTDQ__)
#define ASYMKV_MARK_AVX512VPOPCNTDQ _vpopcnt
#else
#define ASYMKV_MARK_AVX512VPOPCNTDQ
#endif
#if defined(__AVX512VNNI__)
#define ASYMKV_MARK_AVX512VNNI _vnni
#else
#define ASYMKV_MARK_AVX512VNNI
#endif
#if defined(__AVX512BF16__)
#define ASYMKV_MARK_AVX512BF16 _bf16
#else
#define ASYMKV_MARK_AVX512BF16
#endif
#if defined(__AVX512FP16__)
#define ASYMKV_MARK_AVX512FP16 _fp16
#else
#define ASYMKV_MARK_AVX512FP16
#endif
#if defined(__ARM_FEATURE_ATOMICS)
#define ASYMKV_MARK_ARM_ATOMICS _lse
#else
#define ASYMKV_MARK_ARM_ATOMICS
#endif
#if defined(__ARM_FEATURE_RCPC)
#define ASYMKV_MARK_ARM_RCPC _rcpc
#else
#define ASYMKV_MARK_ARM_RCPC
#endif
#if defined(__ARM_FEATURE_QRDMX)
#define ASYMKV_MARK_ARM_QRDMX _rdm
#else
#define ASYMKV_MARK_ARM_QRDMX
#endif
#if defined(__ARM_FEATURE_COMPLEX)
#define ASYMKV_MARK_ARM_COMPLEX _fcma
#else
#define ASYMKV_MARK_ARM_COMPLEX
#endif
#if defined(__ARM_FEATURE_FRINT)
#define ASYMKV_MARK_ARM_FRINT _frint
#else
#define ASYMKV_MARK_ARM_FRINT
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define ASYMKV_MARK_ARM_DOTPROD _dot
#else
#define ASYMKV_MARK_ARM_DOTPROD
#endif
#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#define ASYMKV_MARK_ARM_FP16_VECTOR_ARITHMETIC _vfp16
#else
#define ASYMKV_MARK_ARM_FP16_VECTOR_ARITHMETIC
#endif
#if defined(__ARM_FEATURE_FP16_FML)
#define ASYMKV_MARK_ARM_FP16_FML _fhm
#else
#define ASYMKV_MARK_ARM_FP16_FML
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define ASYMKV_MARK_ARM_BF16 _bf16
#else
#define ASYMKV_MARK_ARM_BF16
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define ASYMKV_MARK_ARM_MATMUL_INT8 _i8mm
#else
#define ASYMKV_MARK_ARM_MATMUL_INT8
#endif
#if defined(__ARM_FEATURE_SVE)
#define ASYMKV_MARK_ARM_SVE _sve
#else
#define ASYMKV_MARK_ARM_SVE
#endif
#if defined(__ARM_FEATURE_SVE2)
#define ASYMKV_MARK_ARM_SVE2 _sve2
#else
#define ASYMKV_MARK_ARM_SVE2
#endif
#if defined(__ARM_FEATURE_MOPS)
#define ASYMKV_MARK_ARM_MOPS _mops
#else
#define ASYMKV_MARK_ARM_MOPS
#endif
#if defined(__ARM_FEATURE_CSSC)
#define ASYMKV_MARK_ARM_CSSC _cssc
#else
#define ASYMKV_MARK_ARM_CSSC
#endif

#define ASYMKV_MARKS_0 ASYMKV_JOIN(ASYMKV_MARK_SSE3, ASYMKV_MARK_SSSE3, ASYMKV_MARK_SSE4_1, ASYMKV_MARK_SSE4_2)
#define ASYMKV_MARKS_1 ASYMKV_JOIN(ASYMKV_MARK_POPCNT, ASYMKV_MARK_LZCNT, ASYMKV_MARK_BMI, ASYMKV_MARK_BMI2)
#define ASYMKV_MARKS_2 ASYMKV_JOIN(ASYMKV_MARK_AVX, ASYMKV_MARK_F16C, ASYMKV_MARK_FMA, ASYMKV_MARK_FMA4)
#define ASYMKV_MARKS_3 ASYMKV_JOIN(ASYMKV_MARK_XOP, ASYMKV_MARK_AVX2, ASYMKV_MARK_AVXVNNI, ASYMKV_MARK_GFNI)
#define ASYMKV_MARKS_4 \
  ASYMKV_JOIN(ASYMKV_MARK_AVX512F, ASYMKV_MARK_AVX512BW, ASYMKV_MARK_AVX512DQ, ASYMKV_MARK_AVX512VL)
#define ASYMKV_MARKS_5 \
  ASYMKV_JOIN(ASYMKV_MARK_AVX512CD, ASYMKV_MARK_AVX512IFMA, ASYMKV_MARK_AVX512VBMI, ASYMKV_MARK_AVX512VBMI2)
#define ASYMKV_MARKS_6 \
  ASYMKV_JOIN(ASYMKV_MARK_AVX512BITALG, ASYMKV_MARK_AVX512VPOPCNTDQ, ASYMKV_MARK_AVX512VNNI, ASYMKV_MARK_AVX512BF16)
#define ASYMKV_MARKS_7 ASYMKV_MARK_AVX512FP16
#define ASYMKV_MARKS_8 \
  ASYMKV_JOIN(ASYMKV_MARK_ARM_ATOMICS, ASYMKV_MARK_ARM_RCPC, ASYMKV_MARK_ARM_QRDMX, ASYMKV_MARK_ARM_COMPLEX)
#define ASYMKV_MARKS_9                                                                                \
  ASYMKV_JOIN(ASYMKV_MARK_ARM_FRINT, ASYMKV_MARK_ARM_DOTPROD, ASYMKV_MARK_ARM_FP16_VECTOR_ARITHMETIC, \
              ASYMKV_MARK_ARM_FP16_FML)
#define ASYMKV_MARKS_10 \
  ASYMKV_JOIN(ASYMKV_MARK_ARM_BF16, ASYMKV_MARK_ARM_MATMUL_INT8, ASYMKV_MARK_ARM_SVE, ASYMKV_MARK_ARM_SVE2)
#define ASYMKV_MARKS_11 ASYMKV_JOIN(ASYMKV_MARK_ARM_MOPS, ASYMKV_MARK_ARM_CSSC, , )
#define ASYMKV_MARKS_LOW ASYMKV_JOIN(ASYMKV_MARKS_0, ASYMKV_MARKS_1, ASYMKV_MARKS_2, ASYMKV_MARKS_3)
#define ASYMKV_MARKS_HIGH ASYMKV_JOIN(ASYMKV_MARKS_4, ASYMKV_MARKS_5, ASYMKV_MARKS_6, ASYMKV_MARKS_7)
#define ASYMKV_MARKS_ARM ASYMKV_JOIN(ASYMKV_MARKS_8, ASYMKV_MARKS_9, ASYMKV_MARKS_10, ASYMKV_MARKS_11)
#define ASYMKV_ABI ASYMKV_JOIN(v0_3, ASYMKV_MARKS_LOW, ASYMKV_MARKS_HIGH, ASYMKV_MARKS_ARM)
