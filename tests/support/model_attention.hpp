// model_attention.hpp: one attention over a model's tokens: what the cache is asked for, and how its output compares
// with the oracle's. Used by model_test.cpp.
#pragma once

#include "support/attention_trial.hpp"
#include "support/model.hpp"

namespace support {

struct AttendedCall {
  int layer;
  Index queries, heads, window;
  Variant variant;
};

/// Queries are random, and small where few rows meet keys of one or two bits: the bound is wider than the output else.
class ModelAttention {
 public:
  ModelAttention(const model::Sequence& model, const AttendedCall& call, unsigned seed)
      : call_(call),
        layer_(model.layer(call.layer)),
        sinks_(model.sinks()),
        rows_(call.queries * call.heads / layer_.keys.rules().heads),
        numbers_(call.variant, call.queries, call.heads, layer_.keys.length()),
        queries_(random_matrix(call.queries, call.heads * layer_.keys.rules().dim, seed) * query_size()),
        output_(RowMatrix::Constant(call.queries, call.heads * layer_.values.rules().dim, NAN)) {}

  ConstTensor queries() const { return tensor(queries_, call_.heads); }
  Tensor output() { return tensor(output_, call_.heads); }
  AttentionParams params() { return numbers_.params(call_.window); }

  /// After the cache wrote output(): the first difference, in words; empty where there is none.
  std::string difference() const {
    const int kv_heads = layer_.keys.rules().heads;
    const Index shared = call_.heads / kv_heads;
    for (int kv = 0; kv < kv_heads; ++kv) {
      const oracle::Kept keys = kept(layer_.keys, kv), values = kept(layer_.values, kv);
      for (Index head = kv * shared; head < (kv + 1) * shared; ++head)
        for (Index query = 0; query < call_.queries; ++query) {
          const std::string found = difference(query, head, expected(query, head, keys, values));
          if (!found.empty()) return found + " of query " + std::to_string(query) + ", head " + std::to_string(head);
        }
    }
    return {};
  }

 private:
  /// What the oracle is to attend to: one head of a side.
  static oracle::Kept kept(const model::Side& side, int head) {
    const int length = side.length(), dim = side.rules().dim;
    oracle::Kept kept(oracle::Matrix(length, dim), oracle::exact);
    for (int t = 0; t < length; ++t)
      for (int c = 0; c < dim; ++c) {
        kept.numbers(t, c) = double(side.number(t, head, c));
        kept.magnitudes(t, c) = double(side.magnitude(t, head, c));
        kept.codes(t, c) = double(side.code(t, head, c));
        kept.scales(t, c) = double(side.scale(t, head, c));
      }
    return kept;
  }
  /// Steps that rows are rounded to before they meet the codes of any of the pages.
  double worst_row_errors(const model::Side& side) const {
    double worst = 0.0;
    for (const model::Page& page : side.pages()) worst = std::max(worst, row_errors(rows_, page.format.bits));
    return worst;
  }
  float query_size() const { return worst_row_errors(layer_.keys) >= step_errors(2) ? 0.005f : 0.5f; }

  oracle::Attention expected(Index query, Index head, const oracle::Kept& keys, const oracle::Kept& values) const {
    const int dim = layer_.keys.rules().dim;
    std::vector<double> q;
    for (Index c = 0; c < dim; ++c) q.push_back(double(queries_(query, head * dim + c)));
    const auto [first, last] = numbers_.visible(query, call_.window);
    oracle::Terms terms = numbers_.terms(query, head);
    terms.added.resize(std::size_t(layer_.keys.length()));
    for (int t = sinks_; t < layer_.removed; ++t) terms.added[std::size_t(t)] = -INFINITY;
    return oracle::attention(q, keys, values, first, last, 1.0 / std::sqrt(double(dim)), terms);
  }

  std::string difference(Index query, Index head, const oracle::Attention& expected) const {
    const double score = score_bound(expected, worst_row_errors(layer_.keys));
    const double rounding = worst_row_errors(layer_.values);
    const Index dim = layer_.values.rules().dim;
    for (Index c = 0; c < dim; ++c) {
      const std::size_t at = std::size_t(c);
      const double error = std::fabs(double(output_(query, head * dim + c)) - expected.output[at]);
      const double bound = score * expected.magnitude[at] + rounding * expected.rounding[at];
      if (!(error <= bound))
        return "element " + std::to_string(c) + " is off by " + std::to_string(error / bound) + " bounds";
    }
    if (!numbers_.has_lse()) return {};
    const double lse = double(numbers_.lse(query, head));
    const double bound = score + kErrorConstant * 0x1p-24 * std::fabs(expected.lse);
    if (std::isfinite(expected.lse) ? std::fabs(lse - expected.lse) <= bound : lse == expected.lse) return {};
    return "lse is " + std::to_string(lse) + ", not " + std::to_string(expected.lse);
  }

  AttendedCall call_;
  const model::Layer& layer_;
  int sinks_;
  Index rows_;  ///< of a kv head
  VariantNumbers numbers_;
  RowMatrix queries_, output_;
};

}  // namespace support
