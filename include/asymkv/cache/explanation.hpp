// explanation.hpp: how a layer is kept and attended: which kernels serve it and why, tokens and bytes by purpose. Used
// by SequenceCache::explain, for logs and for whoever wonders about speed or memory.
#pragma once

#include "asymkv/cache/side_store.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Of the keys, or the values, of one layer. Tokens: sinks + sealed + window are the layer's length, but for those
/// whose pages are removed.
struct SideExplanation {
  Format format;                       ///< of pages to come; bits 16 or 32 where nothing is quantized
  ScalarType dense = ScalarType::f32;  ///< of tokens in full precision
  Isa isa = Isa::scalar;               ///< of the kernels
  Index few_rows = 0;                  ///< queries x heads of a kv head that multiply with codes; 0: none do
  Index sinks = 0;                     ///< tokens in full precision for good
  Index sealed = 0;                    ///< tokens in pages
  Index window = 0;                    ///< tokens in full precision until they are sealed, or for good
  Index kept = 0;                      ///< sealed tokens that are in full precision too (rollback_tokens)
  Index pages = 0;                     ///< with shared and requantized ones
  Index shared_pages = 0;              ///< that forks hold too
  Index requantized_pages = 0;         ///< that have another format
  Index page_bytes = 0;                ///< of codes and metadata, shared pages included
  Index dense_bytes = 0;               ///< of sinks, window and kept tokens, room for more included
  char kernel[400] = {};               ///< one sentence, zero-terminated: which kernels, and why
};

/// Of one layer.
struct LayerExplanation {
  SideExplanation keys, values;
};

namespace detail {

/// What multiplies with codes.
inline const char* few_rows_kernel(Isa isa) noexcept {
  switch (isa) {
    case Isa::amx:
    case Isa::avx512vnni:
    case Isa::avxvnni:
    case Isa::neondot:
      return "with dot products of bytes";
    case Isa::scalar:
      return "one by one";
    default:
      return "with sums of products of neighbouring bytes";
  }
}

inline void describe_kernel(const kernels::Table& kernels, bool forced, SideExplanation& side) noexcept {
  const char* const why = forced ? "which ASYMKV_FORCE_ISA asks for" : "the best that this machine and build have";
  if (side.few_rows == 0) {
    std::snprintf(side.kernel, sizeof side.kernel, "%s, %s: tokens are kept in %s, and multiply in float",
                  isa_name(kernels.isa), why, scalar_name(side.dense));
    return;
  }
  const bool tiles = kernels.isa == Isa::amx;
  std::snprintf(
      side.kernel, sizeof side.kernel,
      "%s, %s: codes of %g bits multiply as whole numbers with up to %lld rows (query tokens x query heads of "
      "a kv head), %s%s; more rows multiply with dequantized tiles in %s; tokens in full precision are %s, and "
      "multiply in float",
      isa_name(kernels.isa), why, side.format.payload_bits(), number(side.few_rows), few_rows_kernel(kernels.isa),
      side.few_rows < kernels::few_rows ? ", which for 8 bits pay for no more" : "",
      tiles ? "tile registers, as pairs of bfloat16" : "float", scalar_name(side.dense));
}

inline SideExplanation explain_side(const kernels::Table& kernels, bool forced, const SideStore& store) noexcept {
  SideExplanation side;
  const Format& format = side.format = store.config().format;
  side.dense = store.dense().type();
  side.isa = kernels.isa;
  if (store.packed()) side.few_rows = kernels.few_rows_of(format);
  side.sinks = store.sinks().count();
  side.window = store.dense().count();
  side.kept = store.dense().kept();
  for (const Page& page : store.pages()) {
    side.sealed += page.end() - std::max(page.first, side.sinks);
    ++side.pages;
    side.shared_pages += page.memory.shared();
    side.requantized_pages += page.format != 0;
    side.page_bytes += page.memory.bytes();
  }
  side.dense_bytes = store.dense().bytes() + store.sinks().bytes();
  describe_kernel(kernels, forced, side);
  return side;
}

}  // namespace detail
ASYMKV_NAMESPACE_END
