// context_check.hpp: whether a context split over ranks gives what one process gives. Used by the mode `context`.
#pragma once

#include <optional>
#include <string>

#include "exact_attention.hpp"
#include "ranks.hpp"
#include "sequence.hpp"

namespace context_parallel {

/// Rank 0 holds one more cache, of the whole context. Three differences, each the 2-norm over a head's channels, must
/// be within a bound, where V = |sum_t w_t |v_t||, the norm of what the output is a sum of:
///
///   merge      the reduction, against the ranks' outputs merged in double: (ranks - 1) * 2^-24 * (8 + |lse|) times the
///              greatest norm of a part's output; a merge rounds an lse, of which the next one's weights are exponentials
///   kernels    the reduction, against attention in double over what the ranks' caches keep: rounding * V, where
///              rounding is 2^-20 * (1 + greatest scale |q||k_t|) in full precision, the library's own bound, and
///              packed_rounding where a policy quantizes
///   one cache  the reduction, against the one cache's output: 2 * rounding * V, and `kept`, the difference of
///              attention in double over what both keep. In full precision both keep all alike. Quantized, each
///              cache keeps its last tokens and the policy's sinks exact, so the ranks keep more tokens so than one
///              cache does, and pages begin at other tokens.
///
/// And all ranks must have the same bits.
class ContextCheck {
 public:
  /// Rounding of queries and weights to a byte, before they meet codes of one and two bits, is most of it; the worst
  /// measured with any preset and k1v1 to k8v8 is a third of this.
  static constexpr double packed_rounding = 0x1p-5;

  ContextCheck(const Options& options, const Ranks& ranks);

  /// Gives the one cache, token by token, what it lacks of the first `tokens`.
  void append_until(Index tokens);

  /// Called by all ranks after a reduction for the query of token number `token`. `part` is what a rank put in, `whole` what came out. Rank 0 prints what it
  /// found, and throws std::runtime_error where a bound is exceeded.
  void compare(Index layer, Index token, const asymkv::KVCache& own, const AttentionOutput& part,
               const AttentionOutput& whole);

 private:
  double rounding(const ExactHead& head) const;

  Options options_;
  Ranks ranks_;
  bool quantizes_;
  std::optional<Sequence> one_;
  Tokens tokens_;
};

}  // namespace context_parallel
