// dense_kv_cache.hpp: the baseline: a cache that keeps every token as T.
#pragma once

#include "asymkv/cache/sequence_cache.hpp"

ASYMKV_NAMESPACE_BEGIN

/// One sequence's cache in float, Eigen::half or Eigen::bfloat16; input of other types is converted when appended.
template <class T>
class DenseKVCache final : public detail::SequenceCache {
 public:
  /// Errors: as AsymKVCache::create.
  static Result<DenseKVCache> create(const CacheShape& shape, const CacheOptions& options = {}) noexcept {
    DenseKVCache cache;
    if (Status status = cache.initialize(shape, options, kind); !status.ok()) return status;
    return cache;
  }

  /// As AsymKVCache::bytes_required.
  static Result<Index> bytes_required(const CacheShape& shape, const CacheOptions& options,
                                      const Growth& growth) noexcept {
    return SequenceCache::bytes_required(shape, options, growth, kind);
  }

  /// As AsymKVCache::load. States of an AsymKVCache without sinks that stores all layers as T can be loaded too.
  static Result<DenseKVCache> load(const ByteSource& source, const CacheShape& shape,
                                   const CacheOptions& options = {}) noexcept {
    Result<DenseKVCache> cache = create(shape, options);
    if (!cache.ok()) return cache;
    if (Status status = cache->restore(source, "element type"); !status.ok()) return status;
    return cache;
  }

  /// A sequence that goes on from here on its own, with a copy of all tokens: nothing is sealed, so nothing is shared.
  /// Errors: out_of_memory, out_of_range (moved from).
  Result<DenseKVCache> fork() const noexcept {
    DenseKVCache cache;
    if (Status status = cache.initialize_fork(*this); !status.ok()) return status;
    return cache;
  }

 private:
  DenseKVCache() noexcept = default;

  static SideConfig kind(Index, Side) noexcept {
    SideConfig config;
    config.type = ScalarTypeOf<T>::value;
    config.format.bits = int(8 * scalar_bytes(config.type));
    return config;
  }
};

ASYMKV_NAMESPACE_END
