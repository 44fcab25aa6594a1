// attend.hpp: the attention of one layer, whole or cut into slices for several threads, whose parts of a head's tokens
// are then merged by their log-sum-exp. Used by SequenceCache and attend_batch, which have checked all arguments.
#pragma once

#include "asymkv/attention/row_block.hpp"
#include "asymkv/attention/workspace.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// Steps [begin, end) of those of a layer.
struct StepRange {
  Index begin, end;
};

/// How so much work is cut into nth equal slices.
struct Slices {
  Index work, nth;

  Index begin(Index ith) const noexcept { return work * ith / nth; }
  /// The slice that has unit of work number i: the inverse of begin.
  Index owner(Index i) const noexcept { return ((i + 1) * nth - 1) / work; }
};

/// Where a layer's `steps` steps lie in all work that is cut into slices: from `first` on, `weight` for each. A step is
/// done by the slice that has its beginning.
struct Placement {
  Slices slices;
  Index first, steps, weight;

  Index end() const noexcept { return first + steps * weight; }
  StepRange own(Index ith) const noexcept { return {step(slices.begin(ith)), step(slices.begin(ith + 1))}; }
  Index owner(Index step) const noexcept { return slices.owner(first + step * weight); }

 private:
  /// The first step that begins at or behind a place.
  Index step(Index place) const noexcept {
    return place <= first ? 0 : std::min((place - first + weight - 1) / weight, steps);
  }
};

/// A unit is a block of at most attention_rows query rows of one kv head, with all tokens that they may see, in spans
/// of page_tokens, a step each. All steps of all units in a row, cut into nth equal pieces, are the slices:
///
///   head 0: 0 0 0 0 0 0 0 | head 1: 0 0 1 1 1 1 1 | head 2: 1 1 1 1 2 2 2 | head 3: 2 2 2 2 2 2 2     3 slices
///
/// so a slice has units that it does alone and at most two that it shares, whose partial sums it leaves in its scratch.
/// In a batch the steps of one sequence's layer follow those of another's.
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
        first_span_(call.visible().begin / page_tokens) {
    const Index end = (call.visible().end + page_tokens - 1) / page_tokens;
    hole_ = std::max(first_span_, (call.removed().begin + page_tokens - 1) / page_tokens);
    hole_spans_ = std::max<Index>(0, std::min(end, call.removed().end / page_tokens) - hole_);
    spans_ = std::max<Index>(1, end - first_span_ - hole_spans_);
  }

  /// Where its steps lie when they follow `first` units of others' work.
  Placement place(const Slices& all, Index first) const noexcept { return {all, first, units_ * spans_, weight()}; }
  Index work() const noexcept { return units_ * spans_ * weight(); }

  void run(const Placement& placement, Index ith, const Workspace& workspace) const noexcept {
    const AttentionScratch scratch = workspace.scratch(ith);
    StepRange steps = placement.own(ith);
    while (steps.begin < steps.end) {
      const Index unit = steps.begin / spans_, span = steps.begin % spans_;
      const Index whole = span == 0 ? (steps.end - steps.begin) / spans_ : 0;
      if (whole > 0) {
        const Index together = std::min(whole, units_at_once());
        run_whole(unit, together, scratch);
        steps.begin += together * spans_;
      } else {
        const Index count = std::min(spans_ - span, steps.end - steps.begin);
        run_part(unit, {first_token(span), first_token(span + count - 1) + page_tokens},
                 scratch.partial(partial_of(span)), scratch);
        steps.begin += count;
      }
    }
  }

  /// After run of all slices: slice ith's share of the units that several had.
  void merge(const Placement& placement, Index ith, const Workspace& workspace) const noexcept {
    for (Index unit = ith; unit < units_; unit += placement.slices.nth) {
      const Index first = unit * spans_;
      const SharedUnit shared{placement, first, placement.owner(first), placement.owner(first + spans_ - 1)};
      if (shared.first_slice == shared.last_slice) continue;
      for (Index r = 0; r < row_count_of(unit); ++r) merge_row(unit, r, shared, workspace);
    }
  }

 private:
  /// A unit that several slices have a part of.
  struct SharedUnit {
    const Placement& placement;
    Index first_step, first_slice, last_slice;
  };
  /// Of the parts that a slice leaves in its scratch: 0 has its unit's end, or neither end; 1 has the beginning.
  static Index partial_of(Index span) noexcept { return span > 0 ? 0 : 1; }
  /// What each slice left of a unit; some have no steps at all.
  template <class Function>
  static void each_partial(const SharedUnit& unit, const Workspace& workspace, Function function) noexcept {
    for (Index i = unit.first_slice; i <= unit.last_slice; ++i) {
      const StepRange steps = unit.placement.own(i);
      if (steps.begin < steps.end)
        function(workspace.scratch(i).partial(partial_of(std::max<Index>(0, steps.begin - unit.first_step))));
    }
  }

  /// What a step costs, in some unit: measured, reading the codes costs what two rows do.
  Index weight() const noexcept { return std::min(call_.rows(), attention_rows) + 2; }

  /// Token where a span begins: spans of removed tokens are left out.
  Index first_token(Index span) const noexcept {
    span += first_span_;
    return (span < hole_ ? span : span + hole_spans_) * page_tokens;
  }

  Index head_of(Index unit) const noexcept { return unit / blocks_; }
  Index first_row_of(Index unit) const noexcept { return unit % blocks_ * attention_rows; }
  Index row_count_of(Index unit) const noexcept { return std::min(call_.rows() - first_row_of(unit), attention_rows); }
  /// Units of neighbouring heads whose rows fit a block together: pages are then read in the order of memory.
  Index units_at_once() const noexcept { return blocks_ == 1 ? attention_rows / call_.rows() : 1; }

  RowBlock rows_of(Index unit, Index count, const TokenRange& tokens, const AttentionScratch& scratch) const noexcept {
    return {kernels_, keys_, values_, call_, scratch, {head_of(unit), count}, {first_row_of(unit), row_count_of(unit)},
            tokens};
  }

  void run_whole(Index unit, Index count, const AttentionScratch& scratch) const noexcept {
    RowBlock block = rows_of(unit, count, {0, call_.length()}, scratch);
    block.run();
    block.store_output();
  }

  void run_part(Index unit, const TokenRange& tokens, const PartialRows& partial,
                const AttentionScratch& scratch) const noexcept {
    RowBlock block = rows_of(unit, 1, tokens, scratch);
    block.run();
    block.store_partial(partial);
  }

  /// The sums of the slices add up once their weights have one maximum; they do so in the last one's place.
  void merge_row(Index unit, Index r, const SharedUnit& shared, const Workspace& workspace) const noexcept {
    const float lowest = -std::numeric_limits<float>::infinity();
    float greatest = lowest, total = 0.0f;
    each_partial(shared, workspace, [&](const PartialRows& p) { greatest = std::max(greatest, p.max[r]); });
    float* sums = nullptr;
    each_partial(shared, workspace, [&](const PartialRows& p) {
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
  Index hole_, hole_spans_;  ///< spans of removed tokens alone, which are no steps
};

}  // namespace detail
ASYMKV_NAMESPACE_END
