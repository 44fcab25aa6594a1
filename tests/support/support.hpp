// support.hpp: what the tests share: forcing an instruction set, random tensors, an allocator that counts and fails.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <asymkv/asymkv.hpp>
#include <cstdlib>
#include <random>
#include <vector>

namespace support {

using namespace asymkv;
using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline std::vector<Isa> machine_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i < asymkv::isa_count; ++i)
    if (asymkv::isa_supported(Isa(i))) isas.push_back(Isa(i));
  return isas;
}

/// Forces an instruction set until the end of its scope.
class ForcedIsa {
 public:
  explicit ForcedIsa(const char* name) { setenv("ASYMKV_FORCE_ISA", name, 1); }
  explicit ForcedIsa(Isa isa) : ForcedIsa(asymkv::isa_name(isa)) {}
  ~ForcedIsa() { unsetenv("ASYMKV_FORCE_ISA"); }
};

/// Normal numbers with a few large channels, as real keys have.
inline RowMatrix random_matrix(Index rows, Index columns, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  RowMatrix m(rows, columns);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) m(i, j) = normal(generator) * (j % 13 == 5 ? 6.0f : 1.0f);
  return m;
}

/// The pages of a layer and how many tokens each has.
inline std::vector<unsigned char> sealed_bytes(const AsymKVCache& cache, Index layer = 0) {
  std::vector<unsigned char> bytes;
  for (Side side : {Side::keys, Side::values}) {
    const PageTable& pages = cache.side(layer, side).pages();
    for (Index i = 0; i < pages.size(); ++i) {
      const unsigned char* const data = pages[i].data();
      bytes.insert(bytes.end(), data, data + pages.heads() * pages.format(i).panel_bytes);
      bytes.push_back(static_cast<unsigned char>(pages[i].count));
    }
  }
  return bytes;
}

/// Counts what it hands out; fails from the `fail_at`-th call on where that is not negative.
struct CountingAllocator {
  Index bytes = 0;
  Index calls = 0;
  Index fail_at = -1;
  Index peak = 0;  ///< most bytes so far

  asymkv::Allocator allocator() {
    asymkv::Allocator a;
    a.context = this;
    a.allocate = [](void* context, std::size_t size) -> void* {
      auto* self = static_cast<CountingAllocator*>(context);
      if (self->fail_at >= 0 && self->calls >= self->fail_at) return nullptr;
      ++self->calls;
      self->bytes += Index(size);
      self->peak = std::max(self->peak, self->bytes);
      return std::aligned_alloc(64, (size + 63) / 64 * 64);
    };
    a.deallocate = [](void* context, void* memory, std::size_t size) {
      static_cast<CountingAllocator*>(context)->bytes -= Index(size);
      std::free(memory);
    };
    return a;
  }
};

}  // namespace support
