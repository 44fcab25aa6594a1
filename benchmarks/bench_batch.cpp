// bench_batch.cpp: one layer's attention for a continuous batch, cold, as bench_attention's rows are: 32 sequences of
// 100 to 8000 tokens, one query token each, in one call of attend_batch. Rows:
//
//   batch/<cache>/h<query heads>/kv<kv heads>/d<head_dim>/s<sequences>/threads<threads>/...
//
// Counters: over_parts, the least CPU time on one thread over the sum of the least CPU times of each sequence's attend
// alone, measured between the batches; median_over_parts, the median of the former over that sum; speedup, the median
// time that passes with attend_batch on one thread over that on so many; dram_share and ns_per_token_head as
// bench_attention has them, of the latter time and one thread's bandwidth.
#include <asymkv/thread_pool.hpp>
#include <chrono>
#include <ctime>
#include <deque>
#include <numeric>

#include "support.hpp"

namespace {

using asymkv::Index;

constexpr Index kv_heads = 8, dim = 128, sequences = 32;

struct Row {
  std::string cache;
  Index heads, threads;

  std::string name() const {
    return "batch/" + cache + "/h" + std::to_string(heads) + "/kv" + std::to_string(kv_heads) + "/d" +
           std::to_string(dim) + "/s" + std::to_string(sequences) + "/threads" + std::to_string(threads);
  }
};

/// Of sequence i: long and short ones take turns.
Index length_of(Index i) {
  const Index place = i * 13 % sequences;
  return 100 + place * 7900 / (sequences - 1);
}
Index all_tokens() {
  Index tokens = 0;
  for (Index i = 0; i < sequences; ++i) tokens += length_of(i);
  return tokens;
}

/// Caches of all sequences, whose layers together are larger than any last-level cache.
struct Sequences {
  std::string cache;
  Index layers = 0, layer = 0;
  std::vector<std::unique_ptr<asymkv::KVCache>> caches;

  void next_layer() { layer = (layer + 1) % layers; }
  double layer_bytes() const {
    double bytes = 0.0;
    for (const auto& each : caches) {
      const asymkv::CacheBytes of = each->bytes();
      bytes += double(of.keys + of.values + of.dense) / double(layers);
    }
    return bytes;
  }
};

/// Those of a row, or null with the reason in `state`; the last ones are kept, since filling takes seconds.
Sequences* filled(benchmark::State& state, const Row& row) {
  static std::deque<Sequences> kept;
  for (Sequences& each : kept)
    if (each.cache == row.cache) return &each;
  kept.clear();
  Sequences fresh{row.cache, 0, 0, {}};
  const asymkv::CacheShape one{1, kv_heads, dim, dim};
  fresh.layers =
      1 + Index(300e6 / (bench::cache_bits(row.cache, one) / 8.0 * double(all_tokens() * kv_heads * 2 * dim)));
  for (Index i = 0; i < sequences; ++i) {
    auto cache = bench::make_cache(state, row.cache, {fresh.layers, kv_heads, dim, dim}, length_of(i));
    if (cache == nullptr) return nullptr;
    if (const asymkv::Status status = bench::fill(*cache, length_of(i), 1); !status.ok()) {
      state.SkipWithError(status.message());
      return nullptr;
    }
    fresh.caches.push_back(std::move(cache));
  }
  kept.push_front(std::move(fresh));
  return &kept.front();
}

double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + Index(times.size()) / 2, times.end());
  return times[times.size() / 2];
}

struct Seconds {
  double passed, cpu;
};
/// CPU time is the process's: for functions that use one thread.
template <class Function>
Seconds seconds(Function function) {
  const auto start = std::chrono::steady_clock::now();
  const std::clock_t cpu = std::clock();
  function();
  const double used = double(std::clock() - cpu) / CLOCKS_PER_SEC;
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), used};
}

