// sentencepiece_tokenizer.cpp: reading the vocabulary, cutting out user-defined pieces, merging.
#include "sentencepiece_tokenizer.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "pair_merging.hpp"
#include "unicode.hpp"

namespace llm {
namespace {

constexpr std::string_view space_mark = "\xe2\x96\x81";  // U+2581

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from)) {
    result.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
  }
  return result.append(text);
}

/// The byte that a piece like <0x0A> stands for, or -1.
int byte_of(const std::string& piece) {
  static constexpr std::string_view digits = "0123456789ABCDEF";
  if (piece.size() != 6 || piece.compare(0, 3, "<0x") != 0 || piece[5] != '>') return -1;
  const std::size_t high = digits.find(piece[3]), low = digits.find(piece[4]);
  return high == digits.npos || low == digits.npos ? -1 : int(high * 16 + low);
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(const GgufFile& file) : Tokenizer(file, true) {
  if (file.flag("tokenizer.ggml.add_space_prefix", true))
    throw std::runtime_error(file.path() + ": tokenizer adds a space before the text, which is not supported");
  const std::vector<std::string>& written = file.texts("tokenizer.ggml.tokens");
  const std::vector<double>& scores = file.numbers("tokenizer.ggml.scores");
  if (scores.size() != written.size())
    throw std::runtime_error(file.path() + ": has " + std::to_string(written.size()) + " tokens, but " +
                             std::to_string(scores.size()) + " scores");
  for (Token& token : byte_tokens_) token = no_token;
  for (std::size_t i = 0; i < written.size(); ++i) read_piece(file, Token(i), written[i], scores[i]);
  for (Token token : byte_tokens_)
    if (token == no_token) throw std::runtime_error(file.path() + ": lacks tokens for some bytes");
  for (std::vector<std::string>& list : user_defined_)
    std::sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
}

/// Converters write the spaces of user-defined pieces as such, those of normal ones as U+2581.
void SentencePieceTokenizer::read_piece(const GgufFile& file, Token token, const std::string& written, double score) {
  if (std::isnan(score)) throw std::runtime_error(file.path() + ": token " + std::to_string(token) + " has no score");
  if (type(token) == TokenType::byte) {
    const int byte = byte_of(written);
    if (byte < 0) throw std::runtime_error(file.path() + ": token " + std::to_string(token) + " is not a byte");
    byte_tokens_[byte] = token;
    set_text(token, std::string(1, char(byte)));
  } else if (!written.empty() && (type(token) == TokenType::normal || type(token) == TokenType::user_defined)) {
    const std::string piece = replace_all(written, " ", space_mark);
    if (type(token) == TokenType::user_defined) user_defined_[static_cast<unsigned char>(piece[0])].push_back(piece);
    longest_piece_ = std::max(longest_piece_, piece.size());
    pieces_.emplace(piece, Piece{token, -score});
    set_text(token, replace_all(written, space_mark, " "));
  }
}

std::vector<Token> SentencePieceTokenizer::encode(std::string_view text) const {
  const std::string marked = replace_all(text, " ", space_mark);
  const std::string_view rest = marked;
  std::vector<Token> tokens;
  std::size_t start = 0;
  for (std::size_t i = 0; i < rest.size();) {
    const std::string_view piece = user_defined_at(rest.substr(i));
    if (piece.empty()) {
      i += first_character(rest.substr(i)).bytes;
      continue;
    }
    append_merged(rest.substr(start, i - start), tokens);
    tokens.push_back(pieces_.find(std::string(piece))->second.token);
    start = i += piece.size();
  }
  append_merged(rest.substr(start), tokens);
  return tokens;
}

/// The longest user-defined piece at the start of `text`; empty if there is none.
std::string_view SentencePieceTokenizer::user_defined_at(std::string_view text) const {
  for (const std::string& piece : user_defined_[static_cast<unsigned char>(text[0])])
    if (text.substr(0, piece.size()) == piece) return piece;
  return {};
}

void SentencePieceTokenizer::append_merged(std::string_view text, std::vector<Token>& tokens) const {
  std::string key;  // kept, so that a look-up allocates nothing
  const auto find = [&](std::size_t begin, std::size_t end) -> const Piece* {
    if (end - begin > longest_piece_) return nullptr;
    const auto found = pieces_.find(key.assign(text.substr(begin, end - begin)));
    return found == pieces_.end() ? nullptr : &found->second;
  };
  std::vector<Symbol> symbols;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t end = i + first_character(text.substr(i)).bytes;
    const Piece* piece = find(i, end);
    symbols.push_back({i, end, piece == nullptr ? no_token : piece->token});
    i = end;
  }
  symbols = merge_pairs(std::move(symbols), [&](const Symbol& left, const Symbol& right) -> std::optional<PairMerge> {
    const Piece* piece = find(left.begin, right.end);
    if (piece == nullptr) return std::nullopt;
    return PairMerge{piece->cost, piece->token};
  });
  for (const Symbol& symbol : symbols) {
    if (symbol.token != no_token) {
      tokens.push_back(symbol.token);
      continue;
    }
    for (char c : text.substr(symbol.begin, symbol.end - symbol.begin))
      tokens.push_back(byte_tokens_[static_cast<unsigned char>(c)]);
  }
}

}  // namespace llm
