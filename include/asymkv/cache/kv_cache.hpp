// kv_cache.hpp: the interface an attention loop is written against, so that AsymKVCache, DenseKVCache<T> and any other
// cache are exchanged in one line. A step is, per layer: append, then attend.
#pragma once

#include "asymkv/attention/parameters.hpp"
#include "asymkv/status.hpp"
#include "asymkv/tensor.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Sizes of a cache. layers and kv_heads in 1..65536, dims in 1..1024; key_dim != value_dim is allowed.
struct CacheShape {
  Index layers = 0;
  Index kv_heads = 0;
  Index key_dim = 0;
  Index value_dim = 0;
};

namespace detail {

class SequenceCache;

inline long long number(Index i) noexcept { return static_cast<long long>(i); }

inline Status check_shape(const CacheShape& s) noexcept {
  if (s.layers < 1 || s.layers > 65536 || s.kv_heads < 1 || s.kv_heads > 65536)
    return Status::error(ErrorCode::invalid_argument, "shape: %lld layers, %lld kv_heads; both must be in 1..65536",
                         number(s.layers), number(s.kv_heads));
  if (s.key_dim < 1 || s.key_dim > 1024 || s.value_dim < 1 || s.value_dim > 1024)
    return Status::error(ErrorCode::invalid_argument, "shape: key_dim %lld, value_dim %lld; both must be in 1..1024",
                         number(s.key_dim), number(s.value_dim));
  return {};
}

inline Status check_layer(Index layer, Index layers) noexcept {
  if (layer >= 0 && layer < layers) return {};
  if (layers == 0)
    return Status::error(ErrorCode::out_of_range, "layer: the cache has none, since it was moved from; assign to it");
  return Status::error(ErrorCode::out_of_range, "layer: is %lld; the number of layers is %lld, the first is 0",
                       number(layer), number(layers));
}

inline Status check_slice(const AttentionSlice& slice, Index threads) noexcept {
  if (slice.nth >= 1 && slice.nth <= threads && slice.ith >= 0 && slice.ith < slice.nth) return {};
  return Status::error(ErrorCode::invalid_argument,
                       "slice: is %lld of %lld; use 0..nth-1 of at most %lld, the threads of the workspace",
                       number(slice.ith), number(slice.nth), number(threads));
}

/// Calls attend, then merge, with each of nth slices, as parallel_for distributes them; of one, attend alone, on the
/// calling thread. The first slice's Status, which is that of all.
template <class ParallelFor, class Attend, class Merge>
Status in_slices(Index nth, ParallelFor&& parallel_for, const Attend& attend, const Merge& merge) {
  if (nth <= 1) return attend(AttentionSlice());
  Status status;
  parallel_for(nth, [&](Index ith) {
    Status result = attend(AttentionSlice{ith, nth});
    if (ith == 0) status = result;
  });
  if (!status.ok()) return status;
  parallel_for(nth, [&](Index ith) {
    Status result = merge(AttentionSlice{ith, nth});
    if (ith == 0) status = result;
  });
  return status;
}

}  // namespace detail

/// Everything a cache holds from its allocator, in bytes, room for tokens to come included; total() equals what the
/// allocator handed out to a cache without forks. Forks share pages and the cache's own working memory, which each of
/// them counts.
struct CacheBytes {
  Index keys = 0;     ///< sealed pages (packed codes and metadata) of this cache alone
  Index values = 0;   ///< the same of values
  Index shared = 0;   ///< sealed pages, of keys and values, that forks hold too, each with its header of 64 bytes
  Index dense = 0;    ///< full-precision tokens: sinks, residual window, f16 and f32 layers, dense caches
  Index scratch = 0;  ///< working memory, unless it is that of CacheOptions::workspace
  Index tables = 0;   ///< bookkeeping: layers, page tables
  Index total() const noexcept { return keys + values + shared + dense + scratch + tables; }
};

/// A key/value cache of one sequence. One call at a time per cache, but for the slices of one attend; caches of this
/// library offer more (SequenceCache). Every call that fails leaves the cache as it was; its page tables may have
/// grown.
class KVCache {
 public:
  virtual ~KVCache() = default;

  /// The cache with all that this library's offer beside this interface: batches, workspaces of the caller's, saving,
  /// explain(); null for other caches.
  virtual const detail::SequenceCache* sequence() const noexcept { return nullptr; }

  virtual const CacheShape& shape() const noexcept = 0;

  /// Adds tokens to a layer. keys [tokens, kv_heads, key_dim] after RoPE, values [tokens, kv_heads, value_dim], f32,
  /// f16 or bf16, any strides; any number of tokens, 0 included. The type of the first append holds until clear().
  /// Errors: invalid_argument (shape, null data, changed type), out_of_range (layer), non_finite, overflow (beyond what
  /// the layer's format holds), out_of_memory.
  virtual Status append(Index layer, const ConstTensor& keys, const ConstTensor& values) noexcept = 0;

