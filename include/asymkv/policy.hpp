// policy.hpp: which format each side of each layer uses: the paper's prefix rule, uniform and per-layer tables, their
// names both ways, and exact bits and bytes. Names are read and written in policy_names.hpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "asymkv/cache/kv_cache.hpp"
#include "asymkv/format.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Formats of one layer.
struct LayerFormat {
  Format keys;
  Format values;
  friend bool operator==(const LayerFormat& a, const LayerFormat& b) noexcept {
    return a.keys == b.keys && a.values == b.values;
  }
  friend bool operator!=(const LayerFormat& a, const LayerFormat& b) noexcept { return !(a == b); }
};

/// Most tokens that a policy may keep in full precision at the front.
constexpr Index most_sinks = 128;

/// A format for keys and for values of every layer of a model.
class AsymKVPolicy {
 public:
  /// The paper's rule (section 3): the first `l_k` key layers and the first `l_v` value layers get `high` bits, the
  /// rest `low`, at most `high`. l_k, l_v in 0..num_layers. Errors: invalid_argument, out_of_range.
  static Result<AsymKVPolicy> prefix(Index num_layers, Index l_k, Index l_v, int high = 2, int low = 1);
  /// The same formats in every layer; bits in {1..6, 8, 16, 32}, 16 and 32 meaning f16 and f32.
  static Result<AsymKVPolicy> uniform(Index num_layers, int key_bits, int value_bits);
  /// Any table, one entry a layer.
  static Result<AsymKVPolicy> table(std::vector<LayerFormat> layers);
  /// `float`, `KIVI-b`, `kXvY`, `AsymKV-l_k/l_v`, `AsymKV-high/low-l_k/l_v`, a preset, or ranges `a-b:kXvY+c:kXvY`
  /// that cover every layer once, in order. Behind the bits of a side may stand, in this order, `gN` (groups of N
  /// instead of 32), `f` (fitted scale), `c` (compact metadata), `s` (symmetric), `r` (rotated): `k2g64fcv1g128fcsr`;
  /// or the side is `km1.5`: mixed widths of 1.5 bits on average. Behind the whole `@N`: the first N tokens stay in
  /// full precision. Errors: invalid_argument with the part of the name that is wrong.
  static Result<AsymKVPolicy> parse(std::string_view name, Index num_layers);

  /// A name that parse() reads back to an equal policy: the shortest of the forms above that fits, never a preset's.
  /// Empty where the policy was moved from.
  std::string name() const;

  /// The same formats with the first `tokens` tokens in full precision, 0..128. Errors: invalid_argument.
  Result<AsymKVPolicy> with_sinks(Index tokens) const;
  Index sink_length() const noexcept { return sink_length_; }
  Index num_layers() const noexcept { return Index(layers_.size()); }
  const LayerFormat& layer(Index i) const noexcept { return layers_[std::size_t(i)]; }
  const Format& format(Index layer, Side side) const noexcept {
    return side == Side::keys ? this->layer(layer).keys : this->layer(layer).values;
  }

  /// Bits per element of sealed pages, averaged over all elements of all layers: codes alone, and with scales, zero
  /// points and padding. shape.layers must equal num_layers().
  double payload_bits(const CacheShape& shape) const noexcept;
  double all_in_bits(const CacheShape& shape) const noexcept;
  /// Bytes of the pages that hold `tokens` sealed tokens of every layer (whole pages; f16 and f32 sides exactly).
  Index bytes(const CacheShape& shape, Index tokens) const noexcept;

  friend bool operator==(const AsymKVPolicy& a, const AsymKVPolicy& b) noexcept {
    return a.layers_ == b.layers_ && a.sink_length_ == b.sink_length_;
  }
  friend bool operator!=(const AsymKVPolicy& a, const AsymKVPolicy& b) noexcept { return !(a == b); }

 private:
  explicit AsymKVPolicy(std::vector<LayerFormat> layers) noexcept : layers_(std::move(layers)) {}
  std::vector<LayerFormat> layers_;
  Index sink_length_ = 0;
};

/// A named policy that parse() knows, for any number of layers and head sizes up to 256: what was measured to be worth
/// it (README). Named by its all-in bits at a head size of 64.
struct Preset {
  const char* name;
  const char* formats;  ///< as parse() reads them
};
constexpr int preset_count = 5;
/// preset_count of them, the smallest first.
const Preset* presets() noexcept;

ASYMKV_NAMESPACE_END

#include "asymkv/policy_names.hpp"
