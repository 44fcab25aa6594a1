// recording_cache.cpp: keys and values are read back from the float cache, which has them as they came.
#include "recording_cache.hpp"

#include "decoder.hpp"
#include "policy_cache.hpp"

namespace llm {
namespace {

asymkv::Recorder make_recorder(const asymkv::CacheShape& shape, asymkv::Index heads) {
  asymkv::Result<asymkv::Recorder> recorder = asymkv::Recorder::create(shape, heads);
  require(recorder.status());
  return std::move(*recorder);
}

}  // namespace

RecordingCache::RecordingCache(const asymkv::CacheShape& shape, asymkv::Index heads, asymkv::Index tokens)
    : cache_(make_cache("float", shape, tokens)), recorder_(make_recorder(shape, heads)) {}

asymkv::Status RecordingCache::attend(asymkv::Index layer, const asymkv::ConstTensor& queries,
                                      const asymkv::Tensor& output, const asymkv::AttentionParams& params) noexcept {
  asymkv::Status status = cache_->attend(layer, queries, output, params);
  const asymkv::CacheShape& s = shape();
  const asymkv::Index count = queries.tokens, first = cache_->length(layer) - count;
  keys_.resize(count, s.kv_heads * s.key_dim);
  values_.resize(count, s.kv_heads * s.value_dim);
  for (asymkv::Index head = 0; head < s.kv_heads && status.ok(); ++head) {
    auto head_keys = keys_.middleCols(head * s.key_dim, s.key_dim);
    auto head_values = values_.middleCols(head * s.value_dim, s.value_dim);
    status = cache_->keys(layer, head, first, asymkv::tensor(head_keys));
    if (status.ok()) status = cache_->values(layer, head, first, asymkv::tensor(head_values));
  }
  if (!status.ok()) return status;
  return recorder_.record(layer, queries, asymkv::tensor(keys_, s.kv_heads), asymkv::tensor(values_, s.kv_heads),
                          params);
}

}  // namespace llm
