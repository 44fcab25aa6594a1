// reference.hpp: attention as the formula says it, in Eigen and double, over what the cache reads back. For tests, and
// to measure what a format does to the output; short enough to check by eye, and slow.
#pragma once

#include <Eigen/Dense>
#include <algorithm>

#include "asymkv/cache/kv_cache.hpp"

ASYMKV_NAMESPACE_BEGIN

/// output = softmax(scale * Q K^T + causal and window mask) V with K and V dequantized, in double. Arguments as
/// KVCache::attend; errors: out_of_range (layer), invalid_argument (shapes); numbers are not checked. Allocates with
/// Eigen, so lack of memory is Eigen's.
inline Status reference_attention(const KVCache& cache, Index layer, const ConstTensor& queries, const Tensor& output,
                                  const AttentionParams& params = {}) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const CacheShape& shape = cache.shape();
  const Index length = cache.length(layer);
  if (Status status = detail::check_layer(layer, shape.layers); !status.ok()) return status;
  if (queries.heads < 1 || queries.heads % shape.kv_heads != 0 || queries.dim != shape.key_dim || queries.tokens < 1 ||
      queries.tokens > length || queries.data == nullptr)
    return Status::error(ErrorCode::invalid_argument, "queries: shape does not fit the cache");
  if (output.data == nullptr || output.tokens != queries.tokens || output.heads != queries.heads ||
      output.dim != shape.value_dim)
    return Status::error(ErrorCode::invalid_argument, "output: shape does not fit the queries");
  if (params.window < 0) return Status::error(ErrorCode::invalid_argument, "params: window is negative");
  const double scale = params.scale == 0.0f ? 1.0 / std::sqrt(double(shape.key_dim)) : double(params.scale);
  Matrix keys(length, shape.key_dim), values(length, shape.value_dim);
  for (Index head = 0; head < queries.heads; ++head) {
    const Index kv_head = head / (queries.heads / shape.kv_heads);
    if (Status status = cache.keys(layer, kv_head, 0, tensor(keys)); !status.ok()) return status;
    if (Status status = cache.values(layer, kv_head, 0, tensor(values)); !status.ok()) return status;
    for (Index token = 0; token < queries.tokens; ++token) {
      Eigen::VectorXd query(shape.key_dim);
      for (Index i = 0; i < shape.key_dim; ++i)
        query[i] = load_scalar(queries.row(token, head), queries.type, i * queries.dim_stride);
      const Index own = length - queries.tokens + token;
      const Index begin = params.window > 0 ? std::max<Index>(0, own + 1 - params.window) : 0;
      const Index count = (params.causal ? own + 1 : length) - begin;
      Eigen::VectorXd scores = scale * (keys.middleRows(begin, count).cast<double>() * query);
      const Eigen::VectorXd weights = (scores.array() - scores.maxCoeff()).exp();
      const Eigen::VectorXd result =
          values.middleRows(begin, count).cast<double>().transpose() * weights / weights.sum();
      for (Index i = 0; i < shape.value_dim; ++i)
        store_scalar(output.row(token, head), output.type, i * output.dim_stride, float(result[i]));
    }
  }
  return {};
}

ASYMKV_NAMESPACE_END
