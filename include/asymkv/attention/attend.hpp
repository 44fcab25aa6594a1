// attend.hpp: the attention of one layer, whole or cut into slices for several threads, whose parts of a head's tokens
// are then merged by their log-sum-exp. Used by SequenceCache, which has checked all arguments.
#pragma once

#include "asymkv/attention/row_block.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// A unit is a block of at most attention_rows query rows of one kv head, with all tokens that they may see, in spans
/// of page_tokens. All spans of all units in a row, cut into nth equal pieces, are the slices:
///
///   head 0: 0 0 0 0 0 0 0 | head 1: 0 0 1 1 1 1 1 | head 2: 1 1 1 1 2 2 2 | head 3: 2 2 2 2 2 2 2     3 slices
///
/// so a slice has units that it does alone and at most two that it shares, whose partial sums it leaves in its scratch.
class LayerAttention {
 public:
  LayerAttention(const kernels::Table& kernels, const SideStore& keys, const SideStore& values, Index kv_heads,
                 const AttentionCall& call) noexcept
      : kernels_(kernels),
        keys_(keys),
        values_(values),
        call_(call),
        blocks_((call.rows() + attention_rows - 1) / attention_rows),
        units_(kv_heads * blocks_),
        first_span_(call.visible().begin / page_tokens),
        spans_(std::max<Index>(1, (call.visible().end + page_tokens - 1) / page_tokens - first_span_)) {}

  void run(const AttentionSlice& slice, AttentionScratch& scratch) const noexcept {
    Steps steps = steps_of(slice);
    for (Index partial = 0; steps.begin < steps.end;) {
      const Index unit = steps.begin / spans_, span = steps.begin % spans_;
      const Index whole = span == 0 ? (steps.end - steps.begin) / spans_ : 0;
      if (whole > 0) {
        const Index together = std::min(whole, units_at_once());
        run_whole(unit, together, scratch);
        steps.begin += together * spans_;
      } else {
        const Index count = std::min(spans_ - span, steps.end - steps.begin);
        const Index first = (first_span_ + span) * page_tokens;
        run_part(unit, {first, first + count * page_tokens}, scratch.partial(partial++), scratch);
        steps.begin += count;
      }
    }
  }

  /// After run of all slices: this slice's share of the units that several had. scratch[i] is that of slice i.
  void merge(const AttentionSlice& slice, Array<AttentionScratch>& scratch) const noexcept {
    for (Index unit = slice.ith; unit < units_; unit += slice.nth) {
      const SliceRange range{owner(unit * spans_, slice.nth), owner((unit + 1) * spans_ - 1, slice.nth), slice.nth};
      if (range.first == range.last) continue;
      for (Index r = 0; r < row_count_of(unit); ++r) merge_row(unit, r, range, scratch);
    }
  }

 private:
  struct Steps {
    Index begin, end;
  };
  Steps steps_of(const AttentionSlice& slice) const noexcept {
    const Index steps = units_ * spans_;
    return {steps * slice.ith / slice.nth, steps * (slice.ith + 1) / slice.nth};
  }
  /// Slices first..last of nth.
  struct SliceRange {
    Index first, last, nth;
  };
  /// What each slice of a range left of a unit; some have no steps at all.
  template <class Function>
  void each_partial(Index unit, const SliceRange& range, Array<AttentionScratch>& scratch,
                    Function function) const noexcept {
    for (Index i = range.first; i <= range.last; ++i) {
      const Steps steps = steps_of({i, range.nth});
      const bool second = steps.begin < unit * spans_ && steps.begin % spans_ != 0;
      if (steps.begin < steps.end) function(scratch[i].partial(second ? 1 : 0));
    }
  }
  /// The slice that has a step: the inverse of steps_of.
  Index owner(Index step, Index nth) const noexcept { return ((step + 1) * nth - 1) / (units_ * spans_); }

  Index head_of(Index unit) const noexcept { return unit / blocks_; }
  Index first_row_of(Index unit) const noexcept { return unit % blocks_ * attention_rows; }
  Index row_count_of(Index unit) const noexcept { return std::min(call_.rows() - first_row_of(unit), attention_rows); }
  /// Units of neighbouring heads whose rows fit a block together: pages are then read in the order of memory.
  Index units_at_once() const noexcept { return blocks_ == 1 ? attention_rows / call_.rows() : 1; }

  RowBlock rows_of(Index unit, Index count, const TokenRange& tokens, AttentionScratch& scratch) const noexcept {
    return {kernels_, keys_, values_, call_, scratch, {head_of(unit), count}, {first_row_of(unit), row_count_of(unit)},
            tokens};
  }

  void run_whole(Index unit, Index count, AttentionScratch& scratch) const noexcept {
    RowBlock block = rows_of(unit, count, {0, call_.length()}, scratch);
    block.run();
    block.store_output();
  }

  void run_part(Index unit, const TokenRange& tokens, const PartialRows& partial,
                AttentionScratch& scratch) const noexcept {
    RowBlock block = rows_of(unit, 1, tokens, scratch);
    block.run();
    block.store_partial(partial);
  }

  /// The sums of slices first..last add up once their weights have one maximum; they do so in the last one's place.
  void merge_row(Index unit, Index r, const SliceRange& range, Array<AttentionScratch>& scratch) const noexcept {
    const float lowest = -std::numeric_limits<float>::infinity();
    float greatest = lowest, total = 0.0f;
    each_partial(unit, range, scratch, [&](const PartialRows& p) { greatest = std::max(greatest, p.max[r]); });
    float* sums = nullptr;
    each_partial(unit, range, scratch, [&](const PartialRows& p) {
      const float factor = p.max[r] == lowest ? 0.0f : std::exp2(p.max[r] - greatest);
      float* row = p.sums.row(r);
      total += factor * p.sum[r];
      for (Index i = 0; i < values_.dim(); ++i) row[i] = factor * row[i] + (sums != nullptr ? sums[i] : 0.0f);
      sums = row;
    });
    call_.store(head_of(unit), first_row_of(unit) + r, sums, greatest, total);
  }

  const kernels::Table& kernels_;
  const SideStore& keys_;
  const SideStore& values_;
  const AttentionCall& call_;
  Index blocks_;  ///< of the rows of a head
  Index units_;
  Index first_span_, spans_;
};

}  // namespace detail
ASYMKV_NAMESPACE_END
