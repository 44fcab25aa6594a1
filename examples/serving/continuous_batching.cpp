// continuous_batching.cpp: requests of many lengths come to a server whose memory is too small for all of them at once.
// Each gets the answer that it would get alone, unless its pages had to give up bits. `continuous_batching [threads]`
#include <chrono>
#include <cstdlib>

#include "batching_server.hpp"

namespace {

using namespace asymkv;
using toy::kib, toy::Matrix, toy::Answer, toy::Request, toy::Server, toy::Tokens;

constexpr Index kRequests = 48, kBudget = Index(1400) << 10;

/// Prompts of 32 to 799 tokens, one every 6 steps or so.
std::vector<Request> make_requests() {
  std::mt19937 generator(17);
  std::vector<Request> requests;
  for (Index i = 0, step = 0; i < kRequests; ++i, step += Index(generator() % 12))
    requests.push_back(
        {step, toy::random_tokens(32 + Index(generator() % 768), unsigned(i)), 16 + Index(generator() % 64)});
  return requests;
}

/// Most that an answer's logits fall short of the greatest ones in a run alone, of the same steps.
Status shortfall(const toy::Model& model, const Answer& answer, AsymKVCache& cache, float& most) {
  auto next = answer.tokens.begin();
  const auto prompt_end = next + Index(answer.request->prompt.size());
  for (Index count : answer.steps) {
    Matrix logits;
    if (Status status = toy::feed(model, Tokens(next, next + count), cache, logits); !status.ok()) return status;
    next += count;
    if (next >= prompt_end) most = std::max(most, logits.bottomRows(1).maxCoeff() - logits(count - 1, *next));
  }
  return {};
}

int fail(const Status& status) { return std::printf("%s\n", status.message()), 1; }

}  // namespace

int main(int count, char** arguments) {
  const Index nth = count > 1 ? std::atoi(arguments[1]) : 2;
  const toy::Model model;
  const auto policy = AsymKVPolicy::parse("k4v4", model.shape().layers);
  const auto fewer_bits = AsymKVPolicy::parse("k2v2", model.shape().layers);
  PagePoolOptions pool_options;
  pool_options.budget = kBudget;
  const auto pool = PagePool::create(pool_options);
  const auto threads = ThreadPool::create(nth);
  const auto workspace = Workspace::create(model.shape(), nth);
  if (!policy.ok() || !fewer_bits.ok() || !pool.ok() || !threads.ok() || !workspace.ok()) return 1;
  CacheOptions options;
  options.residual_length = 32;
  options.allocator = pool->allocator();
  auto empty = AsymKVCache::create(model.shape(), *policy, options);
  if (!empty.ok()) return fail(empty.status());

  const std::vector<Request> requests = make_requests();
  Server server(model, *pool, std::move(*empty), *fewer_bits, *workspace, *threads);
  const auto start = std::chrono::steady_clock::now();
  for (Index step = 0, next = 0; next < kRequests || !server.idle(); ++step) {
    for (; next < kRequests && requests[std::size_t(next)].arrival <= step; ++next)
      server.submit(requests[std::size_t(next)]);
    if (Status status = server.step(); !status.ok()) return fail(status);
    if (step % 50 == 0) server.print(step);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const Server::Counts& counts = server.counts();
  std::printf("%.0f tokens/s of %d threads, %.0f KiB at most, %d requantizations, %d evictions\n",
              double(counts.tokens) / seconds, int(nth), kib(counts.peak), int(counts.requantizations),
              int(counts.evictions));

  float most = 0.0f;
  Index compared = 0;
  options.allocator = Allocator();
  for (const Answer& answer : server.finished()) {
    if (answer.requantized) continue;
    auto cache = AsymKVCache::create(model.shape(), *policy, options);
    Status status = cache.ok() ? shortfall(model, answer, *cache, most) : cache.status();
    if (!status.ok()) return fail(status);
    ++compared;
  }
  std::printf("%d of %d answers ran without requantization; alone their logits fall short by %g at most\n",
              int(compared), int(kRequests), double(most));
  // Of one thread a batch is each sequence alone, to the bit; the slices of more are merged within rounding.
  if (most > (nth == 1 ? 0.0f : 0.1f) || compared == 0) return std::puts("that is not what they are alone"), 1;
  if (counts.requantizations == 0 || counts.evictions == 0) return std::puts("memory never ran short"), 1;
}
