// Whole sequences on each rank.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "modes.hpp"
#include "progress.hpp"
#include "sequence.hpp"
#include "step_times.hpp"

namespace context_parallel {
namespace {

/// Sequences in order of their ranks: rank r owns first(r)..first(r + 1)-1, even within one.
struct SequenceSplit {
  Index sequences;
  int ranks;
  Index first(int rank) const { return sequences * rank / ranks; }
  Index count(int rank) const { return first(rank + 1) - first(rank); }
};

void fill(Sequence& sequence, Index context) {
  const Index chunk = 128;
  for (Index first = 0; first < context; first += chunk) sequence.append(first, std::min(chunk, context - first));
}

class SequencesRun {
 public:
  SequencesRun(const Options& options, const Ranks& ranks)
      : options_(options),
        policy_(parse_policy(options)),
        ranks_(ranks),
        split_{options.sequences, ranks.count},
        outputs_(std::size_t(split_.count(ranks.rank) * output_floats())),
        gathered_(ranks.rank == 0 ? std::size_t(options.sequences * output_floats()) : 0) {
    Progress progress(ranks.rank, "sequences", split_.count(ranks.rank));
    for (Index i = split_.first(ranks.rank); i < split_.first(ranks.rank + 1); ++i) {
      own_.emplace_back(options.shape(), policy_, i, options.context + options.steps);
      fill(own_.back(), options.context);
      progress.at(Index(own_.size()));
    }
    for (int rank = 0; rank < ranks.count; ++rank) {
      counts_.push_back(int(split_.count(rank) * output_floats()));
      offsets_.push_back(int(split_.first(rank) * output_floats()));
    }
  }

  /// Appends a token to each sequence, attends it, and gathers the outputs on rank 0.
  void step(Index step, StepTimes& times) {
    ranks_.kill_if_asked(options_, step);
    const Index token = options_.context + step;
    AttentionOutput output(query_heads, options_.shape().value_dim);
    for (Index layer = 0; layer < options_.layers; ++layer) {
      const std::vector<Floats> queries = queries_of(layer, token);
      times.start();
      float* to = outputs_.data();
      for (std::size_t i = 0; i < own_.size(); ++i) {
        own_[i].append(layer, token, 1);
        own_[i].attend(layer, queries[i], token, output);
        to = copy_outputs(output, to);
      }
      times.attended();
      MPI_Gatherv(outputs_.data(), int(outputs_.size()), MPI_FLOAT, gathered_.data(), counts_.data(), offsets_.data(),
                  MPI_FLOAT, 0, ranks_.comm);
      times.exchanged();
    }
  }

  /// After a step, on rank 0: sequences one after the other in this process, appended in the same steps, have the same
  /// bits in the last layer.
  void check_last_step() const {
    const Index layer = options_.layers - 1, tokens = options_.context + options_.steps;
    AttentionOutput output(query_heads, options_.shape().value_dim);
    Floats expected(gathered_.size() / std::size_t(options_.sequences));
    Progress progress(0, "all sequences in one process, for the check", options_.sequences);
    for (Index i = 0; i < options_.sequences; ++i) {
      Sequence sequence(options_.shape(), policy_, i, tokens);
      fill(sequence, options_.context);
      for (Index token = options_.context; token < tokens; ++token) sequence.append(token, 1);
      sequence.attend(layer, sequence.tokens().query(layer, tokens - 1), tokens - 1, output);
      copy_outputs(output, expected.data());
      if (std::memcmp(expected.data(), gathered_.data() + i * output_floats(), expected.size() * sizeof(float)) != 0)
        throw std::runtime_error("check: sequence " + std::to_string(i) + " has another output than in one process");
      progress.at(i + 1);
    }
    std::printf("check: %lld sequences have the bits that one process gives them (last step, last layer)\n",
                (long long)(options_.sequences));
  }

  Traffic traffic() const {
    const Index sent = ranks_.rank == 0 ? 0 : Index(outputs_.size() * sizeof(float));
    return {options_.steps, options_.layers * sent, "layers * own sequences * heads * value_dim * 4, 0 on rank 0"};
  }
  Index bytes() const {
    Index sum = 0;
    for (const Sequence& sequence : own_) sum += sequence.cache().bytes().total();
    return sum;
  }
  Index tokens() const { return Index(own_.size()) * options_.context; }

 private:
  Index output_floats() const { return query_heads * options_.shape().value_dim; }
  std::vector<Floats> queries_of(Index layer, Index token) const {
    std::vector<Floats> queries;
    for (const Sequence& sequence : own_) queries.push_back(sequence.tokens().query(layer, token));
    return queries;
  }
  /// Without log-sum-exps, which nobody needs. Returns the end.
  static float* copy_outputs(const AttentionOutput& output, float* to) {
    for (Index head = 0; head < output.heads(); ++head) to = std::copy_n(output.head(head), output.value_dim(), to);
    return to;
  }

  Options options_;
  asymkv::AsymKVPolicy policy_;
  Ranks ranks_;
  SequenceSplit split_;
  std::vector<Sequence> own_;
  Floats outputs_, gathered_;
  std::vector<int> counts_, offsets_;
};

}  // namespace

Traffic run_sequences(const Options& options, const Ranks& ranks) {
  SequencesRun run(options, ranks);
  print_caches(options, ranks, run.bytes(), run.tokens());
  StepTimes times;
  Progress progress(ranks.rank, "steps", options.steps);
  for (Index step = 0; step < options.steps; ++step) {
    run.step(step, times);
    progress.at(step + 1);
  }
  times.print(ranks, options.steps, "gather");
  if (options.check && ranks.rank == 0) run.check_last_step();
  return run.traffic();
}

}  // namespace context_parallel
