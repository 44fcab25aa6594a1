// generate.cpp: prefill in chunks, then one token at a time.
#include "generate.hpp"

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "policy_cache.hpp"
#include "prefill.hpp"
#include "sampler.hpp"

namespace llm {
namespace {

using Clock = std::chrono::steady_clock;

/// How long some tokens took, and what part of it the cache.
struct Measured {
  double seconds, cache_seconds;

  std::string of(Index tokens) const {
    std::ostringstream words;
    words << std::fixed << std::setprecision(1) << (seconds > 0.0 ? double(tokens) / seconds : 0.0) << " tokens/s, "
          << (seconds > 0.0 ? 100.0 * cache_seconds / seconds : 0.0) << "% of it append and attend";
    return words.str();
  }
};

template <class Function>
Measured measure(const Decoder& decoder, Function function) {
  const Clock::time_point start = Clock::now();
  const double before = decoder.cache_seconds();
  function();
  return {std::chrono::duration<double>(Clock::now() - start).count(), decoder.cache_seconds() - before};
}

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
  if (options.prompt_tokens > 0 && Index(tokens.size()) > options.prompt_tokens)
    tokens.resize(std::size_t(options.prompt_tokens));
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
  Workers workers(int(std::max(1u, std::thread::hardware_concurrency())));
  const auto cache =
      make_cache(options.policy, model.shape.cache_shape(), length + most, chunk_tokens, workers.count());
  Decoder decoder(model, workers);
  Sampler sampler(options.temperature, options.seed);
  const Matrix* logits = nullptr;

  const Measured prompted = measure(decoder, [&] { logits = &prefill(decoder, prompt, *cache); });
  if (options.echo)
    for (const Token token : prompt) text << tokenizer.text(token);
  Index generated = 0;
  const Measured decoded = measure(decoder, [&] {
    for (; generated < most; ++generated) {
      const Token token = sampler.draw(logits->row(0).transpose());
      if (tokenizer.ends_text(token)) break;
      text << tokenizer.text(token) << std::flush;
      logits = &decoder.feed(&token, 1, *cache, 0);
    }
  });
  text << std::endl;
  report << std::fixed << std::setprecision(1) << "prompt " << length << " tokens, " << prompted.of(length)
         << "; generated " << generated << " tokens, " << decoded.of(generated) << "; " << workers.count()
         << " threads; cache " << options.policy << ": " << cache->bytes().total() << " bytes for " << cache->length()
         << " tokens" << std::endl;
}

}  // namespace llm
