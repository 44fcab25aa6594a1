// sequence_cache.hpp: what AsymKVCache and DenseKVCache<T> have in common: the layers of one sequence, the checks of
// every call's arguments, and the order of a step.
#pragma once

#include "asymkv/attention/attend.hpp"
#include "asymkv/attention/check.hpp"

ASYMKV_NAMESPACE_BEGIN

/// What may be chosen about a cache beside its shape and policy.
struct CacheOptions {
  /// R of the paper: most recent tokens kept in full precision; a multiple of every group size in use, at least 1.
  Index residual_length = 128;
  /// A layer's first append gets the memory of so many tokens, 0..2^32, but for the window and the sinks of packed
  /// sides: one block a side, which is kept until clear(); the default allocator asks for huge pages from 2 MiB on.
  /// More tokens get theirs as they come. seal() after the last of them may need a page more a side.
  Index reserve_tokens = 0;
  Allocator allocator;
  /// Threads that may share the attention of a layer (KVCache::attend_slice), 1..1024; each has working memory. With 1,
  /// attend_parallel runs on the calling thread alone, however many a pool has.
  Index threads = 1;
};

namespace detail {

inline Status check_shape(const CacheShape& s) noexcept {
  if (s.layers < 1 || s.layers > 65536 || s.kv_heads < 1 || s.kv_heads > 65536)
    return Status::error(ErrorCode::invalid_argument, "shape: %lld layers, %lld kv_heads; both must be in 1..65536",
                         number(s.layers), number(s.kv_heads));
  if (s.key_dim < 1 || s.key_dim > 1024 || s.value_dim < 1 || s.value_dim > 1024)
    return Status::error(ErrorCode::invalid_argument, "shape: key_dim %lld, value_dim %lld; both must be in 1..1024",
                         number(s.key_dim), number(s.value_dim));
  return {};
}

/// The shape of a cache. It goes with the layers when they are moved: what they leave has none, so every call on it
/// fails by its layer.
struct OwnShape : CacheShape {
  OwnShape() noexcept = default;
  OwnShape(const CacheShape& shape) noexcept : CacheShape(shape) {}
  OwnShape(OwnShape&& other) noexcept : CacheShape(std::exchange<CacheShape>(other, {})) {}
  OwnShape& operator=(OwnShape&& other) noexcept {
    CacheShape::operator=(std::exchange<CacheShape>(other, {}));
    return *this;
  }
};

struct Layer {
  SideStore keys;
  SideStore values;
};

class SequenceCache : public KVCache {
 public:
  const CacheShape& shape() const noexcept final { return shape_; }
  Isa isa() const noexcept { return kernels_->isa; }

  Status append(Index layer, const ConstTensor& keys, const ConstTensor& values) noexcept final {
    if (Status status = check_layer(layer, shape_.layers); !status.ok()) return status;
    Layer& to = layers_[layer];
    float key_magnitude = 0.0f, value_magnitude = 0.0f;
    if (Status status = check_input(keys, "keys", to.keys, key_magnitude); !status.ok()) return status;
    if (Status status = check_input(values, "values", to.values, value_magnitude); !status.ok()) return status;
    if (values.tokens != keys.tokens)
      return Status::error(ErrorCode::invalid_argument, "values: %lld tokens, keys have %lld", number(values.tokens),
                           number(keys.tokens));
    if (keys.tokens == 0) return {};
    if (typed_ && (keys.type != key_type_ || values.type != value_type_))
      return Status::error(ErrorCode::invalid_argument,
                           "keys, values: are %s and %s, earlier ones %s and %s; convert them, or clear() first",
                           scalar_name(keys.type), scalar_name(values.type), scalar_name(key_type_),
                           scalar_name(value_type_));
    const Allocator& allocator = allocator_;
    if (!to.keys.prepare(keys.tokens, keys.type, allocator) ||
        !to.values.prepare(keys.tokens, values.type, allocator)) {
      to.keys.cancel();
      to.values.cancel();
      return Status::error(ErrorCode::out_of_memory, "append: no memory for %lld more tokens of layer %lld",
                           number(keys.tokens), number(layer));
    }
    typed_ = true;
    key_type_ = keys.type;
    value_type_ = values.type;
    to.keys.seal(*kernels_, scratch_[0].kernel());
    to.values.seal(*kernels_, scratch_[0].kernel());
    to.keys.append(*kernels_, keys);
    to.values.append(*kernels_, values);
    to.keys.note_greatest(key_magnitude);
    to.values.note_greatest(value_magnitude);
    return {};
  }

  Status attend(Index layer, const ConstTensor& queries, const Tensor& output,
                const AttentionParams& params = {}) noexcept final {
    return attend_slice(layer, queries, output, params, {});
  }

  Index threads() const noexcept final { return scratch_.size(); }

  Status attend_slice(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                      const AttentionSlice& slice) noexcept final {
    return with_attention(layer, queries, output, params, slice,
                          [&](const LayerAttention& attention) { attention.run(slice, scratch_[slice.ith]); });
  }

