// calibration.cpp: the engine's part of asymkv::calibrate: recording, asking the model, and threads.
#include "calibration.hpp"

#include <algorithm>
#include <asymkv/yaml/kvtuner.hpp>

#include "eval.hpp"
#include "jobs.hpp"
#include "recording_cache.hpp"
#include "table.hpp"

namespace llm {
namespace {

EvalOptions eval_options(const CalibrateOptions& options) {
  EvalOptions eval;
  eval.first_window = options.first_window;
  eval.windows = options.windows;
  eval.context = options.context;
  eval.skip = options.skip;
  eval.chunk = options.chunk;
  return eval;
}

std::vector<asymkv::Recorder> record(const Model& model, const std::vector<Token>& text,
                                     const CalibrateOptions& options, std::FILE* progress) {
  const asymkv::CacheShape shape = model.shape.cache_shape();
  std::vector<std::unique_ptr<RecordingCache>> caches(std::size_t(options.windows));
  for (auto& cache : caches) cache = std::make_unique<RecordingCache>(shape, model.shape.heads, options.context);
  Progress line(progress, "calibrate", "windows recorded", options.windows);
  run_jobs(model, options.windows, [&](Decoder& decoder, Index window) {
    const Token* tokens = text.data() + (options.first_window + window) * options.context;
    for (Index i = 0; i < options.context; i += options.chunk) {
      const Index count = std::min(options.chunk, options.context - i);
      decoder.feed(tokens + i, count, *caches[std::size_t(window)], count);
    }
    line.step();
  });
  std::vector<asymkv::Recorder> recordings;
  for (auto& cache : caches) recordings.push_back(cache->take_recorder());
  return recordings;
}

std::string name_of(const asymkv::LayerFormat& layer) { return asymkv::AsymKVPolicy::table({layer})->name(); }

/// The mean divergence of each policy on the windows.
std::vector<double> divergences(const Model& model, const std::vector<Token>& text, EvalOptions options,
                                const std::vector<asymkv::AsymKVPolicy>& policies, std::FILE* progress) {
  for (const asymkv::AsymKVPolicy& policy : policies) options.policies.push_back(policy.name());
  std::vector<double> damage;
  for (const EvalResult& result : evaluate(model, text, options, progress)) damage.push_back(result.kld_mean);
  return damage;
}

}  // namespace

asymkv::Calibration calibrate(const Model& model, const std::vector<Token>& text, const CalibrateOptions& options,
                              std::FILE* progress) {
  check_windows(model, text, eval_options(options));
  const std::vector<asymkv::Recorder> recordings = record(model, text, options, progress);
  asymkv::CalibrationOptions calibration;
  calibration.budget_bits = options.budget_bits;
  calibration.measure.chunk = options.chunk;
  calibration.measure.skip = options.skip;
  calibration.run = [&](asymkv::Index count, const std::function<void(asymkv::Index)>& job) {
    run_jobs(model, Index(count), [&](Decoder&, Index i) { job(i); });
  };
  Progress line(progress, "calibrate", "curves measured", 2 * model.shape.layers);
  calibration.progress = [&](asymkv::Index, asymkv::Index) { line.step(); };
  calibration.model_damage = [&](const std::vector<asymkv::AsymKVPolicy>& probes) {
    return divergences(model, text, eval_options(options), probes, progress);
  };
  auto result = asymkv::calibrate(recordings, calibration);
  require(result.status());
  return std::move(*result);
}

std::string to_table(const asymkv::Calibration& calibration, const asymkv::CacheShape& shape) {
  char cell[80];
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
  std::snprintf(cell, sizeof cell, "predicted divergence %.5f, %.4f all-in bits, %lld of %lld bytes a page\n",
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
