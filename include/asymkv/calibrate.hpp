// calibrate.hpp: lets the machine choose the bits: from a recorded text, the formats of each layer's keys and values
// that do the least damage within a budget of bytes. Included beside asymkv.hpp by who calibrates, which is done once,
// offline: an engine that serves needs the policy's name alone.
#pragma once

#include <atomic>
#include <functional>

#include "asymkv/calibrate/measure.hpp"

ASYMKV_NAMESPACE_BEGIN

/// The formats that are tried for every layer's keys and values: those of the presets and what lies between them.
struct Candidates {
  std::vector<Format> keys, values;

  /// Mixed widths of 0.5 to 5 bits in halves, and rotated symmetric values of 1 to 4 bits. For key_dim above 256,
  /// where there are no mixed widths, fitted keys of 1 to 4 bits.
  static Candidates standard(const CacheShape& shape) {
    Candidates candidates;
    for (int halves = 1; halves <= 10 && shape.key_dim <= mixed_depth_limit; ++halves)
      candidates.keys.push_back(Format::mixed_keys(halves));
    for (int bits = 1; bits <= 4; ++bits) {
      if (shape.key_dim > mixed_depth_limit) candidates.keys.push_back({bits, 128, Fit::fitted, Metadata::compact});
      candidates.values.push_back(Format::rotated_values(bits));
    }
    return candidates;
  }
};

/// What policies do to the model's output, e.g. the mean divergence of its next-token distributions from those of a
/// float cache: one number a policy, at least 0, of which doubling means twice the damage. All policies come in one
/// call, so that the engine may run them side by side.
using ModelDamage = std::function<Result<std::vector<double>>(const std::vector<AsymKVPolicy>&)>;

struct CalibrationOptions {
  double budget_bits = 1.3;  ///< all-in bits an element that the policy may take, 0..64
  MeasureOptions measure;    ///< its sink_length is the policy's, too
  Candidates candidates;     ///< empty: Candidates::standard()
  /// Where it is set, it is asked about 2 * layers policies (probes) that have one side of one layer in its probe
  /// format, all else in f32, and every curve is scaled so that it goes through the answer. Else a layer counts by its
  /// relative attention error, as if all layers mattered alike.
  ModelDamage model_damage;
  /// The candidates that probes use, as indices; by default the cheapest: the largest effect is the clearest.
  std::size_t key_probe = 0, value_probe = 0;
  /// Calls job(0) .. job(count-1), in any order, from any threads; the default calls one after the other.
  std::function<void(Index count, const std::function<void(Index)>& job)> run = [](Index count, const auto& job) {
    for (Index i = 0; i < count; ++i) job(i);
  };
  /// Told after each of the curves is measured, from the thread that did it.
  std::function<void(Index done, Index total)> progress = [](Index, Index) {};
};

/// What was measured and what follows from it.
struct Calibration {
  AsymKVPolicy policy;
  std::vector<Curve> curves;        ///< layer 0's keys, its values, layer 1's keys, ...
  std::vector<std::size_t> points;  ///< of each curve the one in the policy
  Index bytes = 0, budget = 0;      ///< of a page of 128 tokens of all layers

  /// The sum over the chosen points: what the policy should do to the model, if damages add up.
  double predicted_damage() const noexcept {
    double sum = 0;
    for (std::size_t i = 0; i < curves.size(); ++i) sum += curves[i].points[points[i]].damage;
    return sum;
  }
};

