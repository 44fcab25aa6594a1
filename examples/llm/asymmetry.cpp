// asymmetry.cpp: a float cache that also records goes through the model; then every head is measured.
#include "asymmetry.hpp"

#include <algorithm>
#include <asymkv/quantize/quantizers.hpp>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "check_option.hpp"
#include "jobs.hpp"
#include "recording_cache.hpp"
#include "table.hpp"

namespace llm {
namespace {

/// Squared errors and what they are relative to.
struct Ratio {
  double error = 0, reference = 0;

  void add(const Matrix& found, const Matrix& exact) {
    error += double((found - exact).squaredNorm());
    reference += double(exact.squaredNorm());
  }
  void add(const Ratio& other) {
    error += other.error;
    reference += other.reference;
  }
  double root() const { return reference > 0 ? std::sqrt(error / reference) : 0.0; }
};

/// What a layer has collected.
struct Sums {
  Ratio keys, scores, weights, output_by_keys, values, output_by_values, output_by_equalized;

  void add(const Sums& other) {
    keys.add(other.keys);
    scores.add(other.scores);
    weights.add(other.weights);
    output_by_keys.add(other.output_by_keys);
    values.add(other.values);
    output_by_values.add(other.output_by_values);
    output_by_equalized.add(other.output_by_equalized);
  }
};

/// What KIVI-2 makes of a head's keys or values [tokens, dim].
template <class Quantizer>
Matrix quantized(const Matrix& exact) {
  const Quantizer quantizer;
  const auto codes = quantizer.quantize(exact);
  require(codes.status());
  Matrix result(exact.rows(), exact.cols());
  require(quantizer.dequantize(*codes, result));
  return result;
}

/// A head's keys or values, exact and quantized; `equalized` has the error scaled to a given relative size.
struct Quantized {
  Matrix exact, coarse;
  Ratio error;

  Quantized(Matrix x, Matrix quantized_x) : exact(std::move(x)), coarse(std::move(quantized_x)) {
    error.add(coarse, exact);
  }
  Matrix equalized(double relative_error) const {
    const double own = error.root();
    return exact + float(own > 0 ? relative_error / own : 0.0) * (coarse - exact);
  }
};

/// What query `i` of a score matrix sees, first..end: the queries are the last tokens.
struct Seen {
  Index first, end;

  Seen(const Matrix& scores, Index i, Index window) : first(0), end(scores.cols() - scores.rows() + i + 1) {
    if (window > 0) first = std::max(first, end - window);
  }
};

/// scale * Q K^T, with zeros where a query sees nothing.
Matrix causal_scores(const Matrix& queries, const Matrix& keys, const asymkv::AttentionParams& params) {
  Matrix scores = params.scale * (queries * keys.transpose());
  for (Index i = 0; i < scores.rows(); ++i) {
    const Seen seen(scores, i, params.window);
    scores.row(i).head(seen.first).setZero();
    scores.row(i).tail(scores.cols() - seen.end).setZero();
  }
  return scores;
}

/// The softmax of what each query sees.
Matrix causal_softmax(Matrix scores, Index window) {
  for (Index i = 0; i < scores.rows(); ++i) {
    const Seen seen(scores, i, window);
    auto weights = scores.row(i).segment(seen.first, seen.end - seen.first).array();
    weights = (weights - weights.maxCoeff()).exp();
    weights /= weights.sum();
  }
  return scores;
}

/// One query head: the errors on the way from keys and values to the output.
void measure_head(const Matrix& queries, const Quantized& keys, const Quantized& values,
                  const asymkv::AttentionParams& params, Sums& sums) {
  const Matrix scores = causal_scores(queries, keys.exact, params);
  const Matrix coarse_scores = causal_scores(queries, keys.coarse, params);
  sums.scores.add(coarse_scores, scores);
  const Matrix weights = causal_softmax(scores, params.window),
               coarse_weights = causal_softmax(coarse_scores, params.window);
  sums.weights.add(coarse_weights, weights);
  const Matrix output = weights * values.exact;
  sums.output_by_keys.add(coarse_weights * values.exact, output);
  sums.output_by_values.add(weights * values.coarse, output);
  sums.output_by_equalized.add(weights * values.equalized(keys.error.root()), output);
}

Quantized read_keys(const asymkv::KVCache& cache, Index layer, Index head) {
  Matrix exact(cache.length(layer), cache.shape().key_dim);
  require(cache.keys(layer, head, 0, asymkv::tensor(exact)));
  return Quantized(exact, quantized<asymkv::KeyQuantizer<2>>(exact));
}

Quantized read_values(const asymkv::KVCache& cache, Index layer, Index head) {
  Matrix exact(cache.length(layer), cache.shape().value_dim);
  require(cache.values(layer, head, 0, asymkv::tensor(exact)));
  return Quantized(exact, quantized<asymkv::ValueQuantizer<2>>(exact));
}

/// One layer of a window; queries before `skip` are left out.
Sums measure_layer(const RecordingCache& cache, Index layer, Index skip) {
  const asymkv::Recorder& recorder = cache.recorder();
  const Index dim = cache.shape().key_dim, heads = recorder.heads(), group = heads / cache.shape().kv_heads;
  const Index judged = recorder.length(layer) - skip;
  const Eigen::Map<const Matrix> queries(static_cast<const float*>(recorder.queries(layer, skip, judged).data), judged,
                                         heads * dim);
  asymkv::AttentionParams params = recorder.params(layer);
  if (params.scale == 0.0f) params.scale = 1.0f / std::sqrt(float(dim));
  Sums sums;
  for (Index kv_head = 0; kv_head < cache.shape().kv_heads; ++kv_head) {
    const Quantized keys = read_keys(cache, layer, kv_head), values = read_values(cache, layer, kv_head);
    sums.keys.add(keys.error);
    sums.values.add(values.error);
    for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head)
      measure_head(queries.middleCols(head * dim, dim), keys, values, params, sums);
  }
  return sums;
}

AsymmetryResult summarize(const Sums& sums) {
  AsymmetryResult result;
  result.key_error = sums.keys.root();
  result.score_error = sums.scores.root();
  result.weight_error = sums.weights.root();
  result.output_by_keys = sums.output_by_keys.root();
  result.value_error = sums.values.root();
  result.output_by_values = sums.output_by_values.root();
  result.output_by_equalized = sums.output_by_equalized.root();
  return result;
}

/// The columns of the table and the fields of the JSON, in their order.
constexpr struct {
  const char *title, *name;
  double AsymmetryResult::*field;
} columns[] = {{"keys", "key_error", &AsymmetryResult::key_error},
               {"q k^T", "score_error", &AsymmetryResult::score_error},
               {"softmax", "weight_error", &AsymmetryResult::weight_error},
               {"output", "output_by_keys", &AsymmetryResult::output_by_keys},
               {"values", "value_error", &AsymmetryResult::value_error},
               {"output", "output_by_values", &AsymmetryResult::output_by_values},
               {"as keys", "output_by_equalized", &AsymmetryResult::output_by_equalized}};

std::string table_row(const std::string& name, const AsymmetryResult& result) {
  std::string row = padded(name, 6);
  char cell[32];
  for (const auto& column : columns) {
    std::snprintf(cell, sizeof cell, " %9.4f", result.*column.field);
    row += cell;
  }
  std::snprintf(cell, sizeof cell, " %9.2f\n", result.output_by_keys / result.output_by_equalized);
  return row + cell;
}

nlohmann::ordered_json json_row(const AsymmetryResult& result) {
  nlohmann::ordered_json row;
  for (const auto& column : columns) row[column.name] = result.*column.field;
  return row;
}

void check(const Model& model, const std::vector<Token>& text, const AsymmetryOptions& options) {
  const Index most = model.shape.context;
  check_option("--windows", options.windows, 1);
  check_option("--skip", options.skip, 0, most - 1, "up to the model's context - 1");
  check_option("--context", options.context, options.skip + 1, most, "--skip + 1 to the model's context");
  if (Index(text.size()) / options.context < options.windows)
    throw std::runtime_error("the text has " + std::to_string(text.size()) + " tokens, too few");
}

}  // namespace

