// recorder.hpp: what an engine hands over to be calibrated: the queries, keys and values of one text, layer by layer.
// Used by calibrate(), and by engines that want to see what a format does to their own tensors.
#pragma once

#include <vector>

#include "asymkv/cache/sequence_cache.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Queries, keys and values of one sequence, copied as float: 4 * layers * (heads * key_dim + kv_heads * (key_dim +
/// value_dim)) bytes a token; some thousand tokens are enough. Fill it where the attention loop calls append and
/// attend. Layers may be recorded by different threads at once.
class Recorder {
 public:
  /// heads: query heads, a multiple of kv_heads. Errors: invalid_argument.
  static Result<Recorder> create(const CacheShape& shape, Index heads) {
    if (Status status = detail::check_shape(shape); !status.ok()) return status;
    if (heads < 1 || heads % shape.kv_heads != 0)
      return Status::error(ErrorCode::invalid_argument, "heads: is %lld; use a multiple of the %lld kv_heads",
                           detail::number(heads), detail::number(shape.kv_heads));
    Recorder recorder;
    recorder.shape_ = shape;
    recorder.heads_ = heads;
    recorder.layers_.resize(std::size_t(shape.layers));
    return recorder;
  }

  /// Adds the next tokens of a layer: queries [tokens, heads, key_dim] and keys [tokens, kv_heads, key_dim] after RoPE,
  /// values [tokens, kv_heads, value_dim], any type and strides; any number of tokens, 0 included. `params` are those
  /// of the layer's attention (causal; scale, window and softcap alone), the last ones count. Errors: out_of_range
  /// (layer), invalid_argument; then nothing is recorded. Numbers are not checked here.
  Status record(Index layer, const ConstTensor& queries, const ConstTensor& keys, const ConstTensor& values,
                const AttentionParams& params = {}) {
    if (Status status = detail::check_layer(layer, Index(layers_.size())); !status.ok()) return status;
    const Index tokens = queries.tokens;
    if (Status status = check(queries, "queries", tokens, heads_, shape_.key_dim); !status.ok()) return status;
    if (Status status = check(keys, "keys", tokens, shape_.kv_heads, shape_.key_dim); !status.ok()) return status;
    if (Status status = check(values, "values", tokens, shape_.kv_heads, shape_.value_dim); !status.ok()) return status;
    AttentionParams others = params;
    others.softcap = 0.0f;
    if (!params.causal || params.window < 0 || others.extended())
      return Status::error(ErrorCode::invalid_argument,
                           "params: calibration is for causal attention with scale, window >= 0 and softcap alone");
    Layer& to = layers_[std::size_t(layer)];
    copy(queries, to.queries);
    copy(keys, to.keys);
    copy(values, to.values);
    to.params = params;
    to.tokens += tokens;
    return {};
  }

  const CacheShape& shape() const noexcept { return shape_; }
  Index heads() const noexcept { return heads_; }

  /// Of a layer in 0..layers-1: its tokens, how it attends, and views of `count` tokens from `first` on, which hold
  /// until the next record().
  Index length(Index layer) const noexcept { return layers_[std::size_t(layer)].tokens; }
  const AttentionParams& params(Index layer) const noexcept { return layers_[std::size_t(layer)].params; }
  ConstTensor queries(Index layer, Index first, Index count) const noexcept {
    return view(layers_[std::size_t(layer)].queries, first, count, heads_, shape_.key_dim);
  }
  ConstTensor keys(Index layer, Index first, Index count) const noexcept {
    return view(layers_[std::size_t(layer)].keys, first, count, shape_.kv_heads, shape_.key_dim);
  }
  ConstTensor values(Index layer, Index first, Index count) const noexcept {
    return view(layers_[std::size_t(layer)].values, first, count, shape_.kv_heads, shape_.value_dim);
  }

 private:
  struct Layer {
    std::vector<float> queries, keys, values;
    Index tokens = 0;
    AttentionParams params;
  };

  Recorder() = default;

  static Status check(const ConstTensor& x, const char* name, Index tokens, Index heads, Index dim) noexcept {
    if (x.tokens < 0 || x.tokens != tokens || x.heads != heads || x.dim != dim)
      return Status::error(ErrorCode::invalid_argument, "%s: shape is [%lld, %lld, %lld], must be [%lld, %lld, %lld]",
                           name, detail::number(x.tokens), detail::number(x.heads), detail::number(x.dim),
                           detail::number(tokens < 0 ? 0 : tokens), detail::number(heads), detail::number(dim));
    if (x.data == nullptr && x.tokens > 0) return Status::error(ErrorCode::invalid_argument, "%s: data is null", name);
    return {};
  }

  static void copy(const ConstTensor& from, std::vector<float>& to) {
    for (Index token = 0; token < from.tokens; ++token)
      for (Index head = 0; head < from.heads; ++head)
        for (Index i = 0; i < from.dim; ++i)
          to.push_back(load_scalar(from.row(token, head), from.type, i * from.dim_stride));
  }

  static ConstTensor view(const std::vector<float>& floats, Index first, Index count, Index heads, Index dim) noexcept {
    return tensor(floats.data() + first * heads * dim, count, heads, dim);
  }

  CacheShape shape_;
  Index heads_ = 0;
  std::vector<Layer> layers_;
};

ASYMKV_NAMESPACE_END
