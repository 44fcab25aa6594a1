// eval_report.hpp: what `llm eval` says about one model on one text, and how it says it of several: tables for people,
// JSON for plot.py. Used by main and the tests.
#pragma once

#include <string>
#include <vector>

#include "eval.hpp"
#include "model_file.hpp"

namespace llm {

struct EvalReport {
  std::string model, text;  ///< their names
  std::vector<EvalResult> results;

  std::string title() const { return model + " on " + text; }
};

/// evaluate() on a text and, where the options ask for it, the passkey test of the same policies, at the same context
/// and residual length, with the text as filler. Progress and exceptions are those of evaluate() and find_passkeys();
/// a line of progress names model and text.
EvalReport report(const ModelFile& file, const std::string& text_name, const std::string& text,
                  const EvalOptions& options, std::FILE* progress);

/// The title, and a row for each policy.
std::string to_table(const EvalReport& report);

/// How well the order of policies holds on texts of several kinds: for each model, the mean divergence of its policies
/// as a multiple of KIVI-2's on the same text, a column a text, then the largest of these over the least. Empty for
/// models that have one text, or no KIVI-2.
std::string to_ratio_table(const std::vector<EvalReport>& reports);

/// A JSON list with an object for each model, text and policy: EvalResult's fields after the names as `model` and
/// `text`; `passkey` is null where it was not asked for.
std::string to_json(const std::vector<EvalReport>& reports);

}  // namespace llm
