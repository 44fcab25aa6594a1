// unit.cpp: compiled twice, with and without -march: uses the caches and the quantizers as a program would, so that
// every function of the library that could be emitted out of line is. (Not the reference attention and KIVI's layout:
// they use Eigen's products and std::vector, whose functions carry no mark of the -m flags.)
#include <asymkv/asymkv.hpp>
#include <vector>

namespace {

using namespace asymkv;

constexpr Index kTokens = 300;
constexpr CacheShape kShape{2, 2, 64, 48};

/// [tokens, width] numbers between -1 and 1.
std::vector<float> numbers(Index tokens, Index width) {
  std::vector<float> x(static_cast<std::size_t>(tokens * width));
  unsigned state = 1;
  for (float& e : x) {
    state = state * 1664525u + 1013904223u;
    e = float(int(state >> 8) - (1 << 23)) / float(1 << 23);
  }
  return x;
}

/// Every call of the interface; false if one fails. `sum` gets a digest of what was read.
bool use(KVCache& cache, double& sum) {
  const std::vector<float> keys = numbers(kTokens, 2 * kShape.key_dim), values = numbers(kTokens, 2 * kShape.value_dim);
  std::vector<float> queries = numbers(3, 4 * kShape.key_dim), output(std::size_t(3 * 4 * kShape.value_dim));
  std::vector<float> read(std::size_t(kTokens * kShape.key_dim));
  for (Index layer = 0; layer < kShape.layers; ++layer) {
    if (!cache.append(layer, tensor(keys.data(), kTokens, 2, kShape.key_dim),
                      tensor(values.data(), kTokens, 2, kShape.value_dim)))
      return false;
    if (!cache.seal()) return false;
    for (Index n : {1, 3})
      if (!cache.attend(layer, tensor(queries.data(), n, 4, kShape.key_dim),
                        tensor(output.data(), n, 4, kShape.value_dim)))
        return false;
    for (float x : output) sum += double(x) * double(x);
    if (!cache.keys(layer, 1, 0, tensor(read.data(), kTokens, 1, kShape.key_dim))) return false;
    if (!cache.values(layer, 1, 0, tensor(read.data(), kTokens, 1, kShape.value_dim))) return false;
    for (float x : read) sum += double(x) * double(x);
  }
  if (cache.length() != kTokens || cache.bytes().total() <= 0 || !cache.trim(100)) return false;
  cache.clear();
  return cache.length() == 0;
}

template <class Cache>
bool create_and_use(Result<Cache> cache, double& sum) {
  return cache.ok() && use(*cache, sum);
}

/// A cache with memory of a pool, part of it beyond the reserve.
bool use_pool(double& sum) {
  const Result<AsymKVPolicy> policy = AsymKVPolicy::parse("k2v1", kShape.layers);
  Result<PagePool> pool = PagePool::create({Index(1) << 22, 100000, {}});
  if (!policy.ok() || !pool.ok()) return false;
  CacheOptions options;
  options.allocator = pool->allocator();
  if (!create_and_use(AsymKVCache::create(kShape, *policy, options), sum)) return false;
  SharedBuffer block;
  return block.allocate(1000, options.allocator) && block.shrink(100) &&
         pool->bytes() == 100 + SharedBuffer::header_bytes && pool->taken() <= pool->budget();
}

/// A cache that is saved and loaded.
bool use_state(double& sum) {
  const Result<AsymKVPolicy> policy = AsymKVPolicy::parse("0:km2v1+1:k2v4@1", kShape.layers);
  if (!policy.ok()) return false;
  Result<AsymKVCache> cache = AsymKVCache::create(kShape, *policy);
  const std::vector<float> keys = numbers(kTokens, 2 * kShape.key_dim), values = numbers(kTokens, 2 * kShape.value_dim);
  for (Index layer = 0; layer < kShape.layers; ++layer)
    if (!cache.ok() || !cache->append(layer, tensor(keys.data(), kTokens, 2, kShape.key_dim),
                                      tensor(values.data(), kTokens, 2, kShape.value_dim)))
      return false;
  if (!cache->seal()) return false;
  Buffer bytes;
  if (!bytes.allocate(cache->state_bytes(), Allocator())) return false;
  unsigned char* next = bytes.data();
  const ByteSink sink{[](void* to, const void* data, Index count) {
                        unsigned char*& at = *static_cast<unsigned char**>(to);
                        std::memcpy(at, data, std::size_t(count));
                        at += count;
                        return true;
                      },
                      &next};
  if (!cache->save(sink)) return false;
  MemorySource described(bytes.data(), bytes.bytes()), loaded(bytes.data(), bytes.bytes());
  const Result<StateDescription> state = describe_state(described.source());
  sum += double(crc32c(bytes.data(), bytes.bytes()));
  return state.ok() && state->policy == *policy && AsymKVCache::load(loaded.source(), kShape, *policy).ok();
}

template <class Quantizer>
bool quantize(const Quantizer& quantizer, double& sum) {
  std::vector<float> x = numbers(64, 64), read(x.size());
  Result<QuantizedMatrix> quantized = quantizer.quantize(ConstTensor(tensor(x.data(), 64, 1, 64)));
  if (!quantized.ok() || !quantizer.dequantize(*quantized, tensor(read.data(), 64, 1, 64))) return false;
  sum += quantized->code(3, 5) + double(quantized->scale(3, 5)) + double(quantized->zero_point(3, 5));
  for (float e : read) sum += double(e) * double(e);
  return true;
}

template <int... Bits>
bool quantize_all(double& sum) {
  return (... && (quantize(KeyQuantizer<Bits>(), sum) && quantize(ValueQuantizer<Bits>(), sum)));
}

}  // namespace

bool ASYMKV_UNIT(double& sum);
bool ASYMKV_UNIT(double& sum) {
  for (const char* name : {"AsymKV-1/0", "0-0:k3v4+1-1:k8v16", "k6v5"}) {
    const Result<AsymKVPolicy> policy = AsymKVPolicy::parse(name, kShape.layers);
    if (!policy.ok() || !create_and_use(AsymKVCache::create(kShape, *policy), sum)) return false;
  }
  return create_and_use(DenseKVCache<float>::create(kShape), sum) &&
         create_and_use(DenseKVCache<Eigen::half>::create(kShape), sum) &&
         create_and_use(DenseKVCache<Eigen::bfloat16>::create(kShape), sum) && use_pool(sum) && use_state(sum) &&
         quantize_all<1, 2, 3, 4, 5, 6, 8>(sum);
}
