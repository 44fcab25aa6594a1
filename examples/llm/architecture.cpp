// architecture.cpp: metadata keys and their defaults.
#include "architecture.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

namespace llm {
namespace {

/// The keys of one architecture, which all begin with its name.
class Keys {
 public:
  explicit Keys(const GgufFile& file) : file_(file), prefix_(file.text("general.architecture") + ".") {}

  bool has(const char* key) const { return file_.has(prefix_ + key); }
  Index size(const char* key) const { return file_.size(prefix_ + key); }
  Index size(const char* key, Index otherwise) const { return has(key) ? size(key) : otherwise; }
  double number(const char* key) const { return file_.number(prefix_ + key); }
  double number(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  void refuse(const char* key) const {
    if (has(key)) fail("has the key " + prefix_ + key + ", which this decoder does not compute");
  }
  [[noreturn]] void fail(const std::string& reason) const { throw std::runtime_error(file_.path() + ": " + reason); }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

void check(const Architecture& a, const Keys& keys) {
  if (a.heads % a.kv_heads != 0 || a.head_dim % 2 != 0 || a.layers > 65536 || a.width > 1 << 20 || a.hidden > 1 << 20 ||
      a.heads > 1 << 12 || a.head_dim > 1 << 10)
    keys.fail("sizes of the model contradict each other");
  if (keys.size("attention.value_length", a.head_dim) != a.head_dim)
    keys.fail("keys and values of different length are not supported");
  if (keys.size("rope.dimension_count", a.head_dim) != a.head_dim || keys.has("rope.scaling.type"))
    keys.fail("only plain RoPE over the whole head is supported");
  keys.refuse("attn_logit_softcapping");
  keys.refuse("final_logit_softcapping");
}

void read_llama(Architecture& a, const Keys& keys) {
  a.rope_bases = {keys.number("rope.freq_base", 10000.0)};
  a.attention.assign(std::size_t(a.layers), {0, 0});
}

/// Five layers with a sliding window and a RoPE base of their own, then a global one, and so on.
void read_gemma3(Architecture& a, const Keys& keys) {
  a.embedding_scale = std::sqrt(float(a.width));
  a.activation = Activation::gelu;
  a.head_norms = a.update_norms = true;
  a.rope_pairs = RopePairs::halves;
  a.rope_bases = {keys.number("rope.freq_base", 1e6), keys.number("rope.freq_base_swa", 1e4)};
  const Index window = keys.size("attention.sliding_window");
  const Index period = keys.size("attention.sliding_window_pattern", 6);
  for (Index i = 0; i < a.layers; ++i)
    a.attention.push_back((i + 1) % period == 0 ? LayerAttention{0, 0} : LayerAttention{window, 1});
}

}  // namespace

Architecture::Architecture(const GgufFile& file) {
  const Keys keys(file);
  const std::string& name = file.text("general.architecture");
  if (name != "llama" && name != "gemma3")
    keys.fail("architecture is " + name + "; only llama and gemma3 are supported");
  layers = keys.size("block_count");
  width = keys.size("embedding_length");
  heads = keys.size("attention.head_count");
  kv_heads = keys.size("attention.head_count_kv", heads);
  hidden = keys.size("feed_forward_length");
  context = keys.size("context_length");
  vocabulary = Index(file.texts("tokenizer.ggml.tokens").size());
  norm_epsilon = float(keys.number("attention.layer_norm_rms_epsilon"));
  if (!keys.has("attention.key_length") && width % heads != 0) keys.fail("its width is no multiple of its heads");
  head_dim = keys.size("attention.key_length", width / heads);
  check(*this, keys);
  name == "llama" ? read_llama(*this, keys) : read_gemma3(*this, keys);
}

}  // namespace llm
