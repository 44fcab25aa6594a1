// passkey.hpp: the command `llm passkey`: whether a cache still finds one sentence in a long text. A random key of five
// digits is hidden in filler from a text, at a given depth, and asked for at the end. Used by main and the tests.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "decoder.hpp"
#include "tokenizer.hpp"

namespace llm {

struct PasskeyOptions {
  std::vector<Index> contexts = {1024, 2048, 4096};        ///< tokens of a trial, its answer included
  std::vector<double> depths = {0.1, 0.3, 0.5, 0.7, 0.9};  ///< where the key stands: 0 is the start, 1 the end
  Index trials = 4;                                        ///< of each context and depth
  std::uint64_t seed = 1;                                  ///< of the keys and of where filler is taken from
  Index residual = 128;                                    ///< the paper's R, of the quantized caches
  std::vector<std::string> policies;
};

/// One trial: the tokens up to the answer, and the answer.
struct PasskeyTrial {
  std::vector<Token> prompt, key;
};

/// The trials of one policy at one context and, but for over_depths(), depth.
struct PasskeyResult {
  std::string policy;
  Index context = 0;
  double depth = 0;
  Index trials = 0;
  double exact = 0;            ///< share of keys that greedy decoding reproduces digit by digit
  double agreement = 0;        ///< share of answers that are those of the float cache, right or wrong
  double log_probability = 0;  ///< mean of a key's digit given those before it, in nats: a score where few are exact
};

/// A trial of `context` tokens in all, the first of which is the begin-of-text token where the model wants one; the
/// same seed gives the same trial. `text` is without such tokens. Throws std::runtime_error if the text or the context
/// is too short.
PasskeyTrial make_passkey_trial(const Tokenizer& tokenizer, const std::vector<Token>& text, Index context, double depth,
                                std::uint64_t seed);

/// One result for each policy, context and depth, in this order. All policies get the same trials, which run in
/// parallel on all cores; a line of progress, which starts with `name`, is written to `progress` unless that is null.
/// Throws std::runtime_error for bad options, unknown policies and texts that are too short.
std::vector<PasskeyResult> find_passkeys(const Model& model, const Tokenizer& tokenizer, const std::vector<Token>& text,
                                         const PasskeyOptions& options, std::FILE* progress,
                                         const std::string& name = "passkey");

/// The means over all depths: one result for each policy and context, in the order of find_passkeys(), with a depth
/// that means nothing.
std::vector<PasskeyResult> over_depths(const std::vector<PasskeyResult>& results);

/// The results as a table for people: a row for each policy and context, exact shares by depth.
std::string to_table(const std::vector<PasskeyResult>& results);
/// As JSON: an object with the names of the model and the text, PasskeyOptions' numbers, and `results`, a list of
/// objects with PasskeyResult's fields.
std::string to_json(const std::string& model, const std::string& text, const PasskeyOptions& options,
                    const std::vector<PasskeyResult>& results);

}  // namespace llm
