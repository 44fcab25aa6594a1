// sealing.hpp: when tokens of a side are sealed, and how many stay in full precision (paper section 3): numbers alone.
// Used by SideStore, which has the tokens, and by bytes_required.
#pragma once

#include <algorithm>

#include "asymkv/quantize/panel.hpp"

ASYMKV_NAMESPACE_BEGIN

/// How a side is kept. A packed side keeps the input's type in its window; others convert to `type` on the way in.
struct SideConfig {
  Side side = Side::keys;
  Format format;
  ScalarType type = ScalarType::f32;  ///< of sides that are not packed
  Index heads = 0, dim = 0;
  Index residual_length = 128;
  Index reserve_tokens = 0;   ///< of sides that are not packed
  Index rollback_tokens = 0;  ///< of packed sides
  Index sink_length = 0;
};

/// Tokens of a side: [0, sinks) are sinks; those before `sealed` are sealed, or, of a side that is not packed, removed;
/// then comes the window.
struct SideCounts {
  Index sinks = 0, sealed = 0, window = 0;
  Index length() const noexcept { return sealed + window; }
};

class Sealing {
 public:
  /// Keeps a reference.
  explicit Sealing(const SideConfig& config) noexcept : config_(config) {}

  bool packed() const noexcept { return config_.format.packed(); }

  /// Tokens that the next append seals: keys in runs of R, of which sinks shorten the first; values all but the last R.
  Index due(const SideCounts& counts) const noexcept {
    const Index r = config_.residual_length, sinks = sinks_before_first_run(counts);
    if (!packed()) return 0;
    const Index end = config_.side == Side::keys ? (sinks + counts.window) / r * r : sinks + counts.window - r;
    return end > sinks ? end - sinks : 0;
  }
  /// Slots of the first page that stay empty: its slots count from token 0 where all before are sinks, else from the
  /// first token that is sealed, which it is where removed tokens had the pages before.
  Index empty_slots(const SideCounts& counts) const noexcept { return sinks_before_first_run(counts) % page_tokens; }
  /// Of an append of so many tokens, those that become sinks.
  Index new_sinks(const SideCounts& counts, Index tokens) const noexcept {
    return std::min(config_.sink_length - counts.sinks, tokens);
  }

  /// What would be sealed if a side with these counts had come to be `length` long token by token, as far back as
  /// `earliest`.
  Index sealed_before(const SideCounts& counts, Index length, Index earliest) const noexcept {
    if (config_.side == Side::values)
      return std::min(counts.sealed, std::max(earliest, length - 1 - config_.residual_length));
    return std::max(earliest, boundary_before(counts, length));
  }
  /// Sealed tokens that trimming a length by rollback_tokens would unseal.
  Index tokens_to_keep(const SideCounts& counts, Index length) const noexcept {
    if (!packed() || config_.rollback_tokens == 0) return 0;
    const Index least = length - config_.rollback_tokens;
    if (config_.side == Side::values)
      return std::max<Index>(0, counts.sealed - std::max(counts.sinks, least - 1 - config_.residual_length));
    return counts.sealed - boundary_before(counts, least);
  }
  /// Greatest tokens_to_keep.
  Index most_kept() const noexcept {
    if (config_.rollback_tokens == 0) return 0;
    return config_.rollback_tokens + (config_.side == Side::keys ? config_.residual_length : 1);
  }

  /// Tokens to have room for in full precision, where there is room for `now`, when what is due is sealed and a step
  /// adds `appended`. A window is sized for such steps, R + 32 at least. Values leave it as they come, so it has room
  /// for up to two more steps, of R tokens at most: then not each one moves what stays to the front, but every third.
  /// It keeps its size for steps that it holds, unless it has R / 2 tokens too many for them. Other sides grow by half;
  /// where tokens are removed at their front, they have room for a quarter more, so that few steps move the rest.
  Index window_capacity(Index now, const SideCounts& counts, Index appended) const noexcept {
    const Index fresh = appended - new_sinks(counts, appended), tokens = counts.window - due(counts) + fresh;
    if (packed()) {
      const Index r = config_.residual_length, usual = r + 32 + most_kept();
      const Index more = config_.side == Side::values ? std::min(2 * fresh, r) : 0;
      const Index needed = std::max(usual, tokens + most_kept());
      const Index wanted = fresh < r ? std::max(needed, r + fresh + more + most_kept()) : needed;
      return now >= needed && now <= wanted + r / 2 ? now : wanted;
    }
    const Index needed = counts.sealed > counts.sinks ? tokens + tokens / 4 : tokens;
    if (needed <= now) return now;
    return std::max({needed, now + now / 2, config_.reserve_tokens});
  }

 private:
  static Index sinks_before_first_run(const SideCounts& counts) noexcept {
    return counts.sealed == counts.sinks ? counts.sinks : 0;
  }
  /// The last end of a run of R sealed keys before token `token`; the first one begins behind the sinks.
  Index boundary_before(const SideCounts& counts, Index token) const noexcept {
    const Index r = config_.residual_length, runs = counts.sealed < token ? 0 : (counts.sealed - token) / r + 1;
    return std::max(counts.sinks, counts.sealed - runs * r);
  }

  const SideConfig& config_;
};

ASYMKV_NAMESPACE_END
