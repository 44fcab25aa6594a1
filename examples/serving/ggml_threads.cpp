// ggml_threads.cpp: attention as an operation of a graph in the manner of ggml: every thread walks through all nodes,
// calls the same function with its number, and meets the others at a barrier.
#include <atomic>
#include <cstdio>
#include <functional>
#include <thread>

#include "toy_model.hpp"

namespace {

using namespace asymkv;
using toy::LayerStep, toy::Matrix, toy::Tokens;

constexpr Index kPrompt = 1500, kTokens = 40, kChunk = 256;

/// All threads arrive before any goes on. Spins, as ggml's does, but lets others run: there may be more threads than
/// processors.
class Barrier {
 public:
  explicit Barrier(Index threads) : threads_(threads) {}
  void wait() {
    const Index round = round_.load();
    if (++arrived_ == threads_) {
      arrived_.store(0);
      ++round_;
      return;
    }
    while (round_.load() == round) std::this_thread::yield();
  }

 private:
  const Index threads_;
  std::atomic<Index> arrived_{0}, round_{0};
};

/// What a node's function is told, as by ggml_compute_params.
struct ComputeParams {
  Index ith, nth;
  Barrier& barrier;
};
using Node = std::function<void(const ComputeParams&)>;
using Graph = std::vector<Node>;

/// Every thread's way through a graph.
void compute(const Graph& graph, const ComputeParams& params) {
  for (const Node& node : graph) {
    node(params);
    params.barrier.wait();
  }
}

/// ne and nb of a ggml_tensor, sizes and strides in bytes, of which the first is of neighbours; ne[3] and nb[3], of
/// sequences, are left out.
struct GgmlTensor {
  float* data;
  Index ne[3], nb[3];
};
/// Queries and the output of a ggml_flash_attn_ext are [dim, tokens, heads] and [dim, heads, tokens].
Tensor view(const GgmlTensor& x, int token_axis, int head_axis) {
  const Index size = Index(sizeof(float));
  return {x.data,  ScalarType::f32,         x.ne[token_axis],       x.ne[head_axis],
          x.ne[0], x.nb[token_axis] / size, x.nb[head_axis] / size, x.nb[0] / size};
}

/// The node's function. Every slice has the same Status; the barrier within is the caller's, as in ggml.
void flash_attention(const ComputeParams& params, KVCache& cache, Index layer, const GgmlTensor& q,
                     const GgmlTensor& dst, Status& result) {
  const ConstTensor queries = view(q, 1, 2);
  const Tensor output = view(dst, 2, 1);
  const AttentionSlice slice{params.ith, params.nth};
  Status status = cache.attend_slice(layer, queries, output, {}, slice);
  params.barrier.wait();
  if (status.ok()) status = cache.merge_slices(layer, queries, output, {}, slice);
  if (params.ith == 0) result = status;
}

/// A step of tokens as a graph: the cache is written to by one thread, and read by all.
class Step {
 public:
  Step(const toy::Model& model, KVCache& cache) : model_(model), cache_(cache) {
    for (Index layer = 0; layer < model.shape().layers; ++layer) {
      graph_.push_back([this, layer](const ComputeParams& params) {
        if (params.ith == 0 && status_.ok()) begin(layer);
      });
      graph_.push_back([this, layer](const ComputeParams& params) {
        if (status_.ok()) flash_attention(params, cache_, layer, queries_, output_, attended_);
      });
      graph_.push_back([this, layer](const ComputeParams& params) {
        if (params.ith == 0 && status_.ok()) status_ = attended_, model_.end_layer(layer, step_, residual_);
      });
    }
  }

  /// Starts nth threads for the step, the caller's included; a ggml backend has them waiting.
  Status run(const Tokens& tokens, Index nth, Matrix& logits) {
    residual_ = model_.embed(tokens);
    positions_ = toy::positions_from(cache_.length(), Index(tokens.size()));
    Barrier barrier(nth);
    std::vector<std::thread> threads;
    for (Index ith = 1; ith < nth; ++ith) threads.emplace_back([&, ith] { compute(graph_, {ith, nth, barrier}); });
    compute(graph_, {0, nth, barrier});
    for (std::thread& thread : threads) thread.join();
    if (status_.ok()) logits = model_.logits(residual_);
    return status_;
  }

 private:
  void begin(Index layer) {
    model_.begin_layer(layer, residual_, positions_, step_);
    status_ = cache_.append(layer, tensor(step_.keys, model_.kv_heads), tensor(step_.values, model_.kv_heads));
    const Index dim = model_.head_dim, heads = model_.heads, tokens = residual_.rows(), size = Index(sizeof(float));
    queries_ = {step_.queries.data(), {dim, tokens, heads}, {size, heads * dim * size, dim * size}};
    output_ = {step_.output.data(), {dim, heads, tokens}, {size, dim * size, heads * dim * size}};
  }

  const toy::Model& model_;
  KVCache& cache_;
  Graph graph_;
  std::vector<Index> positions_;
  Matrix residual_;
  LayerStep step_;
  GgmlTensor queries_ = {}, output_ = {};
  Status status_, attended_;
};

/// Logits of a prompt's end and of some tokens after it, of nth threads; of 0, by attend alone.
Status decode(const toy::Model& model, Index nth, Matrix& all) {
  const auto policy = AsymKVPolicy::parse("k4v4", model.shape().layers);
  if (!policy.ok()) return policy.status();
  CacheOptions options;
  options.threads = std::max<Index>(1, nth);
  auto cache = AsymKVCache::create(model.shape(), *policy, options);
  if (!cache.ok()) return cache.status();
  Step step(model, *cache);
  const Tokens text = toy::random_tokens(kPrompt + kTokens, 3);
  Matrix logits;
  all.resize(kTokens, model.vocabulary);
  Status status = toy::prefill(model, Tokens(text.begin(), text.begin() + kPrompt), kChunk, *cache, logits);
  for (Index i = 0; i < kTokens && status.ok(); ++i) {
    const Tokens next{text[std::size_t(kPrompt + i)]};
    status = nth == 0 ? toy::feed(model, next, *cache, logits) : step.run(next, nth, logits);
    if (status.ok()) all.row(i) = logits.bottomRows(1);
  }
  return status;
}

}  // namespace

int main() {
  const toy::Model model;
  Matrix expected;
  if (Status status = decode(model, 0, expected); !status.ok()) return std::printf("%s\n", status.message()), 1;
  for (Index nth : {1, 2, 3, 4}) {
    Matrix first, second;
    Status status = decode(model, nth, first);
    if (status.ok()) status = decode(model, nth, second);
    if (!status.ok()) return std::printf("%s\n", status.message()), 1;
    const double difference = double((first - expected).norm() / expected.norm());
    std::printf("%d threads: logits differ from those of attend by %.1e of their norm\n", int(nth), difference);
    // Slices are merged within rounding, whichever thread comes first.
    if (first != second || difference > (nth == 1 ? 0.0 : 1e-2)) return std::puts("that is too much"), 1;
  }
}