std::vector<AsymmetryResult> measure_asymmetry(const Model& model, const std::vector<Token>& text,
                                               const AsymmetryOptions& options, std::FILE* progress) {
  check(model, text, options);
  const asymkv::CacheShape shape = model.shape.cache_shape();
  Progress line(progress, "asymmetry", "layers", options.windows * shape.layers);
  std::vector<Sums> totals(std::size_t(shape.layers));
  std::mutex totals_mutex;
  run_jobs(model, options.windows, [&](Decoder& decoder, Index window) {
    RecordingCache cache(shape, model.shape.heads, options.context);
    decoder.feed(text.data() + window * options.context, options.context, cache, options.context);  // at once
    for (Index layer = 0; layer < shape.layers; ++layer) {
      const Sums sums = measure_layer(cache, layer, options.skip);
      line.step();
      const std::lock_guard<std::mutex> lock(totals_mutex);
      totals[std::size_t(layer)].add(sums);
    }
  });
  std::vector<AsymmetryResult> results;
  for (const Sums& sums : totals) results.push_back(summarize(sums));
  return results;
}

AsymmetryResult mean(const std::vector<AsymmetryResult>& layers) {
  AsymmetryResult result;
  for (const AsymmetryResult& layer : layers)
    for (const auto& column : columns) result.*column.field += layer.*column.field / double(layers.size());
  return result;
}

std::string to_table(const std::vector<AsymmetryResult>& layers) {
  std::string table = "           keys in 2 bits: error of their              values in 2 bits: error of\n";
  table += padded("layer", 6);
  char cell[32];
  for (const auto& column : columns) {
    std::snprintf(cell, sizeof cell, " %9s", column.title);
    table += cell;
  }
  table += "     ratio\n";
  for (std::size_t i = 0; i < layers.size(); ++i) table += table_row(std::to_string(i), layers[i]);
  return table + table_row("mean", mean(layers));
}

std::string to_json(const std::string& model, const std::string& text, const AsymmetryOptions& options,
                    const std::vector<AsymmetryResult>& layers) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const AsymmetryResult& layer : layers) list.push_back(json_row(layer));
  const nlohmann::ordered_json report = {
      {"model", model},       {"text", text},   {"windows", options.windows},    {"context", options.context},
      {"skip", options.skip}, {"layers", list}, {"mean", json_row(mean(layers))}};
  return report.dump(2);
}

}  // namespace llm
