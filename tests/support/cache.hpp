// cache.hpp: filling a cache and looking into it: tokens, stored bytes, what reads back. Used by the tests of caches.
#pragma once

#include "support/support.hpp"

namespace support {

constexpr Index kHeads = 2, kDim = 48;
constexpr CacheShape kShape{1, kHeads, kDim, kDim};

struct Tokens {
  RowMatrix keys, values;
  Tokens(Index n, unsigned seed, const CacheShape& shape = kShape)
      : keys(random_matrix(n, shape.kv_heads * shape.key_dim, seed)),
        values(random_matrix(n, shape.kv_heads * shape.value_dim, seed + 1)) {}
};

inline AsymKVCache make_cache(std::string_view policy, const CacheOptions& options = {},
                              const CacheShape& shape = kShape) {
  Result<AsymKVPolicy> formats = AsymKVPolicy::parse(policy, shape.layers);
  EXPECT_TRUE(formats.ok()) << formats.status().message();
  Result<AsymKVCache> cache = AsymKVCache::create(shape, *formats, options);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return std::move(*cache);
}

inline Status try_append(KVCache& cache, const Tokens& tokens, Index first, Index count, Index layer = 0) {
  const Index heads = cache.shape().kv_heads;
  return cache.append(layer, tensor(tokens.keys.middleRows(first, count), heads),
                      tensor(tokens.values.middleRows(first, count), heads));
}

inline void append(KVCache& cache, const Tokens& tokens, Index first, Index count, Index layer = 0) {
  const Status status = try_append(cache, tokens, first, count, layer);
  ASSERT_TRUE(status.ok()) << status.message();
}

inline void append_in_chunks(KVCache& cache, const Tokens& tokens, Index first, Index end, Index chunk) {
  for (; first < end; first += chunk) append(cache, tokens, first, std::min(chunk, end - first));
}

inline RowMatrix read(const KVCache& cache, Side side, Index head, Index first, Index count, Index layer = 0) {
  const bool keys = side == Side::keys;
  RowMatrix out(count, keys ? cache.shape().key_dim : cache.shape().value_dim);
  const Status status =
      keys ? cache.keys(layer, head, first, tensor(out)) : cache.values(layer, head, first, tensor(out));
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

inline void add_bits(std::vector<std::uint32_t>& bits, const RowMatrix& x) {
  for (Index i = 0; i < x.size(); ++i) bits.push_back(float_bits(x.data()[i]));
}

/// All that a caller can see of a cache, bit for bit: of every layer its length, the keys and values of all heads, and
/// the output of one attention.
inline std::vector<std::uint32_t> everything_seen(KVCache& cache) {
  const CacheShape& shape = cache.shape();
  const RowMatrix queries = random_matrix(3, 2 * shape.kv_heads * shape.key_dim, 77);
  RowMatrix output(3, 2 * shape.kv_heads * shape.value_dim);
  std::vector<std::uint32_t> seen;
  for (Index layer = 0; layer < shape.layers; ++layer) {
    seen.push_back(std::uint32_t(cache.length(layer)));
    for (Index head = 0; head < shape.kv_heads; ++head)
      for (Side side : {Side::keys, Side::values})
        add_bits(seen, read(cache, side, head, 0, cache.length(layer), layer));
    const Status status = cache.attend(layer, tensor(queries, 2 * shape.kv_heads), tensor(output, 2 * shape.kv_heads));
    EXPECT_TRUE(status.ok()) << status.message();
    add_bits(seen, output);
  }
  return seen;
}

/// Expects an error of this code whose message begins with the name of the argument.
inline void expect_error(const Status& status, ErrorCode code, const char* argument) {
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_EQ(std::strncmp(status.message(), argument, std::strlen(argument)), 0) << status.message();
}

}  // namespace support
