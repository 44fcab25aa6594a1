// eval_report.cpp: the two tests put together, and their tables.
#include "eval_report.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "passkey.hpp"
#include "table.hpp"

namespace llm {
namespace {

std::vector<PasskeyResult> passkeys_of(const ModelFile& file, const std::string& text, const EvalOptions& options,
                                       std::FILE* progress, const std::string& title) {
  PasskeyOptions passkey;
  passkey.contexts = {options.context};
  passkey.trials = options.passkey_trials;
  passkey.residual = options.residual;
  passkey.policies = options.policies;
  return over_depths(
      find_passkeys(file.model, *file.tokenizer, file.tokenizer->encode(text), passkey, progress, "passkey: " + title));
}

/// Mean divergence of a policy; 0 where the report does not have it.
double divergence_of(const EvalReport& report, const std::string& policy) {
  for (const EvalResult& result : report.results)
    if (result.policy == policy) return result.kld_mean;
  return 0.0;
}

/// Width of a text's column.
std::size_t column(const EvalReport& report) { return std::max(std::size_t(8), report.text.size()); }

/// The reports of one model.
std::string ratio_table(const std::vector<const EvalReport*>& texts) {
  const EvalReport& first = *texts.front();
  const std::size_t width = policy_width(first.results);
  std::string table = first.model + ": mean KLD as a multiple of KIVI-2's\n" + padded("policy", width);
  for (const EvalReport* text : texts) table += "  " + right(text->text, column(*text));
  table += "  largest/least\n";
  for (const EvalResult& result : first.results) {
    std::vector<double> ratios;
    for (const EvalReport* text : texts)
      ratios.push_back(divergence_of(*text, result.policy) / divergence_of(*text, "KIVI-2"));
    const auto [least, largest] = std::minmax_element(ratios.begin(), ratios.end());
    if (!(*least > 0.0)) continue;  // float
    table += padded(result.policy, width);
    for (std::size_t i = 0; i < texts.size(); ++i) table += "  " + right(fixed(ratios[i], 4), column(*texts[i]));
    table += "  " + right(fixed(*largest / *least, 2), 13) + "\n";
  }
  return table;
}

nlohmann::ordered_json json_row(const EvalReport& report, const EvalResult& r) {
  return {{"model", report.model},
          {"text", report.text},
          {"policy", r.policy},
          {"payload_bits", r.payload_bits},
          {"all_in_bits", r.all_in_bits},
          {"cache_bytes", r.cache_bytes},
          {"perplexity", r.perplexity},
          {"kld_mean", r.kld_mean},
          {"kld_median", r.kld_median},
          {"kld_p99", r.kld_p99},
          {"kld_p999", r.kld_p999},
          {"top1", r.top1},
          {"tokens_per_second", r.tokens_per_second},
          {"passkey", r.passkey ? nlohmann::ordered_json(*r.passkey) : nlohmann::ordered_json()}};
}

}  // namespace

EvalReport report(const ModelFile& file, const std::string& text_name, const std::string& text,
                  const EvalOptions& options, std::FILE* progress) {
  EvalReport report{file.name(), text_name, {}};
  const std::vector<Token> tokens = window_tokens(*file.tokenizer, text, options.context);
  check_windows(file.model, tokens, options);  // both tests are refused before the first takes its time
  std::vector<PasskeyResult> passkeys;
  if (options.passkey_trials > 0) passkeys = passkeys_of(file, text, options, progress, report.title());
  report.results = evaluate(file.model, tokens, options, progress, "eval: " + report.title());
  for (std::size_t i = 0; i < passkeys.size(); ++i) report.results[i].passkey = passkeys[i].exact;
  return report;
}

std::string to_table(const EvalReport& report) {
  const std::size_t width = policy_width(report.results);
  const bool passkey = std::any_of(report.results.begin(), report.results.end(),
                                   [](const EvalResult& r) { return r.passkey.has_value(); });
  char line[160];
  std::snprintf(line, sizeof line, " %7s %7s %9s %10s %9s %9s %9s %9s %6s %8s", "payload", "all-in", "cache MiB",
                "perplexity", "mean KLD", "median", "p99", "p99.9", "top-1", "tokens/s");
  std::string table = report.title() + "\n" + padded("policy", width) + line + (passkey ? "  passkey\n" : "\n");
  for (const EvalResult& r : report.results) {
    std::snprintf(line, sizeof line, " %7.2f %7.2f %9.2f %10.3f %9.5f %9.5f %9.5f %9.5f %6.3f %8.0f", r.payload_bits,
                  r.all_in_bits, double(r.cache_bytes) / (1 << 20), r.perplexity, r.kld_mean, r.kld_median, r.kld_p99,
                  r.kld_p999, r.top1, r.tokens_per_second);
    table += padded(r.policy, width) + line;
    if (r.passkey) {
      std::snprintf(line, sizeof line, "  %7.3f", *r.passkey);
      table += line;
    }
    table += "\n";
  }
  return table;
}

std::string to_ratio_table(const std::vector<EvalReport>& reports) {
  std::string tables;
  std::vector<const EvalReport*> texts;  // of one model
  for (std::size_t i = 0; i < reports.size(); ++i) {
    texts.push_back(&reports[i]);
    if (i + 1 < reports.size() && reports[i + 1].model == reports[i].model) continue;
    if (texts.size() > 1 && divergence_of(reports[i], "KIVI-2") > 0.0)
      tables += (tables.empty() ? "" : "\n") + ratio_table(texts);
    texts.clear();
  }
  return tables;
}

std::string to_json(const std::vector<EvalReport>& reports) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const EvalReport& report : reports)
    for (const EvalResult& result : report.results) list.push_back(json_row(report, result));
  return list.dump(2);
}

}  // namespace llm
