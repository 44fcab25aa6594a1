// eval.hpp: the command `llm eval`: what a policy costs in quality, against the float cache, on a text. Used by main
// and the tests. The text is fed in chunks through the quantized past, as in decoding; one exact prefill would show
// nothing.
#pragma once

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "decoder.hpp"
#include "tokenizer.hpp"

namespace llm {

struct EvalOptions {
  Index first_window = 0;    ///< windows left out at the start, so that one text serves for choosing and for judging
  Index windows = 16;        ///< consecutive windows, each in a fresh cache at position 0
  Index context = 2048;      ///< tokens of a window
  Index skip = 256;          ///< positions of a window that are fed, but not judged
  Index residual = 128;      ///< the paper's R, of the quantized caches
  Index chunk = 128;         ///< tokens fed at once; among themselves they attend exactly, whatever R is
  Index passkey_trials = 0;  ///< of each depth of the passkey test, in texts of `context` tokens; 0 leaves it out
  std::vector<std::string> policies;
};

/// One row of the table. Divergence is KL(float || policy) of the next-token distributions, in nats.
struct EvalResult {
  std::string policy;
  double payload_bits = 0, all_in_bits = 0;  ///< per element of sealed pages
  asymkv::Index cache_bytes = 0;             ///< of a window's cache at its end
  double perplexity = 0;
  double kld_mean = 0, kld_median = 0, kld_p99 = 0, kld_p999 = 0;
  double top1 = 0;                ///< share of positions where both caches find the same token most probable
  double tokens_per_second = 0;   ///< of the model with this cache, all threads together
  std::optional<double> passkey;  ///< share of keys found digit by digit, where it was asked for: evaluate() does not
};

/// Tokens of a text, cut into windows: where the model wants a begin-of-text token, each window starts with it, so that
/// it has context - 1 tokens of the text.
std::vector<Token> window_tokens(const Tokenizer& tokenizer, const std::string& text, Index context);

/// Throws std::runtime_error for windows, context, skip and chunk that make no sense or that the text has not enough
/// tokens for.
void check_windows(const Model& model, const std::vector<Token>& text, const EvalOptions& options);

/// One result per policy, in their order. Windows run in parallel on all cores; a line of progress, which starts with
/// `name`, is written to `progress` unless that is null. Throws std::runtime_error for bad options, unknown policies
/// and texts that are too short.
std::vector<EvalResult> evaluate(const Model& model, const std::vector<Token>& text, const EvalOptions& options,
                                 std::FILE* progress, const std::string& name = "eval");

}  // namespace llm
