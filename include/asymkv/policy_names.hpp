// policy_names.hpp: the members of AsymKVPolicy: how policies are made, named, read from a name and measured. Included
// by policy.hpp alone.
#pragma once

#include <algorithm>

#include "asymkv/policy.hpp"
#include "asymkv/quantize/panel.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

[[gnu::format(printf, 2, 3)]] inline Status name_error(std::string_view part, const char* format, ...) noexcept {
  char why[236];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(why, sizeof why, format, arguments);
  va_end(arguments);
  return Status::error(ErrorCode::invalid_argument, "policy name: '%.*s' %s", int(part.size() < 60 ? part.size() : 60),
                       part.data(), why);
}

/// Takes a decimal number without sign or leading zeros off the front of `text`; false if there is none or it is 2^31
/// or more.
inline bool take_number(std::string_view& text, Index& value) noexcept {
  std::size_t digits = 0;
  Index number = 0;
  for (; digits < text.size() && text[digits] >= '0' && text[digits] <= '9'; ++digits) {
    number = 10 * number + (text[digits] - '0');
    if (number > 0x7fffffff) return false;
  }
  if (digits == 0 || (digits > 1 && text[0] == '0')) return false;
  text.remove_prefix(digits);
  value = number;
  return true;
}
inline bool take(std::string_view& text, std::string_view prefix) noexcept {
  if (text.substr(0, prefix.size()) != prefix) return false;
  text.remove_prefix(prefix.size());
  return true;
}

inline Status check_num_layers(Index num_layers) noexcept {
  if (num_layers >= 1 && num_layers <= 65536) return {};
  return Status::error(ErrorCode::invalid_argument, "num_layers: %lld; a policy has 1..65536",
                       static_cast<long long>(num_layers));
}

inline Result<LayerFormat> make_layer(int key_bits, int value_bits) noexcept {
  LayerFormat layer;
  layer.keys.bits = key_bits;
  layer.values.bits = value_bits;
  if (Status status = check(layer.keys, Side::keys); !status.ok()) return status;
  if (Status status = check(layer.values, Side::values); !status.ok()) return status;
  return layer;
}

/// Takes `m` and the bits of mixed widths: 0.5 to 6 by halves.
inline bool take_mixed(std::string_view& text, Format& format) noexcept {
  Index whole = 0;
  if (!take(text, "m") || !take_number(text, whole) || whole > 8) return false;
  const bool half = take(text, ".5");
  format = Format::mixed_keys(int(2 * whole + half));
  return format.mixed() && check(format, Side::keys).ok();
}

/// Takes one side of `kXvY`: its letter, its bits, and what may stand behind them.
inline bool take_side(std::string_view& text, std::string_view letter, Format& format) noexcept {
  Index bits = 0, group_size = 32;
  if (!take(text, letter)) return false;
  if (text.substr(0, 1) == "m") return take_mixed(text, format);
  if (!take_number(text, bits)) return false;
  format.bits = int(bits);
  if (bits > 8) return true;
  if (take(text, "g") && !take_number(text, group_size)) return false;
  format.group_size = int(group_size);
  if (take(text, "f")) format.fit = Fit::fitted;
  if (take(text, "c")) format.metadata = Metadata::compact;
  if (take(text, "s")) format.zero_point = ZeroPoint::symmetric;
  if (take(text, "r")) format.rotation = Rotation::hadamard;
  return true;
}

/// `kXvY` as a whole.
inline Result<LayerFormat> parse_layer(std::string_view text) noexcept {
  LayerFormat layer;
  std::string_view rest = text;
  if (!take_side(rest, "k", layer.keys) || !take_side(rest, "v", layer.values) || !rest.empty())
    return name_error(
        text, "is not of the form kXvY (X and Y: bits, then gN, f, c, s, r; or X: m and 0.5 to 6 bits by halves)");
  if (Status status = check(layer.keys, Side::keys); !status.ok()) return name_error(text, "%s", status.message());
  if (Status status = check(layer.values, Side::values); !status.ok()) return name_error(text, "%s", status.message());
  return layer;
}

/// What is wrong with a range first..last where `next` is the first layer without a format; null if nothing is.
inline const char* range_fault(Index first, Index last, Index next, Index num_layers) noexcept {
  if (last < first) return "runs backwards";
  if (first > next) return "leaves layers out before it; ranges stand in order";
  if (first < next) return "overlaps the range before it; ranges stand in order";
  return last >= num_layers ? "ends beyond the model's last layer" : nullptr;
}

