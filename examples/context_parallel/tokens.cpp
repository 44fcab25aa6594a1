#include "tokens.hpp"

#include <cmath>
#include <cstdint>

namespace context_parallel {
namespace {

enum class Kind : std::uint64_t { key, value, query, found_token, value_mean };

/// splitmix64 (Steele, Lea, Flood 2014): a bijection that passes for random.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Where a row's numbers start.
std::uint64_t seed(Kind kind, Index sequence, Index layer, Index token, Index head) {
  std::uint64_t state = std::uint64_t(kind);
  for (const Index part : {sequence, layer, token, head}) state = mix(state ^ mix(std::uint64_t(part)));
  return state;
}

/// Number i of a row: the sum of four uniform numbers, of mean 0 and variance 1.
float noise(std::uint64_t seed, Index i) {
  const std::uint64_t bits = mix(seed + std::uint64_t(i));
  const auto sum = std::int32_t((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
  return float(sum - 2 * 0xffff) * (1.7320508f / 0x1p16f);
}

/// Spread of a channel of keys.
float spread(Index channel) { return channel % 8 == 0 ? 2.0f : 0.8f; }

}  // namespace

void Tokens::fill_key(Index layer, Index token, Index kv_head, float* to) const {
  const std::uint64_t row = seed(Kind::key, sequence_, layer, token, kv_head);
  for (Index i = 0; i < shape_.key_dim; ++i) to[i] = spread(i) * noise(row, i);
}

Floats Tokens::keys(Index layer, Index first, Index count) const {
  Floats keys(std::size_t(count * shape_.kv_heads * shape_.key_dim));
  float* to = keys.data();
  for (Index token = first; token < first + count; ++token)
    for (Index head = 0; head < shape_.kv_heads; ++head, to += shape_.key_dim) fill_key(layer, token, head, to);
  return keys;
}

Floats Tokens::values(Index layer, Index first, Index count) const {
  Floats values(std::size_t(count * shape_.kv_heads * shape_.value_dim));
  float* to = values.data();
  const std::uint64_t mean = seed(Kind::value_mean, 0, layer, 0, 0);
  for (Index token = first; token < first + count; ++token)
    for (Index head = 0; head < shape_.kv_heads; ++head, to += shape_.value_dim) {
      const std::uint64_t row = seed(Kind::value, sequence_, layer, token, head);
      for (Index i = 0; i < shape_.value_dim; ++i) to[i] = noise(mean, i) + noise(row, i);
    }
  return values;
}

Floats Tokens::query(Index layer, Index token) const {
  // a key of 128 such channels has a squared norm of 136, so the found token's score is about log(token)
  const float likeness = std::log(float(token)) / 12.0f;
  Floats query(std::size_t(query_heads * shape_.key_dim));
  for (Index head = 0; head < query_heads; ++head) {
    float* to = query.data() + head * shape_.key_dim;
    const std::uint64_t found = seed(Kind::found_token, sequence_, layer, token, head);
    fill_key(layer, Index(found % std::uint64_t(token)), head / (query_heads / shape_.kv_heads), to);
    const std::uint64_t row = seed(Kind::query, sequence_, layer, token, head);
    for (Index i = 0; i < shape_.key_dim; ++i) to[i] = likeness * to[i] + 0.5f * noise(row, i);
  }
  return query;
}

}  // namespace context_parallel
