// split.hpp: which rank owns which token of a context. Used by the mode `context`.
#pragma once

#include <algorithm>

#include "options.hpp"

namespace context_parallel {

/// Blocks of tokens go to the ranks in turn, so parts stay even within a block while the context grows, whatever its
/// final length. A part is not contiguous; its tokens keep their order, and its cache counts them from 0.
class Split {
 public:
  /// R of the caches: a rank's pages are then full when the block passes on.
  static constexpr Index block = 128;

  explicit Split(int ranks) : ranks_(ranks) {}

  int owner(Index token) const { return int(token / block % ranks_); }

  /// Tokens of the rank's part among the first `tokens` of the context. This is also the position, in the rank's
  /// cache, of a query at token number `tokens`: in its owner's cache the place of the query's own token, so that the
  /// query sees what precedes it; in all others a place behind all tokens, so that it sees them all. It holds for
  /// queries of several tokens, too, as long as these lie in one block.
  Index count(int rank, Index tokens) const {
    const Index round = block * ranks_;
    return tokens / round * block + std::clamp(tokens % round - rank * block, Index(0), block);
  }

 private:
  Index ranks_;
};

}  // namespace context_parallel
