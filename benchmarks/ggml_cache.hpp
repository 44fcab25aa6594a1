// ggml_cache.hpp: ggml's flash attention behind the interface of our caches, to be measured beside them. Built where an
// installed ggml is found.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "asymkv/cache/kv_cache.hpp"

namespace bench {

/// The types of ggml whose caches engines offer most: f16, q8_0 and q4_0.
std::vector<std::string> ggml_types();

/// A cache of one of these types with room for `tokens` tokens of every layer; input must be contiguous floats. A layer
/// is attended as llama.cpp does it: keys and values lie token by token, a graph of one flash attention with an f16
/// mask, and one thread computes it.
std::unique_ptr<asymkv::KVCache> make_ggml_cache(const std::string& type, const asymkv::CacheShape& shape,
                                                 asymkv::Index tokens);

/// Bits an element, all-in.
double ggml_bits(const std::string& type);

}  // namespace bench
