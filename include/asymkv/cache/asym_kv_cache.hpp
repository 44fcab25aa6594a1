// asym_kv_cache.hpp: the cache of the paper: keys and values of each layer in the formats that a policy gives them.
#pragma once

#include "asymkv/cache/sequence_cache.hpp"
#include "asymkv/policy.hpp"

ASYMKV_NAMESPACE_BEGIN

/// One sequence's cache under an AsymKVPolicy. Packed sides quantize tokens as they leave the residual window: after n
/// tokens and seal(), keys before token floor(n/R)*R and values before token n-R are sealed, but for the policy's
/// sinks, however they came. After trim(n) into sealed tokens these keep their codes, and R counts anew from token n
/// for keys.
///
/// A prompt in chunks of C tokens needs no dense copy of itself: what is taken at any time is at most the pages that
/// its tokens fill, a window of R + C + K tokens (of 2R + max(C, 32) + K where C < R) for each packed side of each
/// layer, twice for both sides of one layer, sinks, scratch and tables. K is rollback_tokens + R, and 0 without them.
class AsymKVCache final : public detail::SequenceCache {
 public:
  /// policy.num_layers() must equal shape.layers. Errors: invalid_argument (shape, policy, options, or an unknown
  /// ASYMKV_FORCE_ISA), unsupported (an instruction set that this machine
  /// lacks, mixed widths for key_dim above 256), out_of_memory.
  static Result<AsymKVCache> create(const CacheShape& shape, const AsymKVPolicy& policy,
                                    const CacheOptions& options = {}) noexcept {
    if (Status status = check_layers(policy, shape); !status.ok()) return status;
    AsymKVCache cache;
    Status status =
        cache.initialize(shape, options, [&](Index layer, Side side) { return kind_of(policy, layer, side); });
    if (!status.ok()) return status;
    return cache;
  }

  /// The most bytes that the options' allocator has handed out at any time to such a cache without forks, while it
  /// grows as described and is sealed in the end: exactly, temporary blocks included (bytes() counts none). In a
  /// PagePool's reserve each block takes up to 63 bytes more; there is one for each page of page_tokens tokens of each
  /// side of each layer, up to five more for each of these sides, and two for the cache. Takes some nanoseconds a step
  /// and layer, and 0.5 KB a layer of the allocator's memory meanwhile. Errors: as create, invalid_argument (growth),
  /// and out_of_range (beyond 2^62 bytes).
  static Result<Index> bytes_required(const CacheShape& shape, const AsymKVPolicy& policy, const CacheOptions& options,
                                      const Growth& growth) noexcept {
    if (Status status = check_layers(policy, shape); !status.ok()) return status;
    return SequenceCache::bytes_required(shape, options, growth,
                                         [&](Index layer, Side side) { return kind_of(policy, layer, side); });
  }

  /// A cache as it was saved, bit for bit, when it was created with this shape and policy and with the residual_length
  /// and rollback_tokens of these options; reads no further than the state goes. State need not be trusted: whatever
  /// the bytes are, the result is a cache or an error. (Memory is asked for as the state says, though: the allocator
  /// sets the limit.) Errors: as create; invalid_argument (another shape, policy or option), stream_failed,
  /// corrupt_state, unsupported (a newer version).
  static Result<AsymKVCache> load(const ByteSource& source, const CacheShape& shape, const AsymKVPolicy& policy,
                                  const CacheOptions& options = {}) noexcept {
    Result<AsymKVCache> cache = create(shape, policy, options);
    if (!cache.ok()) return cache;
    if (Status status = cache->restore(source, "policy"); !status.ok()) return status;
    return cache;
  }

  /// A sequence that goes on from here on its own: it shares sealed pages, of which none is copied but the one that is
  /// not full yet, by the first append that goes into it; sinks and window are copied. Costs these, 24 bytes a
  /// page, and 1.5 KB a layer. seal() beforehand seals what is due once, for all forks, and their windows are R tokens
  /// at most. Errors: out_of_memory, out_of_range (moved from).
  Result<AsymKVCache> fork() const noexcept {
    AsymKVCache cache;
    if (Status status = cache.initialize_fork(*this); !status.ok()) return status;
    return cache;
  }

  /// Gives the oldest pages fewer bits, e.g. when memory runs short: of tokens [first, last), in every layer, each page
  /// that lies inside, is complete, cannot be unsealed any more (CacheOptions::rollback_tokens), and would become
  /// smaller, in the formats of `policy` (of which the sinks and sides of 16 and 32 bits do not matter). From what the
  /// page reads back as, so its error adds to the one that was there; the same for every instruction set. Pages that no
  /// fork shares are rewritten in place and move to a smaller block; where there is none, the end of theirs goes back
  /// if the allocator can shrink it (without Allocator::shrink there must be one for each side's first page, or nothing
  /// is done). Others are copied, which takes requantize_bytes(first, last, policy) of fresh
  /// memory. Later tokens are sealed as before. Errors: invalid_argument (layers), out_of_range, unsupported (mixed
  /// widths for key_dim above 256; more than 4 formats in a side's pages), overflow (magnitudes beyond what the format
  /// holds), out_of_memory; then nothing is changed.
  Status requantize(Index first, Index last, const AsymKVPolicy& policy) noexcept {
    return requantize(first, last, policy, workspace());
  }
  Status requantize(Index first, Index last, const AsymKVPolicy& policy, const Workspace& workspace) noexcept {
    if (Status status = check_layers(policy, shape()); !status.ok()) return status;
    return SequenceCache::requantize({first, last}, workspace, policy);
  }
  /// 0 where the policy is not for as many layers.
  Index requantize_bytes(Index first, Index last, const AsymKVPolicy& policy) const noexcept {
    return check_layers(policy, shape()).ok() ? SequenceCache::requantize_bytes({first, last}, policy) : 0;
  }

 private:
  AsymKVCache() noexcept = default;

  static SideConfig kind_of(const AsymKVPolicy& policy, Index layer, Side side) noexcept {
    SideConfig config;
    config.format = policy.format(layer, side);
    config.sink_length = policy.sink_length();
    config.type = config.format.bits == 16 ? ScalarType::f16 : ScalarType::f32;
    return config;
  }
  static Status check_layers(const AsymKVPolicy& policy, const CacheShape& shape) noexcept {
    if (policy.num_layers() == shape.layers) return {};
    return Status::error(ErrorCode::invalid_argument, "policy: is for %lld layers, the shape has %lld",
                         detail::number(policy.num_layers()), detail::number(shape.layers));
  }
};

ASYMKV_NAMESPACE_END
