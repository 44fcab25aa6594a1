#include "sequence.hpp"

#include "check_status.hpp"

namespace context_parallel {
namespace {

asymkv::AsymKVPolicy policy_of(const Options& options) {
  return take(asymkv::AsymKVPolicy::parse(options.policy, options.layers));
}

asymkv::AsymKVCache make_cache(const Options& options, Index reserve) {
  asymkv::CacheOptions cache;
  cache.reserve_tokens = reserve;
  return take(asymkv::AsymKVCache::create(options.shape(), policy_of(options), cache));
}

}  // namespace

Sequence::Sequence(const Options& options, Index number, Index reserve)
    : tokens_(options.shape(), number), cache_(make_cache(options, reserve)) {}

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

bool quantizes(const Options& options) {
  const asymkv::AsymKVPolicy policy = policy_of(options);
  for (Index layer = 0; layer < options.layers; ++layer)
    if (policy.layer(layer).keys.packed() || policy.layer(layer).values.packed()) return true;
  return false;
}

}  // namespace context_parallel