inline std::string layer_text(const LayerFormat& layer) {
  return std::string(FormatName(layer.keys, Side::keys).text) + FormatName(layer.values, Side::values).text;
}

/// Bytes of one kv head's sealed tokens, in whole pages for packed sides.
inline Index side_bytes(const Format& format, Side side, Index dim, Index tokens) noexcept {
  if (!format.packed()) return tokens * padded_dim(dim) * format.bits / 8;
  return round_up(tokens, page_tokens) / page_tokens * page_layout(format, side, dim).bytes();
}

}  // namespace detail

inline Result<AsymKVPolicy> AsymKVPolicy::table(std::vector<LayerFormat> layers) {
  if (layers.empty() || layers.size() > 65536)
    return Status::error(ErrorCode::invalid_argument, "layers: %zu; a policy has 1..65536", layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i)
    for (Side side : {Side::keys, Side::values})
      if (Status status = check(side == Side::keys ? layers[i].keys : layers[i].values, side); !status.ok())
        return Status::error(status.code(), "layers: %s of layer %zu: %s", side_name(side), i, status.message());
  return AsymKVPolicy(std::move(layers));
}

inline Result<AsymKVPolicy> AsymKVPolicy::uniform(Index num_layers, int key_bits, int value_bits) {
  const Result<LayerFormat> layer = detail::make_layer(key_bits, value_bits);
  if (!layer.ok()) return layer.status();
  if (Status status = detail::check_num_layers(num_layers); !status.ok()) return status;
  return table(std::vector<LayerFormat>(std::size_t(num_layers), *layer));
}

inline Result<AsymKVPolicy> AsymKVPolicy::prefix(Index num_layers, Index l_k, Index l_v, int high, int low) {
  Result<AsymKVPolicy> policy = uniform(num_layers, low, low);
  if (!policy.ok()) return policy;
  const Result<LayerFormat> top = detail::make_layer(high, high);
  if (!top.ok()) return top.status();
  if (high < low)
    return Status::error(ErrorCode::invalid_argument, "high, low: %d and %d bits; high must be at least low", high,
                         low);
  if (l_k < 0 || l_k > num_layers || l_v < 0 || l_v > num_layers)
    return Status::error(ErrorCode::out_of_range, "l_k, l_v: %lld and %lld must be in 0..%lld",
                         static_cast<long long>(l_k), static_cast<long long>(l_v), static_cast<long long>(num_layers));
  for (Index i = 0; i < l_k; ++i) policy->layers_[std::size_t(i)].keys = top->keys;
  for (Index i = 0; i < l_v; ++i) policy->layers_[std::size_t(i)].values = top->values;
  return policy;
}

