// context_check.hpp: whether a context split over ranks gives what one process gives. Used by the mode `context`.
#pragma once

#include <optional>
#include <string>

#include "exact_attention.hpp"
#include "ranks.hpp"
#include "sequence.hpp"

namespace context_parallel {

/// Rank 0 holds one more cache, of the whole context. Three differences, each the 2-norm over a head's channels, must
/// be within a bound, where V is the norm over channels of sum_t w_t |v_t|, of what the output is a sum of:
///
///   merge      the reduction, against the ranks' outputs merged in double: (ranks - 1) * 2^-24 * (8 + |lse|) times the
///              greatest norm of a part's output; a merge rounds an lse, of which the next one's weights are
///              exponentials
///   kernels    the reduction, against attention in double over what the ranks' caches keep: rounding * V
///   one cache  the reduction, against the one cache's output: the rounding of both, and `kept`, the difference between
///              attention in double over what the ranks keep and over what the one cache keeps
///
/// In full precision all keep the same, so `kept` must be nothing but the rounding of double: no token is missing, or
/// there twice. Quantized, pages hold the same tokens (Split), but each cache has its own window of recent tokens in
/// full precision, so the ranks keep some more tokens so than one cache does; and mixed widths, which a page takes over
/// from the one before, differ, since another page is before. All ranks must have the same bits.
class ContextCheck {
 public:
  ContextCheck(const Options& options, const asymkv::AsymKVPolicy& policy, const Ranks& ranks);

  /// Gives the one cache, token by token, what it lacks of the first `tokens`.
  void append_until(Index tokens);

  /// Called by all ranks after a reduction for the query of token number `token`. `part` is what a rank put in, `whole`
  /// what came out. Rank 0 prints what it found, and throws std::runtime_error where a bound is exceeded.
  void compare(Index layer, Index token, const asymkv::KVCache& own, const AttentionOutput& part,
               const AttentionOutput& whole);

 private:
  /// Bound on the error of a cache of so many tokens.
  double rounding(const ExactHead& head, Index tokens) const;

  Options options_;
  Ranks ranks_;
  asymkv::AsymKVPolicy policy_;
  std::optional<Sequence> one_;
  Tokens tokens_;
};

}  // namespace context_parallel
