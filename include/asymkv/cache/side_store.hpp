// side_store.hpp: all tokens of one side (keys or values) of one layer: sinks, sealed pages, then full-precision
// tokens. Used by SequenceCache; read by the attention.
#pragma once

#include <algorithm>
#include <limits>

#include "asymkv/cache/page_table.hpp"
#include "asymkv/cache/sealing.hpp"
#include "asymkv/cache/token_buffer.hpp"

ASYMKV_NAMESPACE_BEGIN

/// What a side has beside the tokens themselves and its sinks, of which there are as many as the policy has or there
/// are tokens: what saved state tells of it.
struct SideExtent {
  Index sealed = 0, dense = 0, kept = 0, pages = 0;
  float greatest = 0.0f;
  Index length() const noexcept { return sealed + dense; }
};

class SideStore {
 public:
  explicit SideStore(const SideConfig& config) noexcept : config_(config) {
    if (packed()) pages_ = PageTable(config.format, config.side, config.heads, config.dim);
    sinks_.configure(config.type, config.heads, config.dim);
    dense_.configure(config.type, config.heads, config.dim);
  }

  bool packed() const noexcept { return config_.format.packed(); }
  const SideConfig& config() const noexcept { return config_; }
  Index dim() const noexcept { return config_.dim; }
  const PageTable& pages() const noexcept { return pages_; }
  PageTable& pages() noexcept { return pages_; }
  /// First tokens of the sequence, kept in full precision for good.
  const TokenBuffer& sinks() const noexcept { return sinks_; }
  /// Last tokens: the window of a packed side, all but the sinks of others.
  const TokenBuffer& dense() const noexcept { return dense_; }
  /// The first token of dense(): behind sinks, sealed tokens, and what was removed of a side that is not packed.
  Index sealed() const noexcept { return sealed_; }
  /// Tokens before it are not unsealed by any trim that keeps them.
  Index immutable_end() const noexcept { return sealed_ - dense_.kept(); }
  Index length() const noexcept { return sealed_ + dense_.count(); }
  /// Greatest magnitude appended since the side was last empty.
  float greatest() const noexcept { return greatest_; }
  void note_greatest(float magnitude) noexcept { greatest_ = magnitude > greatest_ ? magnitude : greatest_; }

  /// Largest magnitude that the side holds.
  float limit() const noexcept {
    if (packed()) return magnitude_limit(config_.format, config_.dim);
    if (config_.type == ScalarType::f32) return std::numeric_limits<float>::max();
    return config_.type == ScalarType::f16 ? 65504.0f : 0x1.FEp127f;
  }

  /// Gets all memory that sealing what is due and appending `tokens` of `type` needs. False if there is none; cancel()
  /// then gives back what was got.
  [[nodiscard]] bool prepare(Index tokens, ScalarType type, const Allocator& allocator) noexcept {
    take_type(type);
    if (!pages_.prepare(rule().due(counts()), rule().empty_slots(counts()), allocator)) return false;
    if (tokens == 0) return true;
    if (sinks_.capacity() < config_.sink_length &&
        !next_sinks_.allocate(sinks_.bytes_for(config_.sink_length), allocator))
      return false;
    next_capacity_ = rule().window_capacity(dense_.capacity(), counts(), tokens);
    return next_capacity_ == dense_.capacity() || next_memory_.allocate(dense_.bytes_for(next_capacity_), allocator);
  }
  /// Nothing where nothing was prepared since the last seal(), trim() or clear().
  void cancel() noexcept {
    pages_.cancel();
    next_memory_ = Buffer();
    next_sinks_ = Buffer();
  }

  /// Quantizes what is due; requires prepare(). `scratch` has writer_scratch floats.
  void seal(const kernels::Table& kernels, float* scratch) noexcept {
    for (Index remaining = rule().due(counts()); remaining > 0;) {
      const Index tokens = std::min(remaining, pages_.open(sealed_, rule().empty_slots(counts())));
      for (Index head = 0; head < config_.heads; ++head) {
        const kernels::DenseView from = dense_.view(head, 0, tokens);
        pages_.write(kernels, head, panel_source(config_.side, from.data, from.type, from.stride, 1), tokens, scratch);
      }
      pages_.add(tokens);
      dense_.drop_front(tokens);
      sealed_ += tokens;
      remaining -= tokens;
    }
    dense_.keep(rule().tokens_to_keep(counts(), length()));
  }

  /// Adds tokens at the back; requires prepare() with as many, and seal().
  void append(const kernels::Table& kernels, const ConstTensor& tokens) noexcept {
    if (tokens.tokens == 0) return;
    dense_.keep(rule().tokens_to_keep(counts(), length() + tokens.tokens));
    if (next_sinks_.bytes() > 0) sinks_.adopt(std::move(next_sinks_), config_.sink_length);
    if (next_memory_.bytes() > 0) dense_.adopt(std::move(next_memory_), next_capacity_);
    const Index first = rule().new_sinks(counts(), tokens.tokens);
    ConstTensor part = tokens;
    part.tokens = first;
    sinks_.append(kernels, part);
    sealed_ += first;
    part.tokens = tokens.tokens - first;
    part.data = tokens.row(first, 0);
    dense_.append(kernels, part);
  }

