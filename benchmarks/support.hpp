// support.hpp: what the benchmarks share: random tensors, filled caches, and the machine's read bandwidth, measured in
// the same process.
#pragma once

#include <benchmark/benchmark.h>

#include <asymkv/asymkv.hpp>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

namespace bench {

using asymkv::Index;

inline std::vector<float> normal_numbers(Index count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& x : numbers) x = normal(generator);
  return numbers;
}

/// Keys [tokens][channels] whose channels differ as those of real models do: standard deviations exp(0.5 * normal), the
/// largest of 128 some four times the median. So channels of mixed widths get different widths.
inline std::vector<float> key_numbers(Index tokens, Index channels, unsigned seed) {
  std::vector<float> numbers = normal_numbers(tokens * channels, seed);
  std::vector<float> deviations = normal_numbers(channels, seed + 1000);
  for (float& x : deviations) x = std::exp(0.5f * x);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] *= deviations[i % std::size_t(channels)];
  return numbers;
}

/// Bytes a second that one thread reads from memory: the best of several passes over 512 MiB.
inline double read_bandwidth() {
  static const double measured = [] {
    const std::size_t count = std::size_t(1) << 27;
    const Eigen::ArrayXf data = Eigen::ArrayXf::Ones(Index(count));
    const asymkv::kernels::Table* kernels = *asymkv::kernels::choose_table();
    double best = 0.0;
    for (int pass = 0; pass < 5; ++pass) {
      const auto start = std::chrono::steady_clock::now();
      // the widest loads of the machine and one maximum each, so that reading is all that counts
      benchmark::DoNotOptimize(kernels->greatest_magnitude(data.data(), asymkv::ScalarType::f32, Index(count)));
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      best = std::max(best, double(count) * 4.0 / seconds);
    }
    return best;
  }();
  return measured;
}

/// Appends `tokens` random tokens to every layer, in chunks. False, with the reason, if the cache refuses.
inline bool fill(benchmark::State& state, asymkv::KVCache& cache, Index tokens) {
  const asymkv::CacheShape& shape = cache.shape();
  const Index chunk = 1024;
  const std::vector<float> keys = key_numbers(chunk, shape.kv_heads * shape.key_dim, 1);
  const std::vector<float> values = normal_numbers(chunk * shape.kv_heads * shape.value_dim, 2);
  for (Index layer = 0; layer < shape.layers; ++layer)
    for (Index t = 0; t < tokens; t += chunk) {
      const Index count = std::min(chunk, tokens - t);
      const asymkv::Status status =
          cache.append(layer, asymkv::tensor(keys.data(), count, shape.kv_heads, shape.key_dim),
                       asymkv::tensor(values.data(), count, shape.kv_heads, shape.value_dim));
      if (status.ok()) continue;
      state.SkipWithError(status.message());
      return false;
    }
  return true;
}

/// The cache of a name: `float` and `half` are dense, others policies.
inline std::unique_ptr<asymkv::KVCache> make_cache(benchmark::State& state, const std::string& name,
                                                   const asymkv::CacheShape& shape, Index tokens) {
  asymkv::CacheOptions options;
  options.reserve_tokens = tokens;
  const auto own = [&](auto result) -> std::unique_ptr<asymkv::KVCache> {
    if (result.ok()) return std::make_unique<std::decay_t<decltype(*result)>>(std::move(*result));
    state.SkipWithError(result.status().message());
    return nullptr;
  };
  if (name == "float") return own(asymkv::DenseKVCache<float>::create(shape, options));
  if (name == "half") return own(asymkv::DenseKVCache<Eigen::half>::create(shape, options));
  return own(asymkv::AsymKVCache::create(shape, *asymkv::AsymKVPolicy::parse(name, shape.layers), options));
}

}  // namespace bench
