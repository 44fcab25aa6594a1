// shared_prefix.cpp: a system prompt is read once; each of 100 users goes on from a fork of its cache.
#include <cstdio>

#include "toy_model.hpp"

namespace {

using namespace asymkv;
using toy::kib, toy::Matrix, toy::Tokens;

constexpr Index kUsers = 100, kPrompt = 4096, kQuestion = 24, kAnswer = 8, kChunk = 512;

struct Answer {
  Tokens tokens;
  Matrix logits;
};

/// Feeds a user's question, then decodes.
Status answer(const toy::Model& model, Index user, KVCache& cache, Answer& result) {
  Status status = toy::feed(model, toy::random_tokens(kQuestion, unsigned(100 + user)), cache, result.logits);
  while (status.ok() && Index(result.tokens.size()) < kAnswer) {
    result.tokens.push_back(toy::greatest(result.logits));
    status = toy::feed(model, {result.tokens.back()}, cache, result.logits);
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
  if (!prompt.ok()) return fail(prompt.status());
  const Tokens prompt_tokens = toy::random_tokens(kPrompt, 7);
  Matrix logits;
  Status status = toy::prefill(model, prompt_tokens, kChunk, *prompt, logits);
  if (status.ok()) status = prompt->seal();  // so that the last chunk lies in pages, which forks share
  if (!status.ok()) return fail(status);
  const Index of_prompt = pool->bytes();

  std::vector<AsymKVCache> users;
  std::vector<Answer> answers(kUsers);
  for (Index user = 0; user < kUsers; ++user) {
    auto fork = prompt->fork();
    if (!fork.ok()) return fail(fork.status());
    users.push_back(std::move(*fork));
    status = answer(model, user, users.back(), answers[std::size_t(user)]);
    if (!status.ok()) return fail(status);
  }
  const Index of_forks = pool->bytes() - of_prompt;

  Index alone_bytes = 0;
  for (Index user : {Index(0), kUsers / 2, kUsers - 1}) {  // the same steps in a cache that shares nothing
    options.allocator = Allocator();
    auto alone = AsymKVCache::create(model.shape(), *policy, options);
    if (!alone.ok()) return fail(alone.status());
    Answer expected;
    status = toy::prefill(model, prompt_tokens, kChunk, *alone, logits);
    if (status.ok()) status = answer(model, user, *alone, expected);
    if (!status.ok()) return fail(status);
    const Answer& forked = answers[std::size_t(user)];
    if (forked.tokens != expected.tokens || forked.logits != expected.logits)
      return std::printf("the answer to user %d differs from that of a cache of its own\n", int(user)), 1;
    alone_bytes = alone->bytes().total() - alone->bytes().scratch;
  }
  std::printf("%d users, a prompt of %d tokens, then %d each\n", int(kUsers), int(kPrompt), int(kQuestion + kAnswer));
  std::printf("shared: %.0f KiB for the prompt and working memory, %.1f KiB more for each user, %.0f KiB in all\n",
              kib(of_prompt), kib(of_forks) / kUsers, kib(of_prompt + of_forks));
  std::printf("without sharing: %.0f KiB for each user, %.0f KiB in all, and working memory\n", kib(alone_bytes),
              kib(alone_bytes * kUsers));
  std::printf("answers are those of caches that share nothing, to the bit\n");
}
