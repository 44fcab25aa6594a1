// bench_attention.cpp: decode and prefill attention over packed and dense caches, and over ggml's where an installed
// one was found, cold: each call attends another layer, and the layers together are larger than a last-level cache.
// Rows:
//
//   decode/<cache>/h<query heads>/kv<kv heads>/d<head_dim>/t<tokens>[/<isa>]    one query token
//   decode/.../t32768/q<queries>                                                some, as drafts to be verified are
//   decode/.../t32768/threads<threads>/real_time                                the same in slices of attend_parallel
//   prefill/<cache>/h<query heads>/kv<kv heads>/d<head_dim>/t<tokens>[/<isa>]   the last 512 tokens are the queries
//
// <cache> is a policy's name, float, half, bfloat16, ggml-f16, ggml-q8_0 or ggml-q4_0; rows with <isa> are forced to an
// instruction set that is not the machine's best. A row has its counters: bytes and bytes_per_second of what the cache
// stores for a layer; dram_share and fma_share, of the limits that limits.hpp measures in the same process, the latter
// for fp32 (decode over codes multiplies bytes and may pass it), both of one thread; ns_per_token_head, per query
// token, cached token and kv head; error, of the arithmetic: against double precision on the same rounded keys and
// values, over the largest output. All rows take hours, so choose:
//
//   bench_attention --benchmark_filter='decode/.*/h(8|32)/kv8/d128/t[0-9]*$' --benchmark_format=json > result.json
//   python3 benchmarks/report.py result.json --plot attention.svg
#include <asymkv/thread_pool.hpp>
#include <cstdlib>
#include <deque>
#include <map>
#include <numeric>

#include "support.hpp"

namespace {

using asymkv::Index;

constexpr Index kv_heads = 8;

struct Row {
  std::string kind, cache;
  Index heads, dim, tokens, queries;
  std::string isa = {};  // empty: the machine's best
  Index threads = 0;     // 0: attend, in the caller's

  std::string suffix() const {
    return (kind == "decode" && queries > 1 ? "/q" + std::to_string(queries) : "") + (isa.empty() ? "" : "/" + isa) +
           (threads == 0 ? "" : "/threads" + std::to_string(threads));
  }
  std::string name() const {
    return kind + "/" + cache + "/h" + std::to_string(heads) + "/kv" + std::to_string(kv_heads) + "/d" +
           std::to_string(dim) + "/t" + std::to_string(tokens) + suffix();
  }
  /// Multiply-adds that scores and weighted sums need: query i sees all tokens up to its own.
  double multiply_adds() const {
    const double pairs = double(queries) * double(tokens - queries) + 0.5 * double(queries) * double(queries + 1);
    return pairs * double(heads) * double(2 * dim);
  }
};

/// While it lives, caches are created for this instruction set; where the name is empty, for the one they would be.
class ForcedIsa {
 public:
  explicit ForcedIsa(const std::string& isa) {
    if (const char* before = std::getenv(variable); before != nullptr) before_ = before;
    if (!isa.empty()) setenv(variable, isa.c_str(), 1);
  }
  ~ForcedIsa() { setenv(variable, before_.c_str(), 1); }  // empty is as good as none
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;

 private:
  static constexpr const char* variable = "ASYMKV_FORCE_ISA";
  std::string before_;
};

/// A filled cache whose layers are larger than any last-level cache, and the layer whose turn it is.
struct ColdCache {
  std::string what;
  std::unique_ptr<asymkv::KVCache> cache;
  Index layer = 0;

