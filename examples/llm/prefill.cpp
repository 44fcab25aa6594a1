// prefill.cpp: chunks as long as the residual window, so that memory stays small and every chunk but the first attends
// to a quantized past.
#include "prefill.hpp"

#include <algorithm>

#include "policy_cache.hpp"

namespace llm {

Matrix& prefill(Decoder& decoder, const std::vector<Token>& tokens, asymkv::KVCache& cache) {
  const Index length = Index(tokens.size());
  Matrix* logits = nullptr;
  for (Index i = 0; i < length; i += chunk_tokens) {
    const Index count = std::min(Index(chunk_tokens), length - i);
    logits = &decoder.feed(tokens.data() + i, count, cache, count - 1);
  }
  return *logits;
}

}  // namespace llm
