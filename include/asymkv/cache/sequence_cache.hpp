// sequence_cache.hpp: what AsymKVCache and DenseKVCache<T> have in common: the layers of one sequence, the checks of
// every call's arguments, the order of a step, and forks.
#pragma once

#include "asymkv/attention/attend.hpp"
#include "asymkv/attention/check.hpp"
#include "asymkv/cache/bytes_required.hpp"
#include "asymkv/cache/explanation.hpp"
#include "asymkv/cache/options.hpp"
#include "asymkv/cache/requantization.hpp"
#include "asymkv/state/load.hpp"
#include "asymkv/state/save.hpp"

ASYMKV_NAMESPACE_BEGIN

namespace detail {

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
  Index removed = 0;  ///< end of the removed tokens

  /// Gives back what is stored of removed tokens: pages of those that were in the window come later.
  void drop_removed() noexcept {
    keys.remove_front(removed);
    values.remove_front(removed);
  }
};

/// The calls of a sequence that KVCache has use working memory of the cache's own, which its forks share: they take
/// turns. With a Workspace given, any number of threads may read at the same time (const calls), and forks may be
/// written to on different threads. A cache that is written to is used by one thread.
class SequenceCache : public KVCache {
 public:
  const SequenceCache* sequence() const noexcept final { return this; }
  const CacheShape& shape() const noexcept final { return shape_; }
  Isa isa() const noexcept { return kernels_->isa; }

  Status append(Index layer, const ConstTensor& keys, const ConstTensor& values) noexcept final {
    return append(layer, keys, values, workspace_);
  }
  Status append(Index layer, const ConstTensor& keys, const ConstTensor& values, const Workspace& workspace) noexcept {
    if (Status status = check_workspace(workspace); !status.ok()) return status;
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
    to.keys.seal(*kernels_, workspace.scratch(0).kernel());
    to.values.seal(*kernels_, workspace.scratch(0).kernel());
    to.keys.append(*kernels_, keys);
    to.values.append(*kernels_, values);
    to.keys.note_greatest(key_magnitude);
    to.values.note_greatest(value_magnitude);
    to.drop_removed();
    return {};
  }

  Status attend(Index layer, const ConstTensor& queries, const Tensor& output,
                const AttentionParams& params = {}) noexcept final {
    return attend(layer, queries, output, params, workspace_);
  }
  Status attend(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                const Workspace& workspace) const noexcept {
    return attend_slice(layer, queries, output, params, {}, workspace);
  }

  Index threads() const noexcept final { return workspace_.threads(); }

  Status attend_slice(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                      const AttentionSlice& slice) noexcept final {
    return attend_slice(layer, queries, output, params, slice, workspace_);
  }
  Status attend_slice(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                      const AttentionSlice& slice, const Workspace& workspace) const noexcept {
    return with_checked_attention(
        layer, queries, output, params, slice, workspace, [&](const LayerAttention& attention) {
          attention.run(attention.place({attention.work(), slice.nth}, 0), slice.ith, workspace);
        });
  }

  Status merge_slices(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                      const AttentionSlice& slice) noexcept final {
    return merge_slices(layer, queries, output, params, slice, workspace_);
  }
  Status merge_slices(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                      const AttentionSlice& slice, const Workspace& workspace) const noexcept {
    return with_checked_attention(
        layer, queries, output, params, slice, workspace, [&](const LayerAttention& attention) {
          attention.merge(attention.place({attention.work(), slice.nth}, 0), slice.ith, workspace);
        });
  }

  /// As KVCache::attend_parallel, in as many slices as the workspace has threads.
  template <class ParallelFor>
  Status attend_parallel(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                         const Workspace& workspace, ParallelFor&& parallel_for) const {
    return in_slices(
        workspace.threads(), parallel_for,
        [&](const AttentionSlice& slice) { return attend_slice(layer, queries, output, params, slice, workspace); },
        [&](const AttentionSlice& slice) { return merge_slices(layer, queries, output, params, slice, workspace); });
  }
  using KVCache::attend_parallel;

