#include "sequence.hpp"

#include "check_status.hpp"

namespace context_parallel {
namespace {

asymkv::CacheOptions with_room(Index tokens) {
  asymkv::CacheOptions options;
  options.reserve_tokens = tokens;
  return options;
}

}  // namespace

Sequence::Sequence(const asymkv::CacheShape& shape, const asymkv::AsymKVPolicy& policy, Index number, Index reserve)
    : tokens_(shape, number), cache_(take(asymkv::AsymKVCache::create(shape, policy, with_room(reserve)))) {}

void Sequence::append(Index layer, Index first, Index count) {
  const asymkv::CacheShape& shape = cache_.shape();
  const Floats keys = tokens_.keys(layer, first, count), values = tokens_.values(layer, first, count);
  check(cache_.append(layer, asymkv::tensor(keys.data(), count, shape.kv_heads, shape.key_dim),
                      asymkv::tensor(values.data(), count, shape.kv_heads, shape.value_dim)));
}

void Sequence::append(Index first, Index count) {
  for (Index layer = 0; layer < cache_.shape().layers; ++layer) append(layer, first, count);
}

void Sequence::attend(Index layer, const Floats& query, Index position, AttentionOutput& output) {
  asymkv::AttentionParams params;
  params.position = position;
  params.lse = output.lse();
  check(cache_.attend(layer, asymkv::tensor(query.data(), 1, query_heads, cache_.shape().key_dim), output.output(),
                      params));
}

asymkv::AsymKVPolicy parse_policy(const Options& options) {
  return take(asymkv::AsymKVPolicy::parse(options.policy, options.layers));
}

}  // namespace context_parallel
