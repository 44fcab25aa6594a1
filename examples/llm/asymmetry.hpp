// asymmetry.hpp: the command `llm asymmetry`: why keys need more bits than values (the paper's figure 1), on a model's
// own queries, keys and values. Used by main and the tests.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "decoder.hpp"

namespace llm {

struct AsymmetryOptions {
  Index windows = 4;     ///< consecutive windows from the start of the text
  Index context = 1024;  ///< tokens of a window
  Index skip = 256;      ///< queries of a window that are not judged
};

/// Errors of one layer, ||x* - x|| / ||x|| with the squares summed over windows, heads, queries and elements. Keys and
/// values are quantized to 2 bits as KIVI-2 does, all of them, without a residual window. Then the values' error is
/// scaled so that in each head it is as large as the keys': what differs after that is where the error enters.
struct AsymmetryResult {
  double key_error = 0;            ///< of the keys, and of the values where they are scaled
  double score_error = 0;          ///< of q k^T, keys quantized
  double weight_error = 0;         ///< of its softmax, keys quantized
  double output_by_keys = 0;       ///< of the attention output, keys quantized
  double value_error = 0;          ///< KIVI-2's own, before scaling
  double output_by_values = 0;     ///< of the attention output, values quantized: KIVI-2's own error
  double output_by_equalized = 0;  ///< the same with the values' error as large as the keys'
};

/// One result per layer; where a layer has a sliding window, only tokens in it count. Windows run in parallel on all
/// cores; a line of progress is written to `progress` unless that is null. Throws std::runtime_error for bad options
/// and texts that are too short. `text` is as window_tokens() cuts it.
std::vector<AsymmetryResult> measure_asymmetry(const Model& model, const std::vector<Token>& text,
                                               const AsymmetryOptions& options, std::FILE* progress);

/// The mean over layers.
AsymmetryResult mean(const std::vector<AsymmetryResult>& layers);

/// A row per layer and the mean, as a table for people; and as JSON.
std::string to_table(const std::vector<AsymmetryResult>& layers);
std::string to_json(const std::string& model, const std::string& text, const AsymmetryOptions& options,
                    const std::vector<AsymmetryResult>& layers);

}  // namespace llm