  /// Attention of the layer's last `queries.tokens` tokens, or of those at params.position, over all its tokens.
  /// queries [n, heads, key_dim], output [n, heads, value_dim], heads a multiple of kv_heads (query head h reads kv
  /// head h / (heads/kv_heads)); n is at least 1 and, without params.position, at most length(layer), which is at
  /// least 1. What is written must not overlap what is read. Allocates nothing. Errors: invalid_argument, out_of_range,
  /// non_finite, overflow; then nothing is written. Caches other than those of this library may offer less:
  /// unsupported.
  virtual Status attend(Index layer, const ConstTensor& queries, const Tensor& output,
                        const AttentionParams& params = {}) noexcept = 0;

  /// Slices that attend may be cut into at most, CacheOptions::threads.
  virtual Index threads() const noexcept { return 1; }

  /// attend for an engine that has threads: each of nth <= threads() calls attend_slice with its own ith, all other
  /// arguments alike; when all have returned, each calls merge_slices in the same way, and when all of these have
  /// returned, output is written. A slice is an equal part of the (kv head, tokens) to be read, but for causal prefill,
  /// where early ones are shorter; where it has only some of a head's tokens, partial sums are merged through their
  /// log-sum-exp. Outputs depend on nth within rounding, not on the order of threads. Errors: as attend, the same for
  /// every slice, and invalid_argument (slice); no slice then writes.
  virtual Status attend_slice(Index layer, const ConstTensor& queries, const Tensor& output,
                              const AttentionParams& params, const AttentionSlice& slice) noexcept {
    return slice.ith == 0 && slice.nth == 1 ? attend(layer, queries, output, params) : cannot_be_cut();
  }
  virtual Status merge_slices(Index, const ConstTensor&, const Tensor&, const AttentionParams&,
                              const AttentionSlice& slice) noexcept {
    return slice.ith == 0 && slice.nth == 1 ? Status() : cannot_be_cut();
  }

  /// attend in threads() slices: parallel_for(count, task) must call task(i) once for each i in [0, count), on any
  /// threads, and return when all calls have. ThreadPool is one; others are an engine's own, or a loop of OpenMP.
  /// Where threads() is 1, as it is unless CacheOptions::threads says more, parallel_for is not called and the calling
  /// thread does all.
  template <class ParallelFor>
  Status attend_parallel(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                         ParallelFor&& parallel_for) {
    return detail::in_slices(
        threads(), parallel_for,
        [&](const AttentionSlice& slice) { return attend_slice(layer, queries, output, params, slice); },
        [&](const AttentionSlice& slice) { return merge_slices(layer, queries, output, params, slice); });
  }

  /// Reads keys (values) of tokens first..first+out.tokens-1 of one kv head back as the attention sees them;
  /// out [count, 1, dim]. Errors: invalid_argument, out_of_range (removed tokens too).
  virtual Status keys(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept = 0;
  virtual Status values(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept = 0;

  /// Quantizes at once what the next append would quantize first; full-precision memory shrinks with that append.
  /// Nothing to do for dense caches.
  virtual Status seal() noexcept = 0;

  /// Tokens of one layer (0 for a layer that does not exist); and the least of all layers.
  virtual Index length(Index layer) const noexcept = 0;
  Index length() const noexcept {
    Index least = length(0);
    for (Index layer = 1; layer < shape().layers; ++layer)
      if (length(layer) < least) least = length(layer);
    return least;
  }

  /// Drops all tokens from `tokens` on, in every layer; tokens below read exactly as before (but for those whose
  /// sealing CacheOptions::rollback_tokens undoes). `tokens` is at most length(), so that trim(length()) repairs a step
  /// that broke off between layers; it is not below removed tokens, but may be the number of sinks or less. Magnitudes
  /// that attend() checks for overflow are remembered until a trim to 0 or clear().
  virtual Status trim(Index tokens) noexcept = 0;
  /// For sliding windows: removes tokens of one layer from behind the policy's sinks up to `end`, at most
  /// length(layer). No query sees them from then on; tokens keep their numbers and lengths count them. Memory of whole
  /// pages before `end`, but for the last page, goes back to the allocator, that of layers in f16 and f32 is used anew;
  /// pages of tokens that are yet to be sealed, or may be unsealed, follow with later appends.
  /// An end before that of an earlier call changes nothing. Errors: out_of_range, unsupported (other caches).
  virtual Status remove_front(Index, Index) noexcept {
    return Status::error(ErrorCode::unsupported, "remove_front: this cache keeps all tokens");
  }
  /// Removed tokens of a layer, [sinks, end of the last remove_front); empty where none are.
  virtual TokenRange removed(Index) const noexcept { return {}; }

  /// Drops all tokens and gives their memory back.
  virtual void clear() noexcept = 0;

  virtual CacheBytes bytes() const noexcept = 0;

 private:
  static Status cannot_be_cut() noexcept {
    return Status::error(ErrorCode::unsupported, "slice: attention of this cache is not cut; use one, {0, 1}");
  }
};

ASYMKV_NAMESPACE_END
