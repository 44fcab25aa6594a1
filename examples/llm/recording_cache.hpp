// recording_cache.hpp: a float cache that also records what goes through it. Used by calibrate and asymmetry.
#pragma once

#include <asymkv/calibrate/recorder.hpp>
#include <memory>

#include "matrix.hpp"

namespace llm {

/// Each append is followed by one attend of the same tokens, as Decoder does; the queries are recorded with it.
class RecordingCache final : public asymkv::KVCache {
 public:
  /// With memory for `tokens`. Throws std::runtime_error.
  RecordingCache(const asymkv::CacheShape& shape, asymkv::Index heads, asymkv::Index tokens);

  const asymkv::Recorder& recorder() const { return recorder_; }
  asymkv::Recorder take_recorder() { return std::move(recorder_); }

  asymkv::Status attend(asymkv::Index layer, const asymkv::ConstTensor& queries, const asymkv::Tensor& output,
                        const asymkv::AttentionParams& params) noexcept override;

  const asymkv::CacheShape& shape() const noexcept override { return cache_->shape(); }
  asymkv::Status append(asymkv::Index layer, const asymkv::ConstTensor& keys,
                        const asymkv::ConstTensor& values) noexcept override {
    return cache_->append(layer, keys, values);
  }
  asymkv::Status keys(asymkv::Index layer, asymkv::Index head, asymkv::Index first,
                      const asymkv::Tensor& out) const noexcept override {
    return cache_->keys(layer, head, first, out);
  }
  asymkv::Status values(asymkv::Index layer, asymkv::Index head, asymkv::Index first,
                        const asymkv::Tensor& out) const noexcept override {
    return cache_->values(layer, head, first, out);
  }
  asymkv::Status seal() noexcept override { return cache_->seal(); }
  asymkv::Index length(asymkv::Index layer) const noexcept override { return cache_->length(layer); }
  asymkv::Status trim(asymkv::Index tokens) noexcept override { return cache_->trim(tokens); }
  void clear() noexcept override { cache_->clear(); }
  asymkv::CacheBytes bytes() const noexcept override { return cache_->bytes(); }

 private:
  std::unique_ptr<asymkv::KVCache> cache_;
  asymkv::Recorder recorder_;
  Matrix keys_, values_;  // of a step
};

}  // namespace llm
