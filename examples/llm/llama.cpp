// llama.cpp: the forward pass, in the order of the formulas.
#include "llama.hpp"

#include <cmath>
#include <set>
#include <stdexcept>

namespace llm {
namespace {

LlamaShape read_shape(const GgufFile& file) {
  if (file.text("general.architecture") != "llama")
    throw std::runtime_error(file.path() + ": architecture is " + file.text("general.architecture") + ", not llama");
  LlamaShape s;
  s.layers = file.size("llama.block_count");
  s.width = file.size("llama.embedding_length");
  s.heads = file.size("llama.attention.head_count");
  s.kv_heads = file.has("llama.attention.head_count_kv") ? file.size("llama.attention.head_count_kv") : s.heads;
  s.hidden = file.size("llama.feed_forward_length");
  s.context = file.size("llama.context_length");
  s.vocabulary = Index(file.texts("tokenizer.ggml.tokens").size());
  s.norm_epsilon = float(file.number("llama.attention.layer_norm_rms_epsilon"));
  s.rope_base = file.has("llama.rope.freq_base") ? file.number("llama.rope.freq_base") : 10000.0;
  s.head_dim = s.width / s.heads;
  const bool whole = s.width % s.heads == 0 && s.heads % s.kv_heads == 0 && s.head_dim % 2 == 0;
  if (!whole || s.layers > 65536 || s.width > 1 << 20 || s.hidden > 1 << 20)
    throw std::runtime_error(file.path() + ": sizes of the model contradict each other");
  const auto rotated = file.has("llama.rope.dimension_count") ? file.size("llama.rope.dimension_count") : s.head_dim;
  if (rotated != s.head_dim || file.has("llama.rope.scaling.type"))
    throw std::runtime_error(file.path() + ": only plain RoPE over the whole head is supported");
  return s;
}

/// Reads tensors and remembers which, so that a file with more than this decoder computes is refused, not misread.
class TensorReader {
 public:
  explicit TensorReader(const GgufFile& file) : file_(file) {
    for (const std::string& name : file.tensor_names()) unread_.insert(name);
  }
  template <class Rows>
  void read(const std::string& name, Rows&& out) {
    file_.read(name, out);
    unread_.erase(name);
  }
  Vector vector(const std::string& name, Index size) {
    Matrix row(1, size);
    read(name, row);
    return row.transpose();
  }
  void finish() const {
    if (!unread_.empty())
      throw std::runtime_error(file_.path() + ": has the tensor " + *unread_.begin() + ", unknown to this decoder");
  }