/// Times batches on one thread, batches on the row's, and each sequence alone, by turns, each on another layer.
class BatchTimes {
 public:
  BatchTimes(Sequences& of, const Row& row, const asymkv::ThreadPool& pool)
      : of_(of),
        pool_(pool),
        queries_(bench::normal_numbers(sequences * row.heads * dim, 3)),
        output_(queries_.size()),
        one_(*asymkv::Workspace::create({1, kv_heads, dim, dim})),
        many_(*asymkv::Workspace::create({1, kv_heads, dim, dim}, row.threads)),
        best_(std::size_t(sequences), INFINITY) {
    const Index width = row.heads * dim;
    for (Index i = 0; i < sequences; ++i)
      entries_.push_back({of.caches[std::size_t(i)]->sequence(),
                          asymkv::tensor(queries_.data() + i * width, 1, row.heads, dim),
                          asymkv::tensor(output_.data() + i * width, 1, row.heads, dim)});
  }

  /// Seconds of the batch on the row's threads.
  double measure() {
    const asymkv::Batch batch{entries_.data(), sequences};
    const Seconds on_one = seconds([&] { note(attend_batch(of_.layer, batch, one_)); });
    on_one_.push_back(on_one.passed);
    cpu_.push_back(on_one.cpu);
    of_.next_layer();
    on_many_.push_back(seconds([&] { note(attend_batch(of_.layer, batch, many_, pool_)); }).passed);
    of_.next_layer();
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const asymkv::BatchEntry& e = entries_[i];
      const Seconds alone = seconds([&] { note(e.cache->attend(of_.layer, e.queries, e.output, e.params, one_)); });
      best_[i] = std::min(best_[i], alone.cpu);
    }
    of_.next_layer();
    return on_many_.back();
  }

  const asymkv::Status& status() const { return status_; }
  double over_parts() const { return *std::min_element(cpu_.begin(), cpu_.end()) / parts(); }
  double median_over_parts() const { return median(cpu_) / parts(); }
  double speedup() const { return median(on_one_) / median(on_many_); }
  double time() const { return median(on_many_); }

 private:
  double parts() const { return std::accumulate(best_.begin(), best_.end(), 0.0); }
  void note(const asymkv::Status& status) {
    if (status_.ok()) status_ = status;
  }

  Sequences& of_;
  const asymkv::ThreadPool& pool_;
  std::vector<float> queries_, output_;
  asymkv::Workspace one_, many_;
  std::vector<asymkv::BatchEntry> entries_;
  std::vector<double> on_one_, cpu_, on_many_, best_;
  asymkv::Status status_;
};

void batch(benchmark::State& state, const Row& row) {
  Sequences* const of = filled(state, row);
  const auto pool = asymkv::ThreadPool::create(row.threads);
  if (!pool.ok()) state.SkipWithError(pool.status().message());
  if (of == nullptr || !pool.ok()) return;
  BatchTimes times(*of, row, *pool);
  for (auto _ : state) state.SetIterationTime(times.measure());
  if (!times.status().ok()) return state.SkipWithError(times.status().message());
  state.counters["over_parts"] = times.over_parts();
  state.counters["median_over_parts"] = times.median_over_parts();
  state.counters["speedup"] = times.speedup();
  state.counters["bytes"] = of->layer_bytes();
  state.counters["dram_share"] = of->layer_bytes() / times.time() / bench::read_bandwidth();
  state.counters["ns_per_token_head"] = 1e9 * times.time() / double(all_tokens() * kv_heads);
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* cache : {"float", "k4v4", "k2v2", "k1v1", "balanced-1.7", "smallest-1.2"})
    for (Index heads : {8, 32})
      for (Index threads : {1, 2, 4, 8}) {
        const Row row{cache, heads, threads};
        benchmark::RegisterBenchmark(row.name().c_str(), [row](benchmark::State& state) { batch(state, row); })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond)
            ->MinTime(2.0);
      }
  return bench::run(argc, argv);
}
