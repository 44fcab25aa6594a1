// decoder.hpp: the forward pass of a decoder-only transformer, whose attention is written against asymkv::KVCache
// alone, so that any cache can stand behind it. Used by generate and all measurements.
#pragma once

#include <asymkv/cache/kv_cache.hpp>
#include <vector>

#include "model.hpp"
#include "workers.hpp"

namespace llm {

/// Runs chunks of tokens; owns the activations. One per thread; the model and the workers must outlive it.
class Decoder {
 public:
  Decoder(const Model& model, Workers& workers) : model_(model), workers_(workers) {}

  /// Appends `count` tokens to the cache, at the position that is its length, and returns the logits after tokens
  /// first_logit..count-1, one a row. The result lives until the next call, which may also take it by swap.
  Matrix& feed(const Token* tokens, Index count, asymkv::KVCache& cache, Index first_logit);

  /// The same for a chunk at `position` whose way through the layers below `layer` is known: `residual` [tokens, width]
  /// is what that layer took. The cache need not have those layers' tokens.
  Matrix& resume(Index layer, const Matrix& residual, Index position, asymkv::KVCache& cache, Index first_logit);

  /// Time that append and attend have taken in all.
  double cache_seconds() const { return cache_seconds_; }

  /// From now on every layer's residual is copied to its element of `residuals`, one a layer; null ends it.
  void keep_residuals(std::vector<Matrix>* residuals) { kept_residuals_ = residuals; }

 private:
  /// Of the chunk's positions: [token, pair].
  struct Rotation {
    Matrix cosine, sine;
  };

  Matrix& run(Index first_layer, Index position, asymkv::KVCache& cache, Index first_logit);
  void attention(Index layer, asymkv::KVCache& cache);
  void feed_forward(const Model::Layer& layer);
  void activate();
  void add_update(const Vector& norm);
  void normalize(const Matrix& x, const Vector& weight, Matrix& result) const;
  void normalize_heads(Eigen::Ref<Matrix> heads, const Vector& weight) const;
  void multiply(const Matrix& x, const Matrix& weight, Matrix& result);
  void prepare_rotations(Index position, Index count);
  void rotate(Eigen::Ref<Matrix> heads, const Rotation& rotation) const;

  const Model& model_;
  Workers& workers_;
  Matrix residual_, normalized_, query_key_value_, mixed_, gate_up_, hidden_, update_, logits_;
  std::vector<Rotation> rotations_;  // one for each base
  std::vector<Matrix>* kept_residuals_ = nullptr;
  double cache_seconds_ = 0.0;
};

/// Throws std::runtime_error with the status's message unless it is ok.
void require(const asymkv::Status& status);

}  // namespace llm
