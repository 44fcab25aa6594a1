// options.hpp: what may be chosen about a cache beside its shape and policy, and what becomes of it in each side of
// each layer. Used by SequenceCache and bytes_required.
#pragma once

#include "asymkv/attention/workspace.hpp"
#include "asymkv/cache/sealing.hpp"

ASYMKV_NAMESPACE_BEGIN

/// What may be chosen about a cache beside its shape and policy.
struct CacheOptions {
  /// R of the paper: most recent tokens kept in full precision; a multiple of every group size in use, at least 1.
  Index residual_length = 128;
  /// Sides in f16 and f32 get the memory of so many tokens, 0..2^32, with their first append: one block a side. More
  /// tokens get theirs as they come. Packed sides take page after page; PagePool has a block for all of them.
  Index reserve_tokens = 0;
  Allocator allocator;
  /// Threads that may share the attention of a layer (KVCache::attend_slice), 1..1024; each has working memory. With 1,
  /// attend_parallel runs on the calling thread alone, however many a pool has.
  Index threads = 1;
  /// Working memory to be shared with other caches, which then take turns as forks do; one of the cache's own where it
  /// is empty. `threads` then does not matter.
  Workspace workspace = {};
  /// The last so many tokens (0..2^32) stay in full precision even where they are sealed, and what R needs beside them,
  /// so that trim() by up to so many undoes their sealing: the cache then is as if it had been appended to token by
  /// token up to there (what is due then is sealed by the next append, as ever). For drafts that may be rejected.
  /// Deeper trims unseal what still can be, and cut the rest. Takes room for so many tokens and R more in every packed
  /// side, from the first append on.
  Index rollback_tokens = 0;
};

namespace detail {

inline Status check_options(const CacheOptions& options, const CacheShape& shape) noexcept {
  constexpr Index most = Index(1) << 32;
  if (options.reserve_tokens < 0 || options.reserve_tokens > most)
    return Status::error(ErrorCode::invalid_argument, "options: reserve_tokens is %lld; use 0..2^32",
                         number(options.reserve_tokens));
  if (options.residual_length < 1 || options.residual_length > most)
    return Status::error(ErrorCode::invalid_argument, "options: residual_length is %lld; use 1..2^32",
                         number(options.residual_length));
  if (options.rollback_tokens < 0 || options.rollback_tokens > most)
    return Status::error(ErrorCode::invalid_argument, "options: rollback_tokens is %lld; use 0..2^32",
                         number(options.rollback_tokens));
  if (options.workspace.threads() == 0 && (options.threads < 1 || options.threads > 1024))
    return Status::error(ErrorCode::invalid_argument, "options: threads is %lld; use 1..1024", number(options.threads));
  if (options.workspace.threads() > 0 && !options.workspace.fits(shape))
    return Status::error(ErrorCode::invalid_argument,
                         "options: workspace: must be made for key_dim %lld, value_dim %lld", number(shape.key_dim),
                         number(shape.value_dim));
  if (options.allocator.allocate == nullptr || options.allocator.deallocate == nullptr)
    return Status::error(ErrorCode::invalid_argument, "options: allocator has a null function");
  return {};
}

/// A side's format, type and sinks with what shape and options say of it. Errors: invalid_argument, unsupported.
inline Result<SideConfig> side_config(SideConfig config, Index layer, Side side, const CacheShape& shape,
                                      const CacheOptions& options) noexcept {
  config.side = side;
  config.heads = shape.kv_heads;
  config.dim = side == Side::keys ? shape.key_dim : shape.value_dim;
  config.residual_length = options.residual_length;
  config.reserve_tokens = options.reserve_tokens;
  config.rollback_tokens = options.rollback_tokens;
  if (!config.format.packed()) return config;
  if (options.residual_length % config.format.group_size != 0)
    return Status::error(ErrorCode::invalid_argument,
                         "options: residual_length is %lld; layer %lld needs a multiple of its group size, %d",
                         number(options.residual_length), number(layer), config.format.group_size);
  if (config.format.mixed() && config.dim > mixed_depth_limit)
    return Status::error(ErrorCode::unsupported, "policy: layer %lld has mixed widths, for key_dim up to %lld alone",
                         number(layer), number(mixed_depth_limit));
  return config;
}

/// Of both sides of a layer.
struct LayerConfig {
  SideConfig keys, values;
};
inline Result<LayerConfig> layer_config(const SideConfig& keys, const SideConfig& values, Index layer,
                                        const CacheShape& shape, const CacheOptions& options) noexcept {
  const Result<SideConfig> of_keys = side_config(keys, layer, Side::keys, shape, options);
  if (!of_keys.ok()) return of_keys.status();
  const Result<SideConfig> of_values = side_config(values, layer, Side::values, shape, options);
  if (!of_values.ok()) return of_values.status();
  return LayerConfig{*of_keys, *of_values};
}

}  // namespace detail
ASYMKV_NAMESPACE_END
