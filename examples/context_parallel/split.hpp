// split.hpp: which rank owns which token of a context. Used by the mode `context`.
#pragma once

#include <algorithm>

#include "options.hpp"

namespace context_parallel {

/// Rank 0 owns the sinks, the first tokens of the context, which a policy keeps in full precision; blocks of the tokens
/// behind them go to the ranks in turn. So parts stay even within a block while the context grows, whatever its final
/// length, and pages hold the tokens that they hold in one cache of the whole context. A part is not contiguous; its
/// tokens keep their order, and its cache counts them from 0. (Where a sliding window or ALiBi is in use, which count
/// places in a cache, parts must be contiguous.)
class Split {
 public:
  /// R of the caches, and so a page.
  static constexpr Index block = 128;

  Split(int ranks, Index sinks) : ranks_(ranks), sinks_(sinks) {}

  int owner(Index token) const { return token < sinks_ ? 0 : int((token - sinks_) / block % ranks_); }

  /// Tokens from `token` on that have its owner and follow each other: what can be appended at once.
  Index run(Index token) const { return token < sinks_ ? sinks_ - token : block - (token - sinks_) % block; }

  /// Sinks of a rank's cache.
  Index sinks(int rank) const { return rank == 0 ? sinks_ : 0; }

  /// Tokens of the rank's part among the first `tokens` of the context. This is also the position, in the rank's
  /// cache, of a query at token number `tokens`: in its owner's cache the place of the query's own token, so that the
  /// query sees what precedes it; in all others a place behind all tokens, so that it sees them all. It holds for
  /// queries of several tokens, too, as long as these lie in one block.
  Index count(int rank, Index tokens) const {
    const Index in_blocks = std::max(Index(0), tokens - sinks_), round = block * ranks_;
    return std::min(sinks(rank), tokens) + in_blocks / round * block +
           std::clamp(in_blocks % round - rank * block, Index(0), block);
  }

 private:
  Index ranks_, sinks_;
};

}  // namespace context_parallel
