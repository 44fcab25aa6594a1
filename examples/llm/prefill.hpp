// prefill.hpp: a whole text through the quantized past, chunk by chunk. Used by generate, passkey and asymmetry.
#pragma once

#include <vector>

#include "decoder.hpp"

namespace llm {

/// Appends `tokens`, of which there is at least one, in chunks of chunk_tokens; returns the logits after the last one,
/// in a row that lives as long as Decoder::feed's.
Matrix& prefill(Decoder& decoder, const std::vector<Token>& tokens, asymkv::KVCache& cache);

}  // namespace llm
