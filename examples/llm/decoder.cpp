// decoder.cpp: the forward pass, in the order of the formulas.
#include "decoder.hpp"

#include <chrono>
#include <cmath>
#include <stdexcept>

namespace llm {
namespace {

/// 1 / root mean square of a row, with epsilon.
template <class Row>
float norm_factor(const Row& x, float epsilon) {
  return 1.0f / std::sqrt(x.squaredNorm() / float(x.size()) + epsilon);
}

void rotate_neighbours(Eigen::Ref<Matrix> heads, Index head_dim, const Matrix& cosine, const Matrix& sine) {
  for (Index token = 0; token < heads.rows(); ++token)
    for (Index i = 0; i < heads.cols(); i += 2) {
      const Index pair = i % head_dim / 2;
      const float c = cosine(token, pair), s = sine(token, pair);
      const float a = heads(token, i), b = heads(token, i + 1);
      heads(token, i) = a * c - b * s;
      heads(token, i + 1) = a * s + b * c;
    }
}

void rotate_halves(Eigen::Ref<Matrix> heads, Index head_dim, const Matrix& cosine, const Matrix& sine) {
  const Index half = head_dim / 2;
  for (Index token = 0; token < heads.rows(); ++token)
    for (Index head = 0; head < heads.cols(); head += head_dim)
      for (Index i = head; i < head + half; ++i) {
        const float c = cosine(token, i - head), s = sine(token, i - head);
        const float a = heads(token, i), b = heads(token, i + half);
        heads(token, i) = a * c - b * s;
        heads(token, i + half) = a * s + b * c;
      }
}

}  // namespace

void require(const asymkv::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

Matrix& Decoder::feed(const Token* tokens, Index count, asymkv::KVCache& cache, Index first_logit) {
  residual_.resize(count, model_.shape.width);
  for (Index i = 0; i < count; ++i) residual_.row(i) = model_.embedding.row(tokens[i]) * model_.shape.embedding_scale;
  return run(0, Index(cache.length()), cache, first_logit);
}

Matrix& Decoder::resume(Index layer, const Matrix& residual, Index position, asymkv::KVCache& cache,
                        Index first_logit) {
  residual_ = residual;
  return run(layer, position, cache, first_logit);
}

Matrix& Decoder::run(Index first_layer, Index position, asymkv::KVCache& cache, Index first_logit) {
  const Index count = residual_.rows();
  prepare_rotations(position, count);
  for (Index i = first_layer; i < model_.shape.layers; ++i) {
    if (kept_residuals_ != nullptr) (*kept_residuals_)[std::size_t(i)] = residual_;
    attention(i, cache);
    feed_forward(model_.layers[std::size_t(i)]);
  }
  logits_.resize(count - first_logit, model_.shape.vocabulary);
  if (first_logit == count) return logits_;
  residual_ = residual_.bottomRows(count - first_logit).eval();
  normalize(residual_, model_.output_norm, normalized_);
  multiply(normalized_, model_.output(), logits_);
  return logits_;
}

void Decoder::attention(Index layer, asymkv::KVCache& cache) {
  const Architecture& s = model_.shape;
  const LayerAttention& kind = s.attention[std::size_t(layer)];
  const Model::Layer& weights = model_.layers[std::size_t(layer)];
  normalize(residual_, weights.attention_norm, normalized_);
  multiply(normalized_, weights.query_key_value, query_key_value_);

  // the cache reads the three parts where they are: views with strides, no copies
  const Index q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  auto queries = query_key_value_.leftCols(q);
  auto keys = query_key_value_.middleCols(q, kv);
  const auto values = query_key_value_.rightCols(kv);
  normalize_heads(queries, weights.query_norm);
  normalize_heads(keys, weights.key_norm);
  rotate(query_key_value_.leftCols(q + kv), rotations_[kind.rope]);

  asymkv::AttentionParams params;
  params.window = kind.window;
  mixed_.resize(queries.rows(), q);
  const auto start = std::chrono::steady_clock::now();
  require(cache.append(layer, asymkv::tensor(keys, s.kv_heads), asymkv::tensor(values, s.kv_heads)));
  require(cache.attend_parallel(layer, asymkv::tensor(queries, s.heads), asymkv::tensor(mixed_, s.heads), params,
                                workers_.pool()));
  cache_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  multiply(mixed_, weights.attention_output, update_);
  add_update(weights.attention_update_norm);
}

void Decoder::feed_forward(const Model::Layer& layer) {
  normalize(residual_, layer.hidden_norm, normalized_);
  multiply(normalized_, layer.gate_up, gate_up_);
  activate();
  multiply(hidden_, layer.down, update_);
  add_update(layer.hidden_update_norm);
}

void Decoder::activate() {
  const auto gate = gate_up_.leftCols(model_.shape.hidden).array();
  const auto up = gate_up_.rightCols(model_.shape.hidden).array();
  switch (model_.shape.activation) {
    case Activation::silu:
      hidden_ = gate / (1.0f + (-gate).exp()) * up;
      break;
    case Activation::gelu:
      hidden_ = 0.5f * gate * (1.0f + (0.79788456f * gate * (1.0f + 0.044715f * gate.square())).tanh()) * up;
      break;
  }
}

void Decoder::add_update(const Vector& norm) {
  if (norm.size() > 0) normalize(update_, norm, update_);
  residual_ += update_;
}

/// `result` may be `x`.
void Decoder::normalize(const Matrix& x, const Vector& weight, Matrix& result) const {
  result.resize(x.rows(), x.cols());
  for (Index token = 0; token < x.rows(); ++token) {
    const float factor = norm_factor(x.row(token), model_.shape.norm_epsilon);
    result.row(token) = x.row(token).cwiseProduct(weight.transpose()) * factor;
  }
}

void Decoder::normalize_heads(Eigen::Ref<Matrix> heads, const Vector& weight) const {
  if (weight.size() == 0) return;
  for (Index token = 0; token < heads.rows(); ++token)
    for (Index i = 0; i < heads.cols(); i += weight.size()) {
      auto head = heads.row(token).segment(i, weight.size());
      head = (head.cwiseProduct(weight.transpose()) * norm_factor(head, model_.shape.norm_epsilon)).eval();
    }
}

/// result = x * weight^T; each worker computes some of the output features, so each weight is read once.
void Decoder::multiply(const Matrix& x, const Matrix& weight, Matrix& result) {
  result.resize(x.rows(), weight.rows());
  workers_.run([&](int part) {
    const Index first = weight.rows() * part / workers_.count();
    const Index count = weight.rows() * (part + 1) / workers_.count() - first;
    result.middleCols(first, count).noalias() = x * weight.middleRows(first, count).transpose();
  });
}

void Decoder::prepare_rotations(Index position, Index count) {
  const Architecture& s = model_.shape;
  rotations_.resize(s.rope_bases.size());
  for (std::size_t base = 0; base < s.rope_bases.size(); ++base) {
    auto& [cosine, sine] = rotations_[base];
    cosine.resize(count, s.head_dim / 2);
    sine.resize(count, s.head_dim / 2);
    for (Index pair = 0; pair < s.head_dim / 2; ++pair) {
      const double frequency = std::pow(s.rope_bases[base], -2.0 * double(pair) / double(s.head_dim));
      for (Index token = 0; token < count; ++token) {
        cosine(token, pair) = float(std::cos(double(position + token) * frequency));
        sine(token, pair) = float(std::sin(double(position + token) * frequency));
      }
    }
  }
}

void Decoder::rotate(Eigen::Ref<Matrix> heads, const Rotation& rotation) const {
  const bool neighbours = model_.shape.rope_pairs == RopePairs::neighbours;
  (neighbours ? rotate_neighbours : rotate_halves)(heads, model_.shape.head_dim, rotation.cosine, rotation.sine);
}

}  // namespace llm