namespace detail {

/// `AsymKV-...` behind its prefix.
inline Result<AsymKVPolicy> parse_prefix_rule(std::string_view name, std::string_view rest, Index num_layers) {
  Index high = 2, low = 1, l_k = 0, l_v = 0;
  bool good = take_number(rest, l_k) && take(rest, "/") && take_number(rest, l_v);
  if (good && take(rest, "-")) {
    high = l_k;
    low = l_v;
    good = take_number(rest, l_k) && take(rest, "/") && take_number(rest, l_v);
  }
  if (!good || !rest.empty()) return name_error(name, "is not AsymKV-l_k/l_v or AsymKV-high/low-l_k/l_v");
  if (!is_packed_bits(int(high)) || !is_packed_bits(int(low)))
    return name_error(name, "has bits other than 1..6 and 8");
  if (high < low) return name_error(name, "has fewer bits in its first layers than in the rest");
  if (l_k > num_layers || l_v > num_layers)
    return name_error(name, "has more layers than the model: %lld; the model has %lld",
                      static_cast<long long>(std::max(l_k, l_v)), static_cast<long long>(num_layers));
  return AsymKVPolicy::prefix(num_layers, l_k, l_v, int(high), int(low));
}

/// Whether text is meant as layers `a:` or `a-b`, unlike words with a number in front: `2bit`, `4-bit`.
inline bool begins_with_layers(std::string_view text) noexcept {
  Index layer = 0;
  if (!take_number(text, layer)) return false;
  return text.find(':') != text.npos || (take(text, "-") && take_number(text, layer));
}

/// `a-b:kXvY+c:kXvY`
inline Result<AsymKVPolicy> parse_ranges(std::string_view name, Index num_layers) {
  std::vector<LayerFormat> layers;
  std::string_view rest = name;
  do {
    const std::string_view part = rest.substr(0, rest.find('+'));
    std::string_view text = part;
    Index first = 0, last = 0;
    if (layers.empty() && !begins_with_layers(part))
      return name_error(part.empty() ? name : part,
                        "is no policy name (case matters); use smallest-1.2, small-1.4, balanced-1.7, fine-2.4, "
                        "finest-3.4, AsymKV-16/0, KIVI-2, k4v2, half or float");
    if (!take_number(text, first)) return name_error(part.empty() ? name : part, "lacks a range of layers");
    last = first;
    if (take(text, "-") && !take_number(text, last)) return name_error(part, "lacks the last layer of its range");
    if (!take(text, ":")) return name_error(part, "lacks ':' after its layers");
    const Result<LayerFormat> layer = parse_layer(text);
    if (!layer.ok()) return layer.status();
    if (const char* fault = range_fault(first, last, Index(layers.size()), num_layers))
      return name_error(part, "%s", fault);
    layers.insert(layers.end(), std::size_t(last - first + 1), *layer);
    rest.remove_prefix(part.size());
  } while (take(rest, "+"));
  if (Index(layers.size()) != num_layers)
    return name_error(name, "does not cover every layer, only %zu of %lld", layers.size(),
                      static_cast<long long>(num_layers));
  return AsymKVPolicy::table(std::move(layers));
}

/// A name without sinks.
inline Result<AsymKVPolicy> parse_formats(std::string_view name, Index num_layers) {
  std::string_view rest = name;
  if (name == "float") return AsymKVPolicy::uniform(num_layers, 32, 32);
  if (name == "half") return AsymKVPolicy::uniform(num_layers, 16, 16);
  if (take(rest, "KIVI-")) {
    Index bits = 0;
    if (!take_number(rest, bits) || !rest.empty()) return name_error(name, "is not of the form KIVI-bits");
    if (!is_packed_bits(int(bits))) return name_error(name, "has bits other than 1..6 and 8");
    return AsymKVPolicy::uniform(num_layers, int(bits), int(bits));
  }
  if (take(rest, "AsymKV-")) return parse_prefix_rule(name, rest, num_layers);
  // other words that begin with k get the error of unknown names
  if (rest.substr(0, 1) != "k" || rest.find_first_of("0123456789m") != 1) return parse_ranges(name, num_layers);
  const Result<LayerFormat> layer = parse_layer(name);
  if (!layer.ok()) return layer.status();
  return AsymKVPolicy::table(std::vector<LayerFormat>(std::size_t(num_layers), *layer));
}

/// The prefix rule that a policy follows, as a name; empty if it follows none. Its bits are those of the first and the
/// last layer, or of either side where a prefix is 0 or all layers.
inline std::string prefix_rule_text(const AsymKVPolicy& policy) {
  const Index n = policy.num_layers();
  const LayerFormat &first = policy.layer(0), &last = policy.layer(n - 1);
  const int bits[] = {first.keys.bits, first.values.bits, last.keys.bits, last.values.bits};
  const int high = *std::max_element(bits, bits + 4), low = *std::min_element(bits, bits + 4);
  if (!is_packed_bits(high) || !is_packed_bits(low) || high == low) return {};
  Index l_k = 0, l_v = 0;
  while (l_k < n && policy.layer(l_k).keys.bits == high) ++l_k;
  while (l_v < n && policy.layer(l_v).values.bits == high) ++l_v;
  if (*AsymKVPolicy::prefix(n, l_k, l_v, high, low) != policy) return {};
  const std::string counts = std::to_string(l_k) + "/" + std::to_string(l_v);
  if (high == 2 && low == 1) return "AsymKV-" + counts;
  return "AsymKV-" + std::to_string(high) + "/" + std::to_string(low) + "-" + counts;
}

inline std::string ranges_text(const AsymKVPolicy& policy) {
  std::string text;
  for (Index i = 0, end = 0; i < policy.num_layers(); i = end) {
    for (end = i + 1; end < policy.num_layers() && policy.layer(end) == policy.layer(i);) ++end;
    if (i > 0) text += '+';
    text += std::to_string(i);
    if (end - i > 1) text += "-" + std::to_string(end - 1);
    text += ":" + layer_text(policy.layer(i));
  }
  return text;
}

inline std::string formats_text(const AsymKVPolicy& policy) {
  const LayerFormat& first = policy.layer(0);
  bool uniform = true;
  for (Index i = 1; i < policy.num_layers(); ++i) uniform = uniform && policy.layer(i) == first;
  if (!uniform) {
    const std::string rule = prefix_rule_text(policy);
    return rule.empty() ? ranges_text(policy) : rule;
  }
  if (first.keys.bits == 32 && first.values.bits == 32) return "float";
  if (first.keys.bits == 16 && first.values.bits == 16) return "half";
  const bool plain = first.keys.packed() && first.keys == first.values && first.keys == Format{first.keys.bits};
  return plain ? "KIVI-" + std::to_string(first.keys.bits) : layer_text(first);
}

}  // namespace detail

