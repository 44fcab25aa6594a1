// two_heads.hpp: caches of one layer with two heads of 80 channels, and tokens for them: what tests of formats fill and
// look into.
#pragma once

#include "support/support.hpp"

namespace support {

using namespace asymkv;

constexpr Index kHeads = 2, kDim = 80;
constexpr CacheShape kShape{1, kHeads, kDim, kDim};

inline AsymKVCache make_cache(const std::string& policy) {
  Result<AsymKVPolicy> formats = AsymKVPolicy::parse(policy, 1);
  EXPECT_TRUE(formats.ok()) << formats.status().message();
  Result<AsymKVCache> cache = AsymKVCache::create(kShape, *formats);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return std::move(*cache);
}

struct Tokens {
  RowMatrix keys, values;
  explicit Tokens(Index n) : keys(random_matrix(n, kHeads * kDim, 5)), values(random_matrix(n, kHeads * kDim, 6)) {}
  void append_to(KVCache& cache, Index first, Index count) const {
    const RowMatrix k = keys.middleRows(first, count), v = values.middleRows(first, count);
    const Status status = cache.append(0, tensor(k, kHeads), tensor(v, kHeads));
    ASSERT_TRUE(status.ok()) << status.message();
  }
};

inline RowMatrix read(const KVCache& cache, Side side, Index head, Index first, Index count) {
  RowMatrix out(count, kDim);
  const Status status =
      side == Side::keys ? cache.keys(0, head, first, tensor(out)) : cache.values(0, head, first, tensor(out));
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

}  // namespace support
