// The caches' promises: sealed bytes independent of chunking, trim, exact bytes, nothing changed by a failed call.
#include "support/support.hpp"

namespace {

using namespace asymkv;
using support::CountingAllocator;
using support::ForcedIsa;
using support::RowMatrix;

constexpr Index kHeads = 2, kDim = 48;
constexpr CacheShape kShape{1, kHeads, kDim, kDim};

struct Tokens {
  RowMatrix keys, values;
  Tokens(Index n, unsigned seed)
      : keys(support::random_matrix(n, kHeads * kDim, seed)),
        values(support::random_matrix(n, kHeads * kDim, seed + 1)) {}
};

AsymKVCache make_cache(const char* policy, const CacheOptions& options = {}) {
  Result<AsymKVCache> cache = AsymKVCache::create(kShape, *AsymKVPolicy::parse(policy, 1), options);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return std::move(*cache);
}

void append(KVCache& cache, const Tokens& tokens, Index first, Index count) {
  const RowMatrix keys = tokens.keys.middleRows(first, count), values = tokens.values.middleRows(first, count);
  const Status status = cache.append(0, tensor(keys, kHeads), tensor(values, kHeads));
  ASSERT_TRUE(status.ok()) << status.message();
}

void append_in_chunks(KVCache& cache, const Tokens& tokens, Index first, Index end, Index chunk) {
  for (; first < end; first += chunk) append(cache, tokens, first, std::min(chunk, end - first));
}

std::vector<unsigned char> sealed_bytes(const AsymKVCache& cache) {
  std::vector<unsigned char> bytes;
  for (Side side : {Side::keys, Side::values}) {
    for (const Page& page : cache.side(0, side).pages()) {
      bytes.insert(bytes.end(), page.memory.data(), page.memory.data() + page.memory.bytes());
      bytes.push_back(static_cast<unsigned char>(page.count));
    }
  }
  return bytes;
}

RowMatrix read(const KVCache& cache, Side side, Index head, Index first, Index count) {
  RowMatrix out(count, kDim);
  const Status status =
      side == Side::keys ? cache.keys(0, head, first, tensor(out)) : cache.values(0, head, first, tensor(out));
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

TEST(Cache, SealedBytesDoNotDependOnChunksOrInstructionSet) {
  const Tokens tokens(700, 11);
  for (const char* policy : {"KIVI-1", "k2v3", "k4g128v5g64", "k8v6", "k3g64v8g128"})
    for (Index residual : {Index(128), Index(256), Index(384)}) {
      CacheOptions options;
      options.residual_length = residual;
      std::vector<unsigned char> expected;
      for (Isa isa : support::machine_isas()) {
        ForcedIsa forced(isa);
        for (Index chunk : {Index(1), Index(7), Index(129), Index(700)}) {
          AsymKVCache cache = make_cache(policy, options);
          append_in_chunks(cache, tokens, 0, 700, chunk);
          ASSERT_TRUE(cache.seal().ok());
          EXPECT_EQ(cache.side(0, Side::keys).sealed(), 700 / residual * residual);
          EXPECT_EQ(cache.side(0, Side::values).sealed(), 700 - residual);
          if (expected.empty()) expected = sealed_bytes(cache);
          EXPECT_EQ(sealed_bytes(cache), expected) << policy << " chunk " << chunk << " " << isa_name(isa);
        }
      }
    }
}

TEST(Cache, SealingWaitsForTheNextAppend) {
  const Tokens tokens(129, 3);
  CacheOptions options;
  options.residual_length = 64;
  AsymKVCache cache = make_cache("KIVI-2", options);
  append(cache, tokens, 0, 128);
  EXPECT_EQ(cache.side(0, Side::keys).sealed(), 0);
  append(cache, tokens, 128, 1);
  EXPECT_EQ(cache.side(0, Side::keys).sealed(), 128);
  EXPECT_EQ(cache.side(0, Side::values).sealed(), 64);
}

TEST(Cache, ReadsBackWhatTheQuantizersKeep) {
  const Tokens tokens(300, 5);
  AsymKVCache cache = make_cache("k2v3");
  append(cache, tokens, 0, 300);
  ASSERT_TRUE(cache.seal().ok());
  for (Index head = 0; head < kHeads; ++head) {
    const RowMatrix keys = tokens.keys.block(0, head * kDim, 256, kDim);
    RowMatrix expected(256, kDim);
    ASSERT_TRUE(KeyQuantizer<2>().dequantize(*KeyQuantizer<2>().quantize(keys), expected).ok());
    EXPECT_EQ(read(cache, Side::keys, head, 0, 256), expected);
    EXPECT_EQ(read(cache, Side::keys, head, 100, 77), expected.middleRows(100, 77));
    EXPECT_EQ(read(cache, Side::keys, head, 256, 44), tokens.keys.block(256, head * kDim, 44, kDim));
    const RowMatrix values = tokens.values.block(0, head * kDim, 172, kDim);
    expected.resize(172, kDim);
    ASSERT_TRUE(ValueQuantizer<3>().dequantize(*ValueQuantizer<3>().quantize(values), expected).ok());
    EXPECT_EQ(read(cache, Side::values, head, 0, 172), expected);
    EXPECT_EQ(read(cache, Side::values, head, 129, 5), expected.middleRows(129, 5));
    EXPECT_EQ(read(cache, Side::values, head, 172, 128), tokens.values.block(172, head * kDim, 128, kDim));
  }
}

TEST(Cache, TrimAboveTheSealedBoundaryLeavesNoTrace) {
  const Tokens tokens(600, 8), other(600, 9);
  AsymKVCache plain = make_cache("k2v1");
  append_in_chunks(plain, tokens, 0, 600, 50);
  AsymKVCache trimmed = make_cache("k2v1");
  append_in_chunks(trimmed, tokens, 0, 300, 50);
  append(trimmed, other, 300, 20);
  ASSERT_TRUE(trimmed.trim(300).ok());
  EXPECT_EQ(trimmed.length(), 300);
  append_in_chunks(trimmed, tokens, 300, 600, 50);
  ASSERT_TRUE(plain.seal().ok() && trimmed.seal().ok());
  EXPECT_EQ(sealed_bytes(plain), sealed_bytes(trimmed));
}

TEST(Cache, TrimIntoSealedTokensKeepsTheRest) {
  const Tokens tokens(900, 8);
  for (Index cut :
       {Index(0), Index(1), Index(31), Index(32), Index(77), Index(128), Index(129), Index(300), Index(511)}) {
    AsymKVCache cache = make_cache("k2v4");
    append(cache, tokens, 0, 700);
    ASSERT_TRUE(cache.seal().ok());
    std::vector<RowMatrix> before;
    for (Side side : {Side::keys, Side::values}) before.push_back(read(cache, side, 1, 0, cut));
    ASSERT_TRUE(cache.trim(cut).ok());
    EXPECT_EQ(cache.length(), cut);
    append_in_chunks(cache, tokens, cut, 900, 90);
    EXPECT_EQ(cache.length(), 900);
    EXPECT_EQ(read(cache, Side::keys, 1, 0, cut), before[0]) << cut;
    EXPECT_EQ(read(cache, Side::values, 1, 0, cut), before[1]) << cut;
    // what follows the cut is the new tokens: within one step of their group, hence near the truth
    EXPECT_LT((read(cache, Side::keys, 1, cut, 900 - cut) - tokens.keys.block(cut, kDim, 900 - cut, kDim)).norm(),
              tokens.keys.block(cut, kDim, 900 - cut, kDim).norm() * 0.5f);
  }
}

TEST(Cache, BytesAreWhatTheAllocatorHandedOut) {
  for (const char* policy : {"KIVI-2", "k1v16", "float", "k8v32"}) {
    CountingAllocator counting;
    CacheOptions options;
    options.allocator = counting.allocator();
    {
      const Tokens tokens(1000, 2);
      AsymKVCache cache = make_cache(policy, options);
      EXPECT_EQ(cache.bytes().total(), counting.bytes);
      for (Index chunk : {Index(1), Index(130), Index(400), Index(33)}) {
        append(cache, tokens, 0, chunk);
        EXPECT_EQ(cache.bytes().total(), counting.bytes) << policy;
      }
      ASSERT_TRUE(cache.trim(200).ok());
      EXPECT_EQ(cache.bytes().total(), counting.bytes);
      cache.clear();
      EXPECT_EQ(cache.bytes().total(), counting.bytes);
      EXPECT_EQ(cache.bytes().keys + cache.bytes().values + cache.bytes().dense, 0);
    }
    EXPECT_EQ(counting.bytes, 0);
  }
}

TEST(Cache, PagesHaveTheirStatedBytes) {
  const Tokens tokens(1024, 2);
  AsymKVCache cache = make_cache("k2v3");
  append(cache, tokens, 0, 1024);
  ASSERT_TRUE(cache.seal().ok());
  // keys: 8 tiles x 2 blocks x 2 vectors of 64 bytes, and 4 groups x 48 channels x 4 bytes; values: 3 tiles x 4 blocks
  // x 3 vectors, and 2 groups x 128 tokens x 4 bytes
  EXPECT_EQ(cache.bytes().keys, 8 * kHeads * (8 * 2 * 2 * 64 + 4 * 48 * 4));
  EXPECT_EQ(cache.bytes().values, 7 * kHeads * (3 * 4 * 3 * 64 + 2 * 128 * 4));
  EXPECT_EQ(cache.bytes().keys, 8 * AsymKVPolicy::parse("k2v32", 1)->bytes(kShape, 128) - 1024 * kHeads * kDim * 4);
}

TEST(Cache, AFailingAllocatorChangesNothing) {
  const Tokens tokens(600, 4);
  for (Index fail = 0;; ++fail) {
    CountingAllocator counting;
    CacheOptions options;
    options.allocator = counting.allocator();
    AsymKVCache cache = make_cache("k2v1", options);
    append(cache, tokens, 0, 300);
    const std::vector<unsigned char> sealed = sealed_bytes(cache);
    const CacheBytes bytes = cache.bytes();
    const RowMatrix keys = read(cache, Side::keys, 0, 0, 300);
    counting.fail_at = counting.calls + fail;
    const RowMatrix k = tokens.keys.middleRows(300, 300), v = tokens.values.middleRows(300, 300);
    const Status status = cache.append(0, tensor(k, kHeads), tensor(v, kHeads));
    if (status.ok()) {
      EXPECT_GT(fail, 4);
      break;
    }
    EXPECT_EQ(status.code(), ErrorCode::out_of_memory);
    EXPECT_EQ(cache.length(), 300);
    EXPECT_EQ(sealed_bytes(cache), sealed);
    EXPECT_EQ(read(cache, Side::keys, 0, 0, 300), keys);
    EXPECT_EQ(cache.bytes().keys, bytes.keys);
    EXPECT_EQ(cache.bytes().dense, bytes.dense);
    EXPECT_EQ(cache.bytes().total(), counting.bytes);
    counting.fail_at = -1;
    append(cache, tokens, 300, 300);
    EXPECT_EQ(cache.length(), 600);
  }
}

void expect_error(const Status& status, ErrorCode code, const char* argument) {
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_EQ(std::strncmp(status.message(), argument, std::strlen(argument)), 0) << status.message();
}

TEST(Cache, BadInputIsNamedAndChangesNothing) {
  Tokens tokens(200, 6);
  for (const char* policy : {"KIVI-2", "k16v16"}) {
    AsymKVCache cache = make_cache(policy);
    append(cache, tokens, 0, 200);
    const ConstTensor k = tensor(tokens.keys, kHeads), v = tensor(tokens.values, kHeads);
    expect_error(cache.append(1, k, v), ErrorCode::out_of_range, "layer");
    expect_error(cache.append(-1, k, v), ErrorCode::out_of_range, "layer");
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
      expect_error(cache.append(0, tensor(with, kHeads), v), code, "keys");
      expect_error(cache.append(0, k, tensor(with, kHeads)), code, "values");
    }
    EXPECT_EQ(cache.length(), 200);
    RowMatrix out(3, kDim);
    expect_error(cache.keys(0, 2, 0, tensor(out)), ErrorCode::out_of_range, "kv_head");
    expect_error(cache.keys(0, 0, 198, tensor(out)), ErrorCode::out_of_range, "first");
    expect_error(cache.values(0, 0, -1, tensor(out)), ErrorCode::out_of_range, "first");
    expect_error(cache.values(0, 0, 0, tensor(out, 2)), ErrorCode::invalid_argument, "out");
    expect_error(cache.trim(201), ErrorCode::out_of_range, "tokens");
    expect_error(cache.trim(-1), ErrorCode::out_of_range, "tokens");
  }
}

TEST(Cache, BadOptionsAreNamed) {
  const AsymKVPolicy policy = *AsymKVPolicy::parse("k2g64v2", 1);
  const auto code = [&](CacheShape shape, CacheOptions options) {
    return AsymKVCache::create(shape, policy, options).status().code();
  };
  CacheOptions options;
  for (Index residual : {Index(0), Index(32), Index(100), Index(-64)}) {
    options.residual_length = residual;
    EXPECT_EQ(code(kShape, options), ErrorCode::invalid_argument) << residual;
  }
  EXPECT_EQ(code({1, 0, 64, 64}, {}), ErrorCode::invalid_argument);
  EXPECT_EQ(code({1, 1, 64, 1025}, {}), ErrorCode::invalid_argument);
  EXPECT_EQ(code({2, 1, 64, 64}, {}), ErrorCode::invalid_argument);
  EXPECT_EQ(code({1, Index(1) << 60, 64, 64}, {}), ErrorCode::invalid_argument);
  CountingAllocator counting;
  counting.fail_at = 0;
  options = {};
  options.allocator = counting.allocator();
  EXPECT_EQ(code(kShape, options), ErrorCode::out_of_memory);
}

TEST(Cache, TrimRepairsABrokenStep) {
  const CacheShape shape{2, kHeads, kDim, kDim};
  Result<AsymKVCache> cache = AsymKVCache::create(shape, *AsymKVPolicy::parse("KIVI-2", 2));
  const Tokens tokens(10, 1);
  const ConstTensor k = tensor(tokens.keys, kHeads), v = tensor(tokens.values, kHeads);
  ASSERT_TRUE(cache->append(0, k, v).ok() && cache->append(1, k, v).ok() && cache->append(0, k, v).ok());
  EXPECT_EQ(cache->length(), 10);
  EXPECT_EQ(cache->length(0), 20);
  ASSERT_TRUE(cache->trim(cache->length()).ok());
  EXPECT_EQ(cache->length(0), 10);
}

}  // namespace
