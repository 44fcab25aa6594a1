// architecture.hpp: what the metadata of a GGUF file says about a decoder: its sizes, and where the architectures that
// this example runs (llama, gemma3) differ. The decoder reads this description and never asks for an architecture's
// name.
#pragma once

#include <asymkv/cache/kv_cache.hpp>
#include <vector>

#include "gguf.hpp"

namespace llm {

/// What the feed-forward block does to its gate.
enum class Activation { silu, gelu };  // GELU in its tanh approximation

/// Which elements of a head RoPE turns together: (2i, 2i+1), as llama files permute q and k for it, or (i, i + dim/2).
enum class RopePairs { neighbours, halves };

/// How one layer looks at the past.
struct LayerAttention {
  Index window;      ///< tokens that a token sees, its own included; 0 for all
  std::size_t rope;  ///< which of Architecture::rope_bases
};

struct Architecture {
  Index layers, width, heads, kv_heads, head_dim, hidden, vocabulary, context;
  float norm_epsilon;
  float embedding_scale = 1.0f;
  Activation activation = Activation::silu;
  bool head_norms = false;    ///< each head of q and k is normalized before RoPE
  bool update_norms = false;  ///< what a block adds to the residual is normalized first
  RopePairs rope_pairs = RopePairs::neighbours;
  std::vector<double> rope_bases;
  std::vector<LayerAttention> attention;  ///< one a layer

  /// Throws std::runtime_error for other architectures, and for variants of these that the decoder does not compute.
  explicit Architecture(const GgufFile& file);
  asymkv::CacheShape cache_shape() const { return {layers, kv_heads, head_dim, head_dim}; }
};

}  // namespace llm
