// A call that fails names what was wrong and changes nothing: lack of memory, bad numbers, shapes and options.
#include <limits>

#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

constexpr CacheShape kTwoLayers{2, kHeads, kDim, kDim};

/// Two layers with sealed pages from two appends of 300 tokens; trimmed to `length`, which may cut sealed tokens.
AsymKVCache two_layers(const char* policy, Index length, CountingAllocator& counting) {
  CacheOptions options;
  options.allocator = counting.allocator();
  AsymKVCache cache = make_cache(policy, options, kTwoLayers);
  for (Index first : {0, 300})
    for (Index layer : {0, 1}) append(cache, Tokens(600, unsigned(4 + 2 * layer), kTwoLayers), first, 300, layer);
  EXPECT_TRUE(cache.trim(length).ok());
  return cache;
}

std::vector<unsigned char> all_sealed_bytes(const AsymKVCache& cache) {
  std::vector<unsigned char> bytes = sealed_bytes(cache, 0);
  const std::vector<unsigned char> second = sealed_bytes(cache, 1);
  bytes.insert(bytes.end(), second.begin(), second.end());
  return bytes;
}

/// Makes `call` on two layers while the allocator fails from its first, second, ... request on, until the call
/// succeeds. Every failure must leave all as it was, and the same call must do afterwards what it does without one.
/// Returns how many requests could fail.
template <class Call>
int fail_at_every_request(const char* policy, Index length, Call call) {
  CountingAllocator untroubled;
  AsymKVCache without_failure = two_layers(policy, length, untroubled);
  EXPECT_TRUE(call(without_failure).ok());
  const std::vector<unsigned char> sealed_after = all_sealed_bytes(without_failure);
  const std::vector<std::uint32_t> seen_after = everything_seen(without_failure);
  for (int fail = 0; fail < 100; ++fail) {
    CountingAllocator counting;
    AsymKVCache cache = two_layers(policy, length, counting);
    const std::vector<unsigned char> sealed = all_sealed_bytes(cache);
    const std::vector<std::uint32_t> seen = everything_seen(cache);
    const CacheBytes bytes = cache.bytes();
    counting.fail_at = counting.calls + fail;
    const Status status = call(cache);
    counting.fail_at = -1;
    if (!status.ok()) {
      EXPECT_EQ(status.code(), ErrorCode::out_of_memory) << status.message();
      EXPECT_TRUE(all_sealed_bytes(cache) == sealed) << policy << " request " << fail;
      EXPECT_TRUE(everything_seen(cache) == seen) << policy << " request " << fail;
      EXPECT_EQ(cache.bytes().keys, bytes.keys);
      EXPECT_EQ(cache.bytes().values, bytes.values);
      EXPECT_EQ(cache.bytes().dense, bytes.dense);
      EXPECT_EQ(cache.bytes().total(), counting.bytes);
      EXPECT_TRUE(call(cache).ok());
    }
    EXPECT_TRUE(all_sealed_bytes(cache) == sealed_after) << policy << " after request " << fail;
    EXPECT_TRUE(everything_seen(cache) == seen_after) << policy << " after request " << fail;
    if (status.ok()) return fail;
  }
  ADD_FAILURE() << policy << ": never succeeds";
  return 0;
}

TEST(Failure, AnAppendWithoutMemoryChangesNothing) {
  const Tokens more(300, 20, kTwoLayers);
  for (Index layer : {0, 1}) {
    const auto append_more = [&](AsymKVCache& cache) { return try_append(cache, more, 0, 300, layer); };
    EXPECT_GE(fail_at_every_request("k2v1", 600, append_more), 6);
    EXPECT_GE(fail_at_every_request("k2v1", 400, append_more), 4);
    EXPECT_GE(fail_at_every_request("k2v1", 100, append_more), 1);
    EXPECT_GE(fail_at_every_request("k1v16", 600, append_more), 3);
    EXPECT_GE(fail_at_every_request("k32v4", 600, append_more), 3);
  }
}

TEST(Failure, ASealWithoutMemoryChangesNothing) {
  const auto seal = [](AsymKVCache& cache) { return cache.seal(); };
  EXPECT_GE(fail_at_every_request("k2v1", 600, seal), 8);
  EXPECT_GE(fail_at_every_request("k1v16", 600, seal), 4);
  EXPECT_GE(fail_at_every_request("k32v4", 600, seal), 4);
}

