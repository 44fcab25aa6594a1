// token_buffer.hpp: full-precision tokens of one side of one layer, contiguous per kv head. Holds the residual window
// of a packed side, and all tokens of an f16 or f32 side or of a dense cache.
#pragma once

#include "asymkv/kernels/table.hpp"
#include "asymkv/memory.hpp"
#include "asymkv/tensor.hpp"

ASYMKV_NAMESPACE_BEGIN

/// [kv_heads][capacity][padded_dim], a queue: tokens come in at the back and leave at the front, where some may be kept
/// for a while, so that they can come back. Rows are padded with zeros to a multiple of 16 elements.
class TokenBuffer {
 public:
  void configure(ScalarType type, Index heads, Index dim) noexcept {
    type_ = type;
    heads_ = heads;
    dim_ = dim;
  }

  ScalarType type() const noexcept { return type_; }
  Index heads() const noexcept { return heads_; }
  /// Without those kept.
  Index count() const noexcept { return count_; }
  /// Tokens that have left, the last ones, and are still here.
  Index kept() const noexcept { return kept_; }
  Index capacity() const noexcept { return capacity_; }
  Index bytes() const noexcept { return memory_.bytes(); }
  Index bytes_for(Index capacity) const noexcept { return heads_ * capacity * row_bytes(); }

  /// Moves the tokens into `memory`, which has bytes_for(capacity) zero bytes and room for kept() + count() tokens.
  void adopt(Buffer memory, Index capacity) noexcept {
    copy_to(memory.data(), capacity);
    memory_ = std::move(memory);
    capacity_ = capacity;
    begin_ = 0;
  }

  /// Becomes a copy of a buffer, kept tokens included, with room for no more; false, and nothing changed, if there is
  /// no memory.
  [[nodiscard]] bool copy(const TokenBuffer& from, const Allocator& allocator) noexcept {
    TokenBuffer fresh;
    fresh.configure(from.type_, from.heads_, from.dim_);
    fresh.kept_ = from.kept_;
    fresh.count_ = from.count_;
    fresh.capacity_ = from.kept_ + from.count_;
    if (!fresh.memory_.allocate(fresh.bytes_for(fresh.capacity_), allocator)) return false;
    from.copy_to(fresh.memory_.data(), fresh.capacity_);
    *this = std::move(fresh);
    return true;
  }

  /// Adds tokens at the back; requires kept() + count() + tokens <= capacity().
  void append(const kernels::Table& kernels, const ConstTensor& tokens) noexcept {
    if (begin_ + kept_ + count_ + tokens.tokens > capacity_) move_to_front();
    for (Index t = 0; t < tokens.tokens; ++t)  // in the order in which tokens mostly lie
      for (Index head = 0; head < heads_; ++head) {
        unsigned char* to = row(head, count_ + t);
        const void* from = tokens.row(t, head);
        if (t + 2 < tokens.tokens) prefetch_row(to + 2 * row_bytes());
        if (tokens.dim_stride == 1)
          kernels.convert(from, tokens.type, to, type_, dim_);
        else
          for (Index i = 0; i < dim_; ++i)
            store_scalar(to, type_, i, load_scalar(from, tokens.type, i * tokens.dim_stride));
      }
    count_ += tokens.tokens;
  }

  /// Tokens leave at the front, and are kept.
  void drop_front(Index tokens) noexcept {
    kept_ += tokens;
    count_ -= tokens;
  }
  /// The last `tokens` of those kept come back.
  void restore_front(Index tokens) noexcept {
    kept_ -= tokens;
    count_ += tokens;
  }
  /// Keeps no more than the last `tokens` of those that have left.
  void keep(Index tokens) noexcept {
    if (tokens >= kept_) return;
    begin_ += kept_ - tokens;
    kept_ = tokens;
    if (kept_ + count_ == 0) begin_ = 0;
  }
  void truncate(Index tokens) noexcept {
    count_ = tokens;
    if (kept_ + count_ == 0) begin_ = 0;
  }
  void reset() noexcept {
    memory_ = Buffer();
    capacity_ = begin_ = kept_ = count_ = 0;
  }

  /// Rows of all tokens of a head, kept ones first, side by side.
  Index head_bytes() const noexcept { return (kept_ + count_) * row_bytes(); }
  const unsigned char* head(Index head) const noexcept { return kept_row(head); }
  /// Takes tokens over that lie in `memory`, which has bytes_for(kept + count) bytes; rows are padded with zeros.
  void restore(Buffer memory, Index kept, Index count) noexcept {
    memory_ = std::move(memory);
    begin_ = 0;
    kept_ = kept;
    count_ = count;
    capacity_ = kept + count;
  }

  kernels::DenseView view(Index head, Index first, Index count) const noexcept {
    return {const_cast<TokenBuffer*>(this)->row(head, first), type_, padded_dim(dim_), count};
  }

 private:
  Index row_bytes() const noexcept { return padded_dim(dim_) * scalar_bytes(type_); }
  const unsigned char* kept_row(Index head) const noexcept {
    return memory_.data() + (head * capacity_ + begin_) * row_bytes();
  }
  unsigned char* row(Index head, Index token) noexcept {
    return memory_.data() + (head * capacity_ + begin_ + kept_ + token) * row_bytes();
  }
  void copy_to(unsigned char* to, Index capacity) const noexcept {
    for (Index head = 0; head < heads_ && kept_ + count_ > 0; ++head)
      std::memcpy(to + head * capacity * row_bytes(), kept_row(head), std::size_t((kept_ + count_) * row_bytes()));
  }
  /// Asks for a row that will be written: each head's rows are a place of their own, which the processor does not
  /// foresee.
  void prefetch_row(const unsigned char* to) const noexcept {
    for (Index at = 0; at < row_bytes(); at += 64) __builtin_prefetch(to + at, 1);
  }
  void move_to_front() noexcept {
    for (Index head = 0; head < heads_ && kept_ + count_ > 0; ++head)
      std::memmove(memory_.data() + head * capacity_ * row_bytes(), kept_row(head),
                   std::size_t((kept_ + count_) * row_bytes()));
    begin_ = 0;
  }

  Buffer memory_;
  ScalarType type_ = ScalarType::f32;
  Index heads_ = 0, dim_ = 0;
  Index capacity_ = 0, begin_ = 0, kept_ = 0, count_ = 0;
};

ASYMKV_NAMESPACE_END
