// calibration.hpp: the command `llm calibrate`: the policy that does least damage to a model within a budget of bits.
// Used by main and the tests.
#pragma once

#include <asymkv/calibrate.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "decoder.hpp"

namespace llm {

struct CalibrateOptions {
  double budget_bits = 1.3;  ///< all-in bits an element
  Index first_window = 0;    ///< windows left out at the start of the text
  Index windows = 2;         ///< consecutive windows, each in a fresh cache; they run in parallel
  Index context = 768;       ///< tokens of a window
  Index skip = 256;          ///< positions of a window that are not judged
  Index chunk = 128;         ///< tokens fed at once
};

/// Records the windows, measures every candidate on every layer's attention, and asks the model what one probe of each
/// layer's keys and values does to its output (mean KL(float || probe)). Runs on all cores; lines of progress are
/// written to `progress` unless that is null. The same on every run. Throws std::runtime_error for bad options, texts
/// that are too short and budgets that nothing fits. `text` is as window_tokens() cuts it.
asymkv::Calibration calibrate(const Model& model, const std::vector<Token>& text, const CalibrateOptions& options,
                              std::FILE* progress);

/// A row per layer with what was chosen and what damage that is expected to do, and the sums, as a table for people.
std::string to_table(const asymkv::Calibration& calibration, const asymkv::CacheShape& shape);
/// The policy as a file that parse_policy() reads; the last line is not ended.
std::string to_yaml(const asymkv::AsymKVPolicy& policy);

}  // namespace llm