  Status merge_slices(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                      const AttentionSlice& slice) noexcept final {
    return with_attention(layer, queries, output, params, slice,
                          [&](const LayerAttention& attention) { attention.merge(slice, scratch_); });
  }

  Status keys(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept final {
    return read(layer, kv_head, first, out, Side::keys);
  }
  Status values(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept final {
    return read(layer, kv_head, first, out, Side::values);
  }

  Status seal() noexcept final {
    for (Index i = 0; i < layers_.size(); ++i) {
      SideStore* const sides[] = {&layers_[i].keys, &layers_[i].values};
      for (SideStore* side : sides)
        if (!side->prepare(0, side->dense().type(), allocator_)) {
          for (Index j = 0; j <= i; ++j) {
            layers_[j].keys.cancel();
            if (j < i || side == sides[1]) layers_[j].values.cancel();
          }
          return Status::error(ErrorCode::out_of_memory, "seal: no memory for the pages of layer %lld", number(i));
        }
    }
    for (Layer& layer : layers_) {
      layer.keys.seal(*kernels_, scratch_[0].kernel());
      layer.values.seal(*kernels_, scratch_[0].kernel());
    }
    return {};
  }

  using KVCache::length;
  Index length(Index layer) const noexcept final {
    return layer >= 0 && layer < layers_.size() ? layers_[layer].keys.length() : 0;
  }

  Status trim(Index tokens) noexcept final {
    if (tokens < 0 || tokens > length())
      return Status::error(
          ErrorCode::out_of_range,
          "tokens: cannot trim to %lld, the length is %lld; use 0..%lld, the length of the shortest layer",
          number(tokens), number(length()), number(length()));
    for (Layer& layer : layers_) {
      layer.keys.trim(tokens);
      layer.values.trim(tokens);
    }
    return {};
  }

  void clear() noexcept final {
    for (Layer& layer : layers_) {
      layer.keys.clear();
      layer.values.clear();
    }
    typed_ = false;
  }

  CacheBytes bytes() const noexcept final {
    CacheBytes bytes;
    for (const AttentionScratch& scratch : scratch_) bytes.scratch += scratch.bytes();
    bytes.tables = layers_.bytes() + scratch_.bytes();
    for (const Layer& layer : layers_) {
      bytes.keys += layer.keys.sealed_bytes();
      bytes.values += layer.values.sealed_bytes();
      for (const SideStore* side : {&layer.keys, &layer.values}) {
        bytes.reserved += side->reserved_bytes();
        bytes.dense += side->dense().bytes() + side->sinks().bytes();
      }
      bytes.tables += layer.keys.table_bytes() + layer.values.table_bytes();
    }
    return bytes;
  }

  /// Sealed tokens of a side of a layer, and its pages: for tests and tools that look at stored bytes.
  const SideStore& side(Index layer, Side side) const noexcept {
    return side == Side::keys ? layers_[layer].keys : layers_[layer].values;
  }

 protected:
  /// side_config(layer, side) gives format and type of each side.
  template <class SideConfigOf>
  Status initialize(const CacheShape& shape, const CacheOptions& options, SideConfigOf side_config) noexcept {
    if (Status status = check_shape(shape); !status.ok()) return status;
    if (options.reserve_tokens < 0 || options.reserve_tokens > Index(1) << 32)
      return Status::error(ErrorCode::invalid_argument, "options: reserve_tokens is %lld; use 0..2^32",
                           number(options.reserve_tokens));
    if (options.residual_length < 1 || options.residual_length > Index(1) << 32)
      return Status::error(ErrorCode::invalid_argument, "options: residual_length is %lld; use 1..2^32",
                           number(options.residual_length));
    if (options.threads < 1 || options.threads > 1024)
      return Status::error(ErrorCode::invalid_argument, "options: threads is %lld; use 1..1024",
                           number(options.threads));
    if (options.allocator.allocate == nullptr || options.allocator.deallocate == nullptr)
      return Status::error(ErrorCode::invalid_argument, "options: allocator has a null function");
    Result<const kernels::Table*> table = kernels::choose_table();
    if (!table.ok()) return table.status();
    shape_ = shape;
    allocator_ = options.allocator;
    kernels_ = *table;
    if (!layers_.reserve(shape.layers, allocator_)) return no_memory();
    Index product_floats = 0, page_floats = 0;  // pages are written and read back with the first scratch alone
    for (Index i = 0; i < shape.layers; ++i) {
      SideConfig configs[2];
      for (Side side : {Side::keys, Side::values}) {
        SideConfig& config = configs[int(side)];
        config = side_config(i, side);
        config.side = side;
        config.heads = shape.kv_heads;
        config.dim = side == Side::keys ? shape.key_dim : shape.value_dim;
        config.residual_length = options.residual_length;
        config.reserve_tokens = options.reserve_tokens;
        if (!config.format.packed()) continue;
        if (options.residual_length % config.format.group_size != 0)
          return Status::error(ErrorCode::invalid_argument,
                               "options: residual_length is %lld; layer %lld needs a multiple of its group size, %d",
                               number(options.residual_length), number(i), config.format.group_size);
        if (config.format.mixed() && config.dim > mixed_depth_limit)
          return Status::error(ErrorCode::unsupported,
                               "policy: layer %lld has mixed widths, for key_dim up to %lld alone", number(i),
                               number(mixed_depth_limit));
        const PanelLayout layout = page_layout(config.format, side, config.dim);
        product_floats = std::max(product_floats, kernels::product_scratch(layout));
        page_floats = std::max({page_floats, writer_scratch(layout), reader_scratch(layout)});
      }
      layers_.push(Layer{SideStore(configs[0]), SideStore(configs[1])});
    }
    if (!scratch_.reserve(options.threads, allocator_)) return no_memory();
    for (Index i = 0; i < options.threads; ++i) {
      AttentionScratch scratch;
      const Index kernel_floats = i == 0 ? std::max(product_floats, page_floats) : product_floats;
      if (!scratch.allocate(shape.key_dim, shape.value_dim, kernel_floats, options.threads > 1 ? slice_partials : 0,
                            allocator_))
        return no_memory();
      scratch_.push(std::move(scratch));
    }
    return {};
  }

 private:
  static Status no_memory() noexcept {
    return Status::error(ErrorCode::out_of_memory, "create: no memory for the cache");
  }

  /// Checks all arguments, then calls function(attention).
  template <class Function>
  Status with_attention(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                        const AttentionSlice& slice, Function function) noexcept {
    if (Status status = check_layer(layer, shape_.layers); !status.ok()) return status;
    if (slice.nth < 1 || slice.nth > threads() || slice.ith < 0 || slice.ith >= slice.nth)
      return Status::error(ErrorCode::invalid_argument,
                           "slice: is %lld of %lld; use 0..nth-1 of at most CacheOptions::threads, %lld",
                           number(slice.ith), number(slice.nth), number(threads()));
    const Layer& from = layers_[layer];
    const Index length = from.keys.length();
    if (Status status = check_attention_shapes(shape_, length, queries, output, params); !status.ok()) return status;
    const AttentionCall call(shape_.kv_heads, length, queries, output, params);
    Status status = check_attention_numbers(*kernels_, {from.keys.greatest(), from.values.greatest()}, call, queries,
                                            output, params);
    if (!status.ok()) return status;
    function(LayerAttention(*kernels_, from.keys, from.values, shape_.kv_heads, call));
    return {};
  }

  Status check_input(const ConstTensor& x, const char* name, const SideStore& side, float& magnitude) const noexcept {
    if (x.tokens < 0 || x.heads != shape_.kv_heads || x.dim != side.dim())
      return Status::error(ErrorCode::invalid_argument, "%s: shape is [%lld, %lld, %lld], must be [tokens, %lld, %lld]",
                           name, number(x.tokens), number(x.heads), number(x.dim), number(shape_.kv_heads),
                           number(side.dim()));
    if (x.tokens == 0) return {};
    if (x.data == nullptr) return Status::error(ErrorCode::invalid_argument, "%s: data is null", name);
    if (x.tokens > (Index(1) << 32) - side.length())
      return Status::error(ErrorCode::out_of_range, "%s: a layer holds at most 2^32 tokens", name);
    magnitude = greatest_magnitude(*kernels_, x);
    return check_magnitude(x, magnitude, side.limit(), name);
  }

  Status read(Index layer, Index kv_head, Index first, const Tensor& out, Side which) const noexcept {
    if (Status status = check_layer(layer, shape_.layers); !status.ok()) return status;
    const SideStore& from = side(layer, which);
    if (kv_head < 0 || kv_head >= shape_.kv_heads)
      return Status::error(ErrorCode::out_of_range, "kv_head: %lld is not in 0..%lld", number(kv_head),
                           number(shape_.kv_heads - 1));
    if (out.data == nullptr && out.tokens > 0) return Status::error(ErrorCode::invalid_argument, "out: data is null");
    if (out.tokens < 0 || out.heads != 1 || out.dim != from.dim())
      return Status::error(ErrorCode::invalid_argument, "out: shape is [%lld, %lld, %lld], must be [count, 1, %lld]",
                           number(out.tokens), number(out.heads), number(out.dim), number(from.dim()));
    if (first < 0 || first > from.length() || out.tokens > from.length() - first)
      return Status::error(ErrorCode::out_of_range, "first: %lld tokens from %lld on, but the layer has %lld",
                           number(out.tokens), number(first), number(from.length()));
    from.read(*kernels_, kv_head, first, out, scratch_[0].kernel(), scratch_[0].sums(0).data);
    return {};
  }

  OwnShape shape_;
  Allocator allocator_;
  const kernels::Table* kernels_ = nullptr;
  Array<Layer> layers_;
  mutable Array<AttentionScratch> scratch_;  // one a thread; reading back uses the first, too
  bool typed_ = false;
  ScalarType key_type_ = ScalarType::f32, value_type_ = ScalarType::f32;
};

}  // namespace detail
ASYMKV_NAMESPACE_END
