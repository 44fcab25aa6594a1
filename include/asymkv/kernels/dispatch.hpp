// dispatch.hpp: chooses the kernel table: the best instruction set of the machine, or the one that the environment
// variable ASYMKV_FORCE_ISA names. Used by the caches and the quantizers.
#pragma once

#include <atomic>
#include <cstdlib>

#include "asymkv/kernels/cpu.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace kernels {

/// Instruction sets of this machine, a bit each. Read once: cpuid traps under virtualisation.
inline std::uint32_t available_isas() noexcept {
  static std::atomic<std::uint32_t> known{0};
  std::uint32_t isas = known.load(std::memory_order_relaxed);
  if (isas == 0) {
    isas = read_isas();
    known.store(isas, std::memory_order_relaxed);
  }
  return isas;
}

// One unit may compile the kernels for all: it defines ASYMKV_COMPILE_KERNELS, the others ASYMKV_COMPILED_KERNELS.
// Weak, since a program may have several parts that each do so.
#if defined(ASYMKV_COMPILE_KERNELS)
#define ASYMKV_KERNELS_LINKAGE __attribute__((weak, visibility("default")))
#else
#define ASYMKV_KERNELS_LINKAGE inline
#endif
#if defined(ASYMKV_COMPILED_KERNELS) && !defined(ASYMKV_COMPILE_KERNELS)
const Table* table_of(Isa isa) noexcept;
#else
ASYMKV_KERNELS_LINKAGE const Table* table_of(Isa isa) noexcept {
  switch (isa) {
#if ASYMKV_X86
    case Isa::amx:
      return &amx::table;
    case Isa::avx512vnni:
      return &avx512vnni::table;
    case Isa::avx512:
      return &avx512::table;
    case Isa::avxvnni:
      return &avxvnni::table;
    case Isa::avx2:
      return &avx2::table;
#endif
#if ASYMKV_NEON
    case Isa::neon:
      return &neon::table;
#endif
#if ASYMKV_NEONDOT
    case Isa::neondot:
      return &neondot::table;
#endif
    default:
      return &scalar::table;
  }
}
#endif
#undef ASYMKV_KERNELS_LINKAGE

}  // namespace kernels

/// Of this machine and this build. Linux is asked to allow amx when it is asked for here, and by caches that may use
/// it.
inline bool isa_supported(Isa isa) noexcept {
  return (kernels::available_isas() >> int(isa) & 1u) != 0 && (isa != Isa::amx || kernels::may_use_tiles());
}

namespace kernels {

/// Null where the environment names no instruction set.
inline const char* forced_isa() noexcept {
  const char* const forced = std::getenv("ASYMKV_FORCE_ISA");
  return forced == nullptr || forced[0] == '\0' ? nullptr : forced;
}

/// Errors: invalid_argument (ASYMKV_FORCE_ISA names nothing known), unsupported (this machine or this build lacks it).
inline Result<const Table*> choose_table() noexcept {
  const char* const forced = forced_isa();
  for (int i = isa_count - 1; i >= 0; --i) {
    const Isa isa = Isa(i);
    if (forced == nullptr) {
      if (isa_supported(isa)) return table_of(isa);
    } else if (std::strcmp(forced, isa_name(isa)) == 0) {
      if (isa_supported(isa)) return table_of(isa);
      return Status::error(ErrorCode::unsupported, "ASYMKV_FORCE_ISA: this machine, or this build, has no %s", forced);
    }
  }
  return Status::error(ErrorCode::invalid_argument,
                       "ASYMKV_FORCE_ISA: '%.32s' is none of scalar, avx2, avxvnni, avx512, avx512vnni, amx, neon, "
                       "neondot",
                       forced);
}

}  // namespace kernels
ASYMKV_NAMESPACE_END
