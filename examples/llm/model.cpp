// model.cpp: which tensor of the file is which weight.
#include "model.hpp"

#include <set>
#include <stdexcept>
#include <string>

namespace llm {
namespace {

/// Reads tensors and remembers which, so that a file with more than this decoder computes is refused, not misread.
class TensorReader {
 public:
  explicit TensorReader(const GgufFile& file) : file_(file) {
    for (const std::string& name : file.tensor_names()) unread_.insert(name);
  }
  template <class Rows>
  void read(const std::string& name, Rows&& out) {
    file_.read(name, out);
    unread_.erase(name);
  }
  Vector vector(const std::string& name, Index size) {
    Matrix row(1, size);
    read(name, row);
    return row.transpose();
  }
  void finish() const {
    if (!unread_.empty())
      throw std::runtime_error(file_.path() + ": has the tensor " + *unread_.begin() + ", unknown to this decoder");
  }

 private:
  const GgufFile& file_;
  std::set<std::string> unread_;
};

void read_norms(TensorReader& tensors, const Architecture& shape, const std::string& prefix, Model::Layer& layer) {
  layer.attention_norm = tensors.vector(prefix + "attn_norm.weight", shape.width);
  layer.hidden_norm = tensors.vector(prefix + "ffn_norm.weight", shape.width);
  if (shape.head_norms) {
    layer.query_norm = tensors.vector(prefix + "attn_q_norm.weight", shape.head_dim);
    layer.key_norm = tensors.vector(prefix + "attn_k_norm.weight", shape.head_dim);
  }
  if (shape.update_norms) {
    layer.attention_update_norm = tensors.vector(prefix + "post_attention_norm.weight", shape.width);
    layer.hidden_update_norm = tensors.vector(prefix + "post_ffw_norm.weight", shape.width);
  }
}

Model::Layer read_layer(TensorReader& tensors, const Architecture& shape, Index i) {
  const std::string prefix = "blk." + std::to_string(i) + ".";
  const Index q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
  Model::Layer layer;
  read_norms(tensors, shape, prefix, layer);
  layer.query_key_value.resize(q + 2 * kv, shape.width);
  tensors.read(prefix + "attn_q.weight", layer.query_key_value.topRows(q));
  tensors.read(prefix + "attn_k.weight", layer.query_key_value.middleRows(q, kv));
  tensors.read(prefix + "attn_v.weight", layer.query_key_value.bottomRows(kv));
  layer.attention_output.resize(shape.width, q);
  tensors.read(prefix + "attn_output.weight", layer.attention_output);
  layer.gate_up.resize(2 * shape.hidden, shape.width);
  tensors.read(prefix + "ffn_gate.weight", layer.gate_up.topRows(shape.hidden));
  tensors.read(prefix + "ffn_up.weight", layer.gate_up.bottomRows(shape.hidden));
  layer.down.resize(shape.width, shape.hidden);
  tensors.read(prefix + "ffn_down.weight", layer.down);
  return layer;
}

}  // namespace

Model::Model(const GgufFile& file) : shape(file) {
  TensorReader tensors(file);
  // the shape is believed only as far as the file has tensors for it: a norm is checked before the memory is taken
  output_norm = tensors.vector("output_norm.weight", shape.width);
  for (Index i = 0; i < shape.layers; ++i) layers.push_back(read_layer(tensors, shape, i));
  embedding.resize(shape.vocabulary, shape.width);
  tensors.read("token_embd.weight", embedding);
  tied_output = !file.has_tensor("output.weight");
  if (!tied_output) {
    separate_output.resize(shape.vocabulary, shape.width);
    tensors.read("output.weight", separate_output);
  }
  tensors.finish();
}

}  // namespace llm
