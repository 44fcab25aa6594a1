// describe.hpp: what saved state is of, from its first bytes: enough to create the cache that loads it. For tools and
// engines.
#pragma once

#include <optional>

#include "asymkv/policy.hpp"
#include "asymkv/state/load.hpp"

ASYMKV_NAMESPACE_BEGIN

/// What load() needs, and what is in the state. Two caches load it where two are named.
struct StateDescription {
  CacheShape shape;
  std::optional<AsymKVPolicy> policy;  ///< of the AsymKVCache that loads it; none where all is bf16
  std::optional<ScalarType> dense;     ///< the DenseKVCache that loads it has elements of this type
  Index residual_length = 0;
  Index rollback_tokens = 0;
  Index length = 0;  ///< tokens of the shortest layer
  Index bytes = 0;   ///< of the whole state
};

/// Reads the state's header and formats, which are checked, and nothing behind them. Errors: stream_failed,
/// corrupt_state, unsupported (a newer version).
inline Result<StateDescription> describe_state(const ByteSource& source) {
  detail::StateReader reader(source);
  detail::StateHeader header;
  if (Status status = detail::load_header(reader, header); !status.ok()) return status;
  std::vector<LayerFormat> layers(std::size_t(header.shape.layers));
  std::optional<ScalarType> dense;
  bool uniform = header.sink_length == 0, halves = true;
  Status status =
      detail::load_formats(reader, header.shape.layers, [&](Index layer, Side side, const detail::StateFormat& f) {
        (side == Side::keys ? layers[std::size_t(layer)].keys : layers[std::size_t(layer)].values) = f.format;
        uniform = uniform && !f.format.packed() && f.type == dense.value_or(f.type);
        halves = halves && (f.format.packed() || f.type != ScalarType::bf16);
        dense = f.type;
      });
  if (!status.ok()) return status;
  StateDescription description;
  description.shape = header.shape;
  description.residual_length = header.residual_length;
  description.rollback_tokens = header.rollback_tokens;
  description.length = header.length;
  description.bytes = header.bytes;
  if (uniform) description.dense = dense;
  if (!halves) return description;
  Result<AsymKVPolicy> policy = AsymKVPolicy::table(std::move(layers));
  if (policy.ok()) policy = policy->with_sinks(header.sink_length);
  if (!policy.ok())
    return Status::error(ErrorCode::corrupt_state, "state: no policy is like its: %s", policy.status().message());
  description.policy = *std::move(policy);
  return description;
}

ASYMKV_NAMESPACE_END
