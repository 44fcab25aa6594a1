// cpu.hpp: which instruction sets the processor and the operating system offer. Reads cpuid and XCR0 itself: a set of
// registers that the system does not save must not be used, and compilers' builtins differ. On aarch64 the system is
// asked, since programs cannot read the processor's own registers. Used by dispatch.hpp.
#pragma once

#include "asymkv/kernels/targets.hpp"
#if ASYMKV_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if ASYMKV_NEONDOT && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif ASYMKV_NEONDOT && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

ASYMKV_NAMESPACE_BEGIN
namespace kernels {

/// Registers that decide: cpuid leaf 1 ecx, leaf 7 ebx, ecx and edx, subleaf 1 of it eax, and XCR0 (0 without OSXSAVE).
struct CpuidWords {
  std::uint32_t leaf1_ecx = 0;
  std::uint32_t leaf7_ebx = 0;
  std::uint32_t leaf7_ecx = 0;
  std::uint32_t leaf7_edx = 0;
  std::uint32_t leaf7_1_eax = 0;
  std::uint64_t xcr0 = 0;
};

/// Bit `isa` is set where the instruction set can be used; scalar always can.
constexpr std::uint32_t decode_isas(const CpuidWords& words) noexcept {
  constexpr std::uint32_t fma_popcnt_osxsave_avx_f16c = 1u << 12 | 1u << 23 | 1u << 27 | 1u << 28 | 1u << 29;
  constexpr std::uint32_t avx2 = 1u << 5, avxvnni = 1u << 4;
  constexpr std::uint32_t avx512_f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  constexpr std::uint32_t avx512_gfni_vnni = 1u << 8 | 1u << 11;
  constexpr std::uint32_t amx_bf16_tile = 1u << 22 | 1u << 24;
  constexpr std::uint64_t ymm_saved = 0x06, zmm_saved = 0xe6, tiles_saved = 0x60000;
  const auto bit = [](Isa isa) { return 1u << int(isa); };
  std::uint32_t isas = bit(Isa::scalar);
  if ((words.leaf1_ecx & fma_popcnt_osxsave_avx_f16c) != fma_popcnt_osxsave_avx_f16c) return isas;
  if ((words.leaf7_ebx & avx2) == 0 || (words.xcr0 & ymm_saved) != ymm_saved) return isas;
  isas |= bit(Isa::avx2);
  if ((words.leaf7_1_eax & avxvnni) != 0) isas |= bit(Isa::avxvnni);
  if ((words.leaf7_ebx & avx512_f_dq_bw_vl) != avx512_f_dq_bw_vl) return isas;
  if ((words.xcr0 & zmm_saved) != zmm_saved) return isas;
  isas |= bit(Isa::avx512);
  if ((words.leaf7_ecx & avx512_gfni_vnni) != avx512_gfni_vnni) return isas;
  isas |= bit(Isa::avx512vnni);
  if ((words.leaf7_edx & amx_bf16_tile) != amx_bf16_tile || (words.xcr0 & tiles_saved) != tiles_saved) return isas;
  return isas | bit(Isa::amx);
}

inline CpuidWords read_cpuid() noexcept {
  CpuidWords words;
#if ASYMKV_X86
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return words;
  words.leaf1_ecx = ecx;
  if (ecx & 1u << 27) {
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    words.xcr0 = std::uint64_t(high) << 32 | low;
  }
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return words;
  words.leaf7_ebx = ebx;
  words.leaf7_ecx = ecx;
  words.leaf7_edx = edx;
  if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) words.leaf7_1_eax = eax;
#endif
  return words;
}

/// Linux lets a process use tile registers once it has asked, any number of times: signal frames grow by 8 KiB then. It
/// refuses where an alternate signal stack is too small for that, and refuses such stacks afterwards.
inline bool may_use_tiles() noexcept {
#if ASYMKV_X86 && defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

/// The same of aarch64; neither where the kernels are not compiled in.
constexpr std::uint32_t decode_aarch64_isas(bool neon, bool dot_products) noexcept {
  std::uint32_t isas = 1u << int(Isa::scalar);
  if (!neon) return isas;
  isas |= 1u << int(Isa::neon);
  return dot_products ? isas | 1u << int(Isa::neondot) : isas;
}

/// False, too, where this unit has no use for them.
inline bool has_dot_products() noexcept {
#if !ASYMKV_NEONDOT
  return false;
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  int has = 0;
  std::size_t bytes = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &bytes, nullptr, 0) == 0 && has != 0;
#elif defined(__ARM_FEATURE_DOTPROD)
  return true;
#else
  return false;
#endif
}

/// Of this machine.
inline std::uint32_t read_isas() noexcept {
#if ASYMKV_X86
  return decode_isas(read_cpuid());
#else
  return decode_aarch64_isas(ASYMKV_NEON, has_dot_products());
#endif
}

}  // namespace kernels
ASYMKV_NAMESPACE_END