TEST(Failure, BadInputIsNamedAndChangesNothing) {
  Tokens tokens(200, 6);
  for (const char* policy : {"KIVI-2", "k16v16"}) {
    AsymKVCache cache = make_cache(policy);
    append(cache, tokens, 0, 200);
    const std::vector<std::uint32_t> before = everything_seen(cache);
    const ConstTensor k = tensor(tokens.keys, kHeads), v = tensor(tokens.values, kHeads);
    expect_error(cache.append(1, k, v), ErrorCode::out_of_range, "layer: is 1; the number of layers is 1");
    expect_error(cache.append(-1, k, v), ErrorCode::out_of_range, "layer: is -1; the number of layers is 1");
    expect_error(cache.append(0, tensor(tokens.keys, 1), v), ErrorCode::invalid_argument, "keys");
    expect_error(cache.append(0, k, tensor(tokens.values, 5)), ErrorCode::invalid_argument, "values");
    ConstTensor fewer = v;
    fewer.tokens = 199;
    expect_error(cache.append(0, k, fewer), ErrorCode::invalid_argument, "values");
    ConstTensor null = k;
    null.data = nullptr;
    expect_error(cache.append(0, null, v), ErrorCode::invalid_argument, "keys");
    const Eigen::Matrix<Eigen::half, -1, -1, Eigen::RowMajor> half = tokens.keys.cast<Eigen::half>();
    expect_error(cache.append(0, tensor(half, kHeads), v), ErrorCode::invalid_argument, "keys");
    for (float bad : {NAN, INFINITY, -INFINITY, 65505.0f, -3e38f}) {
      const ErrorCode code = std::isfinite(bad) ? ErrorCode::overflow : ErrorCode::non_finite;
      RowMatrix with = tokens.keys;
      with(199, kHeads * kDim - 1) = bad;
      const char* place = "first at token 199, head 1, element 47 of this call";
      for (const char* argument : {"keys", "values"}) {
        const bool keys = argument[0] == 'k';
        const Status status = cache.append(0, keys ? tensor(with, kHeads) : k, keys ? v : tensor(with, kHeads));
        expect_error(status, code, argument);
        EXPECT_NE(std::strstr(status.message(), place), nullptr) << status.message();
      }
    }
    EXPECT_EQ(everything_seen(cache), before);
    RowMatrix out(3, kDim);
    expect_error(cache.keys(0, 2, 0, tensor(out)), ErrorCode::out_of_range, "kv_head");
    expect_error(cache.keys(0, 0, 198, tensor(out)), ErrorCode::out_of_range, "first");
    for (Index first : {std::numeric_limits<Index>::max(), std::numeric_limits<Index>::min()}) {
      expect_error(cache.keys(0, 0, first, tensor(out)), ErrorCode::out_of_range, "first");
      expect_error(cache.values(0, 0, first, tensor(out)), ErrorCode::out_of_range, "first");
    }
    Tensor nowhere = tensor(out);
    nowhere.data = nullptr;
    expect_error(cache.keys(0, 0, 0, nowhere), ErrorCode::invalid_argument, "out");
    expect_error(cache.values(0, 0, -1, tensor(out)), ErrorCode::out_of_range, "first");
    expect_error(cache.values(0, 0, 0, tensor(out, 2)), ErrorCode::invalid_argument, "out");
    EXPECT_STREQ(cache.trim(201).message(),
                 "tokens: cannot trim to 201, the length is 200; use 0..200, the length of the shortest layer");
    expect_error(cache.trim(201), ErrorCode::out_of_range, "tokens");
    expect_error(cache.trim(-1), ErrorCode::out_of_range, "tokens");
  }
}

/// Both kinds of cache refuse these options.
void expect_options_refused(const CacheOptions& options, const char* argument) {
  const AsymKVPolicy dense_policy = *AsymKVPolicy::parse("k16v32", 1),
                     packed_policy = *AsymKVPolicy::parse("KIVI-2", 1);
  expect_error(AsymKVCache::create(kShape, packed_policy, options).status(), ErrorCode::invalid_argument, argument);
  expect_error(AsymKVCache::create(kShape, dense_policy, options).status(), ErrorCode::invalid_argument, argument);
  expect_error(DenseKVCache<float>::create(kShape, options).status(), ErrorCode::invalid_argument, argument);
  expect_error(DenseKVCache<Eigen::half>::create(kShape, options).status(), ErrorCode::invalid_argument, argument);
}

