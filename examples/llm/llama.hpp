// llama.hpp: a decoder of the Llama architecture whose attention is written against asymkv::KVCache alone, so that any
// cache can stand behind it. Llama holds the weights, Decoder runs tokens through them. Used by generate and eval.
#pragma once

#include <asymkv/cache/kv_cache.hpp>
#include <string>
#include <vector>

#include "gguf.hpp"
#include "workers.hpp"

namespace llm {

/// Sizes and constants of a model.
struct LlamaShape {
  Index layers, width, heads, kv_heads, head_dim, hidden, vocabulary, context;
  float norm_epsilon;
  double rope_base;

  asymkv::CacheShape cache_shape() const { return {layers, kv_heads, head_dim, head_dim}; }
};

/// The weights as float, one output feature a row. Products that share their input are stacked into one matrix.
struct Llama {
  struct Layer {
    Vector attention_norm, hidden_norm;
    Matrix query_key_value;  // heads, then kv_heads keys, then kv_heads values
    Matrix attention_output;
    Matrix gate_up;
    Matrix down;
  };

  /// Throws std::runtime_error for other architectures, and where tensors are missing, left over or of a wrong shape.
  explicit Llama(const GgufFile& file);
  const Matrix& output() const { return tied_output ? embedding : separate_output; }

  LlamaShape shape;
  Matrix embedding;
  std::vector<Layer> layers;
  Vector output_norm;
  bool tied_output;  // most small models use the embedding as output matrix, too
  Matrix separate_output;
};

/// Runs chunks of tokens; owns the activations. One per thread; the model and the workers must outlive it.
class Decoder {
 public:
  Decoder(const Llama& model, Workers& workers) : model_(model), workers_(workers) {}

  /// Appends `count` tokens to the cache, at the position that is its length, and returns the logits after tokens
  /// first_logit..count-1, one a row. The result lives until the next call, which may also take it by swap.
  Matrix& feed(const Token* tokens, Index count, asymkv::KVCache& cache, Index first_logit);

 private:
  void attention(Index layer, asymkv::KVCache& cache);
  void feed_forward(const Llama::Layer& layer);
  void normalize(const Matrix& x, const Vector& weight);
  void multiply(const Matrix& x, const Matrix& weight, Matrix& result);
  void prepare_rotation(Index position, Index count);

  const Llama& model_;
  Workers& workers_;
  Matrix residual_, normalized_, query_key_value_, mixed_, gate_up_, hidden_, update_, logits_;
  Matrix cosine_, sine_;  // of the chunk's positions: [token, pair]
};

/// Throws std::runtime_error with the status's message unless it is ok.
void require(const asymkv::Status& status);

}  // namespace llm
