// quickstart.cpp: policy -> cache -> append -> attend -> error and bytes, on synthetic tensors.
#include <asymkv/asymkv.hpp>
#include <cstdio>

using asymkv::tensor;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

int main() {
  const asymkv::CacheShape shape{32, 8, 128, 128};  // layers, kv heads, key dim, value dim
  const auto policy = asymkv::AsymKVPolicy::parse("AsymKV-8/4-16/0", shape.layers);
  if (!policy.ok()) return std::printf("%s\n", policy.status().message()), 1;
  asymkv::CacheOptions options;
  options.reserve_tokens = 1025;  // full precision: memory for just so many tokens
  auto packed = asymkv::AsymKVCache::create(shape, *policy, options);
  auto exact = asymkv::DenseKVCache<float>::create(shape, options);
  if (!packed.ok() || !exact.ok()) return 1;

  const Matrix keys = Matrix::Random(1024, 8 * 128), values = Matrix::Random(1024, 8 * 128);
  const Matrix next_key = Matrix::Random(1, 8 * 128), next_value = Matrix::Random(1, 8 * 128);
  const Matrix query = Matrix::Random(1, 32 * 128);  // 32 query heads read 8 kv heads
  Matrix approximate(1, 32 * 128), expected(1, 32 * 128);
  for (asymkv::Index layer = 0; layer < shape.layers; ++layer)
    for (asymkv::KVCache* cache : {static_cast<asymkv::KVCache*>(&*packed), static_cast<asymkv::KVCache*>(&*exact)}) {
      Matrix& output = cache == &*packed ? approximate : expected;
      asymkv::Status status = cache->append(layer, tensor(keys, 8), tensor(values, 8));            // prefill
      if (status.ok()) status = cache->append(layer, tensor(next_key, 8), tensor(next_value, 8));  // decode step
      if (status.ok()) status = cache->attend(layer, tensor(query, 32), tensor(output, 32));
      if (!status.ok()) return std::printf("%s\n", status.message()), 1;
    }
  std::printf("%s: %.2f bits an element, %.1f MiB instead of %.1f, attention output off by %.3f of its norm\n",
              policy->name().c_str(), policy->all_in_bits(shape), double(packed->bytes().total()) / 1048576.0,
              double(exact->bytes().total()) / 1048576.0, double((approximate - expected).norm() / expected.norm()));
}