TEST(Failure, BadOptionsAreNamed) {
  for (Index residual : {Index(0), Index(-1), Index(-64), Index(1) << 40}) {
    CacheOptions options;
    options.residual_length = residual;
    expect_options_refused(options, "options: residual_length");
  }
  for (Index reserve : {Index(-1), Index(1) << 40}) {
    CacheOptions options;
    options.reserve_tokens = reserve;
    expect_options_refused(options, "options: reserve_tokens");
  }
  CacheOptions no_allocate, no_deallocate;
  no_allocate.allocator.allocate = nullptr;
  no_deallocate.allocator.deallocate = nullptr;
  expect_options_refused(no_allocate, "options: allocator");
  expect_options_refused(no_deallocate, "options: allocator");
  const AsymKVPolicy policy = *AsymKVPolicy::parse("k2g64v2", 1);
  for (Index residual : {32, 100}) {  // no multiple of 64
    CacheOptions options;
    options.residual_length = residual;
    expect_error(AsymKVCache::create(kShape, policy, options).status(), ErrorCode::invalid_argument, "options");
  }
}

TEST(Failure, BadShapesAreNamed) {
  const AsymKVPolicy policy = *AsymKVPolicy::parse("k2v2", 1);
  const CacheShape shapes[] = {{1, 0, 64, 64}, {1, 1, 64, 1025}, {1, 1, 0, 64}, {1, Index(1) << 60, 64, 64}};
  for (const CacheShape& shape : shapes) {
    expect_error(AsymKVCache::create(shape, policy).status(), ErrorCode::invalid_argument, "shape");
    expect_error(DenseKVCache<float>::create(shape).status(), ErrorCode::invalid_argument, "shape");
  }
  expect_error(DenseKVCache<float>::create({0, 1, 64, 64}).status(), ErrorCode::invalid_argument, "shape");
  expect_error(AsymKVCache::create({2, 1, 64, 64}, policy).status(), ErrorCode::invalid_argument, "policy");
}

TEST(Failure, CreateWithoutMemory) {
  for (Index fail : {0, 1}) {
    CountingAllocator counting;
    counting.fail_at = fail;
    CacheOptions options;
    options.allocator = counting.allocator();
    EXPECT_EQ(AsymKVCache::create(kShape, *AsymKVPolicy::parse("k2v2", 1), options).status().code(),
              ErrorCode::out_of_memory);
    EXPECT_EQ(DenseKVCache<float>::create(kShape, options).status().code(), ErrorCode::out_of_memory);
    EXPECT_EQ(counting.bytes, 0);
  }
}

template <class Cache>
Cache take(Cache& from) {
  return std::move(from);
}

/// No call finds a layer, and what asks for none has nothing to do.
void expect_no_layers(KVCache& cache) {
  const Tokens tokens(1, 6);
  const ConstTensor k = tensor(tokens.keys, kHeads), v = tensor(tokens.values, kHeads);
  RowMatrix row(1, kHeads * kDim);
  const Tensor out = tensor(row, kHeads), head = tensor(row.data(), 1, 1, kDim);
  const auto in_order = [](Index count, auto task) {
    for (Index i = 0; i < count; ++i) task(i);
  };
  for (Index layer : {0, 1})
    for (const Status& status :
         {cache.append(layer, k, v), cache.attend(layer, k, out), cache.attend_parallel(layer, k, out, {}, in_order),
          cache.attend_slice(layer, k, out, {}, {0, 2}), cache.merge_slices(layer, k, out, {}, {0, 2}),
          cache.keys(layer, 0, 0, head), cache.values(layer, 0, 0, head)})
      expect_error(status, ErrorCode::out_of_range, "layer");
  EXPECT_EQ(cache.shape().layers, 0);
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.bytes().total(), 0);
  EXPECT_TRUE(cache.seal().ok());
  EXPECT_TRUE(cache.trim(0).ok());
  expect_error(cache.trim(1), ErrorCode::out_of_range, "tokens");
  cache.clear();
}

