// measure.hpp: what a format does to the attention output of recorded text, measured through the cache that will serve:
// pages, residual window, sinks and kernels are the real ones. Used by calibrate().
#pragma once

#include "asymkv/cache/asym_kv_cache.hpp"
#include "asymkv/calibrate/choose.hpp"
#include "asymkv/calibrate/recorder.hpp"

ASYMKV_NAMESPACE_BEGIN

/// How recorded text goes through the caches.
struct MeasureOptions {
  Index residual_length = 128;
  Index sink_length = 1;
  Index chunk = 128;  ///< tokens of a step; among themselves they attend exactly
  Index skip = 256;   ///< first queries of a recording that are not judged: they see little that is quantized
};

namespace detail {

/// Attention output [tokens, heads, value_dim] of one recorded layer through a cache of that format.
inline Result<std::vector<float>> attend_recorded(const Recorder& recorder, Index layer, const LayerFormat& format,
                                                  const MeasureOptions& options) {
  const CacheShape &whole = recorder.shape(), shape{1, whole.kv_heads, whole.key_dim, whole.value_dim};
  Result<AsymKVPolicy> policy = AsymKVPolicy::table({format});
  if (policy.ok()) policy = policy->with_sinks(options.sink_length);
  if (!policy.ok()) return policy.status();
  CacheOptions cache_options;
  cache_options.residual_length = options.residual_length;
  cache_options.reserve_tokens = recorder.length(layer);
  Result<AsymKVCache> cache = AsymKVCache::create(shape, *policy, cache_options);
  if (!cache.ok()) return cache.status();
  const Index length = recorder.length(layer), row = recorder.heads() * shape.value_dim;
  std::vector<float> output(std::size_t(length * row));
  for (Index first = 0; first < length; first += options.chunk) {
    const Index count = std::min(options.chunk, length - first);
    Status status = cache->append(0, recorder.keys(layer, first, count), recorder.values(layer, first, count));
    if (status.ok())
      status = cache->attend(0, recorder.queries(layer, first, count),
                             tensor(output.data() + first * row, count, recorder.heads(), shape.value_dim),
                             recorder.params(layer));
    if (!status.ok()) return status;
  }
  return output;
}

/// Sum of squares of a - b, or of a alone, from element `first` on.
inline double squared_distance(const std::vector<float>& a, const std::vector<float>* b, std::size_t first) noexcept {
  double sum = 0;
  for (std::size_t i = first; i < a.size(); ++i) {
    const double d = double(a[i]) - (b != nullptr ? double((*b)[i]) : 0.0);
    sum += d * d;
  }
  return sum;
}

inline LayerFormat with_side(const Format& format, Side side) noexcept {
  LayerFormat layer{Format{32}, Format{32}};
  (side == Side::keys ? layer.keys : layer.values) = format;
  return layer;
}

}  // namespace detail

/// Measures the points of a curve: the damage of a format is the relative squared error of the attention output, sum
/// |o - o'|^2 / sum |o|^2 over recordings, judged queries, heads and channels, where o' has this side of the layer in
/// that format, the other in f32, and o has both in f32. Thread-safe. Errors: invalid_argument (options, formats),
/// non_finite and overflow (of the recorded numbers), out_of_memory; unsupported (an instruction set, mixed widths).
inline Status measure_curve(const std::vector<Recorder>& recordings, const MeasureOptions& options, Curve& curve) {
  double reference = 0;
  for (CurvePoint& point : curve.points) point.damage = 0;
  for (const Recorder& recording : recordings) {
    const auto exact =
        detail::attend_recorded(recording, curve.layer, detail::with_side(Format{32}, curve.side), options);
    if (!exact.ok()) return exact.status();
    const std::size_t judged = std::size_t(options.skip * recording.heads() * recording.shape().value_dim);
    reference += detail::squared_distance(*exact, nullptr, judged);
    for (CurvePoint& point : curve.points) {
      const auto found =
          detail::attend_recorded(recording, curve.layer, detail::with_side(point.format, curve.side), options);
      if (!found.ok()) return found.status();
      point.damage += detail::squared_distance(*exact, &*found, judged);
    }
  }
  for (CurvePoint& point : curve.points) point.damage = reference > 0 ? point.damage / reference : 0.0;
  return {};
}

ASYMKV_NAMESPACE_END
