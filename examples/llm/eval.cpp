// eval.cpp: windows in parallel; in each, the float cache and those of all policies take the same chunk in turn, so
// that only one chunk of the reference's distributions is ever kept.
#include "eval.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "policy_cache.hpp"

namespace llm {
namespace {

using LogProbabilities = Eigen::Ref<const Eigen::ArrayXf>;

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

/// Sum of a vocabulary's worth of floats: float within a segment, for the vector units, double over the segments.
template <class Expression>
double segmented_sum(const Expression& x) {
  constexpr Index segment = 512;
  double sum = 0;
  for (Index i = 0; i < x.size(); i += segment) sum += double(x.segment(i, std::min(segment, x.size() - i)).sum());
  return sum;
}

/// Logits to log-probabilities, row by row.
void normalize(Matrix& logits) {
  for (Index i = 0; i < logits.rows(); ++i) {
    auto row = logits.row(i).transpose().array();
    row -= row.maxCoeff();
    row -= float(std::log(segmented_sum(row.exp())));
  }
}

double divergence(const LogProbabilities& reference, const LogProbabilities& other) {
  return segmented_sum(reference.exp() * (reference - other));
}

/// A line that rewrites itself, when asked for.
class Progress {
 public:
  Progress(bool show, Index steps) : show_(show), steps_(steps) {}
  ~Progress() {
    if (show_) std::fprintf(stderr, "\r%40s\r", "");
  }
  void step() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++done_;
    if (show_) std::fprintf(stderr, "\reval: %lld of %lld chunks", (long long)done_, (long long)steps_);
  }

 private:
  const bool show_;
  const Index steps_;
  Index done_ = 0;
  std::mutex mutex_;
};

/// One window: a cache per policy, and the reference's, in step.
class Window {
 public:
  Window(const Model& model, Decoder& decoder, const EvalOptions& options, const Token* tokens)
      : decoder_(decoder), options_(options), tokens_(tokens), tallies_(options.policies.size()) {
    const auto shape = model.shape.cache_shape();
    reference_ = make_cache("float", shape, options.context);
    for (const std::string& policy : options.policies)
      caches_.push_back(policy == "float" ? nullptr : make_cache(policy, shape, options.context));
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
    Matrix& logits = decoder_.feed(tokens_ + first, count, cache, judged_from);
    tally.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    tally.cache_bytes = cache.bytes().total();
    normalize(logits);
    return logits;
  }

  void judge(const Matrix& found, Index position, Tally& tally) {
    for (Index i = 0; i < found.rows(); ++i, ++position) {
      Index expected_best = 0, found_best = 0;
      expected_.row(i).maxCoeff(&expected_best);
      found.row(i).maxCoeff(&found_best);
      tally.agreements += expected_best == found_best;
      tally.divergences.push_back(
          float(divergence(expected_.row(i).transpose().array(), found.row(i).transpose().array())));
      if (position + 1 == options_.context) continue;  // its next token is not in the window
      tally.negative_log_likelihood -= double(found(i, tokens_[position + 1]));
      ++tally.predictions;
    }
  }

  Decoder& decoder_;
  const EvalOptions& options_;
  const Token* tokens_;
  Matrix expected_;
  std::unique_ptr<asymkv::KVCache> reference_;
  std::vector<std::unique_ptr<asymkv::KVCache>> caches_;  // null: the reference itself
  std::vector<Tally> tallies_;
};

/// The element that a share of all are below or equal to.
double quantile(std::vector<float>& values, double share) {
  const Index rank = Index(std::ceil(share * double(values.size()))) - 1;
  const auto at = values.begin() + std::clamp(rank, Index(0), Index(values.size()) - 1);
  std::nth_element(values.begin(), at, values.end());
  return double(*at);
}

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
  result.top1 = double(tally.agreements) / double(tally.divergences.size());
  result.tokens_per_second = double(tokens) * threads / tally.seconds;
  return result;
}

void check(const Model& model, const std::vector<Token>& text, const EvalOptions& options) {
  if (options.policies.empty()) throw std::runtime_error("no policies to evaluate");
  for (const std::string& policy : options.policies) parse_policy(policy, model.shape.cache_shape());
  if (options.windows < 1 || options.skip < 0 || options.context < options.skip + 2)
    throw std::runtime_error("windows must be at least 1, skip at least 0, and context at least skip + 2");
  if (options.context > model.shape.context)
    throw std::runtime_error("the model's context is " + std::to_string(model.shape.context) + " tokens");
  if (Index(text.size()) / options.context < options.windows)
    throw std::runtime_error("the text has " + std::to_string(text.size()) + " tokens, enough for " +
                             std::to_string(Index(text.size()) / options.context) + " windows of " +
                             std::to_string(options.context));
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

std::vector<EvalResult> evaluate(const Model& model, const std::vector<Token>& text, const EvalOptions& options,
                                 bool show_progress) {
  check(model, text, options);
  const int threads = int(std::min(options.windows, Index(std::max(1u, std::thread::hardware_concurrency()))));
  const Index chunks = (options.context + chunk_tokens - 1) / chunk_tokens;
  Progress progress(show_progress, options.windows * chunks);
  std::vector<Tally> totals(options.policies.size());
  std::mutex totals_mutex;
  std::atomic<Index> next_window{0};
  Workers workers(threads);
  workers.run([&](int) {
    Workers alone(1);
    Decoder decoder(model, alone);
    for (Index i = next_window++; i < options.windows; i = next_window++) {
      Window window(model, decoder, options, text.data() + i * options.context);
      for (Index first = 0; first < options.context; first += chunk_tokens) {
        window.feed(first, std::min(Index(chunk_tokens), options.context - first));
        progress.step();
      }
      const std::lock_guard<std::mutex> lock(totals_mutex);
      for (std::size_t p = 0; p < totals.size(); ++p) totals[p].add(window.tallies()[p]);
    }
  });
  std::vector<EvalResult> results;
  for (std::size_t p = 0; p < totals.size(); ++p)
    results.push_back(summarize(options.policies[p], model.shape.cache_shape(), totals[p],
                                options.windows * options.context, threads));
  return results;
}

std::string to_table(const std::vector<EvalResult>& results) {
  char line[256];
  std::snprintf(line, sizeof line, "%-20s %7s %7s %9s %10s %9s %9s %9s %6s %8s\n", "policy", "payload", "all-in",
                "cache MiB", "perplexity", "mean KLD", "median", "p99", "top-1", "tokens/s");
  std::string table = line;
  for (const EvalResult& r : results) {
    std::snprintf(line, sizeof line, "%-20s %7.2f %7.2f %9.2f %10.3f %9.5f %9.5f %9.5f %6.3f %8.0f\n", r.policy.c_str(),
                  r.payload_bits, r.all_in_bits, double(r.cache_bytes) / (1 << 20), r.perplexity, r.kld_mean,
                  r.kld_median, r.kld_p99, r.top1, r.tokens_per_second);
    table += line;
  }
  return table;
}

std::string to_json(const std::vector<EvalResult>& results) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const EvalResult& r : results)
    list.push_back({{"policy", r.policy},
                    {"payload_bits", r.payload_bits},
                    {"all_in_bits", r.all_in_bits},
                    {"cache_bytes", r.cache_bytes},
                    {"perplexity", r.perplexity},
                    {"kld_mean", r.kld_mean},
                    {"kld_median", r.kld_median},
                    {"kld_p99", r.kld_p99},
                    {"top1", r.top1},
                    {"tokens_per_second", r.tokens_per_second}});
  return list.dump(2);
}

}  // namespace llm
