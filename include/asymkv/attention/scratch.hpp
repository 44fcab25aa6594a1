// scratch.hpp: working memory of the attention, one for each thread, sized once when a cache is created. Used by
// row_block.hpp and attend.hpp.
#pragma once

#include <algorithm>

#include "asymkv/kernels/table.hpp"
#include "asymkv/memory.hpp"

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

/// Float arrays in one block of memory.
class AttentionScratch {
 public:
  /// `kernel_floats` are what products with packed panels need, and, where panels are written and read, their writer
  /// and reader; `partials` is
  /// slice_partials, or 0 where nothing is cut.
  [[nodiscard]] bool allocate(Index key_dim, Index value_dim, Index kernel_floats, Index partials,
                              const Allocator& allocator) noexcept {
    key_stride_ = padded_dim(key_dim);
    value_stride_ = padded_dim(value_dim);
    const Index deepest = key_stride_ > page_tokens ? key_stride_ : page_tokens;
    const Index sizes[kArrays] = {attention_rows * key_stride_,
                                  attention_rows * key_stride_,
                                  attention_rows * page_tokens,
                                  attention_rows * page_tokens,
                                  attention_rows * value_stride_,
                                  attention_rows * value_stride_,
                                  attention_rows,
                                  attention_rows,
                                  std::max(kernels::dense_scratch(deepest), kernel_floats),
                                  partials * attention_rows * (value_stride_ + 2)};
    Index total = 0;
    for (int i = 0; i < kArrays; ++i) {
      offsets_[i] = total;
      total += sizes[i];
    }
    return memory_.allocate(total * Index(sizeof(float)), allocator);
  }

  Index bytes() const noexcept { return memory_.bytes(); }
  /// From row `first` on.
  ScratchRows queries(Index first) noexcept { return {at(0) + first * key_stride_, key_stride_}; }
  /// Those of mixed widths, in the order of a page's channels.
  ScratchRows ordered_queries(Index first) noexcept { return {at(1) + first * key_stride_, key_stride_}; }
  ScratchRows weights(Index first) noexcept { return {at(2) + first * page_tokens, page_tokens}; }
  ScratchRows shifted_weights(Index first) noexcept { return {at(3) + first * page_tokens, page_tokens}; }
  ScratchRows sums(Index first) noexcept { return {at(4) + first * value_stride_, value_stride_}; }
  /// Sums of rotated values, apart from the others until the end.
  ScratchRows rotated_sums(Index first) noexcept { return {at(5) + first * value_stride_, value_stride_}; }
  float* running_max() noexcept { return at(6); }
  float* running_sum() noexcept { return at(7); }
  /// Of the kernels, the panels' writer and their reader, one at a time.
  float* kernel() noexcept { return at(8); }
  /// Stays until the slices are merged.
  PartialRows partial(Index i) noexcept {
    float* sums = at(9) + i * attention_rows * (value_stride_ + 2);
    float* max = sums + attention_rows * value_stride_;
    return {{sums, value_stride_}, max, max + attention_rows};
  }

 private:
  static constexpr int kArrays = 10;
  float* at(int i) noexcept { return reinterpret_cast<float*>(memory_.data()) + offsets_[i]; }
  Buffer memory_;
  Index key_stride_ = 0, value_stride_ = 0;
  Index offsets_[kArrays] = {};
};

ASYMKV_NAMESPACE_END
