// tokenizer.hpp: text to tokens and back, with the vocabulary of a GGUF file. Used by generate and eval, which need not
// know the kinds: byte-level BPE and SentencePiece's BPE.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"

namespace llm {

/// Of tokenizer.ggml.token_type.
enum class TokenType { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

constexpr Token no_token = -1;

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Tokens of plain text; names of special tokens in it are text like any other. What a sequence begins with is not
  /// among them.
  virtual std::vector<Token> encode(std::string_view text) const = 0;
  /// As encode, but the names of special tokens, like <|im_start|>, become these tokens: for chat templates.
  std::vector<Token> encode_with_specials(std::string_view text) const;

  /// The token that the model wants at the beginning of every sequence, if it wants one.
  std::optional<Token> begin_of_text() const { return begin_of_text_; }
  bool ends_text(Token token) const { return token == end_of_text_; }
  /// Bytes of a token; part of a UTF-8 sequence, maybe. Empty for special tokens.
  const std::string& text(Token token) const { return texts_[std::size_t(token)]; }
  /// The special token of that name; throws std::runtime_error if there is none.
  Token special(const std::string& name) const;
  Index size() const { return Index(texts_.size()); }

 protected:
  /// Reads the types and the special tokens. `begins` is whether sequences begin with a token of their own where the
  /// file does not say.
  Tokenizer(const GgufFile& file, bool begins);
  TokenType type(Token token) const { return types_[std::size_t(token)]; }
  void set_text(Token token, std::string text) { texts_[std::size_t(token)] = std::move(text); }

 private:
  std::string path_;
  std::vector<std::string> texts_;
  std::vector<TokenType> types_;
  std::unordered_map<std::string, Token> specials_;
  std::optional<Token> begin_of_text_;
  Token end_of_text_ = no_token;
};

/// The tokenizer that the file describes. Throws std::runtime_error for files with another kind of tokenizer, or with
/// parts that contradict each other.
std::unique_ptr<Tokenizer> read_tokenizer(const GgufFile& file);

}  // namespace llm