/// Moves a cache of two layers away and back.
template <class Cache>
void expect_moves(Cache cache) {
  for (Index layer : {0, 1}) append(cache, Tokens(300, 4, kTwoLayers), 0, 300, layer);
  const std::vector<std::uint32_t> seen = everything_seen(cache);
  {
    Cache taken = take(cache);
    expect_no_layers(cache);
    EXPECT_EQ(taken.shape().layers, 2);
    EXPECT_EQ(everything_seen(taken), seen);
    cache = take(taken);
    expect_no_layers(taken);
    EXPECT_EQ(everything_seen(cache), seen);
  }
  Cache& itself = cache;
  cache = std::move(itself);
  EXPECT_EQ(everything_seen(cache), seen);
  append(cache, Tokens(300, 8, kTwoLayers), 0, 300, 1);
}

TEST(Failure, WhatWasMovedFromHasNoLayers) {
  for (Index threads : {1, 2}) {
    CacheOptions options;
    options.threads = threads;
    expect_moves(make_cache("k2v1@1", options, kTwoLayers));
    expect_moves(make_cache("km2v16", options, kTwoLayers));
    expect_moves(*DenseKVCache<float>::create(kTwoLayers, options));
    expect_moves(*DenseKVCache<Eigen::half>::create(kTwoLayers, options));
  }
}

/// A dense cache of T takes magnitudes up to `most` and refuses `above`, which is finite.
template <class T>
void expect_dense_limit(float most, float above) {
  auto cache = DenseKVCache<T>::create({1, 1, 4, 4});
  RowMatrix x = RowMatrix::Constant(1, 4, 1.0f);
  for (float sign : {1.0f, -1.0f}) {
    x(0, 2) = sign * most;
    EXPECT_TRUE(cache->append(0, tensor(x), tensor(x)).ok()) << most;
    EXPECT_EQ(read(*cache, Side::keys, 0, cache->length() - 1, 1), x);
    if (!(above > most)) continue;
    RowMatrix large = x;
    large(0, 2) = sign * above;
    expect_error(cache->append(0, tensor(large), tensor(x)), ErrorCode::overflow, "keys");
    expect_error(cache->append(0, tensor(x), tensor(large)), ErrorCode::overflow, "values");
  }
  EXPECT_EQ(cache->length(), 2);
}

TEST(Failure, DenseCachesRefuseWhatTheyCannotHold) {
  const float greatest = std::numeric_limits<float>::max();
  expect_dense_limit<float>(greatest, greatest);
  expect_dense_limit<Eigen::half>(65504.0f, 65505.0f);
  expect_dense_limit<Eigen::bfloat16>(0x1.FEp127f, greatest);
}

/// After keys so large that scores overflow, attend refuses until the cache was empty.
void expect_overflow_until_empty(KVCache& cache, float large) {
  const RowMatrix queries = RowMatrix::Constant(1, kHeads * kDim, 1e37f / large);
  RowMatrix output(1, kHeads * kDim);
  AttentionParams params;
  params.scale = 1.0f;
  const auto attend = [&] { return cache.attend(0, tensor(queries, kHeads), tensor(output, kHeads), params); };
  Tokens tokens(300, 6);
  tokens.keys(0, 0) = large;
  append(cache, tokens, 0, 300);
  ASSERT_TRUE(cache.seal().ok());
  expect_error(attend(), ErrorCode::overflow, "queries");
  ASSERT_TRUE(cache.trim(1).ok());
  expect_error(attend(), ErrorCode::overflow, "queries");
  ASSERT_TRUE(cache.trim(0).ok());
  append(cache, Tokens(5, 6), 0, 5);
  const Status status = attend();
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(Failure, MagnitudesAreForgottenWithTheLastToken) {
  for (Index residual : {128, 1024}) {  // with sealed tokens, and without
    CacheOptions options;
    options.residual_length = residual;
    AsymKVCache packed = make_cache("k2v2", options);
    expect_overflow_until_empty(packed, 3e4f);
  }
  auto dense = DenseKVCache<float>::create(kShape);
  expect_overflow_until_empty(*dense, 1e10f);
}

}  // namespace
