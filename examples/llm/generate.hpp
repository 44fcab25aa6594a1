// generate.hpp: the command `llm generate`: continues a prompt through a cache. Used by main.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

#include "decoder.hpp"
#include "tokenizer.hpp"

namespace llm {

struct GenerateOptions {
  std::string prompt;
  std::string policy = "float";
  Index prompt_tokens = 0;  ///< the prompt is cut after so many, 0: not cut
  Index tokens = 128;
  float temperature = 0.0f;
  std::uint64_t seed = 1;
  bool echo = true;   ///< write the prompt, too
  bool chat = false;  ///< the prompt is what a user says to the model, in the ChatML template
};

/// Writes the prompt (echo) and its continuation to `text` as it comes, then speed and memory to `report`. Ends at the
/// model's end-of-text token or when its context is full.
void generate(const Model& model, const Tokenizer& tokenizer, const GenerateOptions& options, std::ostream& text,
              std::ostream& report);

}  // namespace llm
