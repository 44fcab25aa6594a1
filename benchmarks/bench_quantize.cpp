// bench_quantize.cpp: quantizing and dequantizing one head, appending to a cache, and sealing alone. bytes_per_second
// counts float input.
#include <chrono>

#include "support.hpp"

namespace {

using asymkv::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Index kTokens = 4096;

void report(benchmark::State& state, double input_bytes) {
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["bytes_per_second"] = benchmark::Counter(input_bytes, rate);
  state.counters["dram_share"] = benchmark::Counter(input_bytes / bench::read_bandwidth(), rate);
}

Matrix input(Index dim) {
  const std::vector<float> numbers = bench::normal_numbers(kTokens * dim, 1);
  return Eigen::Map<const Matrix>(numbers.data(), kTokens, dim);
}

template <class Quantizer>
void quantize(benchmark::State& state) {
  const Matrix x = input(state.range(0));
  double worst = 0.0;
  for (auto _ : state) benchmark::DoNotOptimize(Quantizer().quantize(x)->data());
  const auto quantized = Quantizer().quantize(x);
  Matrix back(x.rows(), x.cols());
  if (!Quantizer().dequantize(*quantized, back).ok()) return state.SkipWithError("dequantize");
  worst = double((back - x).squaredNorm() / x.squaredNorm());
  report(state, double(x.size()) * 4.0);
  state.counters["error"] = worst;
}

template <class Quantizer>
void dequantize(benchmark::State& state) {
  const Matrix x = input(state.range(0));
  const auto quantized = Quantizer().quantize(x);
  Matrix back(x.rows(), x.cols());
  for (auto _ : state)
    if (!Quantizer().dequantize(*quantized, back).ok()) return state.SkipWithError("dequantize");
  report(state, double(x.size()) * 4.0);
}

void append(benchmark::State& state, const char* policy, Index chunk) {
  const asymkv::CacheShape shape{1, 8, 128, 128};
  const std::vector<float> keys = bench::key_numbers(chunk, 8 * 128, 1),
                           values = bench::normal_numbers(chunk * 8 * 128, 2);
  const auto cache = bench::make_cache(state, policy, shape, kTokens);
  if (cache == nullptr) return;
  for (auto _ : state) {
    if (!cache->trim(0).ok()) return state.SkipWithError("trim");  // the memory stays
    for (Index t = 0; t < kTokens; t += chunk) {
      const asymkv::Status status =
          cache->append(0, asymkv::tensor(keys.data(), chunk, 8, 128), asymkv::tensor(values.data(), chunk, 8, 128));
      if (!status.ok()) return state.SkipWithError(status.message());
    }
  }
  report(state, double(2 * kTokens * 8 * 128) * 4.0);
  state.counters["tokens_per_second"] =
      benchmark::Counter(double(kTokens), benchmark::Counter::kIsIterationInvariantRate);
}

/// seal() alone; appending in chunks of 512 tokens is not timed.
void seal(benchmark::State& state, const char* policy) {
  const asymkv::CacheShape shape{1, 8, 128, 128};
  constexpr Index chunk = 512, row = 8 * 128;
  const std::vector<float> keys = bench::key_numbers(chunk, row, 1), values = bench::normal_numbers(chunk * row, 2);
  const auto cache = bench::make_cache(state, policy, shape, kTokens);
  if (cache == nullptr) return;
  for (auto _ : state) {
    asymkv::Status status = cache->trim(0);
    std::chrono::duration<double> time{0.0};
    for (Index t = 0; t < kTokens && status.ok(); t += chunk) {
      status =
          cache->append(0, asymkv::tensor(keys.data(), chunk, 8, 128), asymkv::tensor(values.data(), chunk, 8, 128));
      const auto start = std::chrono::steady_clock::now();
      if (status.ok()) status = cache->seal();
      time += std::chrono::steady_clock::now() - start;
    }
    if (!status.ok()) return state.SkipWithError(status.message());
    state.SetIterationTime(time.count());
  }
  report(state, double((2 * kTokens - 128) * row) * 4.0);  // the last 128 values stay in the window
}

template <int Bits>
void add_quantizers() {
  const std::string bits = std::to_string(Bits);
  const auto add = [&](const std::string& name, void (*run)(benchmark::State&)) {
    benchmark::RegisterBenchmark((name + "/b" + bits + "/d").c_str(), run)
        ->Arg(64)
        ->Arg(128)
        ->Unit(benchmark::kMicrosecond);
  };
  add("quantize/keys", quantize<asymkv::KeyQuantizer<Bits>>);
  add("quantize/values", quantize<asymkv::ValueQuantizer<Bits>>);
  add("dequantize/keys", dequantize<asymkv::KeyQuantizer<Bits>>);
  add("dequantize/values", dequantize<asymkv::ValueQuantizer<Bits>>);
}

}  // namespace

int main(int argc, char** argv) {
  add_quantizers<1>();
  add_quantizers<2>();
  add_quantizers<3>();
  add_quantizers<4>();
  add_quantizers<5>();
  add_quantizers<6>();
  add_quantizers<8>();
  for (const char* policy :
       {"k1v1", "k2v2", "k4v4", "k8v8", "half", "float", "smallest-1.2", "balanced-1.7", "fine-2.4", "finest-3.4"})
    for (Index chunk : {1, 64, 512})
      benchmark::RegisterBenchmark(("append/" + std::string(policy) + "/chunk" + std::to_string(chunk)).c_str(),
                                   [=](benchmark::State& state) { append(state, policy, chunk); })
          ->Unit(benchmark::kMicrosecond);
  for (const char* policy :
       {"k1v1", "k2v2", "k4v4", "smallest-1.2", "small-1.4", "balanced-1.7", "fine-2.4", "finest-3.4"})
    benchmark::RegisterBenchmark((std::string("seal/") + policy).c_str(),
                                 [=](benchmark::State& state) { seal(state, policy); })
        ->Unit(benchmark::kMicrosecond)
        ->UseManualTime();
  return bench::run(argc, argv);
}
