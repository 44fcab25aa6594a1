// policy_names.hpp: the members of AsymKVPolicy: how policies are made, named, read from a name and measured. Included
// by policy.hpp alone.
#pragma once

#include "asymkv/policy.hpp"
#include "asymkv/quantize/panel.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

inline Status name_error(std::string_view part, const char* why) noexcept {
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
  if (Status status = check(layer.keys); !status.ok()) return status;
  if (Status status = check(layer.values); !status.ok()) return status;
  return layer;
}

/// Takes one side of `kXvY`: its letter, its bits, and for packed bits `gN` where the group size is not 32.
inline bool take_side(std::string_view& text, std::string_view letter, Format& format) noexcept {
  Index bits = 0, group_size = 32;
  if (!take(text, letter) || !take_number(text, bits)) return false;
  if (bits <= 8 && take(text, "g") && !take_number(text, group_size)) return false;
  format.bits = int(bits);
  format.group_size = int(group_size);
  return true;
}

/// `kXvY` as a whole.
inline Result<LayerFormat> parse_layer(std::string_view text) noexcept {
  LayerFormat layer;
  std::string_view rest = text;
  if (!take_side(rest, "k", layer.keys) || !take_side(rest, "v", layer.values) || !rest.empty())
    return name_error(text, "is not of the form kXvY (packed bits may be followed by gN, the group size)");
  for (const Format& format : {layer.keys, layer.values})
    if (Status status = check(format); !status.ok()) return name_error(text, status.message());
  return layer;
}

/// What is wrong with a range first..last where `next` is the first layer without a format; null if nothing is.
inline const char* range_fault(Index first, Index last, Index next, Index num_layers) noexcept {
  if (last < first) return "runs backwards";
  if (first > next) return "leaves layers out before it; ranges stand in order";
  if (first < next) return "overlaps the range before it; ranges stand in order";
  return last >= num_layers ? "ends beyond the model's last layer" : nullptr;
}

inline std::string side_text(char letter, const Format& format) {
  std::string text = letter + std::to_string(format.bits);
  if (format.packed() && format.group_size != 32) text += "g" + std::to_string(format.group_size);
  return text;
}
inline std::string layer_text(const LayerFormat& layer) {
  return side_text('k', layer.keys) + side_text('v', layer.values);
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
      if (Status status = check(side == Side::keys ? layers[i].keys : layers[i].values); !status.ok())
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
  if (l_k < 0 || l_k > num_layers || l_v < 0 || l_v > num_layers)
    return Status::error(ErrorCode::out_of_range, "l_k, l_v: %lld and %lld must be in 0..%lld",
                         static_cast<long long>(l_k), static_cast<long long>(l_v), static_cast<long long>(num_layers));
  for (Index i = 0; i < l_k; ++i) policy->layers_[std::size_t(i)].keys = top->keys;
  for (Index i = 0; i < l_v; ++i) policy->layers_[std::size_t(i)].values = top->values;
  return policy;
}

inline Result<AsymKVPolicy> AsymKVPolicy::parse(std::string_view name, Index num_layers) {
  using detail::name_error;
  using detail::take;
  using detail::take_number;
  if (Status status = detail::check_num_layers(num_layers); !status.ok()) return status;
  std::string_view rest = name;
  if (name == "float") return uniform(num_layers, 32, 32);
  if (take(rest, "KIVI-")) {
    Index bits = 0;
    if (!take_number(rest, bits) || !rest.empty()) return name_error(name, "is not of the form KIVI-bits");
    if (!is_packed_bits(int(bits))) return name_error(name, "has bits other than 1..6 and 8");
    return uniform(num_layers, int(bits), int(bits));
  }
  if (take(rest, "AsymKV-")) {
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
    if (l_k > num_layers || l_v > num_layers) return name_error(name, "has more layers than the model");
    return prefix(num_layers, l_k, l_v, int(high), int(low));
  }
  if (take(rest, "k")) {
    const Result<LayerFormat> layer = detail::parse_layer(name);
    if (!layer.ok()) return layer.status();
    return table(std::vector<LayerFormat>(std::size_t(num_layers), *layer));
  }
  std::vector<LayerFormat> layers;
  while (true) {
    const std::string_view part = rest.substr(0, rest.find('+'));
    std::string_view text = part;
    Index first = 0, last = 0;
    if (!take_number(text, first))
      return name_error(part.empty() ? name : part, layers.empty() ? "is no policy name" : "lacks a range of layers");
    last = first;
    if (take(text, "-") && !take_number(text, last)) return name_error(part, "lacks the last layer of its range");
    if (!take(text, ":")) return name_error(part, "lacks ':' after its layers");
    const Result<LayerFormat> layer = detail::parse_layer(text);
    if (!layer.ok()) return layer.status();
    if (const char* fault = detail::range_fault(first, last, Index(layers.size()), num_layers))
      return name_error(part, fault);
    layers.insert(layers.end(), std::size_t(last - first + 1), *layer);
    rest.remove_prefix(part.size());
    if (!take(rest, "+")) break;
  }
  if (Index(layers.size()) != num_layers) return name_error(name, "does not cover every layer");
  return table(std::move(layers));
}

inline std::string AsymKVPolicy::name() const {
  const LayerFormat& first = layers_.front();
  const LayerFormat& last = layers_.back();
  const Index n = num_layers();
  bool uniform_layers = true;
  for (const LayerFormat& layer : layers_) uniform_layers = uniform_layers && layer == first;
  if (uniform_layers) {
    if (first.keys.bits == 32 && first.values.bits == 32) return "float";
    const bool plain = first.keys.packed() && first.keys == first.values && first.keys.group_size == 32;
    return plain ? "KIVI-" + std::to_string(first.keys.bits) : detail::layer_text(first);
  }
  // the prefix rule: its bits are those of the first and last layer, or of either side where a prefix is 0 or all
  // layers
  const int bits[] = {first.keys.bits, first.values.bits, last.keys.bits, last.values.bits};
  int high = bits[0], low = bits[0];
  for (int b : bits) {
    high = b > high ? b : high;
    low = b < low ? b : low;
  }
  Index l_k = 0, l_v = 0;
  while (l_k < n && layer(l_k).keys.bits == high) ++l_k;
  while (l_v < n && layer(l_v).values.bits == high) ++l_v;
  if (is_packed_bits(high) && is_packed_bits(low) && high > low && *prefix(n, l_k, l_v, high, low) == *this) {
    const std::string counts = std::to_string(l_k) + "/" + std::to_string(l_v);
    if (high == 2 && low == 1) return "AsymKV-" + counts;
    return "AsymKV-" + std::to_string(high) + "/" + std::to_string(low) + "-" + counts;
  }
  std::string text;
  for (Index i = 0; i < n;) {
    Index end = i + 1;
    while (end < n && layer(end) == layer(i)) ++end;
    if (i > 0) text += '+';
    text += std::to_string(i);
    if (end - i > 1) text += "-" + std::to_string(end - 1);
    text += ":" + detail::layer_text(layer(i));
    i = end;
  }
  return text;
}

inline double AsymKVPolicy::payload_bits(const CacheShape& shape) const noexcept {
  Index bits = 0;
  for (const LayerFormat& layer : layers_)
    bits += layer.keys.bits * shape.key_dim + layer.values.bits * shape.value_dim;
  return double(bits) / double((shape.key_dim + shape.value_dim) * num_layers());
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
