// byte_level_tokenizer.hpp: byte-level BPE, as GPT-2 and SmolLM2 have it. Text is split into single digits, then by
// GPT-2's pattern, and the merges are applied to the bytes of each piece. Made by read_tokenizer.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "pair_merging.hpp"
#include "tokenizer.hpp"

namespace llm {

class ByteLevelTokenizer : public Tokenizer {
 public:
  explicit ByteLevelTokenizer(const GgufFile& file);

  /// Bytes for which the vocabulary has no token (a few control characters, and bytes that never occur in UTF-8) are
  /// left out.
  std::vector<Token> encode(std::string_view text) const override;

 private:
  static std::uint64_t pair_key(Token left, Token right) { return std::uint64_t(left) << 32 | std::uint32_t(right); }

  void read_vocabulary(const GgufFile& file);
  void read_merges(const GgufFile& file);
  void append_piece(std::string_view piece, std::vector<Token>& tokens) const;

  std::unordered_map<std::uint64_t, PairMerge> merges_;
  Token byte_tokens_[256];
};

/// Length in bytes of the first piece of `text` under GPT-2's pattern
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// where numbers have been cut out before as pieces of one digit each, so that the text ends before a number.
std::size_t first_piece(std::string_view text);

}  // namespace llm
