// calibration.cpp: the engine's part of asymkv::calibrate: recording, asking the model, and threads. A probe quantizes
// one layer: what happens below it, and before anything is quantized, is taken from the float run instead of computed,
// which saves more than half the time.
#include "calibration.hpp"

#include <algorithm>
#include <asymkv/asymkv.hpp>
#include <asymkv/yaml/kvtuner.hpp>

#include "eval.hpp"
#include "jobs.hpp"
#include "policy_cache.hpp"
#include "recording_cache.hpp"
#include "statistics.hpp"
#include "table.hpp"

namespace llm {
namespace {

constexpr Index residual_length = chunk_tokens;

/// A chunk of the float run.
struct Chunk {
  Index first = 0, count = 0, judged_from = 0;
  std::vector<Matrix> residuals;  ///< what each layer took
  Matrix expected;                ///< log-probabilities after the judged tokens
};

/// The float run of the windows; the same index for both.
struct FloatRun {
  std::vector<asymkv::Recorder> recordings;
  std::vector<std::vector<Chunk>> chunks;
};

std::vector<Chunk> run_window(const Model& model, const CalibrateOptions& options, const Token* tokens,
                              Decoder& decoder, RecordingCache& cache) {
  std::vector<Chunk> chunks;
  for (Index first = 0; first < options.context; first += options.chunk) {
    Chunk& chunk = chunks.emplace_back();
    chunk.first = first;
    chunk.count = std::min(options.chunk, options.context - first);
    chunk.judged_from = std::clamp(options.skip - first, Index(0), chunk.count);
    chunk.residuals.resize(std::size_t(model.shape.layers));
    decoder.keep_residuals(&chunk.residuals);
    decoder.feed(tokens + first, chunk.count, cache, chunk.judged_from).swap(chunk.expected);
    to_log_probabilities(chunk.expected);
  }
  decoder.keep_residuals(nullptr);
  return chunks;
}

FloatRun run_float(const Model& model, const std::vector<Token>& text, const CalibrateOptions& options,
                   std::FILE* progress) {
  std::vector<std::unique_ptr<RecordingCache>> caches(std::size_t(options.windows));
  for (auto& cache : caches)
    cache = std::make_unique<RecordingCache>(model.shape.cache_shape(), model.shape.heads, options.context);
  FloatRun run;
  run.chunks.resize(caches.size());
  Progress line(progress, "calibrate", "windows recorded", options.windows);
  run_jobs(model, options.windows, [&](Decoder& decoder, Index window) {
    const Token* tokens = text.data() + (options.first_window + window) * options.context;
    run.chunks[std::size_t(window)] = run_window(model, options, tokens, decoder, *caches[std::size_t(window)]);
    line.step();
  });
  for (auto& cache : caches) run.recordings.push_back(cache->take_recorder());
  return run;
}

/// The first layer that a policy quantizes; what is below it computes as in float.
Index first_quantized(const asymkv::AsymKVPolicy& policy) {
  const asymkv::LayerFormat exact{asymkv::Format{32}, asymkv::Format{32}};
  asymkv::Index layer = 0;
  while (layer + 1 < policy.num_layers() && policy.layer(layer) == exact) ++layer;
  return Index(layer);
}

/// Summed divergence of a policy from the float run over a window's judged positions.
double window_divergence(const FloatRun& run, Index window, const asymkv::AsymKVPolicy& policy, Decoder& decoder) {
  const asymkv::Recorder& recording = run.recordings[std::size_t(window)];
  const auto cache = make_cache(policy.name(), recording.shape(), recording.length(0), residual_length);
  const Index bottom = first_quantized(policy);
  double sum = 0;
  for (const Chunk& chunk : run.chunks[std::size_t(window)]) {
    if (chunk.first < residual_length) {  // nothing is sealed yet, with any number of sinks
      for (Index layer = bottom; layer < recording.shape().layers; ++layer)
        require(cache->append(layer, recording.keys(layer, chunk.first, chunk.count),
                              recording.values(layer, chunk.first, chunk.count)));
      continue;
    }
    Matrix& found =
        decoder.resume(bottom, chunk.residuals[std::size_t(bottom)], chunk.first, *cache, chunk.judged_from);
    to_log_probabilities(found);
    for (Index i = 0; i < found.rows(); ++i)
      sum += divergence(chunk.expected.row(i).transpose().array(), found.row(i).transpose().array());
  }
  return sum;
}

/// The mean divergence of each policy; sums are added in the order of the windows.
std::vector<double> mean_divergences(const Model& model, const FloatRun& run, const CalibrateOptions& options,
                                     const std::vector<asymkv::AsymKVPolicy>& policies, std::FILE* progress) {
  const Index count = Index(policies.size());
  std::vector<double> sums(std::size_t(count * options.windows)), means(policies.size());
  Progress line(progress, "calibrate", "probes", Index(sums.size()));
  run_jobs(model, Index(sums.size()), [&](Decoder& decoder, Index job) {
    sums[std::size_t(job)] = window_divergence(run, job / count, policies[std::size_t(job % count)], decoder);
    line.step();
  });
  const double positions = double(options.windows * (options.context - options.skip));
  for (std::size_t i = 0; i < sums.size(); ++i) means[i % policies.size()] += sums[i] / positions;
  return means;
}

std::string name_of(const asymkv::LayerFormat& layer) { return asymkv::AsymKVPolicy::table({layer})->name(); }

}  // namespace

asymkv::Calibration calibrate(const Model& model, const std::vector<Token>& text, const CalibrateOptions& options,
                              std::FILE* progress) {
  EvalOptions windows;
  windows.first_window = options.first_window;
  windows.windows = options.windows;
  windows.context = options.context;
  windows.skip = options.skip;
  windows.chunk = options.chunk;
  check_windows(model, text, windows);
  const FloatRun run = run_float(model, text, options, progress);

  asymkv::CalibrationOptions calibration;
  calibration.budget_bits = options.budget_bits;
  calibration.measure.residual_length = residual_length;
  calibration.measure.chunk = options.chunk;
  calibration.measure.skip = options.skip;
  calibration.run = [&](asymkv::Index count, const std::function<void(asymkv::Index)>& job) {
    run_jobs(model, Index(count), [&](Decoder&, Index i) { job(i); });
  };
  Progress line(progress, "calibrate", "curves", 2 * model.shape.layers);
  calibration.progress = [&](asymkv::Index, asymkv::Index) { line.step(); };
  calibration.model_damage = [&](const std::vector<asymkv::AsymKVPolicy>& probes) {
    return mean_divergences(model, run, options, probes, progress);
  };
  auto result = asymkv::calibrate(run.recordings, calibration);
  require(result.status());
  return std::move(*result);
}

std::string to_table(const asymkv::Calibration& calibration, const asymkv::CacheShape& shape) {
  char cell[120];
  std::string table = "layer  format                    damage of keys  of values\n";
  for (asymkv::Index layer = 0; layer < calibration.policy.num_layers(); ++layer) {
    const auto damage = [&](asymkv::Index side) {
      const std::size_t i = std::size_t(2 * layer + side);
      return calibration.curves[i].points[calibration.points[i]].damage;
    };
    std::snprintf(cell, sizeof cell, "%5lld  ", (long long)layer);
    table += cell + padded(name_of(calibration.policy.layer(layer)), 24);
    std::snprintf(cell, sizeof cell, "  %14.6f %10.6f\n", damage(0), damage(1));
    table += cell;
  }
  std::snprintf(cell, sizeof cell, "sum of damages %.5f, %.4f all-in bits, %lld of %lld bytes a page of all layers\n",
                calibration.predicted_damage(), calibration.policy.all_in_bits(shape), (long long)calibration.bytes,
                (long long)calibration.budget);
  return table + cell + calibration.policy.name() + "\n";
}

std::string to_yaml(const asymkv::AsymKVPolicy& policy) {
  std::string text = asymkv::write_kvtuner(policy);
  text.pop_back();
  return text;
}

}  // namespace llm