  Status keys(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept final {
    return keys(layer, kv_head, first, out, workspace_);
  }
  Status keys(Index layer, Index kv_head, Index first, const Tensor& out, const Workspace& workspace) const noexcept {
    return read(layer, kv_head, first, out, Side::keys, workspace);
  }
  Status values(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept final {
    return values(layer, kv_head, first, out, workspace_);
  }
  Status values(Index layer, Index kv_head, Index first, const Tensor& out, const Workspace& workspace) const noexcept {
    return read(layer, kv_head, first, out, Side::values, workspace);
  }

  Status seal() noexcept final { return seal(workspace_); }
  Status seal(const Workspace& workspace) noexcept {
    if (Status status = check_workspace(workspace); !status.ok()) return status;
    for (Index i = 0; i < layers_.size(); ++i)
      for (SideStore* side : {&layers_[i].keys, &layers_[i].values})
        if (!side->prepare(0, side->dense().type(), allocator_)) {
          for (Layer& layer : layers_) layer.keys.cancel(), layer.values.cancel();
          return Status::error(ErrorCode::out_of_memory, "seal: no memory for the pages of layer %lld", number(i));
        }
    for (Layer& layer : layers_) {
      layer.keys.seal(*kernels_, workspace.scratch(0).kernel());
      layer.values.seal(*kernels_, workspace.scratch(0).kernel());
      layer.drop_removed();
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
    for (const Layer& layer : layers_)
      if (tokens > sinks_ && tokens < layer.removed)
        return Status::error(ErrorCode::out_of_range,
                             "tokens: cannot trim to %lld, tokens %lld..%lld are removed; use %lld or more, or %lld or "
                             "less",
                             number(tokens), number(sinks_), number(layer.removed - 1), number(layer.removed),
                             number(sinks_));
    for (Layer& layer : layers_) {
      layer.keys.trim(tokens);
      layer.values.trim(tokens);
      if (tokens <= sinks_) layer.removed = 0;
    }
    return {};
  }

  Status remove_front(Index layer, Index end) noexcept final {
    if (Status status = check_layer(layer, shape_.layers); !status.ok()) return status;
    if (end < 0 || end > length(layer))
      return Status::error(ErrorCode::out_of_range, "end: is %lld; use 0..%lld, the length of the layer", number(end),
                           number(length(layer)));
    Layer& from = layers_[layer];
    if (end <= std::max(sinks_, from.removed)) return {};
    from.removed = end;
    from.drop_removed();
    return {};
  }
  TokenRange removed(Index layer) const noexcept final {
    if (layer < 0 || layer >= layers_.size() || layers_[layer].removed == 0) return {};
    return {sinks_, layers_[layer].removed};
  }

  void clear() noexcept final {
    for (Layer& layer : layers_) {
      layer.keys.clear();
      layer.values.clear();
      layer.removed = 0;
    }
    typed_ = false;
  }

  CacheBytes bytes() const noexcept final {
    CacheBytes bytes;
    bytes.scratch = own_workspace_ ? workspace_.bytes() : 0;
    bytes.tables = layers_.bytes();
    for (const Layer& layer : layers_) {
      bytes.keys += layer.keys.pages().own_bytes();
      bytes.values += layer.values.pages().own_bytes();
      for (const SideStore* side : {&layer.keys, &layer.values}) {
        bytes.shared += side->pages().shared_bytes();
        bytes.dense += side->dense().bytes() + side->sinks().bytes();
        bytes.tables += side->pages().table_bytes();
      }
    }
    return bytes;
  }

  /// Writes the cache as bytes that load() of a cache of this kind reads on any machine, and whose use describe_state()
  /// tells: state_bytes() of them, checked by CRC-32C, with nothing in them that depends on addresses. What load()
  /// makes of them goes on as this cache does, bit for bit. The same calls give the same bytes on every instruction
  /// set. Where trim() cut a page, codes of tokens behind the cut are still in it, and are written. Allocates nothing.
  /// Errors: stream_failed, invalid_argument (no sink), out_of_range (moved from).
  Status save(const ByteSink& sink) const noexcept {
    if (shape_.layers == 0) return check_layer(0, 0);  // it was moved from
    if (sink.write == nullptr) return Status::error(ErrorCode::invalid_argument, "sink: write is null");
    StateWriter writer(sink);
    writer.write(state_header().encode());
    FormatsWriter formats(writer);
    for (const Layer& layer : layers_) formats.write(layer.keys.config()), formats.write(layer.values.config());
    formats.finish();
    for (const Layer& layer : layers_) save_layer(writer, layer.removed, layer.keys, layer.values);
    if (!writer.failed()) return {};
    return Status::error(ErrorCode::stream_failed, "sink: failed after %lld of %lld bytes", number(writer.bytes()),
                         number(state_bytes()));
  }
  /// Bytes that save() writes.
  Index state_bytes() const noexcept {
    Index bytes = StateHeader::size + state_formats_bytes(shape_.layers);
    for (const Layer& layer : layers_)
      bytes += StateLayer::size + detail::state_bytes(layer.keys) + detail::state_bytes(layer.values);
    return bytes;
  }

  /// Which kernels serve a layer's keys and values, and why; its tokens and bytes by purpose. Errors: out_of_range.
  Result<LayerExplanation> explain(Index layer) const noexcept {
    if (Status status = check_layer(layer, shape_.layers); !status.ok()) return status;
    return LayerExplanation{explain_side(*kernels_, forced_, layers_[layer].keys),
                            explain_side(*kernels_, forced_, layers_[layer].values)};
  }

  /// Sealed tokens of a side of a layer, and its pages: for tests and tools that look at stored bytes.
  const SideStore& side(Index layer, Side side) const noexcept {
    return side == Side::keys ? layers_[layer].keys : layers_[layer].values;
  }

 protected:
  const Workspace& workspace() const noexcept { return workspace_; }

  /// kind(layer, side) gives format, type and sinks of each side.
  template <class Kind>
  Status initialize(const CacheShape& shape, const CacheOptions& options, Kind kind) noexcept {
    if (Status status = check_shape(shape); !status.ok()) return status;
    if (Status status = check_options(options, shape); !status.ok()) return status;
    Result<const kernels::Table*> table = kernels::choose_table();
    if (!table.ok()) return table.status();
    shape_ = shape;
    allocator_ = options.allocator;
    kernels_ = *table;
    forced_ = kernels::forced_isa() != nullptr;
    if (!layers_.reserve(shape.layers, allocator_)) return no_memory("create");
    for (Index i = 0; i < shape.layers; ++i) {
      const Result<LayerConfig> config = layer_config(kind(i, Side::keys), kind(i, Side::values), i, shape, options);
      if (!config.ok()) return config.status();
      sinks_ = config->keys.sink_length;
      layers_.push(Layer{SideStore(config->keys), SideStore(config->values)});
    }
    return initialize_workspace(options);
  }
  Status initialize_workspace(const CacheOptions& options) noexcept {
    own_workspace_ = options.workspace.threads() == 0;
    workspace_ = options.workspace;
    if (!own_workspace_) return {};
    Result<Workspace> workspace = Workspace::create(shape_, options.threads, allocator_);
    if (!workspace.ok()) return workspace.status();
    workspace_ = std::move(*workspace);
    return {};
  }

  /// The most that such a cache takes from its allocator.
  template <class Kind>
  static Result<Index> bytes_required(const CacheShape& shape, const CacheOptions& options, const Growth& growth,
                                      Kind kind) noexcept {
    if (Status status = check_shape(shape); !status.ok()) return status;
    if (Status status = check_options(options, shape); !status.ok()) return status;
    if (Status status = check_growth(growth); !status.ok()) return status;
    Array<LayerGrowth> layers;
    if (!layers.reserve(shape.layers, options.allocator)) return no_memory("bytes_required");
    for (Index i = 0; i < shape.layers; ++i) {
      const Result<LayerConfig> config = layer_config(kind(i, Side::keys), kind(i, Side::values), i, shape, options);
      if (!config.ok()) return config.status();
      layers.push(LayerGrowth{{config->keys, growth.type}, {config->values, growth.type}});
    }
    ByteMeter meter;
    meter.take(shape.layers * Index(sizeof(Layer)));
    if (options.workspace.threads() == 0) meter.take(Workspace::bytes_for(shape, options.threads));
    grow(layers, growth, meter);
    if (meter.most() <= ByteMeter::limit) return meter.most();
    return Status::error(ErrorCode::out_of_range, "growth: takes more than 2^62 bytes");
  }

  /// Becomes a fork of another cache.
  Status initialize_fork(const SequenceCache& from) noexcept {
    if (from.shape_.layers == 0) return check_layer(0, 0);  // it was moved from
    shape_ = static_cast<const CacheShape&>(from.shape_);
    allocator_ = from.allocator_;
    kernels_ = from.kernels_;
    forced_ = from.forced_;
    if (!layers_.reserve(shape_.layers, allocator_)) return no_memory("fork");
    for (const Layer& layer : from.layers_) {
      layers_.push(Layer{SideStore(layer.keys.config()), SideStore(layer.values.config()), layer.removed});
      if (!layers_.back().keys.fork(layer.keys, allocator_) || !layers_.back().values.fork(layer.values, allocator_))
        return no_memory("fork");
    }
    workspace_ = from.workspace_;
    own_workspace_ = from.own_workspace_;
    sinks_ = from.sinks_;
    typed_ = from.typed_;
    key_type_ = from.key_type_;
    value_type_ = from.value_type_;
    return {};
  }

  /// Takes saved state over, in a cache that was just created; after an error it is of no use. `formats` is the
  /// argument that decided on formats, for errors.
  Status restore(const ByteSource& source, const char* formats) noexcept {
    StateReader reader(source);
    StateHeader header;
    if (Status status = load_header(reader, header); !status.ok()) return status;
    if (Status status = check_same(state_header(), header, formats); !status.ok()) return status;
    Status difference;
    Status status = load_formats(reader, shape_.layers, [&](Index layer, Side which, const StateFormat& format) {
      if (difference.ok())
        difference = check_same(state_format(side(layer, which).config()), format, which, layer, formats);
    });
    if (!status.ok()) return status;
    if (!difference.ok()) return difference;
    LayerLoader loader(reader, header, *kernels_, allocator_);
    for (Index i = 0; i < layers_.size(); ++i) {
      Layer& layer = layers_[i];
      if (status = loader.load(i, layer.removed, layer.keys, layer.values); !status.ok()) return status;
    }
    if (reader.bytes() != header.bytes || length() != header.length)
      return Status::error(ErrorCode::corrupt_state,
                           "state: its header says %lld bytes and %lld tokens, it has %lld and %lld",
                           number(header.bytes), number(header.length), number(reader.bytes()), number(length()));
    typed_ = header.typed;
    key_type_ = header.key_type;
    value_type_ = header.value_type;
    return {};
  }

  /// Requantizes pages of a range of tokens; policy.format(layer, side) is their new format; where it is not packed,
  /// pages stay.
  template <class Policy>
  Status requantize(const TokenRange& tokens, const Workspace& workspace, const Policy& policy) noexcept {
    if (Status status = check_workspace(workspace); !status.ok()) return status;
    if (tokens.begin < 0 || tokens.begin > tokens.end || tokens.end > length())
      return Status::error(ErrorCode::out_of_range,
                           "first, last: are %lld, %lld; use 0 <= first <= last <= %lld, the length",
                           number(tokens.begin), number(tokens.end), number(length()));
    Status status;
    each_requantization(tokens, policy, [&](Index layer, SideStore& side, Requantization& work) {
      if (status.ok()) status = check_requantization(layer, side, policy.format(layer, side.config().side), work);
    });
    if (!status.ok()) return status;
    each_requantization(tokens, policy, [&](Index layer, SideStore&, Requantization& work) {
      if (status.ok() && !work.prepare(allocator_))
        status = Status::error(
            ErrorCode::out_of_memory,
            "requantize: no memory for copies of shared pages of layer %lld, or for a page to move to", number(layer));
    });
    each_requantization(tokens, policy, [&](Index, SideStore&, Requantization& work) {
      if (status.ok())
        work.run(*kernels_, workspace.scratch(0), allocator_);
      else
        work.cancel();
    });
    return status;
  }
  template <class Policy>
  Index requantize_bytes(const TokenRange& tokens, const Policy& policy) const noexcept {
    Index bytes = 0;
    const_cast<SequenceCache*>(this)->each_requantization(  // here it counts alone
        tokens, policy, [&](Index, SideStore&, const Requantization& work) { bytes += work.bytes(); });
    return bytes;
  }

 private:
  friend class BatchAttention;

  static Status no_memory(const char* call) noexcept {
    return Status::error(ErrorCode::out_of_memory, "%s: no memory for the cache", call);
  }

  StateHeader state_header() const noexcept {
    StateHeader header;
    header.shape = shape_;
    header.sink_length = sinks_;
    header.residual_length = layers_[0].keys.config().residual_length;
    header.rollback_tokens = layers_[0].keys.config().rollback_tokens;
    header.bytes = state_bytes();
    header.length = length();
    header.typed = typed_;
    if (typed_) header.key_type = key_type_, header.value_type = value_type_;
    return header;
  }

  Status check_workspace(const Workspace& workspace) const noexcept {
    if (shape_.layers == 0 || workspace.fits(shape_)) return {};
    return Status::error(
        ErrorCode::invalid_argument, "workspace: %s; it must be made for key_dim %lld and value_dim %lld",
        workspace.threads() == 0 ? "is empty" : "is for other dims", number(shape_.key_dim), number(shape_.value_dim));
  }

  template <class Policy, class Function>
  void each_requantization(const TokenRange& tokens, const Policy& policy, Function function) noexcept {
    for (Index layer = 0; layer < layers_.size(); ++layer)
      for (SideStore* side : {&layers_[layer].keys, &layers_[layer].values}) {
        const Format format = policy.format(layer, side->config().side);
        if (!side->packed() || !format.packed()) continue;
        Requantization work(side->pages(), side->sinks().count(), format,
                            {tokens.begin, std::min(tokens.end, side->immutable_end())});
        function(layer, *side, work);
      }
  }

  static Status check_requantization(Index layer, const SideStore& side, const Format& format,
                                     const Requantization& work) noexcept {
    if (format.mixed() && side.dim() > mixed_depth_limit)
      return Status::error(ErrorCode::unsupported, "policy: layer %lld has mixed widths, for key_dim up to %lld alone",
                           number(layer), number(mixed_depth_limit));
    if (!work.concerns_any()) return {};
    if (!work.has_room())
      return Status::error(ErrorCode::unsupported, "policy: layer %lld has pages of 4 formats of %s already, the most",
                           number(layer), side_name(side.config().side));
    const float limit = magnitude_limit(format, side.dim());
    if (side.greatest() <= limit) return {};
    return Status::error(ErrorCode::overflow, "policy: %s of layer %lld are up to %g; its format holds %g",
                         side_name(side.config().side), number(layer), double(side.greatest()), double(limit));
  }

  /// Checks all arguments, then calls function(attention).
  template <class Function>
  Status with_checked_attention(Index layer, const ConstTensor& queries, const Tensor& output,
                                const AttentionParams& params, const AttentionSlice& slice, const Workspace& workspace,
                                Function function) const noexcept {
    if (Status status = check_layer(layer, shape_.layers); !status.ok()) return status;
    if (Status status = check_workspace(workspace); !status.ok()) return status;
    if (Status status = check_slice(slice, workspace.threads()); !status.ok()) return status;
    if (Status status = check_attention(layer, queries, output, params); !status.ok()) return status;
    with_attention(layer, queries, output, params, function);
    return {};
  }
  Status check_attention(Index layer, const ConstTensor& queries, const Tensor& output,
                         const AttentionParams& params) const noexcept {
    const Layer& from = layers_[layer];
    const Index length = from.keys.length();
    if (Status status = check_attention_shapes(shape_, length, queries, output, params); !status.ok()) return status;
    const AttentionCall call(shape_.kv_heads, length, removed(layer), queries, output, params);
    return check_attention_numbers(*kernels_, {from.keys.greatest(), from.values.greatest()}, call, queries, output,
                                   params);
  }
  /// Calls function(attention) with arguments that have been checked.
  template <class Function>
  void with_attention(Index layer, const ConstTensor& queries, const Tensor& output, const AttentionParams& params,
                      Function function) const noexcept {
    const Layer& from = layers_[layer];
    const AttentionCall call(shape_.kv_heads, from.keys.length(), removed(layer), queries, output, params);
    function(LayerAttention(*kernels_, from.keys, from.values, shape_.kv_heads, call));
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

  Status read(Index layer, Index kv_head, Index first, const Tensor& out, Side which,
              const Workspace& workspace) const noexcept {
    if (Status status = check_workspace(workspace); !status.ok()) return status;
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
    const TokenRange gone = removed(layer);
    if (out.tokens > 0 && first < gone.end && first + out.tokens > gone.begin)
      return Status::error(ErrorCode::out_of_range, "first: tokens %lld..%lld are removed", number(gone.begin),
                           number(gone.end - 1));
    const AttentionScratch scratch = workspace.scratch(0);
    from.read(*kernels_, kv_head, first, out, scratch.kernel(), scratch.sums(0).data);
    return {};
  }

  OwnShape shape_;
  Allocator allocator_;
  const kernels::Table* kernels_ = nullptr;
  bool forced_ = false;  ///< by ASYMKV_FORCE_ISA
  Array<Layer> layers_;
  Workspace workspace_;
  bool own_workspace_ = true;  ///< or that of options
  Index sinks_ = 0;            ///< of a policy
  bool typed_ = false;
  ScalarType key_type_ = ScalarType::f32, value_type_ = ScalarType::f32;
};

}  // namespace detail

/// What every cache of this library is (KVCache::sequence).
using SequenceCache = detail::SequenceCache;

ASYMKV_NAMESPACE_END
