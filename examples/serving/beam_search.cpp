// beam_search.cpp: the four best continuations of a prompt; beams fork where they branch, and losers are dropped.
#include <algorithm>
#include <cstdio>

#include "toy_model.hpp"

namespace {

using namespace asymkv;
using toy::kib, toy::Matrix, toy::Token, toy::Tokens;

constexpr Index kWidth = 4, kPrompt = 1000, kSteps = 48, kChunk = 256;

struct Beam {
  AsymKVCache cache;
  Matrix logits;  // after the last token
  Tokens tokens;  // behind the prompt
  double score;   // sum of their log probabilities
};

/// A beam and the token that it may go on with.
struct Candidate {
  std::size_t beam;
  Token token;
  double score;
};

Eigen::RowVectorXd log_probabilities(const Matrix& logits) {
  const Eigen::RowVectorXd last = logits.row(logits.rows() - 1).cast<double>();
  return last.array() - std::log(last.array().exp().sum());
}

std::vector<Candidate> best_candidates(const std::vector<Beam>& beams) {
  std::vector<Candidate> all;
  for (std::size_t beam = 0; beam < beams.size(); ++beam) {
    const Eigen::RowVectorXd log_probability = log_probabilities(beams[beam].logits);
    for (Token token = 0; token < Token(log_probability.size()); ++token)
      all.push_back({beam, token, beams[beam].score + log_probability[token]});
  }
  std::partial_sort(all.begin(), all.begin() + kWidth, all.end(),
                    [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
  all.resize(kWidth);
  return all;
}

/// Beams of a step out of those before it: a fork costs a window, and a beam that nothing goes on from ends here.
Status advance(const toy::Model& model, std::vector<Beam>& beams) {
  std::vector<Beam> next;
  for (const Candidate& candidate : best_candidates(beams)) {
    const Beam& from = beams[candidate.beam];
    auto fork = from.cache.fork();
    if (!fork.ok()) return fork.status();
    next.push_back({std::move(*fork), {}, from.tokens, candidate.score});
    next.back().tokens.push_back(candidate.token);
    if (Status status = toy::feed(model, {candidate.token}, next.back().cache, next.back().logits); !status.ok())
      return status;
  }
  beams = std::move(next);
  return {};
}

/// Score of tokens behind the prompt, in a cache of their own.
Status rescore(const toy::Model& model, const Tokens& prompt, const Tokens& tokens, AsymKVCache& cache, double& score) {
  Matrix logits;
  Status status = toy::prefill(model, prompt, kChunk, cache, logits);
  score = 0.0;
  for (std::size_t i = 0; i < tokens.size() && status.ok(); ++i) {
    score += log_probabilities(logits)[tokens[i]];
    status = toy::feed(model, {tokens[i]}, cache, logits);
  }
  return status;
}

int fail(const Status& status) { return std::printf("%s\n", status.message()), 1; }

}  // namespace

int main() {
  const toy::Model model;
  const auto policy = AsymKVPolicy::parse("k4v2", model.shape().layers);
  auto pool = PagePool::create({});  // no limit: it counts
  if (!policy.ok() || !pool.ok()) return 1;
  CacheOptions options;
  options.residual_length = 32;
  options.allocator = pool->allocator();
  auto prompt = AsymKVCache::create(model.shape(), *policy, options);
  options.allocator = Allocator();
  auto fresh = AsymKVCache::create(model.shape(), *policy, options);
  if (!prompt.ok() || !fresh.ok()) return 1;

  const Tokens prompt_tokens = toy::random_tokens(kPrompt, 11);
  std::vector<Beam> beams;
  beams.push_back({std::move(*prompt), {}, {}, 0.0});
  Status status = toy::prefill(model, prompt_tokens, kChunk, beams[0].cache, beams[0].logits);
  if (status.ok()) status = beams[0].cache.seal();  // so that the last chunk lies in pages, which forks share
  Index most_bytes = 0;
  for (Index step = 0; step < kSteps && status.ok(); ++step) {
    status = advance(model, beams);
    most_bytes = std::max(most_bytes, pool->bytes());
  }
  double score = 0.0;
  if (status.ok()) status = rescore(model, prompt_tokens, beams[0].tokens, *fresh, score);
  if (!status.ok()) return fail(status);

  const CacheBytes bytes = fresh->bytes();
  const Index separate = kWidth * (bytes.total() - bytes.scratch);
  std::printf("%d beams behind %d tokens, %d steps\n", int(kWidth), int(kPrompt), int(kSteps));
  for (const Beam& beam : beams)
    std::printf("  %.6f: %d %d %d ...\n", beam.score, beam.tokens[0], beam.tokens[1], beam.tokens[2]);
  std::printf("%.0f KiB after a step, working memory of %.0f included; %d caches would be %.0f and working memory\n",
              kib(most_bytes), kib(bytes.scratch), int(kWidth), kib(separate));
  std::printf("the best beam from scratch: %.6f\n", score);
  // The steps were the same, so all that may differ is nothing.
  if (score != beams[0].score) return std::puts("the score of the best beam is not that of its tokens"), 1;
}
