// policy_cache.cpp: the only place of the example that names kinds of caches.
#include "policy_cache.hpp"

#include <asymkv/asymkv.hpp>
#include <asymkv/yaml/kvtuner.hpp>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace llm {
namespace {

template <class T>
T take(asymkv::Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().message());
  return std::move(*result);
}

template <class Cache>
std::unique_ptr<asymkv::KVCache> own(asymkv::Result<Cache> cache) {
  return std::make_unique<Cache>(take(std::move(cache)));
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

asymkv::AsymKVPolicy parse_policy(const std::string& name, const asymkv::CacheShape& shape) {
  if (!ends_with(name, ".yaml")) return take(asymkv::AsymKVPolicy::parse(name, shape.layers));
  std::ifstream file(name, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw std::runtime_error(name + ": cannot be read");
  const auto policy = asymkv::read_kvtuner(text, shape.layers);
  if (!policy.ok()) throw std::runtime_error(name + ": " + policy.status().message());
  return *policy;
}

std::unique_ptr<asymkv::KVCache> make_cache(const std::string& name, const asymkv::CacheShape& shape,
                                            asymkv::Index tokens, asymkv::Index residual_length,
                                            asymkv::Index threads) {
  asymkv::CacheOptions options;
  options.residual_length = residual_length;
  options.reserve_tokens = tokens;
  options.threads = threads;
  if (name == "float") return own(asymkv::DenseKVCache<float>::create(shape, options));
  if (name == "half") return own(asymkv::DenseKVCache<Eigen::half>::create(shape, options));
  return own(asymkv::AsymKVCache::create(shape, parse_policy(name, shape), options));
}

}  // namespace llm
