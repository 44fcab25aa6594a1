// exact_attention.hpp: attention in double over what a cache reads back, which may be a part of a context. Used by the
// check; shares no code with the library's attention, nor with its merge.
#pragma once

#include <asymkv/cache/kv_cache.hpp>
#include <vector>

#include "tokens.hpp"

namespace context_parallel {

/// One head's softmax sums, relative to exp(greatest), and what rounding errors are relative to.
class ExactHead {
 public:
  explicit ExactHead(Index value_dim);
  /// Sums from doubles that another rank sent.
  explicit ExactHead(std::vector<double> numbers) : numbers_(std::move(numbers)) {}

  void add(double score, double score_magnitude, const float* value);
  /// Adds the sums of another part.
  void merge(const ExactHead& part);

  std::vector<double> output() const;
  double lse() const;
  /// 2-norm over channels of sum_t w_t |v_t|.
  double value_magnitude() const;
  /// Greatest scale * |q| |k_t| (2-norms).
  double score_magnitude() const { return numbers_[2]; }
  const std::vector<double>& numbers() const { return numbers_; }
  static std::size_t size(Index value_dim) { return std::size_t(3 + 2 * value_dim); }

 private:
  void rescale(double greatest);
  std::size_t value_dim() const { return (numbers_.size() - 3) / 2; }

  std::vector<double> numbers_;  ///< greatest score, sum of weights, score magnitude, sums w v, sums w |v|
};

/// Of one query [query_heads, key_dim] over all tokens of the layer. Throws std::runtime_error.
std::vector<ExactHead> exact_attention(const asymkv::KVCache& cache, Index layer, const Floats& query);

}  // namespace context_parallel
