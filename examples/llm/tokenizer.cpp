// tokenizer.cpp: what both kinds share: special tokens, and the choice of the kind.
#include "tokenizer.hpp"

#include <stdexcept>

#include "byte_level_tokenizer.hpp"
#include "sentencepiece_tokenizer.hpp"

namespace llm {
namespace {

Token read_token(const GgufFile& file, const std::string& key, std::size_t vocabulary) {
  const double token = file.number(key);
  if (!(token >= 0.0 && token < double(vocabulary)))
    throw std::runtime_error(file.path() + ": key " + key + " is " + std::to_string(token) + ", not a token");
  return Token(token);
}

}  // namespace

std::unique_ptr<Tokenizer> read_tokenizer(const GgufFile& file) {
  const std::string& kind = file.text("tokenizer.ggml.model");
  if (kind == "gpt2") return std::make_unique<ByteLevelTokenizer>(file);
  if (kind == "llama") return std::make_unique<SentencePieceTokenizer>(file);
  throw std::runtime_error(file.path() + ": tokenizer is " + kind +
                           "; only gpt2 (byte-level BPE) and llama (SentencePiece) are supported");
}

Tokenizer::Tokenizer(const GgufFile& file, bool begins) : path_(file.path()) {
  const std::vector<std::string>& written = file.texts("tokenizer.ggml.tokens");
  const std::vector<double>& types = file.numbers("tokenizer.ggml.token_type");
  if (types.size() != written.size())
    throw std::runtime_error(path_ + ": has " + std::to_string(written.size()) + " tokens, but " +
                             std::to_string(types.size()) + " token types");
  texts_.resize(written.size());
  for (double type : types) types_.push_back(type >= 1.0 && type <= 6.0 ? TokenType(int(type)) : TokenType::unknown);
  for (std::size_t i = 0; i < written.size(); ++i)
    if (types_[i] == TokenType::control) specials_.emplace(written[i], Token(i));
  if (file.flag("tokenizer.ggml.add_bos_token", begins))
    begin_of_text_ = read_token(file, "tokenizer.ggml.bos_token_id", written.size());
  if (file.has("tokenizer.ggml.eos_token_id"))
    end_of_text_ = read_token(file, "tokenizer.ggml.eos_token_id", written.size());
}

Token Tokenizer::special(const std::string& name) const {
  const auto found = specials_.find(name);
  if (found == specials_.end()) throw std::runtime_error(path_ + ": has no special token " + name);
  return found->second;
}

std::vector<Token> Tokenizer::encode_with_specials(std::string_view text) const {
  std::vector<Token> tokens;
  while (!text.empty()) {
    std::size_t first = text.size();
    const std::pair<const std::string, Token>* next = nullptr;
    for (const auto& special : specials_) {
      const std::size_t at = text.find(special.first);
      const bool longer = at == first && next != nullptr && special.first.size() > next->first.size();
      if (at < first || longer) {
        first = at;
        next = &special;
      }
    }
    const std::vector<Token> plain = encode(text.substr(0, first));
    tokens.insert(tokens.end(), plain.begin(), plain.end());
    if (next == nullptr) break;
    tokens.push_back(next->second);
    text.remove_prefix(first + next->first.size());
  }
  return tokens;
}

}  // namespace llm
