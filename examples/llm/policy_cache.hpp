// policy_cache.hpp: from a policy's name to a cache. Used by generate and eval, which then know KVCache alone.
#pragma once

#include <asymkv/policy.hpp>
#include <memory>
#include <string>

namespace llm {

/// Tokens that prompts and texts are fed in at once: as many as the residual window holds.
constexpr asymkv::Index chunk_tokens = 128;

/// The policy of that name, or in the file of that name if it ends in .yaml; throws std::runtime_error with what is
/// wrong about it.
asymkv::AsymKVPolicy parse_policy(const std::string& name, const asymkv::CacheShape& shape);

/// DenseKVCache for the policies `float` and `half`, else AsymKVCache, whose residual window is the paper's 128 tokens
/// unless said; with memory for `tokens` where tokens stay in full precision, and for so many threads. Throws
/// std::runtime_error.
std::unique_ptr<asymkv::KVCache> make_cache(const std::string& name, const asymkv::CacheShape& shape,
                                            asymkv::Index tokens, asymkv::Index residual_length = chunk_tokens,
                                            asymkv::Index threads = 1);

}  // namespace llm
