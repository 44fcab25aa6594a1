// attend_batch.hpp: one layer's attention for many sequences at once, of any lengths, cut evenly over threads. Used by
// engines that batch continuously.
#pragma once

#include "asymkv/cache/sequence_cache.hpp"

ASYMKV_NAMESPACE_BEGIN

/// One sequence of a batch: what KVCache::attend takes. The cache is an AsymKVCache or a DenseKVCache<T>, or what
/// KVCache::sequence() says; those of a batch have key_dim and value_dim in common, and may differ in all else: number
/// of queries, policy, length. A sequence may be there more than once.
struct BatchEntry {
  const SequenceCache* cache = nullptr;
  ConstTensor queries = {};
  Tensor output = {};
  AttentionParams params = {};
};

/// The sequences of a batch: `count` entries, which stay the caller's.
struct Batch {
  const BatchEntry* entries = nullptr;
  Index count = 0;
};

namespace detail {

/// Friend of SequenceCache: checks all entries, then lays their attention side by side.
class BatchAttention {
 public:
  BatchAttention(Index layer, const Batch& batch, const Workspace& workspace) noexcept
      : layer_(layer), batch_(batch), workspace_(workspace) {}

  Status check(const AttentionSlice& slice) const noexcept {
    if (batch_.count < 0 || (batch_.entries == nullptr && batch_.count > 0))
      return Status::error(ErrorCode::invalid_argument, "batch: %lld entries, which are %s", number(batch_.count),
                           batch_.count < 0 ? "less than none" : "null");
    if (workspace_.threads() == 0)
      return Status::error(ErrorCode::invalid_argument, "workspace: is empty; create one for the caches' shape");
    if (Status status = check_slice(slice, workspace_.threads()); !status.ok()) return status;
    for (Index i = 0; i < batch_.count; ++i)
      if (Status status = check_entry(batch_.entries[i]); !status.ok())
        return Status::error(status.code(), "entry %lld: %s", number(i), status.message());
    return {};
  }

  /// Requires check(). Calls function(attention, placement) for each entry.
  template <class Function>
  void each(Index nth, Function function) const noexcept {
    Index work = 0, first = 0;
    each_attention([&](const LayerAttention& attention) { work += attention.work(); });
    each_attention([&](const LayerAttention& attention) {
      const Placement placement = attention.place({work, nth}, first);
      function(attention, placement);
      first = placement.end();
    });
  }

 private:
  Status check_entry(const BatchEntry& entry) const noexcept {
    if (entry.cache == nullptr) return Status::error(ErrorCode::invalid_argument, "cache: is null");
    if (Status status = check_layer(layer_, entry.cache->shape().layers); !status.ok()) return status;
    if (Status status = entry.cache->check_workspace(workspace_); !status.ok()) return status;
    return entry.cache->check_attention(layer_, entry.queries, entry.output, entry.params);
  }
  template <class Function>
  void each_attention(Function function) const noexcept {
    for (Index i = 0; i < batch_.count; ++i) {
      const BatchEntry& entry = batch_.entries[i];
      entry.cache->with_attention(layer_, entry.queries, entry.output, entry.params, function);
    }
  }

  Index layer_;
  const Batch& batch_;
  const Workspace& workspace_;
};

}  // namespace detail

/// KVCache::attend of one layer of every entry, in a slice of the batch's work, as KVCache::attend_slice and
/// merge_slices are of one: each of nth <= workspace.threads() threads calls the first with its own ith, and when all
/// have returned, the second. A slice is an equal part of all entries' work, whatever their lengths; a sequence that is
/// cut is merged through its log-sum-exp. Errors: as attend, with the number of the entry, and invalid_argument (batch,
/// slice, workspace), the same for every slice; then nothing is written. Nothing is allocated.
inline Status attend_batch_slice(Index layer, const Batch& batch, const AttentionSlice& slice,
                                 const Workspace& workspace) noexcept {
  const detail::BatchAttention attention(layer, batch, workspace);
  if (Status status = attention.check(slice); !status.ok()) return status;
  attention.each(slice.nth, [&](const detail::LayerAttention& layer_attention, const detail::Placement& placement) {
    layer_attention.run(placement, slice.ith, workspace);
  });
  return {};
}
inline Status merge_batch_slices(Index layer, const Batch& batch, const AttentionSlice& slice,
                                 const Workspace& workspace) noexcept {
  const detail::BatchAttention attention(layer, batch, workspace);
  if (Status status = attention.check(slice); !status.ok()) return status;
  attention.each(slice.nth, [&](const detail::LayerAttention& layer_attention, const detail::Placement& placement) {
    layer_attention.merge(placement, slice.ith, workspace);
  });
  return {};
}

/// All slices of a batch, one for each thread of the workspace; parallel_for as for KVCache::attend_parallel.
template <class ParallelFor>
Status attend_batch(Index layer, const Batch& batch, const Workspace& workspace, ParallelFor&& parallel_for) {
  return detail::in_slices(
      workspace.threads(), parallel_for,
      [&](const AttentionSlice& slice) { return attend_batch_slice(layer, batch, slice, workspace); },
      [&](const AttentionSlice& slice) { return merge_batch_slices(layer, batch, slice, workspace); });
}
/// The same on the calling thread.
inline Status attend_batch(Index layer, const Batch& batch, const Workspace& workspace) noexcept {
  return attend_batch_slice(layer, batch, {}, workspace);
}

ASYMKV_NAMESPACE_END
