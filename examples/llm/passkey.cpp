// passkey.cpp: the prompt, the question to each cache, and the counting.
#include "passkey.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

#include "check_option.hpp"
#include "jobs.hpp"
#include "policy_cache.hpp"
#include "prefill.hpp"
#include "statistics.hpp"
#include "table.hpp"

namespace llm {
namespace {

// A plain continuation, as a base model understands it, too; ChatML is no better (examples/llm/README.md).
constexpr const char* introduction =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "the important information there.\n\n";
constexpr const char* question = "\nWhat is the pass key? The pass key is ";

std::string needle(const std::string& key) {
  return "\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n";
}

void append(std::vector<Token>& to, const std::vector<Token>& tokens) {
  to.insert(to.end(), tokens.begin(), tokens.end());
}

/// First position in from..last before which a sentence or a line ends; `from` if there is none.
Index sentence_end(const Tokenizer& tokenizer, const std::vector<Token>& text, Index from, Index last) {
  for (Index i = std::max(from, Index(1)); i <= last; ++i) {
    const std::string& before = tokenizer.text(text[std::size_t(i) - 1]);
    if (!before.empty() && (before.back() == '.' || before.back() == '\n')) return i;
  }
  return from;
}

struct Answer {
  std::vector<Token> greedy;
  double log_probability = 0;
};
using Answers = std::vector<Answer>;  // one a trial

/// The greedy answer, then the probability of the right one, through the same past.
Answer ask(Decoder& decoder, asymkv::KVCache& cache, const PasskeyTrial& trial) {
  const Index digits = Index(trial.key.size());
  const Matrix first = prefill(decoder, trial.prompt, cache);
  Answer answer;
  answer.greedy.push_back(most_probable(first.row(0)));
  while (Index(answer.greedy.size()) < digits)
    answer.greedy.push_back(most_probable(decoder.feed(&answer.greedy.back(), 1, cache, 0).row(0)));

  require(cache.trim(asymkv::Index(trial.prompt.size())));
  Matrix logits(digits, first.cols());  // of the right answer's digits
  logits.row(0) = first.row(0);
  if (digits > 1) logits.bottomRows(digits - 1) = decoder.feed(trial.key.data(), digits - 1, cache, 0);
  to_log_probabilities(logits);
  for (Index i = 0; i < digits; ++i)
    answer.log_probability += double(logits(i, trial.key[std::size_t(i)])) / double(digits);
  return answer;
}

void check(const Model& model, const PasskeyOptions& options) {
  if (options.policies.empty()) throw std::runtime_error("no policies to evaluate");
  if (options.contexts.empty() || options.depths.empty())
    throw std::runtime_error("at least one context and depth are needed");
  check_option("--trials", options.trials, 1);
  for (const Index context : options.contexts)
    check_option("--contexts", context, 1, model.shape.context, "up to the model's context");
  for (const double depth : options.depths)
    if (!(depth >= 0.0 && depth <= 1.0)) throw std::runtime_error("depths are between 0 and 1");
  check_residual(options.residual);
  for (const std::string& policy : options.policies) make_cache(policy, model.shape.cache_shape(), 0, options.residual);
}

/// All trials: by context, then depth. None depends on which others there are.
std::vector<PasskeyTrial> make_trials(const Tokenizer& tokenizer, const std::vector<Token>& text,
                                      const PasskeyOptions& options) {
  std::vector<PasskeyTrial> trials;
  for (const Index context : options.contexts)
    for (const double depth : options.depths)
      for (Index i = 0; i < options.trials; ++i)
        trials.push_back(
            make_passkey_trial(tokenizer, text, context, depth, options.seed * 1000003 + std::uint64_t(i)));
  return trials;
}

void count(const PasskeyTrial& trial, const Answer& reference, const Answer& answer, PasskeyResult& result) {
  const double share = 1.0 / double(result.trials);
  result.exact += answer.greedy == trial.key ? share : 0.0;
  result.agreement += answer.greedy == reference.greedy ? share : 0.0;
  result.log_probability += answer.log_probability * share;
}

}  // namespace

PasskeyTrial make_passkey_trial(const Tokenizer& tokenizer, const std::vector<Token>& text, Index context, double depth,
                                std::uint64_t seed) {
  std::seed_seq mixed{seed & 0xffffffff, seed >> 32, std::uint64_t(context), std::uint64_t(1000 * depth)};
  std::mt19937_64 generator(mixed);
  const std::string digits = std::to_string(10000 + generator() % 90000);
  PasskeyTrial trial;
  trial.key = tokenizer.encode(digits);
  std::vector<Token> start = tokenizer.encode(introduction);
  if (tokenizer.begin_of_text()) start.insert(start.begin(), *tokenizer.begin_of_text());
  const std::vector<Token> hidden = tokenizer.encode(needle(digits)), end = tokenizer.encode(question);
  const Index filler = context - Index(start.size() + hidden.size() + end.size() + trial.key.size());
  if (filler < 1) throw std::runtime_error("a context of " + std::to_string(context) + " tokens is too short");
  if (Index(text.size()) < filler)
    throw std::runtime_error("the text has " + std::to_string(text.size()) + " tokens, too few for a context of " +
                             std::to_string(context));
  const Index first = Index(generator() % std::uint64_t(Index(text.size()) - filler + 1)), last = first + filler;
  const Index split = sentence_end(tokenizer, text, first + Index(depth * double(filler)), last);
  append(trial.prompt, start);
  append(trial.prompt, {text.begin() + first, text.begin() + split});
  append(trial.prompt, hidden);
  append(trial.prompt, {text.begin() + split, text.begin() + last});
  append(trial.prompt, end);
  return trial;
}

std::vector<PasskeyResult> find_passkeys(const Model& model, const Tokenizer& tokenizer, const std::vector<Token>& text,
                                         const PasskeyOptions& options, std::FILE* progress, const std::string& name) {
  check(model, options);
  const std::vector<PasskeyTrial> trials = make_trials(tokenizer, text, options);
  std::vector<std::string> caches = {"float"};
  for (const std::string& policy : options.policies)
    if (policy != "float") caches.push_back(policy);
  std::vector<Answers> answers(caches.size(), Answers(trials.size()));
  Progress line(progress, name, "answers", Index(trials.size() * caches.size()));
  run_jobs(model, Index(trials.size() * caches.size()), [&](Decoder& decoder, Index job) {
    const std::size_t trial = std::size_t(job) / caches.size(), cache = std::size_t(job) % caches.size();
    const Index context = Index(trials[trial].prompt.size() + trials[trial].key.size());
    const auto past = make_cache(caches[cache], model.shape.cache_shape(), context, options.residual);
    answers[cache][trial] = ask(decoder, *past, trials[trial]);
    line.step();
  });
  std::vector<PasskeyResult> results;
  for (const std::string& policy : options.policies) {
    const Answers& found = answers[std::size_t(std::find(caches.begin(), caches.end(), policy) - caches.begin())];
    std::size_t first = 0;
    for (const Index context : options.contexts)
      for (const double depth : options.depths) {
        PasskeyResult result{policy, context, depth, options.trials, 0, 0, 0};
        for (Index i = 0; i < options.trials; ++i, ++first)
          count(trials[first], answers[0][first], found[first], result);
        results.push_back(result);
      }
  }
  return results;
}

std::vector<PasskeyResult> over_depths(const std::vector<PasskeyResult>& results) {
  std::vector<PasskeyResult> means;
  for (const PasskeyResult& result : results) {
    if (means.empty() || means.back().policy != result.policy || means.back().context != result.context)
      means.push_back({result.policy, result.context, 0, 0, 0, 0, 0});
    PasskeyResult& mean = means.back();
    const double before = double(mean.trials), added = double(result.trials);
    const auto join = [&](double& to, double from) { to = (to * before + from * added) / (before + added); };
    join(mean.exact, result.exact);
    join(mean.agreement, result.agreement);
    join(mean.log_probability, result.log_probability);
    mean.trials += result.trials;
  }
  return means;
}

std::string to_table(const std::vector<PasskeyResult>& results) {
  const std::size_t width = policy_width(results);
  std::string table = padded("policy", width) + " context   exact  agree  log-prob  exact by depth\n";
  char cell[80];
  auto depth = results.begin();
  for (const PasskeyResult& mean : over_depths(results)) {
    std::snprintf(cell, sizeof cell, " %7lld  %6.3f %6.3f  %8.4f", (long long)mean.context, mean.exact, mean.agreement,
                  mean.log_probability);
    table += padded(mean.policy, width) + cell;
    for (; depth != results.end() && depth->policy == mean.policy && depth->context == mean.context; ++depth) {
      std::snprintf(cell, sizeof cell, "  %.2f: %.2f", depth->depth, depth->exact);
      table += cell;
    }
    table += "\n";
  }
  return table;
}

std::string to_json(const std::string& model, const std::string& text, const PasskeyOptions& options,
                    const std::vector<PasskeyResult>& results) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const PasskeyResult& r : results)
    list.push_back({{"policy", r.policy},
                    {"context", r.context},
                    {"depth", r.depth},
                    {"trials", r.trials},
                    {"exact", r.exact},
                    {"agreement", r.agreement},
                    {"log_probability", r.log_probability}});
  const nlohmann::ordered_json report = {
      {"model", model}, {"text", text}, {"seed", options.seed}, {"residual", options.residual}, {"results", list}};
  return report.dump(2);
}

}  // namespace llm
