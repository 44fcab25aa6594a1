// toy_model.hpp: a decoder with random weights, small enough to read: what it says is nonsense, but each token depends
// on all before it through a cache's attention, as in a model. Used by the examples of this folder.
#pragma once

#include <algorithm>
#include <asymkv/asymkv.hpp>
#include <cmath>
#include <random>
#include <vector>

namespace toy {

using asymkv::Index;
using asymkv::Status;
using asymkv::tensor;
using Token = int;
using Tokens = std::vector<Token>;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using HalfMatrix = Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// What a layer's attention takes and gives in a step, a row a token, heads one after the other.
struct LayerStep {
  Matrix queries;
  HalfMatrix keys, values;
  Matrix output;
};

/// Layers of attention alone, with rotary positions. All work goes token by token, so that a token's result does not
/// depend on which others share its step. A model of fewer layers has the first ones of the others.
class Model {
 public:
  static constexpr Index heads = 4, kv_heads = 2, head_dim = 32, width = 64, vocabulary = 128;

  explicit Model(Index layers = 3) : shape_{layers, kv_heads, head_dim, head_dim} {
    std::mt19937 generator(1);
    embedding_ = random(vocabulary, width, 1.0f, generator);
    head_ = random(width, vocabulary, 1.0f / 8.0f, generator);
    for (Index layer = 0; layer < layers; ++layer) {
      queries_.push_back(random(width, heads * head_dim, 2.0f / 8.0f, generator));
      keys_.push_back(random(width, kv_heads * head_dim, 1.0f / 8.0f, generator));
      values_.push_back(random(width, kv_heads * head_dim, 1.0f / 8.0f, generator));
      outputs_.push_back(random(heads * head_dim, width, 1.0f / 8.0f, generator));
    }
  }

  const asymkv::CacheShape& shape() const { return shape_; }

  /// The way of a step through the model: embed, then for each layer begin_layer, append and attend, end_layer; then
  /// logits, one row a token.
  Matrix embed(const Tokens& tokens) const {
    Matrix residual(Index(tokens.size()), width);
    for (Index i = 0; i < residual.rows(); ++i) residual.row(i) = embedding_.row(tokens[std::size_t(i)]);
    return residual;
  }
  void begin_layer(Index layer, const Matrix& residual, const std::vector<Index>& positions, LayerStep& step) const {
    const std::size_t l = std::size_t(layer);
    const Matrix x = normalized(residual);
    step.queries = product(x, queries_[l]);
    Matrix keys = product(x, keys_[l]);
    rotate(step.queries, positions);
    rotate(keys, positions);
    step.keys = keys.cast<Eigen::half>();
    step.values = product(x, values_[l]).cast<Eigen::half>();
    step.output.resize(residual.rows(), heads * head_dim);
  }
  void end_layer(Index layer, const LayerStep& step, Matrix& residual) const {
    residual += product(step.output, outputs_[std::size_t(layer)]);
  }
  Matrix logits(const Matrix& residual) const { return product(normalized(residual), head_); }

  /// All of it; attend(layer, step) appends and attends.
  template <class Attend>
  Status forward(const Tokens& tokens, const std::vector<Index>& positions, Matrix& result, Attend attend) const {
    Matrix residual = embed(tokens);
    LayerStep step;
    for (Index layer = 0; layer < shape_.layers; ++layer) {
      begin_layer(layer, residual, positions, step);
      if (Status status = attend(layer, step); !status.ok()) return status;
      end_layer(layer, step, residual);
    }
    result = logits(residual);
    return {};
  }

 private:
  static Matrix random(Index rows, Index columns, float deviation, std::mt19937& generator) {
    Matrix m(rows, columns);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = deviation * 3.4641f * (float(generator()) * 0x1p-32f - 0.5f);
    return m;
  }
  static Matrix product(const Matrix& x, const Matrix& weights) {
    Matrix result(x.rows(), weights.cols());
    for (Index i = 0; i < x.rows(); ++i) result.row(i).noalias() = x.row(i) * weights;
    return result;
  }
  static Matrix normalized(const Matrix& x) {
    Matrix result(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i) result.row(i) = x.row(i) * (std::sqrt(float(width)) / x.row(i).norm());
    return result;
  }
  static void rotate(Matrix& x, const std::vector<Index>& positions) {
    for (Index pair = 0; pair < head_dim / 2; ++pair) {
      const float frequency = std::pow(1e4f, -2.0f * float(pair) / float(head_dim));
      for (Index i = 0; i < x.rows(); ++i) {
        const float angle = float(positions[std::size_t(i)]) * frequency, c = std::cos(angle), s = std::sin(angle);
        for (Index first = 2 * pair; first < x.cols(); first += head_dim) {
          const float a = x(i, first), b = x(i, first + 1);
          x(i, first) = a * c - b * s;
          x(i, first + 1) = a * s + b * c;
        }
      }
    }
  }

  asymkv::CacheShape shape_;
  Matrix embedding_, head_;
  std::vector<Matrix> queries_, keys_, values_, outputs_;
};

inline Tokens random_tokens(Index count, unsigned seed) {
  std::mt19937 generator(seed);
  Tokens tokens;
  while (Index(tokens.size()) < count) tokens.push_back(Token(generator() % Model::vocabulary));
  return tokens;
}

inline std::vector<Index> positions_from(Index first, Index count) {
  std::vector<Index> positions;
  for (Index i = 0; i < count; ++i) positions.push_back(first + i);
  return positions;
}

/// Feeds tokens to a cache in one step; logits has a row for each.
inline Status feed(const Model& model, const Tokens& tokens, asymkv::KVCache& cache, Matrix& logits) {
  const auto attend = [&](Index layer, LayerStep& step) {
    Status status = cache.append(layer, tensor(step.keys, Model::kv_heads), tensor(step.values, Model::kv_heads));
    return status.ok() ? cache.attend(layer, tensor(step.queries, Model::heads), tensor(step.output, Model::heads))
                       : status;
  };
  return model.forward(tokens, positions_from(cache.length(), Index(tokens.size())), logits, attend);
}

/// A long prompt, in chunks of a size that costs the cache no more than a window.
inline Status prefill(const Model& model, const Tokens& tokens, Index chunk, asymkv::KVCache& cache, Matrix& logits) {
  Status status;
  for (auto first = tokens.begin(); first != tokens.end() && status.ok();) {
    const auto end = first + std::min<Index>(chunk, tokens.end() - first);
    status = feed(model, Tokens(first, end), cache, logits);
    first = end;
  }
  return status;
}

/// The token that the last row of logits likes best.
inline Token greatest(const Matrix& logits) {
  Index token = 0;
  logits.row(logits.rows() - 1).maxCoeff(&token);
  return Token(token);
}

inline double kib(Index bytes) { return double(bytes) / 1024.0; }

}  // namespace toy
