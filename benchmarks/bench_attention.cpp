// bench_attention.cpp: decode and prefill attention over packed and dense caches, cold: each call attends another
// layer, and the layers together are larger than a last-level cache. Rows: decode/<policy>/h<query heads>/kv<kv
// heads>/d<head_dim>/t<tokens> and prefill/... with 128 queries.
#include "support.hpp"

namespace {

using asymkv::Index;

struct Row {
  std::string policy;
  Index heads, kv_heads, dim, tokens, queries;
};

/// Largest difference from reference_attention, over the largest output: what the kernel's arithmetic costs.
double attention_error(asymkv::KVCache& cache, const Row& row, const std::vector<float>& queries) {
  std::vector<float> output(std::size_t(row.queries * row.heads * row.dim)), expected(output.size());
  const auto q = asymkv::tensor(queries.data(), row.queries, row.heads, row.dim);
  const auto attend = cache.attend(0, q, asymkv::tensor(output.data(), row.queries, row.heads, row.dim));
  const auto reference =
      asymkv::reference_attention(cache, 0, q, asymkv::tensor(expected.data(), row.queries, row.heads, row.dim));
  if (!attend.ok() || !reference.ok()) return NAN;
  double worst = 0.0, greatest = 0.0;
  for (std::size_t i = 0; i < output.size(); ++i) {
    worst = std::max(worst, std::fabs(double(output[i]) - double(expected[i])));
    greatest = std::max(greatest, std::fabs(double(expected[i])));
  }
  return worst / greatest;
}

void attention(benchmark::State& state, const Row& row) {
  constexpr Index working_set = 300'000'000;  // last-level caches may have 260 MiB
  const std::string formats = row.policy == "half" ? "k16v16" : row.policy;
  const Index layer_bytes =
      asymkv::AsymKVPolicy::parse(formats, 1)->bytes({1, row.kv_heads, row.dim, row.dim}, row.tokens);
  const Index layers = 1 + working_set / layer_bytes;
  const auto cache = bench::make_cache(state, row.policy, {layers, row.kv_heads, row.dim, row.dim}, row.tokens);
  if (cache == nullptr || !bench::fill(state, *cache, row.tokens)) return;
  const std::vector<float> queries = bench::normal_numbers(row.queries * row.heads * row.dim, 3);
  std::vector<float> output(queries.size());
  Index layer = 0;
  for (auto _ : state) {
    const asymkv::Status status = cache->attend(layer, asymkv::tensor(queries.data(), row.queries, row.heads, row.dim),
                                                asymkv::tensor(output.data(), row.queries, row.heads, row.dim));
    if (!status.ok()) return state.SkipWithError(status.message());
    layer = (layer + 1) % layers;
  }
  const asymkv::CacheBytes bytes = cache->bytes();
  const double read = double(bytes.keys + bytes.values + bytes.dense) / double(layers);
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["bytes_per_second"] = benchmark::Counter(read, rate, benchmark::Counter::kIs1024);
  state.counters["dram_share"] = benchmark::Counter(read / bench::read_bandwidth(), rate);
  state.counters["tokens_per_second"] = benchmark::Counter(double(row.queries), rate);
  state.counters["ns_per_token_head"] =
      benchmark::Counter(1e-9 * double(row.tokens * row.kv_heads), rate | benchmark::Counter::kInvert);
  state.counters["error"] = attention_error(*cache, row, queries);
}

void add(const char* kind, const Row& row) {
  const std::string name = std::string(kind) + "/" + row.policy + "/h" + std::to_string(row.heads) + "/kv" +
                           std::to_string(row.kv_heads) + "/d" + std::to_string(row.dim) + "/t" +
                           std::to_string(row.tokens);
  benchmark::RegisterBenchmark(name.c_str(), [row](benchmark::State& state) {
    attention(state, row);
  })->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> policies{"k1v1",         "k2v1",         "k2v2",         "k3v3",        "k4v4",
                                    "k5v5",         "k6v6",         "k8v8",         "half",        "float",
                                    "k1g128v1g128", "k2g128v1g128", "k2g128v2g128", "k4g128v3g128"};
  for (int i = 0; i < asymkv::preset_count; ++i) policies.push_back(asymkv::presets()[i].name);
  for (const std::string& policy : policies)
    for (Index dim : {64, 128})
      for (Index heads : {8, 32})
        for (Index tokens : {4096, 32768}) {
          add("decode", {policy, heads, 8, dim, tokens, 1});
          if (dim == 128 && tokens == 4096) add("prefill", {policy, heads, 8, dim, tokens, 128});
        }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
