// support.hpp: what the benchmarks share: random tensors, caches by name, and the main function.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <asymkv/asymkv.hpp>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "limits.hpp"
#if BENCH_GGML
#include "ggml_cache.hpp"
#endif

namespace bench {

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

/// Random tokens for a cache's layers, of which append() takes any number from the front.
class RandomTokens {
 public:
  RandomTokens(const asymkv::CacheShape& shape, Index count)
      : shape_(shape),
        keys_(key_numbers(count, shape.kv_heads * shape.key_dim, 1)),
        values_(normal_numbers(count * shape.kv_heads * shape.value_dim, 2)) {}

  asymkv::Status append(asymkv::KVCache& cache, Index layer, Index count) const {
    return cache.append(layer, asymkv::tensor(keys_.data(), count, shape_.kv_heads, shape_.key_dim),
                        asymkv::tensor(values_.data(), count, shape_.kv_heads, shape_.value_dim));
  }

 private:
  asymkv::CacheShape shape_;
  std::vector<float> keys_, values_;
};

/// Appends `tokens` random tokens to every layer, the last `step` at once: only what a step's append leaves in full
/// precision is so.
inline asymkv::Status fill(asymkv::KVCache& cache, Index tokens, Index step) {
  constexpr Index chunk = 1024;
  const RandomTokens random(cache.shape(), std::max(chunk, step));
  for (Index layer = 0; layer < cache.shape().layers; ++layer) {
    asymkv::Status status;
    for (Index t = 0; t < tokens - step && status.ok(); t += chunk)
      status = random.append(cache, layer, std::min(chunk, tokens - step - t));
    if (status.ok()) status = random.append(cache, layer, step);
    if (!status.ok()) return status;
  }
  return {};
}

/// A pool for a cache of so many tokens: one block, so that it lies in huge pages. A hundredth more is for the ends of
/// blocks and gaps between them.
inline asymkv::Result<asymkv::PagePool> one_block(const asymkv::CacheShape& shape, const asymkv::AsymKVPolicy& policy,
                                                  const asymkv::CacheOptions& cache_options, Index tokens) {
  const auto bytes = asymkv::AsymKVCache::bytes_required(shape, policy, cache_options, {tokens, 1024});
  if (!bytes.ok()) return bytes.status();
  asymkv::PagePoolOptions options;
  options.reserve = asymkv::PagePool::reserve_for(*bytes + *bytes / 100 + (Index(1) << 20));
  return asymkv::PagePool::create(options);
}

/// The cache of a name: `float`, `half` and `bfloat16` are dense, `ggml-<type>` is ggml's, others are policies. Null,
/// with the reason in `state`, if there is none.
inline std::unique_ptr<asymkv::KVCache> make_cache(benchmark::State& state, const std::string& name,
                                                   const asymkv::CacheShape& shape, Index tokens, Index threads = 1) {
  asymkv::CacheOptions options;
  options.reserve_tokens = tokens;
  options.threads = threads;
  const auto own = [&](auto result) -> std::unique_ptr<asymkv::KVCache> {
    if (result.ok()) return std::make_unique<std::decay_t<decltype(*result)>>(std::move(*result));
    state.SkipWithError(result.status().message());
    return nullptr;
  };
#if BENCH_GGML
  if (name.rfind("ggml-", 0) == 0) return make_ggml_cache(name.substr(5), shape, tokens);
#endif
  if (name == "float") return own(asymkv::DenseKVCache<float>::create(shape, options));
  if (name == "half") return own(asymkv::DenseKVCache<Eigen::half>::create(shape, options));
  if (name == "bfloat16") return own(asymkv::DenseKVCache<Eigen::bfloat16>::create(shape, options));
  const asymkv::AsymKVPolicy policy = *asymkv::AsymKVPolicy::parse(name, shape.layers);
  const auto pool = one_block(shape, policy, options, tokens);  // its memory goes back with the cache's last block
  if (!pool.ok()) return state.SkipWithError(pool.status().message()), nullptr;
  options.allocator = pool->allocator();
  return own(asymkv::AsymKVCache::create(shape, policy, options));
}

/// Bits an element of such a cache, but for its residual window.
inline double cache_bits(const std::string& name, const asymkv::CacheShape& shape) {
#if BENCH_GGML
  if (name.rfind("ggml-", 0) == 0) return ggml_bits(name.substr(5));
#endif
  if (name == "half" || name == "bfloat16") return 16.0;
  return asymkv::AsymKVPolicy::parse(name, shape.layers)->all_in_bits(shape);
}

/// Runs what is registered: medians of three runs in random order, unless the arguments say otherwise.
inline int run(int argc, char** argv) {
  std::string defaults[] = {"--benchmark_repetitions=3", "--benchmark_enable_random_interleaving=true",
                            "--benchmark_display_aggregates_only=true"};
  std::vector<char*> arguments(argv, argv + argc);
  for (std::string& flag : defaults) arguments.insert(arguments.begin() + 1, flag.data());
  argc = int(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&argc, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(argc, arguments.data())) return 1;
  add_limits_to_context();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace bench
