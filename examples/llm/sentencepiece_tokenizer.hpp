// sentencepiece_tokenizer.hpp: SentencePiece's BPE, as Gemma has it. Spaces become U+2581; user-defined pieces (runs of
// newlines or spaces, HTML tags) are cut out first, the longest one at each place; in what is left between them,
// characters are merged into the pieces of best score. A character without a piece becomes its bytes. Made by
// read_tokenizer.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer.hpp"

namespace llm {

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const GgufFile& file);

  /// Bytes that are no UTF-8 become byte tokens, so that text comes back as it was. (SentencePiece itself puts
  /// U+FFFD in their place.)
  std::vector<Token> encode(std::string_view text) const override;

 private:
  struct Piece {
    Token token;
    double cost;  // the negative score
  };

  void read_piece(const GgufFile& file, Token token, const std::string& written, double score);
  std::string_view user_defined_at(std::string_view text) const;
  void append_merged(std::string_view text, std::vector<Token>& tokens) const;

  std::unordered_map<std::string, Piece> pieces_;
  std::size_t longest_piece_ = 0;
  std::vector<std::string> user_defined_[256];  // by first byte, longest first
  Token byte_tokens_[256];
};

}  // namespace llm
