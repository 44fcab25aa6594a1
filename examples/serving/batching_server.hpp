// batching_server.hpp: continuous batching over the caches of one pool of memory. Each step decodes a token of all
// sequences that run and reads a part of the prompts; where the pool is full, old pages get fewer bits, then the
// youngest sequence has to wait. Used by continuous_batching.cpp.
#pragma once

#include <asymkv/thread_pool.hpp>
#include <cstdio>
#include <deque>

#include "toy_model.hpp"

namespace toy {

using namespace asymkv;

struct Request {
  Index arrival;  ///< step
  Tokens prompt;
  Index answer_length;
};

struct Answer {
  const Request* request;
  Tokens tokens;                  ///< behind those of the prompt
  std::vector<Index> steps = {};  ///< how many tokens came to the cache at once
  bool requantized = false;

  bool complete() const { return Index(tokens.size() - request->prompt.size()) == request->answer_length; }
};

struct Sequence {
  Answer answer;
  AsymKVCache cache;
  Index length = 0;  ///< tokens in the cache, between steps

  Index to_come() const { return Index(answer.tokens.size()) - length; }
};

/// Rows of a step's matrices that are a sequence's.
struct Rows {
  Sequence* sequence;
  Index first, count;
};

class Server {
 public:
  struct Counts {
    Index tokens = 0, evictions = 0, requantizations = 0, peak = 0;
  };

  Server(const Model& model, const PagePool& pool, AsymKVCache empty, const AsymKVPolicy& fewer_bits,
         const Workspace& workspace, const ThreadPool& threads)
      : model_(model),
        pool_(pool),
        empty_(std::move(empty)),
        fewer_bits_(fewer_bits),
        workspace_(workspace),
        threads_(threads) {}

  void submit(const Request& request) { waiting_.push_back(&request); }

  /// Decodes a token of each sequence, or reads on in its prompt.
  Status step() {
    hold_spare();
    while (!waiting_.empty() && has_room() && start(*waiting_.front())) waiting_.pop_front();
    if (running_.empty()) return {};
    for (;;) {
      const std::vector<Rows> plan = this->plan();
      Matrix logits;
      Status status = forward(plan, logits);
      if (status.ok()) return finish_step(plan, logits), status;
      for (Sequence& sequence : running_)  // the step broke off between layers
        if (Status trimmed = sequence.cache.trim(sequence.length); !trimmed.ok()) return trimmed;
      if (status.code() != ErrorCode::out_of_memory || !make_room()) return status;
    }
  }

  bool idle() const { return waiting_.empty() && running_.empty(); }
  const Counts& counts() const { return counts_; }
  const std::vector<Answer>& finished() const { return finished_; }
  void print(Index step) const {
    std::printf("step %4d: %2d running, %2d waiting, %2d finished; %5.0f of %.0f KiB\n", int(step),
                int(running_.size()), int(waiting_.size()), int(finished_.size()), kib(pool_.taken()),
                kib(pool_.budget()));
  }

 private:
  /// An evicted sequence does not come back at once: a quarter of the memory is left to those that run.
  bool has_room() const {
    return running_.empty() || (Index(running_.size()) < kRunning && pool_.taken() < pool_.budget() / 4 * 3);
  }

  /// Sequences are forks of one empty cache, whose working memory they share.
  bool start(const Request& request) {
    auto cache = empty_.fork();
    if (cache.ok()) running_.push_back({{&request, request.prompt}, std::move(*cache)});
    return cache.ok();
  }

  /// One token of each sequence; what is left of the step goes to prompts, the oldest first.
  std::vector<Rows> plan() {
    std::vector<Rows> plan;
    Index first = 0, left = kStepTokens - Index(running_.size());
    for (Sequence& sequence : running_) {
      const Index more = std::min(left, sequence.to_come() - 1);
      plan.push_back({&sequence, first, 1 + more});
      first += 1 + more;
      left -= more;
    }
    return plan;
  }

  Status forward(const std::vector<Rows>& plan, Matrix& logits) {
    Tokens tokens;
    std::vector<Index> positions;
    for (const Rows& rows : plan)
      for (Index at = rows.sequence->length; at < rows.sequence->length + rows.count; ++at) {
        tokens.push_back(rows.sequence->answer.tokens[std::size_t(at)]);
        positions.push_back(at);
      }
    return model_.forward(tokens, positions, logits,
                          [&](Index layer, LayerStep& step) { return attend(layer, step, plan); });
  }

  Status attend(Index layer, LayerStep& step, const std::vector<Rows>& plan) {
    std::vector<BatchEntry> entries;
    for (const auto& [sequence, first, count] : plan) {
      Status status = sequence->cache.append(layer, tensor(step.keys.middleRows(first, count), model_.kv_heads),
                                             tensor(step.values.middleRows(first, count), model_.kv_heads));
      if (!status.ok()) return status;
      auto output = step.output.middleRows(first, count);
      entries.push_back({&sequence->cache, tensor(step.queries.middleRows(first, count), model_.heads),
                         tensor(output, model_.heads)});
    }
    counts_.peak = std::max(counts_.peak, pool_.taken());
    return attend_batch(layer, {entries.data(), Index(entries.size())}, workspace_, threads_);
  }

  void finish_step(const std::vector<Rows>& plan, const Matrix& logits) {
    for (const auto& [sequence, first, count] : plan) {
      sequence->length += count;
      sequence->answer.steps.push_back(count);
      counts_.tokens += count;
      if (sequence->to_come() == 0) sequence->answer.tokens.push_back(greatest(logits.middleRows(first, count)));
    }
    std::vector<Sequence> still_running;
    for (Sequence& sequence : running_)
      if (sequence.answer.complete())
        finished_.push_back(std::move(sequence.answer));
      else
        still_running.push_back(std::move(sequence));
    running_ = std::move(still_running);
  }

  /// The oldest sequence that has pages to spare bits of; else the youngest one starts anew, later.
  bool make_room() {
    for (Sequence& sequence : running_)
      if (requantize(sequence)) return true;
    if (running_.size() < 2) return false;
    waiting_.push_front(running_.back().answer.request);
    running_.pop_back();
    ++counts_.evictions;
    return true;
  }

  /// Whether memory came free. A page of fewer bits moves to a smaller block before its own goes: the first one to the
  /// spare block, the next ones to where those before them were.
  bool requantize(Sequence& sequence) {
    if (!hold_spare()) return false;
    spare_ = Buffer();
    const Index before = pool_.bytes();
    const bool freed = sequence.cache.requantize(0, sequence.length, fewer_bits_).ok() && pool_.bytes() < before;
    sequence.answer.requantized |= freed;
    counts_.requantizations += freed;
    return hold_spare() && freed;
  }
  bool hold_spare() { return spare_.bytes() > 0 || spare_.allocate_unset(kSpareBytes, pool_.allocator()); }

  static constexpr Index kRunning = 12, kStepTokens = 64;  ///< most sequences at once, and tokens of a step
  static constexpr Index kSpareBytes = 4096;               ///< more than a page of fewer bits

  const Model& model_;
  const PagePool& pool_;
  AsymKVCache empty_;
  const AsymKVPolicy& fewer_bits_;
  const Workspace& workspace_;
  const ThreadPool& threads_;
  std::deque<const Request*> waiting_;
  std::vector<Sequence> running_;  ///< the oldest first
  std::vector<Answer> finished_;
  Buffer spare_;
  Counts counts_;
};

}  // namespace toy
