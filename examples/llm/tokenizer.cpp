// tokenizer.cpp: reading the vocabulary, splitting into pieces, merging.
#include "tokenizer.hpp"

#include <queue>
#include <stdexcept>
#include <tuple>

#include "unicode.hpp"

namespace llm {
namespace {

constexpr Token no_token = -1;
constexpr int control_type = 3;  // of tokenizer.ggml.token_type

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

Tokenizer::Tokenizer(const GgufFile& file) : path_(file.path()) {
  if (file.text("tokenizer.ggml.model") != "gpt2" || file.text("tokenizer.ggml.pre") != "smollm")
    throw std::runtime_error(path_ + ": tokenizer is " + file.text("tokenizer.ggml.model") + "/" +
                             file.text("tokenizer.ggml.pre") +
                             "; only gpt2/smollm (byte-level BPE, single digits) is supported");
  read_vocabulary(file);
  read_merges(file);
  if (file.has("tokenizer.ggml.eos_token_id")) end_of_text_ = Token(file.number("tokenizer.ggml.eos_token_id"));
}

void Tokenizer::read_vocabulary(const GgufFile& file) {
  const std::vector<std::string>& written = file.texts("tokenizer.ggml.tokens");
  const std::vector<double>& types = file.numbers("tokenizer.ggml.token_type");
  if (types.size() != written.size())
    throw std::runtime_error(path_ + ": has " + std::to_string(written.size()) + " tokens, but " +
                             std::to_string(types.size()) + " token types");
  const ByteAlphabet alphabet;
  texts_.resize(written.size());
  for (Token& token : byte_tokens_) token = no_token;
  for (std::size_t i = 0; i < written.size(); ++i) {
    if (int(types[i]) == control_type) {
      specials_.emplace(written[i], Token(i));
    } else if (!alphabet.decode(written[i], texts_[i])) {
      throw std::runtime_error(path_ + ": token " + std::to_string(i) + " is not in GPT-2's alphabet of bytes");
    } else if (texts_[i].size() == 1) {
      byte_tokens_[static_cast<unsigned char>(texts_[i][0])] = Token(i);
    }
  }
}

void Tokenizer::read_merges(const GgufFile& file) {
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
      throw std::runtime_error(path_ + ": merge " + std::to_string(rank) + " is not of two tokens into a third");
    merges_.emplace(pair_key(l->second, r->second), Merge{int(rank), both->second});
  }
}

Token Tokenizer::special(const std::string& name) const {
  const auto found = specials_.find(name);
  if (found == specials_.end()) throw std::runtime_error(path_ + ": has no special token " + name);
  return found->second;
}

/// Merges the pair of lowest rank, leftmost first, until none is left. The queue keeps that O(n log n) for any text;
/// entries whose tokens have changed since are stale and skipped.
void Tokenizer::append_piece(std::string_view piece, std::vector<Token>& tokens) const {
  struct Symbol {
    Token token;
    int previous, next;
  };
  std::vector<Symbol> symbols;
  for (char c : piece) {
    const Token token = byte_tokens_[static_cast<unsigned char>(c)];
    const int i = int(symbols.size());
    if (token != no_token) symbols.push_back({token, i - 1, i + 1});
  }
  const int end = int(symbols.size());
  using Candidate = std::tuple<int, int, Token, Token, Token>;  // rank, left symbol, left and right token, merged
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> queue;
  const auto consider = [&](int left) {
    if (left < 0 || symbols[std::size_t(left)].next >= end) return;
    const Token a = symbols[std::size_t(left)].token;
    const Token b = symbols[std::size_t(symbols[std::size_t(left)].next)].token;
    const auto merge = merges_.find(pair_key(a, b));
    if (merge != merges_.end()) queue.emplace(merge->second.rank, left, a, b, merge->second.merged);
  };
  for (int i = 0; i < end; ++i) consider(i);
  while (!queue.empty()) {
    const auto [rank, left, a, b, merged] = queue.top();
    queue.pop();
    Symbol& symbol = symbols[std::size_t(left)];
    if (symbol.token != a || symbol.next >= end || symbols[std::size_t(symbol.next)].token != b) continue;
    Symbol& eaten = symbols[std::size_t(symbol.next)];
    eaten.token = no_token;
    symbol.token = merged;
    symbol.next = eaten.next;
    if (symbol.next < end) symbols[std::size_t(symbol.next)].previous = left;
    consider(symbol.previous);
    consider(left);
  }
  for (int i = 0; i < end; i = symbols[std::size_t(i)].next) tokens.push_back(symbols[std::size_t(i)].token);
}

std::vector<Token> Tokenizer::encode(std::string_view text) const {
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
