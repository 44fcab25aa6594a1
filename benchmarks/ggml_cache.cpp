// ggml_cache.cpp: see ggml_cache.hpp.
#include "ggml_cache.hpp"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace bench {
namespace {

using asymkv::ConstTensor;
using asymkv::ErrorCode;
using asymkv::Index;
using asymkv::Status;
using asymkv::Tensor;

struct Free {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using Context = std::unique_ptr<ggml_context, Free>;

/// A context with room for `bytes` in so many tensors.
Context make_context(std::size_t bytes, std::size_t tensors) {
  return Context(ggml_init({bytes + tensors * (ggml_tensor_overhead() + 64), nullptr, false}));
}

ggml_type type_of(const std::string& name) {
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0})
    if (name == ggml_type_name(type)) return type;
  return GGML_TYPE_COUNT;
}

/// Keys or values of one layer: [tokens][heads * dim], each row quantized.
struct Side {
  ggml_tensor* rows = nullptr;
  Index heads = 0, dim = 0;

  std::size_t head_bytes() const { return ggml_row_size(rows->type, dim); }
  char* row(Index token) const { return static_cast<char*>(rows->data) + std::size_t(token) * rows->nb[1]; }

  void store(Index first, const ConstTensor& x) const {
    ggml_quantize_chunk(rows->type, static_cast<const float*>(x.data), row(first), 0, x.tokens, heads * dim, nullptr);
  }
  void load(Index head, Index first, const Tensor& out) const {
    for (Index t = 0; t < out.tokens; ++t)
      ggml_get_type_traits(rows->type)
          ->to_float(row(first + t) + std::size_t(head) * head_bytes(), static_cast<float*>(out.row(t, 0)), dim);
  }
  /// [dim, tokens, heads], as flash attention wants it: strides, no copy.
  ggml_tensor* view(ggml_context* context, Index tokens) const {
    ggml_tensor* by_token = ggml_view_3d(context, rows, dim, heads, tokens, head_bytes(), rows->nb[1], 0);
    return ggml_permute(context, by_token, 0, 2, 1, 3);
  }
};

/// Attention of one layer at one length for queries of one shape.
struct Graph {
  Context context;
  Index length = 0;
  ggml_tensor* queries = nullptr;  // [tokens][heads][dim] in memory, as is the output
  ggml_tensor* output = nullptr;
  ggml_cgraph* graph = nullptr;
  ggml_cplan plan{};
  std::vector<std::uint8_t> work;

  bool fits(Index tokens, const ConstTensor& q) const {
    return graph != nullptr && length == tokens && queries->ne[2] == q.tokens && queries->ne[1] == q.heads;
  }
};

/// Query i of the last `tokens` ones sees all tokens up to its own.
ggml_tensor* causal_mask(ggml_context* context, Index length, Index tokens) {
  ggml_tensor* mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, length, tokens);
  const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY), seen = ggml_fp32_to_fp16(0.0f);
  for (Index t = 0; t < tokens; ++t) {
    ggml_fp16_t* row = static_cast<ggml_fp16_t*>(mask->data) + t * length;
    std::fill(row, row + length, hidden);
    std::fill(row, row + length - tokens + t + 1, seen);
  }
  return mask;
}

Graph build_graph(const Side& keys, const Side& values, Index length, const ConstTensor& q) {
  constexpr std::size_t nodes = 16;
  const Index mask_bytes = 2 * q.tokens * length, row_bytes = 4 * q.tokens * q.heads * (keys.dim + values.dim);
  Graph g;
  g.context = make_context(std::size_t(mask_bytes + row_bytes) + ggml_graph_overhead_custom(nodes, false), nodes);
  ggml_context* context = g.context.get();
  g.length = length;
  g.queries = ggml_new_tensor_3d(context, GGML_TYPE_F32, q.dim, q.heads, q.tokens);
  g.output = ggml_flash_attn_ext(context, ggml_permute(context, g.queries, 0, 2, 1, 3), keys.view(context, length),
                                 values.view(context, length), causal_mask(context, length, q.tokens),
                                 1.0f / std::sqrt(float(q.dim)), 0.0f, 0.0f);
  ggml_flash_attn_ext_set_prec(g.output, GGML_PREC_F32);
  g.graph = ggml_new_graph_custom(context, nodes, false);
  ggml_build_forward_expand(g.graph, g.output);
  g.plan = ggml_graph_plan(g.graph, 1, nullptr);
  g.work.resize(g.plan.work_size);
  g.plan.work_data = g.work.data();
  return g;
}

