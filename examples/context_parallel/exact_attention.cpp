#include "exact_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check_status.hpp"

namespace context_parallel {

ExactHead::ExactHead(Index value_dim) : numbers_(size(value_dim), 0.0) {
  numbers_[0] = -std::numeric_limits<double>::infinity();
}

void ExactHead::rescale(double greatest) {
  const double factor = std::exp(numbers_[0] - greatest);
  numbers_[0] = greatest;
  numbers_[1] *= factor;
  for (std::size_t i = 3; i < numbers_.size(); ++i) numbers_[i] *= factor;
}

void ExactHead::add(double score, double score_magnitude, const float* value) {
  if (score > numbers_[0]) rescale(score);
  const double weight = std::exp(score - numbers_[0]);
  numbers_[1] += weight;
  numbers_[2] = std::max(numbers_[2], score_magnitude);
  double* const sums = numbers_.data() + 3;
  double* const magnitudes = sums + value_dim();
  for (std::size_t i = 0; i < value_dim(); ++i) {
    const double product = weight * double(value[i]);
    sums[i] += product;
    magnitudes[i] += std::fabs(product);
  }
}

void ExactHead::merge(const ExactHead& part) {
  if (part.numbers_[1] == 0.0) return;
  if (part.numbers_[0] > numbers_[0]) rescale(part.numbers_[0]);
  const double factor = std::exp(part.numbers_[0] - numbers_[0]);
  numbers_[1] += factor * part.numbers_[1];
  numbers_[2] = std::max(numbers_[2], part.numbers_[2]);
  for (std::size_t i = 3; i < numbers_.size(); ++i) numbers_[i] += factor * part.numbers_[i];
}

std::vector<double> ExactHead::output() const {
  std::vector<double> output(numbers_.begin() + 3, numbers_.begin() + 3 + Index(value_dim()));
  for (double& x : output) x /= numbers_[1];
  return output;
}

double ExactHead::lse() const { return numbers_[0] + std::log(numbers_[1]); }

double ExactHead::value_magnitude() const {
  double squares = 0.0;
  for (std::size_t i = 3 + value_dim(); i < numbers_.size(); ++i) squares += numbers_[i] * numbers_[i];
  return std::sqrt(squares) / numbers_[1];
}

namespace {

double dot(const float* a, const float* b, Index count) {
  double sums[4] = {};  // four chains of additions, which do not wait for each other
  for (Index i = 0; i < count; ++i) sums[i % 4] += double(a[i]) * double(b[i]);
  return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

std::vector<ExactHead> exact_attention(const asymkv::KVCache& cache, Index layer, const Floats& query) {
  const asymkv::CacheShape& shape = cache.shape();
  const Index group = query_heads / shape.kv_heads, length = cache.length(layer), most = 1024;
  const double scale = 1.0 / std::sqrt(double(shape.key_dim));
  std::vector<ExactHead> heads(std::size_t(query_heads), ExactHead(shape.value_dim));
  Floats keys(std::size_t(most * shape.key_dim)), values(std::size_t(most * shape.value_dim));
  for (Index kv_head = 0; kv_head < shape.kv_heads; ++kv_head)
    for (Index first = 0; first < length; first += most) {
      const Index count = std::min(most, length - first);
      check(cache.keys(layer, kv_head, first, asymkv::tensor(keys.data(), count, 1, shape.key_dim)));
      check(cache.values(layer, kv_head, first, asymkv::tensor(values.data(), count, 1, shape.value_dim)));
      for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const float* const q = query.data() + head * shape.key_dim;
        const double q_norm = std::sqrt(dot(q, q, shape.key_dim));
        for (Index t = 0; t < count; ++t) {
          const float* const k = keys.data() + t * shape.key_dim;
          heads[std::size_t(head)].add(scale * dot(q, k, shape.key_dim),
                                       scale * q_norm * std::sqrt(dot(k, k, shape.key_dim)),
                                       values.data() + t * shape.value_dim);
        }
      }
    }
  return heads;
}

}  // namespace context_parallel
