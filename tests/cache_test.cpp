// The caches' promises: sealed bytes independent of chunking, trim, exact bytes, nothing changed by a failed call.
#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

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

TEST(Cache, StepsThatDifferLittleDoNotAskForAWindowEach) {
  const Tokens tokens(1700, 16);
  for (const auto& [one, other] : {std::pair<Index, Index>(12, 20), {1, 32}, {64, 65}, {3, 1}}) {
    CountingAllocator counting;
    CacheOptions options;
    options.allocator = counting.allocator();
    AsymKVCache cache = make_cache("k2v2", options);
    const auto calls_for_windows = [&] {
      Index pages = 0;
      for (Side side : {Side::keys, Side::values}) pages += cache.side(0, side).pages().size();
      return counting.calls - pages;
    };
    append(cache, tokens, 0, 1699);  // so that page tables have room for what is to come
    append(cache, tokens, 1699, 1);
    ASSERT_TRUE(cache.trim(0).ok());
    append(cache, tokens, 0, 300);  // and the window that this step needs goes
    Index first = 300;
    for (int i = 0; i < 6; first += i++ % 2 == 0 ? one : other) append(cache, tokens, first, i % 2 == 0 ? one : other);
    const Index calls = calls_for_windows();
    for (int i = 0; i < 14; first += i++ % 2 == 0 ? one : other) append(cache, tokens, first, i % 2 == 0 ? one : other);
    EXPECT_EQ(calls_for_windows(), calls) << one << " and " << other;
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
