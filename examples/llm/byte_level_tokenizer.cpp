// byte_level_tokenizer.cpp: reading the vocabulary, splitting into pieces, merging.
#include "byte_level_tokenizer.hpp"

#include <stdexcept>

#include "pair_merging.hpp"
#include "unicode.hpp"

namespace llm {
namespace {

/// GPT-2 writes bytes as printable characters: those that are printable in Latin-1 as themselves, the other 68 as
/// U+0100 and up, in order.
struct ByteAlphabet {
  int byte_of[0x180];
  ByteAlphabet() {
    for (int& byte : byte_of) byte = -1;
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      byte_of[printable ? byte : next++] = byte;
    }
  }
  /// False if `written` has a character that stands for no byte.
  bool decode(std::string_view written, std::string& bytes) const {
    for (std::size_t i = 0; i < written.size(); ++i) {
      unsigned character = static_cast<unsigned char>(written[i]);
      if (character >= 0x80) {  // at most U+017f: two bytes of UTF-8
        if ((character & 0xe0) != 0xc0 || i + 1 == written.size()) return false;
        character = (character & 0x1f) << 6 | (static_cast<unsigned char>(written[++i]) & 0x3f);
      }
      if (character >= 0x180 || byte_of[character] < 0) return false;
      bytes += char(byte_of[character]);
    }
    return true;
  }
};

/// Bytes of the longest run of one class at the start of `text`.
std::size_t run_length(std::string_view text, CharacterClass type) {
  std::size_t length = 0;
  while (length < text.size()) {
    const Character c = first_character(text.substr(length));
    if (c.type != type) break;
    length += c.bytes;
  }
  return length;
}

/// `\s+(?!\S)|\s+`: all spaces at the end of the text, else all but the last, which goes with what follows.
std::size_t space_length(std::string_view text) {
  std::size_t length = 0, last = 0;
  while (length < text.size()) {
    const Character c = first_character(text.substr(length));
    if (c.type != CharacterClass::space) return last > 0 ? last : length;
    last = length;
    length += c.bytes;
  }
  return length;
}

}  // namespace

std::size_t first_piece(std::string_view text) {
  for (std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.substr(0, ending.size()) == ending) return ending.size();
  const std::size_t blank = text[0] == ' ' && text.size() > 1 ? 1 : 0;
  const CharacterClass type = first_character(text.substr(blank)).type;
  if (type == CharacterClass::space) return space_length(text);
  return blank + run_length(text.substr(blank), type);
}

ByteLevelTokenizer::ByteLevelTokenizer(const GgufFile& file) : Tokenizer(file, false) {
  if (file.text("tokenizer.ggml.pre") != "smollm")
    throw std::runtime_error(file.path() + ": tokenizer is gpt2/" + file.text("tokenizer.ggml.pre") +
                             "; only gpt2/smollm (byte-level BPE, single digits) is supported");
  read_vocabulary(file);
  read_merges(file);
}

void ByteLevelTokenizer::read_vocabulary(const GgufFile& file) {
  const std::vector<std::string>& written = file.texts("tokenizer.ggml.tokens");
  const ByteAlphabet alphabet;
  for (Token& token : byte_tokens_) token = no_token;
  for (Token i = 0; i < Token(written.size()); ++i) {
    if (type(i) == TokenType::control) continue;
    std::string bytes;
    if (!alphabet.decode(written[std::size_t(i)], bytes))
      throw std::runtime_error(file.path() + ": token " + std::to_string(i) + " is not in GPT-2's alphabet of bytes");
    if (bytes.size() == 1) byte_tokens_[static_cast<unsigned char>(bytes[0])] = i;
    set_text(i, std::move(bytes));
  }
}

void ByteLevelTokenizer::read_merges(const GgufFile& file) {
  std::unordered_map<std::string_view, Token> tokens;
  const std::vector<std::string>& written = file.texts("tokenizer.ggml.tokens");
  for (std::size_t i = 0; i < written.size(); ++i) tokens.emplace(written[i], Token(i));
  const std::vector<std::string>& merges = file.texts("tokenizer.ggml.merges");
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string& merge = merges[rank];
    const std::size_t space = merge.find(' ');
    const std::string_view left = std::string_view(merge).substr(0, space);
    const std::string_view right = space == std::string::npos ? "" : std::string_view(merge).substr(space + 1);
    const auto l = tokens.find(left), r = tokens.find(right);
    const std::string joined = std::string(left) + std::string(right);
    const auto both = tokens.find(joined);
    if (l == tokens.end() || r == tokens.end() || both == tokens.end())
      throw std::runtime_error(file.path() + ": merge " + std::to_string(rank) + " is not of two tokens into a third");
    merges_.emplace(pair_key(l->second, r->second), PairMerge{double(rank), both->second});
  }
}

void ByteLevelTokenizer::append_piece(std::string_view piece, std::vector<Token>& tokens) const {
  std::vector<Symbol> symbols;
  for (std::size_t i = 0; i < piece.size(); ++i) {
    const Token token = byte_tokens_[static_cast<unsigned char>(piece[i])];
    if (token != no_token) symbols.push_back({i, i + 1, token});
  }
  symbols = merge_pairs(std::move(symbols), [&](const Symbol& left, const Symbol& right) -> std::optional<PairMerge> {
    const auto merge = merges_.find(pair_key(left.token, right.token));
    if (merge == merges_.end()) return std::nullopt;
    return merge->second;
  });
  for (const Symbol& symbol : symbols) tokens.push_back(symbol.token);
}

std::vector<Token> ByteLevelTokenizer::encode(std::string_view text) const {
  std::vector<Token> tokens;
  const auto append_without_numbers = [&](std::string_view part) {
    while (!part.empty()) {
      const std::size_t length = first_piece(part);
      append_piece(part.substr(0, length), tokens);
      part.remove_prefix(length);
    }
  };
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size();) {
    const Character c = first_character(text.substr(i));
    if (c.type == CharacterClass::number) {
      append_without_numbers(text.substr(start, i - start));
      append_piece(text.substr(i, c.bytes), tokens);
      start = i + c.bytes;
    }
    i += c.bytes;
  }
  append_without_numbers(text.substr(start));
  return tokens;
}

}  // namespace llm