  void next_layer() { layer = (layer + 1) % cache->shape().layers; }
  double layer_bytes() const {
    const asymkv::CacheBytes bytes = cache->bytes();
    return double(bytes.keys + bytes.values + bytes.dense) / double(cache->shape().layers);
  }
};

std::unique_ptr<asymkv::KVCache> filled_cache(benchmark::State& state, const Row& row) {
  constexpr double working_set = 300e6;  // last-level caches may have 260 MiB
  asymkv::CacheShape shape{1, kv_heads, row.dim, row.dim};
  const double layer_bytes =
      bench::cache_bits(row.cache, shape) / 8.0 * double(row.tokens * kv_heads * (shape.key_dim + shape.value_dim));
  shape.layers = 1 + Index(working_set / layer_bytes);
  const ForcedIsa forced(row.isa);
  auto cache = bench::make_cache(state, row.cache, shape, row.tokens, std::max<Index>(row.threads, 1));
  if (cache == nullptr) return nullptr;
  if (const asymkv::Status status = bench::fill(*cache, row.tokens, row.queries); !status.ok()) {
    state.SkipWithError(status.message());
    return nullptr;
  }
  return cache;
}

/// The cache of a row, or null with the reason in `state`. The last ones are kept, because a row's calls that look for
/// its number of iterations, its repetitions and rows of other heads have the same; filling takes seconds.
ColdCache* cold_cache(benchmark::State& state, const Row& row) {
  constexpr double most_kept = 3e9;
  static std::deque<ColdCache> kept;  // the newest in front
  const std::string what =
      row.kind + row.cache + "/" + std::to_string(row.dim) + "/" + std::to_string(row.tokens) + row.suffix();
  for (ColdCache& cold : kept)
    if (cold.what == what) return &cold;
  const auto total = [](double sum, const ColdCache& cold) { return sum + double(cold.cache->bytes().total()); };
  while (!kept.empty() && std::accumulate(kept.begin(), kept.end(), 0.0, total) > most_kept) kept.pop_back();
  auto cache = filled_cache(state, row);
  if (cache == nullptr) return nullptr;
  kept.push_front({what, std::move(cache)});
  return &kept.front();
}

/// Largest difference from reference_attention, over the largest output: what the kernel's arithmetic costs. Of the
/// last queries, which see all tokens, and one head of each kv head: all of them in double precision would take
/// minutes.
double attention_error(asymkv::KVCache& cache, const Row& row, const std::vector<float>& queries,
                       const asymkv::ThreadPool& pool) {
  const Index sampled = std::min<Index>(row.queries, 4);
  const auto sample = [&](auto* numbers) {
    auto view = asymkv::tensor(numbers + (row.queries - sampled) * row.heads * row.dim, sampled, kv_heads, row.dim);
    view.token_stride = row.heads * row.dim;
    view.head_stride = row.heads / kv_heads * row.dim;
    return view;
  };
  std::vector<float> output(queries.size()), expected(std::size_t(sampled * kv_heads * row.dim));
  const auto attend = cache.attend_parallel(0, asymkv::tensor(queries.data(), row.queries, row.heads, row.dim),
                                            asymkv::tensor(output.data(), row.queries, row.heads, row.dim), {}, pool);
  const auto reference = asymkv::reference_attention(cache, 0, sample(queries.data()),
                                                     asymkv::tensor(expected.data(), sampled, kv_heads, row.dim));
  if (!attend.ok() || !reference.ok()) return NAN;
  double worst = 0.0, greatest = 0.0;
  for (Index i = 0; i < Index(expected.size()); ++i) {
    const Index token = i / row.dim / kv_heads, head = i / row.dim % kv_heads;
    const float* actual = static_cast<const float*>(sample(output.data()).row(token, head)) + i % row.dim;
    worst = std::max(worst, std::fabs(double(*actual) - double(expected[std::size_t(i)])));
    greatest = std::max(greatest, std::fabs(double(expected[std::size_t(i)])));
  }
  return worst / greatest;
}

/// The same numbers in every repetition, so that it is computed once.
double known_error(asymkv::KVCache& cache, const Row& row, const std::vector<float>& queries,
                   const asymkv::ThreadPool& pool) {
  static std::map<std::string, double> known;
  const auto [entry, is_new] = known.try_emplace(row.name());
  if (is_new) entry->second = attention_error(cache, row, queries, pool);
  return entry->second;
}

void report(benchmark::State& state, const Row& row, double layer_bytes) {
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["bytes"] = layer_bytes;
  state.counters["bytes_per_second"] = benchmark::Counter(layer_bytes, rate);
  state.counters["dram_share"] = benchmark::Counter(layer_bytes / bench::read_bandwidth(), rate);
  state.counters["fma_share"] = benchmark::Counter(2.0 * row.multiply_adds() / bench::fma_peak(), rate);
  state.counters["ns_per_token_head"] =
      benchmark::Counter(1e-9 * double(row.queries * row.tokens * kv_heads), rate | benchmark::Counter::kInvert);
}

void attention(benchmark::State& state, const Row& row) {
  ColdCache* cold = cold_cache(state, row);
  const auto pool = asymkv::ThreadPool::create(std::max<Index>(row.threads, 1));
  if (!pool.ok()) state.SkipWithError(pool.status().message());
  if (cold == nullptr || !pool.ok()) return;
  const std::vector<float> queries = bench::normal_numbers(row.queries * row.heads * row.dim, 3);
  std::vector<float> output(queries.size());
  for (auto _ : state) {
    const asymkv::Status status =
        cold->cache->attend_parallel(cold->layer, asymkv::tensor(queries.data(), row.queries, row.heads, row.dim),
                                     asymkv::tensor(output.data(), row.queries, row.heads, row.dim), {}, *pool);
    if (!status.ok()) return state.SkipWithError(status.message());
    cold->next_layer();
  }
  report(state, row, cold->layer_bytes());
  state.counters["error"] = known_error(*cold->cache, row, queries, *pool);
}

void add(const Row& row) {
  auto* registered =
      benchmark::RegisterBenchmark(row.name().c_str(), [row](benchmark::State& state) { attention(state, row); });
  registered->Unit(benchmark::kMicrosecond);
  if (row.threads > 0) registered->UseRealTime();  // the caller's CPU time would be that of its share
}

std::vector<std::string> presets() {
  std::vector<std::string> names;
  for (int i = 0; i < asymkv::preset_count; ++i) names.push_back(asymkv::presets()[i].name);
  return names;
}

std::vector<std::string> caches() {
  std::vector<std::string> names = presets();
  for (const char* name : {"k1v1", "k2v1", "k2v2", "k3v3", "k4v4", "k5v5", "k6v6", "k8v8", "k1g128v1g128",
                           "k2g128v1g128", "k2g128v2g128", "k4g128v3g128", "half", "bfloat16", "float"})
    names.push_back(name);
#if BENCH_GGML
  for (const std::string& type : bench::ggml_types()) names.push_back("ggml-" + type);
#endif
  return names;
}

/// Instruction sets that the machine has beside the one that it is given.
std::vector<std::string> lesser_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < int((*asymkv::kernels::choose_table())->isa); ++i)
    if (asymkv::isa_supported(asymkv::Isa(i))) names.push_back(asymkv::isa_name(asymkv::Isa(i)));
  return names;
}

