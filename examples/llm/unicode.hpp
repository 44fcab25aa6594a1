// unicode.hpp: code points of UTF-8 text and the three classes that GPT-2's pattern asks for. Used by the tokenizer.
#pragma once

#include <cstddef>
#include <string_view>

namespace llm {

enum class CharacterClass { letter, number, space, other };

/// A code point at the start of `text`: its class and its bytes. A byte that starts no valid sequence is an `other`
/// of length 1. `text` must not be empty.
struct Character {
  CharacterClass type;
  std::size_t bytes;
};
Character first_character(std::string_view text);

}  // namespace llm
