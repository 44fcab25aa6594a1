// asym_kv_cache.hpp: the cache of the paper: keys and values of each layer in the formats that a policy gives them.
#pragma once

#include "asymkv/cache/sequence_cache.hpp"
#include "asymkv/policy.hpp"

ASYMKV_NAMESPACE_BEGIN

/// One sequence's cache under an AsymKVPolicy. Packed sides quantize tokens as they leave the residual window: after n
/// tokens beyond the policy's sinks and seal(), floor(n/R)*R keys and max(0, n-R) values are sealed, however they came.
/// After trim(n) into sealed tokens these keep their codes, and R counts anew from token n for keys.
class AsymKVCache final : public detail::SequenceCache {
 public:
  /// policy.num_layers() must equal shape.layers. Errors: invalid_argument (shape, policy, options, or an unknown
  /// ASYMKV_FORCE_ISA), unsupported (an instruction set that this machine
  /// lacks, mixed widths for key_dim above 256), out_of_memory.
  static Result<AsymKVCache> create(const CacheShape& shape, const AsymKVPolicy& policy,
                                    const CacheOptions& options = {}) noexcept {
    if (policy.num_layers() != shape.layers)
      return Status::error(ErrorCode::invalid_argument, "policy: is for %lld layers, the shape has %lld",
                           detail::number(policy.num_layers()), detail::number(shape.layers));
    AsymKVCache cache;
    Status status = cache.initialize(shape, options, [&](Index layer, Side side) {
      SideConfig config;
      config.format = side == Side::keys ? policy.layer(layer).keys : policy.layer(layer).values;
      config.sink_length = policy.sink_length();
      config.type = config.format.bits == 16 ? ScalarType::f16 : ScalarType::f32;
      return config;
    });
    if (!status.ok()) return status;
    return cache;
  }

 private:
  AsymKVCache() noexcept = default;
};

ASYMKV_NAMESPACE_END