 private:
  const GgufFile& file_;
  std::set<std::string> unread_;
};

Llama::Layer read_layer(TensorReader& tensors, const LlamaShape& s, Index i) {
  const std::string prefix = "blk." + std::to_string(i) + ".";
  const Index q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  Llama::Layer layer;
  layer.attention_norm = tensors.vector(prefix + "attn_norm.weight", s.width);
  layer.hidden_norm = tensors.vector(prefix + "ffn_norm.weight", s.width);
  layer.query_key_value.resize(q + 2 * kv, s.width);
  tensors.read(prefix + "attn_q.weight", layer.query_key_value.topRows(q));
  tensors.read(prefix + "attn_k.weight", layer.query_key_value.middleRows(q, kv));
  tensors.read(prefix + "attn_v.weight", layer.query_key_value.bottomRows(kv));
  layer.attention_output.resize(s.width, q);
  tensors.read(prefix + "attn_output.weight", layer.attention_output);
  layer.gate_up.resize(2 * s.hidden, s.width);
  tensors.read(prefix + "ffn_gate.weight", layer.gate_up.topRows(s.hidden));
  tensors.read(prefix + "ffn_up.weight", layer.gate_up.bottomRows(s.hidden));
  layer.down.resize(s.width, s.hidden);
  tensors.read(prefix + "ffn_down.weight", layer.down);
  return layer;
}

/// RoPE on interleaved pairs (2i, 2i+1), as llama-architecture files permute q and k for it.
void rotate(Eigen::Ref<Matrix> heads, Index head_dim, const Matrix& cosine, const Matrix& sine) {
  for (Index token = 0; token < heads.rows(); ++token)
    for (Index i = 0; i < heads.cols(); i += 2) {
      const Index pair = i % head_dim / 2;
      const float c = cosine(token, pair), s = sine(token, pair);
      const float a = heads(token, i), b = heads(token, i + 1);
      heads(token, i) = a * c - b * s;
      heads(token, i + 1) = a * s + b * c;
    }
}

}  // namespace

void require(const asymkv::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

Llama::Llama(const GgufFile& file) : shape(read_shape(file)) {
  TensorReader tensors(file);
  // the shape is believed only as far as the file has tensors for it: a norm is checked before the memory is taken
  output_norm = tensors.vector("output_norm.weight", shape.width);
  for (Index i = 0; i < shape.layers; ++i) layers.push_back(read_layer(tensors, shape, i));
  embedding.resize(shape.vocabulary, shape.width);
  tensors.read("token_embd.weight", embedding);
  tied_output = !file.has_tensor("output.weight");
  if (!tied_output) {
    separate_output.resize(shape.vocabulary, shape.width);
    tensors.read("output.weight", separate_output);
  }
  tensors.finish();
}

Matrix& Decoder::feed(const Token* tokens, Index count, asymkv::KVCache& cache, Index first_logit) {
  prepare_rotation(Index(cache.length()), count);
  residual_.resize(count, model_.shape.width);
  for (Index i = 0; i < count; ++i) residual_.row(i) = model_.embedding.row(tokens[i]);
  for (Index i = 0; i < model_.shape.layers; ++i) {
    attention(i, cache);
    feed_forward(model_.layers[std::size_t(i)]);
  }
  logits_.resize(count - first_logit, model_.shape.vocabulary);
  if (first_logit == count) return logits_;
  residual_ = residual_.bottomRows(count - first_logit).eval();
  normalize(residual_, model_.output_norm);
  multiply(normalized_, model_.output(), logits_);
  return logits_;
}

void Decoder::attention(Index layer, asymkv::KVCache& cache) {
  const LlamaShape& s = model_.shape;
  const Llama::Layer& weights = model_.layers[std::size_t(layer)];
  normalize(residual_, weights.attention_norm);
  multiply(normalized_, weights.query_key_value, query_key_value_);
  const Index q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  rotate(query_key_value_.leftCols(q + kv), s.head_dim, cosine_, sine_);

  // the cache reads the three parts where they are: views with strides, no copies
  const auto queries = query_key_value_.leftCols(q);
  const auto keys = query_key_value_.middleCols(q, kv);
  const auto values = query_key_value_.rightCols(kv);
  mixed_.resize(queries.rows(), q);
  require(cache.append(layer, asymkv::tensor(keys, s.kv_heads), asymkv::tensor(values, s.kv_heads)));
  require(cache.attend(layer, asymkv::tensor(queries, s.heads), asymkv::tensor(mixed_, s.heads)));

  multiply(mixed_, weights.attention_output, update_);
  residual_ += update_;
}

void Decoder::feed_forward(const Llama::Layer& layer) {
  normalize(residual_, layer.hidden_norm);
  multiply(normalized_, layer.gate_up, gate_up_);
  const auto gate = gate_up_.leftCols(model_.shape.hidden).array();
  const auto up = gate_up_.rightCols(model_.shape.hidden).array();
  hidden_ = gate / (1.0f + (-gate).exp()) * up;
  multiply(hidden_, layer.down, update_);
  residual_ += update_;
}

void Decoder::normalize(const Matrix& x, const Vector& weight) {
  normalized_.resize(x.rows(), x.cols());
  for (Index token = 0; token < x.rows(); ++token) {
    const float mean_square = x.row(token).squaredNorm() / float(x.cols());
    const float factor = 1.0f / std::sqrt(mean_square + model_.shape.norm_epsilon);
    normalized_.row(token) = x.row(token).cwiseProduct(weight.transpose()) * factor;
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

void Decoder::prepare_rotation(Index position, Index count) {
  const LlamaShape& s = model_.shape;
  cosine_.resize(count, s.head_dim / 2);
  sine_.resize(count, s.head_dim / 2);
  for (Index pair = 0; pair < s.head_dim / 2; ++pair) {
    const double frequency = std::pow(s.rope_base, -2.0 * double(pair) / double(s.head_dim));
    for (Index token = 0; token < count; ++token) {
      cosine_(token, pair) = float(std::cos(double(position + token) * frequency));
      sine_(token, pair) = float(std::sin(double(position + token) * frequency));
    }
  }
}

}  // namespace llm
