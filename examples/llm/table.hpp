// table.hpp: columns of text. Used by what prints a table for people.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>

namespace llm {

/// `text` with spaces behind it, up to `width` characters.
inline std::string padded(std::string text, std::size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}

/// `text` with spaces before it.
inline std::string right(const std::string& text, std::size_t width) {
  return std::string(width - std::min(width, text.size()), ' ') + text;
}

/// A number with so many digits behind the point.
inline std::string fixed(double number, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, number);
  return text;
}

/// Width of a column that holds the policy's name of every row.
template <class Rows>
std::size_t policy_width(const Rows& rows) {
  std::size_t width = 20;
  for (const auto& row : rows) width = std::max(width, row.policy.size());
  return width;
}

}  // namespace llm
