// probe.hpp: the error of attention in service: what an engine has just computed for one layer, against a shadow of
// that layer in float. For engines that watch their quality; not part of asymkv.hpp: it costs what quantizing saves.
#pragma once

#include <cmath>
#include <limits>

#include "asymkv/attention/check.hpp"
#include "asymkv/cache/sequence_cache.hpp"
#include "asymkv/policy.hpp"

ASYMKV_NAMESPACE_BEGIN

/// How far outputs of attention are from those in float. Adds up over calls, layers and sequences.
struct AttentionError {
  double squared_error = 0.0;   ///< sum over all elements of (output - shadow's)^2
  double squared_shadow = 0.0;  ///< sum over all elements of shadow's^2
  double greatest = 0.0;        ///< greatest |output - shadow's| of an element
  Index rows = 0;               ///< query tokens times query heads

  /// Root of the one sum over the other (Frobenius norms): 0 for equal outputs, infinity where the shadow's alone are
  /// 0. Its square is what measure_curve() calls damage.
  double relative() const noexcept {
    if (squared_error == 0.0) return 0.0;
    return squared_shadow > 0.0 ? std::sqrt(squared_error / squared_shadow) : std::numeric_limits<double>::infinity();
  }

  void add(const AttentionError& other) noexcept {
    squared_error += other.squared_error;
    squared_shadow += other.squared_shadow;
    if (other.greatest > greatest) greatest = other.greatest;
    rows += other.rows;
  }
};

/// What may be chosen about a probe.
struct AttentionProbeOptions {
  Index sink_length = 0;  ///< of the serving cache's policy, 0..128: matters to remove_front alone
  Allocator allocator = {};
};

namespace detail {

/// One layer in float, with sinks that remove_front spares.
class ShadowCache final : public SequenceCache {
 public:
  static Result<ShadowCache> create(const CacheShape& shape, const AttentionProbeOptions& from) noexcept {
    ShadowCache cache;
    CacheOptions options;
    options.allocator = from.allocator;
    Status status = cache.initialize(shape, options, [&](Index, Side) {
      SideConfig config;
      config.format.bits = 32;
      config.sink_length = from.sink_length;
      return config;
    });
    if (!status.ok()) return status;
    return cache;
  }

 private:
  ShadowCache() noexcept = default;
};

}  // namespace detail

/// Keeps one layer of a sequence in float beside the cache that serves, and compares outputs. What is done to that
/// cache's layer is done to the probe with the same arguments, from the first token on: append, trim, remove_front,
/// clear. compare() comes between an attend and the next append, as seldom as one likes:
///
///   cache.append(layer, keys, values), probe.append(keys, values);
///   cache.attend(layer, queries, output, params);
///   if (step % 100 == 0) error = probe.compare(cache, queries, output, params);
///
/// Memory: 4 bytes an element of this layer's keys and values, and up to half of that for those to come; 4 bytes an
/// element of the largest output compared; working memory. Time: append checks and copies; compare() is one attend in
/// float, on the calling thread. Watch one layer, or some. One call at a time.
class AttentionProbe {
 public:
  /// `shape` is the serving cache's, of which `layer` is watched. Errors: invalid_argument (shape, options, an unknown
  /// ASYMKV_FORCE_ISA), out_of_range (layer), unsupported (an instruction set that this machine lacks), out_of_memory.
  static Result<AttentionProbe> create(const CacheShape& shape, Index layer,
                                       const AttentionProbeOptions& options = {}) noexcept {
    if (Status status = detail::check_shape(shape); !status.ok()) return status;
    if (Status status = detail::check_layer(layer, shape.layers); !status.ok()) return status;
    if (options.sink_length < 0 || options.sink_length > most_sinks)
      return Status::error(ErrorCode::invalid_argument, "options: sink_length is %lld; use 0..%lld",
                           detail::number(options.sink_length), detail::number(most_sinks));
    auto shadow = detail::ShadowCache::create({1, shape.kv_heads, shape.key_dim, shape.value_dim}, options);
    if (!shadow.ok()) return shadow.status();
    return AttentionProbe(std::move(*shadow), layer, options.allocator);
  }

  /// Arguments and errors as KVCache::append. Call it where that succeeded; if it fails alone, compare() says that
  /// lengths differ until both are trimmed or cleared.
  Status append(const ConstTensor& keys, const ConstTensor& values) noexcept {
    Status status = shadow_.append(0, keys, values);
    if (status.code() == ErrorCode::out_of_memory)
      return Status::error(ErrorCode::out_of_memory,
                           "append: no memory for %lld more tokens in the shadow of layer %lld",
                           detail::number(keys.tokens), detail::number(layer_));
    return status;
  }

