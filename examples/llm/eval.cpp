// eval.cpp: windows in parallel; in each, the float cache and those of all policies take the same chunk in turn, so
// that only one chunk of the reference's distributions is ever kept.
#include "eval.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "check_option.hpp"
#include "jobs.hpp"
#include "policy_cache.hpp"
#include "statistics.hpp"

namespace llm {
namespace {

/// What one policy has collected; windows are added up. `divergences` keeps every position, for the quantiles.
struct Tally {
  std::vector<float> divergences;
  double negative_log_likelihood = 0;
  Index predictions = 0, agreements = 0;
  double seconds = 0;
  asymkv::Index cache_bytes = 0;

  void add(const Tally& other) {
    divergences.insert(divergences.end(), other.divergences.begin(), other.divergences.end());
    negative_log_likelihood += other.negative_log_likelihood;
    predictions += other.predictions;
    agreements += other.agreements;
    seconds += other.seconds;
    cache_bytes = other.cache_bytes;
  }
};

/// One window: a cache per policy, and the reference's, in step.
class Window {
 public:
  Window(const asymkv::CacheShape& shape, Decoder& decoder, const EvalOptions& options, std::vector<Token> tokens)
      : decoder_(decoder), options_(options), tokens_(std::move(tokens)), tallies_(options.policies.size()) {
    reference_ = make_cache("float", shape, options.context);
    for (const std::string& policy : options.policies)
      caches_.push_back(policy == "float" ? nullptr : make_cache(policy, shape, options.context, options.residual));
  }

  void feed(Index first, Index count) {
    const Index judged_from = std::clamp(options_.skip - first, Index(0), count);
    Tally reference_tally;
    run(*reference_, first, count, judged_from, reference_tally).swap(expected_);
    judge(expected_, first + judged_from, reference_tally);
    for (std::size_t i = 0; i < caches_.size(); ++i) {
      if (caches_[i] == nullptr) {
        tallies_[i].add(reference_tally);
        continue;
      }
      const Matrix& found = run(*caches_[i], first, count, judged_from, tallies_[i]);
      judge(found, first + judged_from, tallies_[i]);
    }
  }

  const std::vector<Tally>& tallies() const { return tallies_; }

 private:
  Matrix& run(asymkv::KVCache& cache, Index first, Index count, Index judged_from, Tally& tally) {
    const auto start = std::chrono::steady_clock::now();
    Matrix& logits = decoder_.feed(tokens_.data() + first, count, cache, judged_from);
    tally.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    tally.cache_bytes = cache.bytes().total();
    to_log_probabilities(logits);
    return logits;
  }

  void judge(const Matrix& found, Index position, Tally& tally) {
    for (Index i = 0; i < found.rows(); ++i, ++position) {
      tally.agreements += most_probable(expected_.row(i)) == most_probable(found.row(i));
      tally.divergences.push_back(
          float(divergence(expected_.row(i).transpose().array(), found.row(i).transpose().array())));
      if (position + 1 == options_.context) continue;  // its next token is not in the window
      tally.negative_log_likelihood -= double(found(i, tokens_[std::size_t(position) + 1]));
      ++tally.predictions;
    }
  }

  Decoder& decoder_;
  const EvalOptions& options_;
  const std::vector<Token> tokens_;
  Matrix expected_;
  std::unique_ptr<asymkv::KVCache> reference_;
  std::vector<std::unique_ptr<asymkv::KVCache>> caches_;  // null: the reference itself
  std::vector<Tally> tallies_;
};

EvalResult summarize(const std::string& policy, const asymkv::CacheShape& shape, Tally& tally, Index tokens,
                     int threads) {
  const asymkv::AsymKVPolicy formats = parse_policy(policy, shape);
  EvalResult result;
  result.policy = policy;
  result.payload_bits = formats.payload_bits(shape);
  result.all_in_bits = formats.all_in_bits(shape);
  result.cache_bytes = tally.cache_bytes;
  result.perplexity = std::exp(tally.negative_log_likelihood / double(tally.predictions));
  for (float x : tally.divergences) result.kld_mean += double(x) / double(tally.divergences.size());
  result.kld_median = quantile(tally.divergences, 0.5);
  result.kld_p99 = quantile(tally.divergences, 0.99);
  result.kld_p999 = quantile(tally.divergences, 0.999);
  result.top1 = double(tally.agreements) / double(tally.divergences.size());
  result.tokens_per_second = double(tokens) * threads / tally.seconds;
  return result;
}

std::vector<Token> tokens_of(Index window, const std::vector<Token>& text, const EvalOptions& options) {
  const auto first = text.begin() + (options.first_window + window) * options.context;
  return std::vector<Token>(first, first + options.context);
}

}  // namespace

std::vector<Token> window_tokens(const Tokenizer& tokenizer, const std::string& text, Index context) {
  std::vector<Token> tokens = tokenizer.encode(text);
  if (!tokenizer.begin_of_text() || context < 2) return tokens;
  std::vector<Token> windows;
  for (const Token token : tokens) {
    if (Index(windows.size()) % context == 0) windows.push_back(*tokenizer.begin_of_text());
    windows.push_back(token);
  }
  return windows;
}

void check_windows(const Model& model, const std::vector<Token>& text, const EvalOptions& options) {
  const Index most = model.shape.context;
  check_option("--first-window", options.first_window, 0);
  check_option("--windows", options.windows, 1);
  check_option("--skip", options.skip, 0, most - 2, "up to the model's context - 2");
  check_option("--context", options.context, options.skip + 2, most, "--skip + 2 to the model's context");
  check_option("--chunk", options.chunk, 1);
  const Index windows = Index(text.size()) / options.context;
  if (windows < options.first_window + options.windows)
    throw std::runtime_error("the text has " + std::to_string(text.size()) + " tokens, enough for " +
                             std::to_string(windows) + " windows of " + std::to_string(options.context));
}

std::vector<EvalResult> evaluate(const Model& model, const std::vector<Token>& text, const EvalOptions& options,
                                 std::FILE* progress, const std::string& name) {
  if (options.policies.empty()) throw std::runtime_error("no policies to evaluate");
  check_residual(options.residual);
  check_windows(model, text, options);
  for (const std::string& policy : options.policies)  // what is wrong with one shows here, not after minutes
    make_cache(policy, model.shape.cache_shape(), options.context, options.residual);
  const asymkv::CacheShape shape = model.shape.cache_shape();
  const Index chunks = (options.context + options.chunk - 1) / options.chunk;
  Progress line(progress, name, "chunks", options.windows * chunks);
  std::vector<Tally> totals(options.policies.size());
  std::mutex totals_mutex;
  run_jobs(model, options.windows, [&](Decoder& decoder, Index i) {
    Window window(shape, decoder, options, tokens_of(i, text, options));
    for (Index first = 0; first < options.context; first += options.chunk) {
      window.feed(first, std::min(options.chunk, options.context - first));
      line.step();
    }
    const std::lock_guard<std::mutex> lock(totals_mutex);
    for (std::size_t p = 0; p < totals.size(); ++p) totals[p].add(window.tallies()[p]);
  });
  std::vector<EvalResult> results;
  for (std::size_t p = 0; p < totals.size(); ++p)
    results.push_back(summarize(options.policies[p], shape, totals[p], options.windows * options.context,
                                job_threads(options.windows)));
  return results;
}

}  // namespace llm