void add_all() {
  for (const std::string& cache : caches())
    for (Index heads : {8, 32}) {
      for (Index dim : {64, 128, 256})
        for (Index tokens : {4096, 32768}) add({"decode", cache, heads, dim, tokens, 1});
      add({"decode", cache, heads, 128, 131072, 1});
      for (Index tokens : {4096, 32768}) add({"prefill", cache, heads, 128, tokens, 512});
    }
  std::vector<std::string> forced = presets();
  for (const char* name : {"k1v1", "k2v2", "k3v3", "k4v4", "k5v5", "k6v6", "k8v8"}) forced.push_back(name);
  for (const std::string& isa : lesser_isas())
    for (const std::string& cache : forced) {
      for (Index heads : {8, 32}) add({"decode", cache, heads, 128, 32768, 1, isa});
      add({"prefill", cache, 8, 128, 4096, 512, isa});
    }
  for (const char* cache : {"k2v2", "k4v4", "balanced-1.7", "half"})
    for (Index queries : {2, 4, 8, 16}) add({"decode", cache, 8, 128, 32768, queries});
  for (const char* cache : {"k1v1", "k2v2", "k4v4", "balanced-1.7", "half", "float"})
    for (Index heads : {8, 32})
      for (Index threads : {1, 2, 4, 8}) add({"decode", cache, heads, 128, 32768, 1, "", threads});
}

}  // namespace

int main(int argc, char** argv) {
  if (const auto table = asymkv::kernels::choose_table(); !table.ok()) {
    std::fprintf(stderr, "%s\n", table.status().message());
    return 1;
  }
  add_all();
  return bench::run(argc, argv);
}