  /// Compares `output`, any type and strides, that served.attend(layer, queries, output, params) has written, with the
  /// shadow's; `params` with all that they lead to are those of that call, but for lse, which is not written again.
  /// What storing output in 16 bits rounds is part of the error. Returns the error of this call, which total() has too.
  /// The first call, and one with more queries than those before, gets memory. Errors: invalid_argument (served has not
  /// as many tokens as the shadow; and as KVCache::attend), non_finite (output, too), out_of_range, overflow,
  /// out_of_memory; total() is then as it was.
  Result<AttentionError> compare(const KVCache& served, const ConstTensor& queries, const ConstTensor& output,
                                 const AttentionParams& params = {}) noexcept {
    AttentionParams own = params;
    own.lse = {};
    if (Status status = check(served, queries, output, own); !status.ok()) return status;
    if (!make_room(queries))
      return Status::error(ErrorCode::out_of_memory, "output: no memory for the shadow's, [%lld, %lld, %lld] in f32",
                           detail::number(output.tokens), detail::number(output.heads), detail::number(output.dim));
    const Tensor exact =
        tensor(reinterpret_cast<float*>(room_.data()), queries.tokens, queries.heads, shadow_.shape().value_dim);
    if (Status status = shadow_.attend(0, queries, exact, own); !status.ok()) return status;
    Result<AttentionError> error = difference(output, exact);
    if (error.ok()) total_.add(*error);
    return error;
  }

  /// All that compare() found since the probe was created, or reset_total(); clear() does not change it.
  const AttentionError& total() const noexcept { return total_; }
  void reset_total() noexcept { total_ = {}; }

  /// Tokens of the shadow.
  Index length() const noexcept { return shadow_.length(0); }
  /// Drops all tokens from `tokens` on, 0..length(). Errors: out_of_range.
  Status trim(Index tokens) noexcept { return shadow_.trim(tokens); }
  /// As KVCache::remove_front. Errors: out_of_range.
  Status remove_front(Index end) noexcept { return shadow_.remove_front(0, end); }
  /// Drops all tokens and gives their memory back, and that of outputs.
  void clear() noexcept {
    shadow_.clear();
    room_ = Buffer();
  }

  /// All that the allocator handed out.
  Index bytes() const noexcept { return shadow_.bytes().total() + room_.bytes(); }

 private:
  AttentionProbe(detail::ShadowCache&& shadow, Index layer, const Allocator& allocator) noexcept
      : shadow_(std::move(shadow)), layer_(layer), allocator_(allocator) {}

  Status check(const KVCache& served, const ConstTensor& queries, const ConstTensor& output,
               const AttentionParams& params) const noexcept {
    if (Status status = detail::check_layer(0, shadow_.shape().layers); !status.ok()) return status;
    if (served.length(layer_) != length())
      return Status::error(
          ErrorCode::invalid_argument,
          "served: layer %lld has %lld tokens, its shadow %lld; append to both, and trim and clear both",
          detail::number(layer_), detail::number(served.length(layer_)), detail::number(length()));
    const TokenRange gone = served.removed(layer_), own = shadow_.removed(0);
    if (gone.begin != own.begin || gone.end != own.end)
      return Status::error(
          ErrorCode::invalid_argument,
          "served: tokens [%lld, %lld) of layer %lld are removed, of its shadow [%lld, %lld); remove from "
          "both, and create the probe with the policy's sinks",
          detail::number(gone.begin), detail::number(gone.end), detail::number(layer_), detail::number(own.begin),
          detail::number(own.end));
    const Tensor looked_at{const_cast<void*>(output.data), output.type, output.tokens, output.heads, output.dim};
    return detail::check_attention_shapes(shadow_.shape(), length(), queries, looked_at, params);
  }

  /// Room for the shadow's output. Shapes have been checked; the greatest, of 2^62 elements, is more than Index counts
  /// in bytes.
  bool make_room(const ConstTensor& queries) noexcept {
    const Index elements = queries.tokens * queries.heads * shadow_.shape().value_dim;
    if (elements > Index(1) << 60) return false;
    const Index bytes = elements * Index(sizeof(float));
    return bytes <= room_.bytes() || room_.allocate_unset(bytes, allocator_);
  }

  static Result<AttentionError> difference(const ConstTensor& output, const ConstTensor& exact) noexcept {
    AttentionError error;
    for (Index token = 0; token < output.tokens; ++token)
      for (Index head = 0; head < output.heads; ++head)
        for (Index i = 0; i < output.dim; ++i) {
          const double is = double(load_scalar(output.row(token, head), output.type, i * output.dim_stride));
          const double should_be = double(load_scalar(exact.row(token, head), exact.type, i));
          if (!std::isfinite(is))
            return Status::error(ErrorCode::non_finite, "output: contains NaN or infinity, at query %lld, head %lld",
                                 detail::number(token), detail::number(head));
          const double distance = std::fabs(is - should_be);
          error.squared_error += distance * distance;
          error.squared_shadow += should_be * should_be;
          if (distance > error.greatest) error.greatest = distance;
        }
    error.rows = output.tokens * output.heads;
    return error;
  }

  detail::ShadowCache shadow_;
  Index layer_;
  Allocator allocator_;
  Buffer room_;
  AttentionError total_;
};

ASYMKV_NAMESPACE_END
