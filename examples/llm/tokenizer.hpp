// tokenizer.hpp: byte-level BPE with the vocabulary and merges of a GGUF file. Used by generate and eval. Text is split
// into single digits, then by GPT-2's pattern, and the merges are applied to the bytes of each piece.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"

namespace llm {

class Tokenizer {
 public:
  /// Throws std::runtime_error for files with another kind of tokenizer, or with parts that contradict each other.
  explicit Tokenizer(const GgufFile& file);

  /// Tokens of plain text; names of special tokens in it are text like any other. Bytes for which the vocabulary has no
  /// token (a few control characters, and bytes that never occur in UTF-8) are left out.
  std::vector<Token> encode(std::string_view text) const;
  /// As encode, but the names of special tokens, like <|im_start|>, become these tokens: for chat templates.
  std::vector<Token> encode_with_specials(std::string_view text) const;

  /// Bytes of a token; part of a UTF-8 sequence, maybe. Empty for special tokens.
  const std::string& text(Token token) const { return texts_[std::size_t(token)]; }
  /// The special token of that name; throws std::runtime_error if there is none.
  Token special(const std::string& name) const;
  bool ends_text(Token token) const { return token == end_of_text_; }
  Index size() const { return Index(texts_.size()); }

 private:
  struct Merge {
    int rank;
    Token merged;
  };
  static std::uint64_t pair_key(Token left, Token right) { return std::uint64_t(left) << 32 | std::uint32_t(right); }

  void read_vocabulary(const GgufFile& file);
  void read_merges(const GgufFile& file);
  void append_piece(std::string_view piece, std::vector<Token>& tokens) const;

  std::string path_;
  std::vector<std::string> texts_;
  std::unordered_map<std::string, Token> specials_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  Token byte_tokens_[256];
  Token end_of_text_ = -1;
};

/// Length in bytes of the first piece of `text` under GPT-2's pattern
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// where numbers have been cut out before as pieces of one digit each, so that the text ends before a number.
std::size_t first_piece(std::string_view text);

}  // namespace llm
