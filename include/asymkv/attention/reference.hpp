// reference.hpp: attention as the formula says it, in Eigen and double, over what the cache reads back. For tests, and
// to measure what a format does to the output; short enough to check by eye, and slow.
#pragma once

#include <Eigen/Dense>
#include <algorithm>

#include "asymkv/attention/check.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Attention over the cache's keys and values, dequantized, in double, as AttentionParams says. Arguments and errors as
/// KVCache::attend, but that numbers are not checked. Allocates with Eigen, so lack of memory is Eigen's.
inline Status reference_attention(const KVCache& cache, Index layer, const ConstTensor& queries, const Tensor& output,
                                  const AttentionParams& params = {}) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const CacheShape& shape = cache.shape();
  const Index length = cache.length(layer);
  if (Status status = detail::check_layer(layer, shape.layers); !status.ok()) return status;
  if (Status status = detail::check_attention_shapes(shape, length, queries, output, params); !status.ok())
    return status;
  const double scale = params.scale == 0.0f ? 1.0 / std::sqrt(double(shape.key_dim)) : double(params.scale);
  const TokenRange removed = cache.removed(layer);
  const double cap = double(params.softcap), lowest = -std::numeric_limits<double>::infinity();
  Matrix keys = Matrix::Zero(length, shape.key_dim), values = Matrix::Zero(length, shape.value_dim);
  for (Index head = 0; head < queries.heads; ++head) {
    const Index kv_head = head / (queries.heads / shape.kv_heads);
    for (const TokenRange& kept : {TokenRange{0, removed.begin}, TokenRange{removed.end, length}}) {
      const auto of = [&](Matrix& x) -> Tensor {
        auto rows = x.middleRows(kept.begin, kept.end - kept.begin);
        return tensor(rows);
      };
      if (Status status = cache.keys(layer, kv_head, kept.begin, of(keys)); !status.ok()) return status;
      if (Status status = cache.values(layer, kv_head, kept.begin, of(values)); !status.ok()) return status;
    }
    const double slope = params.alibi_slopes.data != nullptr ? double(params.alibi_slopes.data[head]) : 0.0;
    const double sink = params.sink_logits.data != nullptr ? double(params.sink_logits.data[head]) : lowest;
    for (Index token = 0; token < queries.tokens; ++token) {
      const Index own = params.position.value_or(length - queries.tokens) + token;
      Eigen::VectorXd query(shape.key_dim), scores(length);
      for (Index i = 0; i < shape.key_dim; ++i)
        query[i] = load_scalar(queries.row(token, head), queries.type, i * queries.dim_stride);
      for (Index t = 0; t < length; ++t) {
        double& score = scores[t] = scale * keys.row(t).cast<double>().dot(query);
        if (cap != 0.0) score = cap * std::tanh(score / cap);
        if (params.mask.data != nullptr) {
          const double added = double(load_scalar(params.mask.row(token, params.mask.heads == 1 ? 0 : head),
                                                  params.mask.type, t * params.mask.dim_stride));
          score += added < -detail::most_added ? lowest : added;
        }
        score -= slope * std::fabs(double(own - t));
        if ((t >= removed.begin && t < removed.end) || (params.causal && t > own) ||
            (params.window > 0 && own >= params.window && t <= own - params.window))
          score = lowest;
      }
      const double greatest = std::max(length > 0 ? scores.maxCoeff() : lowest, sink);
      const bool sees = greatest > lowest;
      const Eigen::VectorXd weights = (scores.array() - (sees ? greatest : 0.0)).exp();
      const double sum = weights.sum() + std::exp(sees ? sink - greatest : sink);
      const Eigen::VectorXd result = values.cast<double>().transpose() * weights / (sees ? sum : 1.0);
      for (Index i = 0; i < shape.value_dim; ++i)
        store_scalar(output.row(token, head), output.type, i * output.dim_stride, float(result[i]));
      if (params.lse.data != nullptr)
        store_scalar(params.lse.row(token, head), ScalarType::f32, 0, float(sees ? greatest + std::log(sum) : lowest));
    }
  }
  return {};
}

ASYMKV_NAMESPACE_END