namespace detail {

inline Status check_options(const std::vector<Recorder>& recordings, const CalibrationOptions& options) {
  const MeasureOptions& measure = options.measure;
  if (recordings.empty()) return Status::error(ErrorCode::invalid_argument, "recordings: there is none");
  if (measure.chunk < 1 || measure.skip < 0)
    return Status::error(ErrorCode::invalid_argument, "options: chunk is %lld and skip %lld; use 1 and 0 or more",
                         number(measure.chunk), number(measure.skip));
  if (!(options.budget_bits >= 0.0 && options.budget_bits <= 64.0))
    return Status::error(ErrorCode::invalid_argument, "options: budget_bits is %g; use 0..64", options.budget_bits);
  const CacheShape& shape = recordings[0].shape();
  for (const Recorder& recording : recordings) {
    const CacheShape& s = recording.shape();
    if (s.layers != shape.layers || s.kv_heads != shape.kv_heads || s.key_dim != shape.key_dim ||
        s.value_dim != shape.value_dim || recording.heads() != recordings[0].heads())
      return Status::error(ErrorCode::invalid_argument, "recordings: are of different shapes");
    for (Index layer = 0; layer < s.layers; ++layer)
      if (recording.length(layer) <= measure.skip)
        return Status::error(ErrorCode::invalid_argument,
                             "recordings: layer %lld has %lld tokens; it needs more than the skipped %lld",
                             number(layer), number(recording.length(layer)), number(measure.skip));
  }
  return {};
}

/// The first error of jobs that run side by side: of the least index, so that it is the same in every run.
inline Status first_error(const std::vector<Status>& statuses) {
  for (const Status& status : statuses)
    if (!status.ok()) return status;
  return {};
}

/// The candidates of every side of every layer, without damage yet.
inline std::vector<Curve> make_curves(const CalibrationOptions& options, const CacheShape& shape) {
  const Candidates standard = Candidates::standard(shape);
  const std::vector<Format>* const formats[] = {
      options.candidates.keys.empty() ? &standard.keys : &options.candidates.keys,
      options.candidates.values.empty() ? &standard.values : &options.candidates.values};
  std::vector<Curve> curves;
  for (Index layer = 0; layer < shape.layers; ++layer)
    for (const Side side : {Side::keys, Side::values}) {
      curves.push_back({layer, side, {}});
      for (const Format& format : *formats[int(side)]) curves.back().points.push_back({format, 0.0});
    }
  return curves;
}

inline Status measure_curves(const std::vector<Recorder>& recordings, const CalibrationOptions& options,
                             std::vector<Curve>& curves) {
  std::vector<Status> statuses(curves.size());
  std::atomic<Index> done{0};
  options.run(Index(curves.size()), [&](Index i) {
    statuses[std::size_t(i)] = measure_curve(recordings, options.measure, curves[std::size_t(i)]);
    options.progress(++done, Index(curves.size()));
  });
  return first_error(statuses);
}

/// A policy for each curve: its side of its layer in the probe's format, all else in f32. Damages of such probes add up
/// to that of the whole within 1.5 times (examples/llm/README.md); small changes of a policy that is coarse already
/// would be differences of large numbers.
inline Result<std::vector<AsymKVPolicy>> make_probes(const std::vector<Curve>& curves,
                                                     const CalibrationOptions& options) {
  std::vector<AsymKVPolicy> probes;
  for (const Curve& curve : curves) {
    const bool keys = curve.side == Side::keys;
    const std::size_t probe = keys ? options.key_probe : options.value_probe;
    if (probe >= curve.points.size())
      return Status::error(ErrorCode::invalid_argument, "options: %s is %zu, but there are %zu candidates",
                           keys ? "key_probe" : "value_probe", probe, curve.points.size());
    std::vector<LayerFormat> layers(curves.size() / 2, LayerFormat{Format{32}, Format{32}});
    LayerFormat& layer = layers[std::size_t(curve.layer)];
    (keys ? layer.keys : layer.values) = curve.points[probe].format;
    Result<AsymKVPolicy> policy = AsymKVPolicy::table(std::move(layers));
    if (policy.ok()) policy = policy->with_sinks(options.measure.sink_length);
    if (!policy.ok()) return policy.status();
    probes.push_back(std::move(*policy));
  }
  return probes;
}

/// Scales each curve so that its probe has the damage that the model showed.
inline Status scale_curves(std::vector<Curve>& curves, const CalibrationOptions& options) {
  const Result<std::vector<AsymKVPolicy>> probes = make_probes(curves, options);
  if (!probes.ok()) return probes.status();
  const Result<std::vector<double>> damage = options.model_damage(*probes);
  if (!damage.ok()) return damage.status();
  if (damage->size() != curves.size())
    return Status::error(ErrorCode::invalid_argument, "model_damage: %zu numbers for %zu policies", damage->size(),
                         curves.size());
  for (std::size_t i = 0; i < curves.size(); ++i) {
    const double own = curves[i].points[curves[i].side == Side::keys ? options.key_probe : options.value_probe].damage;
    const double scale = own > 0 ? std::max((*damage)[i], 0.0) / own : 0.0;  // rounding may leave a sum of 0 below it
    for (CurvePoint& point : curves[i].points) point.damage *= scale;
  }
  return {};
}

}  // namespace detail

/// Measures every candidate on every side of every layer of the recordings, and chooses those that together do the
/// least damage in the budget, which is never exceeded by a byte. Deterministic, however `run` orders its jobs, as far
/// as model_damage is. Time: attention over all recordings, (key + value candidates + 2) times, and the probes. Errors:
/// invalid_argument, out_of_range (a budget below the cheapest candidates), what caches return for recorded numbers,
/// what model_damage returns.
inline Result<Calibration> calibrate(const std::vector<Recorder>& recordings, const CalibrationOptions& options) {
  if (Status status = detail::check_options(recordings, options); !status.ok()) return status;
  const CacheShape& shape = recordings[0].shape();
  const Index budget = budget_bytes(options.budget_bits, shape);
  std::vector<Curve> curves = detail::make_curves(options, shape);
  Result<std::vector<std::size_t>> points = choose_points(curves, shape, budget);  // errors show before minutes pass
  if (!points.ok()) return points.status();
  if (Status status = detail::measure_curves(recordings, options, curves); !status.ok()) return status;
  if (options.model_damage)
    if (Status status = detail::scale_curves(curves, options); !status.ok()) return status;
  points = choose_points(curves, shape, budget);
  if (!points.ok()) return points.status();
  Result<AsymKVPolicy> policy = policy_of(curves, *points, options.measure.sink_length);
  if (!policy.ok()) return policy.status();
  const Index bytes = policy->bytes(shape, page_tokens);
  return Calibration{std::move(*policy), std::move(curves), std::move(*points), bytes, budget};
}

ASYMKV_NAMESPACE_END