bool contiguous_floats(const ConstTensor& x) {
  return x.type == asymkv::ScalarType::f32 && x.dim_stride == 1 && x.head_stride == x.dim &&
         x.token_stride == x.heads * x.dim;
}

class GgmlCache final : public asymkv::KVCache {
 public:
  GgmlCache(ggml_type type, const asymkv::CacheShape& shape, Index tokens) : shape_(shape), capacity_(tokens) {
    const Index key_row = shape.kv_heads * shape.key_dim, value_row = shape.kv_heads * shape.value_dim;
    const std::size_t bytes =
        std::size_t(shape.layers * tokens) * (ggml_row_size(type, key_row) + ggml_row_size(type, value_row));
    context_ = make_context(bytes, std::size_t(2 * shape.layers));
    layers_.resize(std::size_t(shape.layers));
    for (Layer& layer : layers_) {
      layer.keys = {ggml_new_tensor_2d(context_.get(), type, key_row, tokens), shape.kv_heads, shape.key_dim};
      layer.values = {ggml_new_tensor_2d(context_.get(), type, value_row, tokens), shape.kv_heads, shape.value_dim};
    }
  }

  const asymkv::CacheShape& shape() const noexcept override { return shape_; }

  Status append(Index layer, const ConstTensor& keys, const ConstTensor& values) noexcept override {
    Layer& to = layers_[std::size_t(layer)];
    if (!contiguous_floats(keys) || !contiguous_floats(values) || to.length + keys.tokens > capacity_)
      return Status::error(ErrorCode::invalid_argument, "keys, values: must be contiguous floats, and within capacity");
    to.keys.store(to.length, keys);
    to.values.store(to.length, values);
    to.length += keys.tokens;
    return {};
  }

  Status attend(Index layer, const ConstTensor& queries, const Tensor& output,
                const asymkv::AttentionParams& params) noexcept override {
    if (!contiguous_floats(queries) || !contiguous_floats(output))
      return Status::error(ErrorCode::invalid_argument, "queries, output: must be contiguous floats");
    if (params.scale != 0.0f || !params.causal || params.window != 0 || params.extended())
      return Status::error(ErrorCode::unsupported, "params: only the defaults");
    Layer& of = layers_[std::size_t(layer)];
    if (!of.graph.fits(of.length, queries)) of.graph = build_graph(of.keys, of.values, of.length, queries);
    std::memcpy(of.graph.queries->data, queries.data, ggml_nbytes(of.graph.queries));
    if (ggml_graph_compute(of.graph.graph, &of.graph.plan) != GGML_STATUS_SUCCESS)
      return Status::error(ErrorCode::unsupported, "ggml_graph_compute failed");
    std::memcpy(output.data, of.graph.output->data, ggml_nbytes(of.graph.output));
    return {};
  }

  Status keys(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept override {
    layers_[std::size_t(layer)].keys.load(kv_head, first, out);
    return {};
  }
  Status values(Index layer, Index kv_head, Index first, const Tensor& out) const noexcept override {
    layers_[std::size_t(layer)].values.load(kv_head, first, out);
    return {};
  }

  Status seal() noexcept override { return {}; }

  Index length(Index layer) const noexcept override { return layers_[std::size_t(layer)].length; }

  Status trim(Index tokens) noexcept override {
    for (Layer& layer : layers_) layer.length = tokens;
    return {};
  }
  void clear() noexcept override { (void)trim(0); }

  asymkv::CacheBytes bytes() const noexcept override {
    asymkv::CacheBytes bytes;
    for (const Layer& layer : layers_) {
      bytes.keys += layer.length * Index(layer.keys.rows->nb[1]);
      bytes.values += layer.length * Index(layer.values.rows->nb[1]);
    }
    return bytes;
  }

 private:
  struct Layer {
    Side keys, values;
    Index length = 0;
    Graph graph;
  };

  asymkv::CacheShape shape_;
  Index capacity_;
  Context context_;
  std::vector<Layer> layers_;
};

}  // namespace

std::vector<std::string> ggml_types() { return {"f16", "q8_0", "q4_0"}; }

std::unique_ptr<asymkv::KVCache> make_ggml_cache(const std::string& type, const asymkv::CacheShape& shape,
                                                 Index tokens) {
  return std::make_unique<GgmlCache>(type_of(type), shape, tokens);
}

double ggml_bits(const std::string& type) {
  const ggml_type t = type_of(type);
  return 8.0 * double(ggml_type_size(t)) / double(ggml_blck_size(t));
}

}  // namespace bench
