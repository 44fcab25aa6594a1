// One sequence whose tokens are split over the ranks.
#include <algorithm>
#include <cstdio>
#include <optional>

#include "check_status.hpp"
#include "context_check.hpp"
#include "modes.hpp"
#include "progress.hpp"
#include "sent_bytes.hpp"
#include "split.hpp"
#include "step_times.hpp"

namespace context_parallel {
namespace {

class ContextRun {
 public:
  ContextRun(const Options& options, const asymkv::AsymKVPolicy& policy, const Ranks& ranks)
      : options_(options),
        ranks_(ranks),
        split_(ranks.count, policy.sink_length()),
        part_(options.shape(), take(policy.with_sinks(split_.sinks(ranks.rank))), 0,
              split_.count(ranks.rank, options.context + options.steps)),
        merge_(options.shape().value_dim),
        output_(query_heads, options.shape().value_dim) {}

  /// Appends the blocks that this rank owns.
  void fill() {
    Progress progress(ranks_.rank, "context", options_.context);
    for (Index first = 0, count = 0; first < options_.context; first += count) {
      count = std::min(split_.run(first), options_.context - first);
      if (split_.owner(first) == ranks_.rank) part_.append(first, count);
      progress.at(first + count);
    }
  }

  /// Appends and attends a token. An engine would do no more; its queries come from the layer before, whose output the
  /// reduction has given to every rank.
  void step(Index step, StepTimes& times) {
    ranks_.kill_if_asked(options_, step);
    const Index token = options_.context + step;
    for (Index layer = 0; layer < options_.layers; ++layer) {
      const Floats query = part_.tokens().query(layer, token);
      times.start();
      if (split_.owner(token) == ranks_.rank) part_.append(layer, token, 1);
      part_.attend(layer, query, split_.count(ranks_.rank, token), output_);
      times.attended();
      merge_.all_reduce(output_, ranks_.comm);
      times.exchanged();
    }
    ++reductions_;
  }

  /// Attends the last of `tokens` once more and compares.
  void check(ContextCheck& check, Index tokens) {
    check.append_until(tokens);
    for (Index layer = 0; layer < options_.layers; ++layer) {
      const Index token = tokens - 1;
      part_.attend(layer, part_.tokens().query(layer, token), split_.count(ranks_.rank, token), output_);
      const AttentionOutput part = output_;
      merge_.all_reduce(output_, ranks_.comm);
      check.compare(layer, token, part_.cache(), part, output_);
    }
    ++reductions_;
  }

  Traffic traffic() const {
    const Index bytes = options_.layers * Index(output_.floats().size() * sizeof(float));
    return {reductions_, all_reduce_bytes(ranks_.rank, ranks_.count, bytes),
            "layers * heads * (value_dim + 1) * 4 * log2(ranks)"};
  }
  const asymkv::KVCache& cache() const { return part_.cache(); }

 private:
  Options options_;
  Ranks ranks_;
  Split split_;
  Sequence part_;
  MergeOp merge_;
  AttentionOutput output_;
  Index reductions_ = 0;
};

}  // namespace

Traffic run_context(const Options& options, const Ranks& ranks) {
  const asymkv::AsymKVPolicy policy = parse_policy(options);
  ContextRun run(options, policy, ranks);
  run.fill();
  print_caches(options, ranks, run.cache().bytes().total(), run.cache().length());
  std::optional<ContextCheck> check;
  if (options.check) {
    check.emplace(options, policy, ranks);
    run.check(*check, options.context);
  }
  StepTimes times;
  Progress progress(ranks.rank, "steps", options.steps);
  for (Index step = 0; step < options.steps; ++step) {
    run.step(step, times);
    progress.at(step + 1);
  }
  times.print(ranks, options.steps, "reduction");
  if (check) run.check(*check, options.context + options.steps);
  return run.traffic();
}

}  // namespace context_parallel
