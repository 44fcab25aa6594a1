// pair_merging.hpp: the loop that both kinds of tokenizers share: a text is a chain of symbols, and the best pair of
// neighbours becomes one, until no pair has a token. Which pair is best is the tokenizer's own.
#pragma once

#include <cstddef>
#include <optional>
#include <queue>
#include <tuple>
#include <vector>

#include "matrix.hpp"

namespace llm {

/// Bytes [begin, end) of a text, and their token.
struct Symbol {
  std::size_t begin, end;
  Token token;
};

/// What a pair of neighbours becomes; least cost comes first.
struct PairMerge {
  double cost;
  Token token;
};

/// Merges pairs, of equal cost the leftmost first, until `find(left, right)`, which gives a std::optional<PairMerge>,
/// has none. The queue keeps that O(n log n) for any text; entries whose symbols have changed since are stale and
/// skipped.
template <class Find>
std::vector<Symbol> merge_pairs(std::vector<Symbol> symbols, Find find) {
  const std::size_t count = symbols.size();
  std::vector<std::size_t> previous(count),
      next(count);  // next of a symbol that was merged away is 0, of the last: count
  using Candidate = std::tuple<double, std::size_t, std::size_t, std::size_t, Token>;  // cost, left, right, end, token
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> queue;
  const auto consider = [&](std::size_t left) {
    const std::size_t right = next[left];
    if (right == count) return;
    const std::optional<PairMerge> merge = find(symbols[left], symbols[right]);
    if (merge) queue.emplace(merge->cost, left, right, symbols[right].end, merge->token);
  };
  for (std::size_t i = 0; i < count; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1;
  }
  for (std::size_t i = 0; i < count; ++i) consider(i);
  while (!queue.empty()) {
    const auto [cost, left, right, end, token] = queue.top();
    queue.pop();
    if (next[left] != right || symbols[right].end != end) continue;
    symbols[left] = {symbols[left].begin, end, token};
    next[left] = next[right];
    next[right] = 0;
    if (next[left] < count) previous[next[left]] = left;
    if (left > 0) consider(previous[left]);
    consider(left);
  }
  std::vector<Symbol> merged;
  for (std::size_t i = 0; i < count; i = next[i]) merged.push_back(symbols[i]);
  return merged;
}

}  // namespace llm