inline const Preset* presets() noexcept {
  static constexpr Preset list[preset_count] = {
      {"smallest-1.2", "km1v1g128fcsr@1"}, {"small-1.4", "km1.5v1g128fcsr@1"},  {"balanced-1.7", "km2v1g128fcsr@1"},
      {"fine-2.4", "km2.5v2g128fcsr@1"},   {"finest-3.4", "km3.5v3g128fcsr@1"},
  };
  return list;
}

inline Result<AsymKVPolicy> AsymKVPolicy::parse(std::string_view name, Index num_layers) {
  if (Status status = detail::check_num_layers(num_layers); !status.ok()) return status;
  const std::size_t at = name.rfind('@');
  const std::string_view base = name.substr(0, at);
  if (base.empty() && !name.empty()) return detail::name_error(name, "has nothing in front of '@'");
  const char* preset = nullptr;
  for (int i = 0; i < preset_count; ++i)
    if (base == presets()[i].name) preset = presets()[i].formats;
  Result<AsymKVPolicy> policy = preset != nullptr ? parse(preset, num_layers) : detail::parse_formats(base, num_layers);
  if (!policy.ok() || at == std::string_view::npos) return policy;
  std::string_view rest = name.substr(at + 1);
  Index sinks = 0;
  if (!detail::take_number(rest, sinks) || !rest.empty() || sinks > most_sinks)
    return detail::name_error(name, "has no number of tokens in 0..128 behind '@'");
  return policy->with_sinks(sinks);
}

inline Result<AsymKVPolicy> AsymKVPolicy::with_sinks(Index tokens) const {
  if (tokens < 0 || tokens > most_sinks)
    return Status::error(ErrorCode::invalid_argument, "tokens: %lld sinks; use 0..%lld", static_cast<long long>(tokens),
                         static_cast<long long>(most_sinks));
  AsymKVPolicy policy = *this;
  policy.sink_length_ = tokens;
  return policy;
}

inline std::string AsymKVPolicy::name() const {
  if (layers_.empty()) return {};
  const std::string formats = detail::formats_text(*with_sinks(0));
  return sink_length_ == 0 ? formats : formats + "@" + std::to_string(sink_length_);
}

inline double AsymKVPolicy::payload_bits(const CacheShape& shape) const noexcept {
  double bits = 0;
  for (const LayerFormat& layer : layers_)
    bits += layer.keys.payload_bits() * double(shape.key_dim) + layer.values.payload_bits() * double(shape.value_dim);
  return bits / double((shape.key_dim + shape.value_dim) * num_layers());
}

inline double AsymKVPolicy::all_in_bits(const CacheShape& shape) const noexcept {
  const Index elements = shape.kv_heads * page_tokens * (shape.key_dim + shape.value_dim) * num_layers();
  return 8.0 * double(bytes(shape, page_tokens)) / double(elements);
}

inline Index AsymKVPolicy::bytes(const CacheShape& shape, Index tokens) const noexcept {
  Index bytes = 0;
  for (const LayerFormat& layer : layers_)
    bytes += detail::side_bytes(layer.keys, Side::keys, shape.key_dim, tokens) +
             detail::side_bytes(layer.values, Side::values, shape.value_dim, tokens);
  return bytes * shape.kv_heads;
}

ASYMKV_NAMESPACE_END
