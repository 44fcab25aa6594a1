// generate.cpp: prefill in chunks, then one token at a time.
#include "generate.hpp"

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <ostream>
#include <stdexcept>

#include "policy_cache.hpp"
#include "prefill.hpp"
#include "sampler.hpp"

namespace llm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The user's words are encoded as plain text, so that names of special tokens in them mean nothing.
std::vector<Token> chat_tokens(const Tokenizer& tokenizer, const std::string& prompt) {
  std::vector<Token> tokens = tokenizer.encode_with_specials(
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
      "Face<|im_end|>\n<|im_start|>");
  const std::vector<Token> words = tokenizer.encode("user\n" + prompt);
  const std::vector<Token> end = tokenizer.encode_with_specials("<|im_end|>\n<|im_start|>assistant\n");
  tokenizer.special("<|im_start|>");  // says so if the file knows no ChatML
  tokens.insert(tokens.end(), words.begin(), words.end());
  tokens.insert(tokens.end(), end.begin(), end.end());
  return tokens;
}

std::vector<Token> prompt_tokens(const Tokenizer& tokenizer, const GenerateOptions& options) {
  std::vector<Token> tokens = options.chat ? chat_tokens(tokenizer, options.prompt) : tokenizer.encode(options.prompt);
  if (tokens.empty()) throw std::runtime_error("the prompt has no tokens");
  if (tokenizer.begin_of_text()) tokens.insert(tokens.begin(), *tokenizer.begin_of_text());
  return tokens;
}

}  // namespace

void generate(const Model& model, const Tokenizer& tokenizer, const GenerateOptions& options, std::ostream& text,
              std::ostream& report) {
  const std::vector<Token> prompt = prompt_tokens(tokenizer, options);
  const Index length = Index(prompt.size());
  if (length >= model.shape.context)
    throw std::runtime_error("the prompt has " + std::to_string(length) + " tokens, the model's context " +
                             std::to_string(model.shape.context));
  const Index most = std::min(options.tokens, model.shape.context - length);
  const auto cache = make_cache(options.policy, model.shape.cache_shape(), length + most);
  Workers workers(int(std::max(1u, std::thread::hardware_concurrency())));
  Decoder decoder(model, workers);
  Sampler sampler(options.temperature, options.seed);

  const Clock::time_point start = Clock::now();
  const Matrix* logits = &prefill(decoder, prompt, *cache);
  const double prompt_seconds = seconds_since(start);
  if (!options.chat) text << options.prompt << std::flush;
  const Clock::time_point decode_start = Clock::now();
  Index generated = 0;
  while (generated < most) {
    const Token token = sampler.draw(logits->row(0).transpose());
    if (tokenizer.ends_text(token)) break;
    text << tokenizer.text(token) << std::flush;
    ++generated;
    logits = &decoder.feed(&token, 1, *cache, 0);
  }
  const double decode_seconds = seconds_since(decode_start);
  text << std::endl;
  report << std::fixed << std::setprecision(1) << "prompt " << length << " tokens, " << double(length) / prompt_seconds
         << " tokens/s; generated " << generated << " tokens, "
         << (generated > 0 ? double(generated) / decode_seconds : 0.0) << " tokens/s; cache " << options.policy << ": "
         << cache->bytes().total() << " bytes for " << cache->length() << " tokens" << std::endl;
}

}  // namespace llm
