// scratch.hpp: working memory of one thread that attends, seals or reads back, as arrays of floats. Used by
// workspace.hpp, row_block.hpp and attend.hpp.
#pragma once

#include <algorithm>

#include "asymkv/kernels/table.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Query rows (query token x query head) that are attended together: enough to share every dequantized
/// tile many times, few enough that scores and sums stay in the second-level cache.
constexpr Index attention_rows = 128;

/// Rows of floats in scratch, and what a kernel adds to.
struct ScratchRows : kernels::ResultRows {
  float* row(Index r) const noexcept { return data + r * stride; }
};

/// Attention of one head's rows over some of the tokens: sums of weighted values, and of each row the greatest score
/// and the sum of weights, which are exp2(score - max).
struct PartialRows {
  ScratchRows sums;
  float* max;
  float* sum;
};
/// A slice is some neighbouring (head, tokens), so it has whole heads and at most two of which it sees some tokens.
constexpr Index slice_partials = 2;

/// Where the float arrays of one thread's working memory lie.
class ScratchLayout {
 public:
  ScratchLayout() noexcept = default;
  /// `kernel_floats` are what the kernels, the panels' writer and their reader need; `partials` is slice_partials, or 0
  /// where nothing is cut.
  ScratchLayout(Index key_dim, Index value_dim, Index kernel_floats, Index partials) noexcept
      : key_stride_(padded_dim(key_dim)), value_stride_(padded_dim(value_dim)) {
    const Index deepest = std::max(key_stride_, page_tokens);
    const Index sizes[count] = {attention_rows * key_stride_,
                                attention_rows * key_stride_,
                                attention_rows * page_tokens,
                                attention_rows * page_tokens,
                                attention_rows * value_stride_,
                                attention_rows * value_stride_,
                                attention_rows,
                                attention_rows,
                                std::max(kernels::dense_scratch(deepest), kernel_floats),
                                partials * attention_rows * (value_stride_ + 2)};
    for (int i = 0; i < count; ++i) {
      offsets_[i] = floats_;
      floats_ += round_up(sizes[i], 16);  // each begins at a multiple of 64 bytes
    }
  }

  Index floats() const noexcept { return floats_; }
  Index offset(int array) const noexcept { return offsets_[array]; }
  Index key_stride() const noexcept { return key_stride_; }
  Index value_stride() const noexcept { return value_stride_; }

 private:
  static constexpr int count = 10;
  Index key_stride_ = 0, value_stride_ = 0, floats_ = 0;
  Index offsets_[count] = {};
};

/// Working memory of one thread: a view of `layout.floats()` floats at `data`.
class AttentionScratch {
 public:
  AttentionScratch(const ScratchLayout& layout, float* data) noexcept : layout_(layout), data_(data) {}

  /// From row `first` on.
  ScratchRows queries(Index first) const noexcept { return rows(0, first, layout_.key_stride()); }
  /// Those of mixed widths, in the order of a page's channels.
  ScratchRows ordered_queries(Index first) const noexcept { return rows(1, first, layout_.key_stride()); }
  ScratchRows weights(Index first) const noexcept { return rows(2, first, page_tokens); }
  ScratchRows shifted_weights(Index first) const noexcept { return rows(3, first, page_tokens); }
  ScratchRows sums(Index first) const noexcept { return rows(4, first, layout_.value_stride()); }
  /// Sums of rotated values, apart from the others until the end.
  ScratchRows rotated_sums(Index first) const noexcept { return rows(5, first, layout_.value_stride()); }
  float* running_max() const noexcept { return at(6); }
  float* running_sum() const noexcept { return at(7); }
  /// Of the kernels, the panels' writer and their reader, one at a time.
  float* kernel() const noexcept { return at(8); }
  /// Stays until the slices are merged.
  PartialRows partial(Index i) const noexcept {
    float* sums = at(9) + i * attention_rows * (layout_.value_stride() + 2);
    float* max = sums + attention_rows * layout_.value_stride();
    return {{sums, layout_.value_stride()}, max, max + attention_rows};
  }
  /// Floats for a page of one head, [page_tokens][key_dim or value_dim]: where queries (sums) are not in use.
  float* page() const noexcept { return at(layout_.key_stride() > layout_.value_stride() ? 0 : 4); }

 private:
  float* at(int array) const noexcept { return data_ + layout_.offset(array); }
  ScratchRows rows(int array, Index first, Index stride) const noexcept { return {at(array) + first * stride, stride}; }

  const ScratchLayout& layout_;
  float* data_;
};

ASYMKV_NAMESPACE_END