  /// Drops tokens from `tokens` on, which is not among removed ones. Where the tokens before it are kept in full
  /// precision still, those are unsealed that would not be had tokens come one by one; else a page that is cut inside a
  /// group of keys takes no more tokens.
  void trim(Index tokens) noexcept {
    if (tokens == 0) greatest_ = 0.0f;
    unseal(sealed_ - rule().sealed_before(counts(), tokens, immutable_end()));
    if (tokens >= sealed_) {
      dense_.truncate(tokens - sealed_);
      return;
    }
    dense_.truncate(0);
    dense_.keep(0);
    pages_.cut(tokens > sinks_.count() ? tokens : 0);
    if (tokens < sinks_.count()) sinks_.truncate(tokens);
    sealed_ = tokens;
  }

  /// Gives memory of tokens behind the sinks and before `end` back: of packed sides whole pages, but for the last one
  /// and the last one that can not be unsealed.
  void remove_front(Index end) noexcept {
    if (!packed()) {
      const Index tokens = std::max<Index>(0, std::min(end, length()) - sealed_);
      dense_.drop_front(tokens);
      dense_.keep(0);
      sealed_ += tokens;
      return;
    }
    Index pages = 0;
    while (pages + 1 < pages_.size() && pages_[pages].end() <= end && pages_[pages + 1].end() <= immutable_end())
      ++pages;
    pages_.erase_front(pages);
  }

  void clear() noexcept {
    pages_.clear();
    sealed_ = 0;
    sinks_.reset();
    dense_.reset();
    greatest_ = 0.0f;
  }

  /// Becomes a copy that shares all pages and has a window of its own; false if there is no memory.
  [[nodiscard]] bool fork(const SideStore& from, const Allocator& allocator) noexcept {
    if (!pages_.fork(from.pages_, allocator) || !sinks_.copy(from.sinks_, allocator) ||
        !dense_.copy(from.dense_, allocator))
      return false;
    sealed_ = from.sealed_;
    greatest_ = from.greatest_;
    return true;
  }

  SideExtent extent() const noexcept { return {sealed_, dense_.count(), dense_.kept(), pages_.size(), greatest_}; }
  /// Whether a side of this kind can be so, where tokens before `removed`, at most its length, are removed: what the
  /// attention, append and trim rely on. All numbers are 0..2^32.
  bool can_hold(const SideExtent& extent, Index removed) const noexcept {
    const Index sinks = std::min(config_.sink_length, extent.length()), hidden = std::max(sinks, removed);
    if (!(extent.greatest >= 0.0f && extent.greatest <= limit()) || extent.sealed < sinks) return false;
    if (!packed()) return extent.pages == 0 && extent.kept == 0 && extent.sealed == hidden;
    if (extent.kept > std::min(extent.sealed - sinks, rule().most_kept())) return false;
    return extent.pages == 0 ? extent.sealed <= hidden : extent.sealed > sinks && extent.pages <= extent.sealed;
  }
  /// Takes tokens of saved state over; requires can_hold(), its pages in pages(), and that the side was empty.
  void restore(const SideExtent& extent, TokenBuffer sinks, TokenBuffer dense) noexcept {
    sinks_ = std::move(sinks);
    dense_ = std::move(dense);
    sealed_ = extent.sealed;
    greatest_ = extent.greatest;
  }

  /// Dequantized tokens [first, first + out.tokens) of one head. `scratch` has reader_scratch floats, `row`
  /// has dim.
  void read(const kernels::Table& kernels, Index head, Index first, const Tensor& out, float* scratch,
            float* row) const noexcept {
    Index token = first;
    const Index end = first + out.tokens;
    for (; token < end && token < sinks_.count(); ++token) read_dense(sinks_, head, token, out, token - first);
    for (Index p = 0; p < pages_.size() && token < end; ++p) {
      const Page& page = pages_[p];
      if (page.end() <= token) continue;
      const Index stop = std::min(page.end(), end);
      pages_.read(kernels, p, head, token, stop - token, out, token - first, scratch, row);
      token = stop;
    }
    for (; token < end; ++token) read_dense(dense_, head, token - sealed(), out, token - first);
  }

 private:
  Sealing rule() const noexcept { return Sealing(config_); }
  SideCounts counts() const noexcept { return {sinks_.count(), sealed_, dense_.count()}; }
  /// The window and the sinks of packed sides keep the input's type, which may change when they are empty.
  void take_type(ScalarType type) noexcept {
    if (!packed()) return;
    for (TokenBuffer* buffer : {&sinks_, &dense_})
      if (buffer->kept() + buffer->count() == 0) {
        if (type != buffer->type()) buffer->reset();
        buffer->configure(type, config_.heads, config_.dim);
      }
  }
  void read_dense(const TokenBuffer& buffer, Index head, Index token, const Tensor& out, Index at) const noexcept {
    const kernels::DenseView row = buffer.view(head, token, 1);
    for (Index i = 0; i < config_.dim; ++i)
      store_scalar(out.data, out.type, at * out.token_stride + i * out.dim_stride, load_scalar(row.data, row.type, i));
  }
  /// Tokens come back to the window, and their codes go.
  void unseal(Index tokens) noexcept {
    if (tokens == 0) return;
    dense_.restore_front(tokens);
    sealed_ -= tokens;
    pages_.cut(sealed_ > sinks_.count() ? sealed_ : 0);
  }

  SideConfig config_;
  TokenBuffer sinks_;
  PageTable pages_;
  TokenBuffer dense_;
  Index sealed_ = 0;
  float greatest_ = 0.0f;
  // between prepare and append
  Index next_capacity_ = 0;
  Buffer next_memory_;
  Buffer next_sinks_;
};

ASYMKV_NAMESPACE_END
