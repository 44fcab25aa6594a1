// Requantization: sealed pages with fewer bits read back as the quantizers say, on every instruction set; in place
// where a cache has them alone, in copies where forks share them; exact bytes, and nothing changed by a call that
// fails.
#include <asymkv/cache/page_pool.hpp>

#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

AsymKVPolicy policy_of(std::string_view name, Index layers = 1) {
  Result<AsymKVPolicy> policy = AsymKVPolicy::parse(name, layers);
  EXPECT_TRUE(policy.ok()) << policy.status().message();
  return *policy;
}

void requantize(AsymKVCache& cache, Index first, Index last, std::string_view policy) {
  const Status status = cache.requantize(first, last, policy_of(policy, cache.shape().layers));
  ASSERT_TRUE(status.ok()) << status.message();
}

/// Sealed: 7 pages of keys, 6 of values and 4 tokens of a seventh.
AsymKVCache filled(const char* policy, const CacheOptions& options = {}, const CacheShape& shape = kShape) {
  AsymKVCache cache = make_cache(policy, options, shape);
  const Tokens tokens(900, 3, shape);
  for (Index layer = 0; layer < shape.layers; ++layer)
    for (Index first = 0; first < 900; first += 100) append(cache, tokens, first, 100, layer);
  EXPECT_TRUE(cache.seal().ok());
  return cache;
}

template <class Quantizer>
RowMatrix quantized(const Quantizer& quantizer, const RowMatrix& x) {
  RowMatrix out(x.rows(), x.cols());
  EXPECT_TRUE(quantizer.dequantize(*quantizer.quantize(x), out).ok());
  return out;
}

TEST(Requantize, ReadsBackWhatTheQuantizersKeepOfWhatWasRead) {
  AsymKVCache cache = filled("k8v6");
  std::array<RowMatrix, kHeads> keys, values;
  for (Index head = 0; head < kHeads; ++head) {
    keys[std::size_t(head)] = read(cache, Side::keys, head, 0, 900);
    values[std::size_t(head)] = read(cache, Side::values, head, 0, 900);
  }
  requantize(cache, 0, 900, "k3g64v4");
  for (Index head = 0; head < kHeads; ++head) {
    const RowMatrix &k = keys[std::size_t(head)], &v = values[std::size_t(head)];
    EXPECT_TRUE(read(cache, Side::keys, head, 0, 896) == quantized(KeyQuantizer<3>(64), k.topRows(896)));
    EXPECT_TRUE(read(cache, Side::keys, head, 896, 4) == k.bottomRows(4));
    EXPECT_TRUE(read(cache, Side::values, head, 0, 768) == quantized(ValueQuantizer<4>(32), v.topRows(768)));
    EXPECT_TRUE(read(cache, Side::values, head, 768, 132) == v.bottomRows(132)) << "the open page, and the window";
    // and hence within half a step of their groups: 7 steps of 64 keys, 15 of 32 values
    const RowMatrix new_keys = read(cache, Side::keys, head, 0, 896),
                    new_values = read(cache, Side::values, head, 0, 768);
    for (Index t = 0; t < 896; t += 64)
      for (Index c = 0; c < kDim; ++c) {
        const auto group = k.col(c).segment(t, 64);
        EXPECT_LE((new_keys.col(c).segment(t, 64) - group).cwiseAbs().maxCoeff(),
                  (group.maxCoeff() - group.minCoeff()) / 7.0f * 0.51f);
      }
    for (Index t = 0; t < 768; ++t) {
      const auto group = v.row(t).head(32);
      EXPECT_LE((new_values.row(t).head(32) - group).cwiseAbs().maxCoeff(),
                (group.maxCoeff() - group.minCoeff()) / 15.0f * 0.51f);
    }
  }
}

const char* const kSmaller[] = {"k2v2",        "k1g64v3",   "k4g128fv4g128fcsr", "km2v1g128fcsr",
                                "km1v2g64fcr", "k3fcsv2fs", "k1g128v1g128"};

TEST(Requantize, ErrsByAStepOfTheNewFormat) {
  for (const char* own : {"k8v8", "k8v8g64fcr@5", "km6v6g128fcsr@1"}) {
    for (const char* smaller : kSmaller) {
      AsymKVCache cache = filled(own);
      std::vector<RowMatrix> before;
      for (Side side : {Side::keys, Side::values})
        for (Index head = 0; head < kHeads; ++head) before.push_back(read(cache, side, head, 0, 900));
      requantize(cache, 0, 900, smaller);
      // as much as tokens that are quantized so at once
      AsymKVCache direct = make_cache(smaller);
      auto old = before.begin();
      RowMatrix keys(900, kHeads * kDim), values = keys;
      for (Index head = 0; head < kHeads; ++head) {
        keys.middleCols(head * kDim, kDim) = before[std::size_t(head)];
        values.middleCols(head * kDim, kDim) = before[std::size_t(kHeads + head)];
      }
      ASSERT_TRUE(direct.append(0, tensor(keys, kHeads), tensor(values, kHeads)).ok() && direct.seal().ok());
      for (Side side : {Side::keys, Side::values})
        for (Index head = 0; head < kHeads; ++head, ++old) {
          const float error = (read(cache, side, head, 128, 640) - old->middleRows(128, 640)).norm();
          const float expected = (read(direct, side, head, 128, 640) - old->middleRows(128, 640)).norm();
          EXPECT_GT(error, 0.5f * expected) << own << " to " << smaller << " " << side_name(side);
          EXPECT_LT(error, 1.05f * expected + 1e-6f) << own << " to " << smaller << " " << side_name(side);
        }
    }
  }
}

/// Few rows and many, whole and in slices, against the reference over what reads back. `allowed` is for scores that
/// `queries` keep below about 1.
void expect_attention(AsymKVCache& cache, float factor, float allowed, const std::string& what) {
  const Index heads = 2 * cache.shape().kv_heads;
  for (Index queries : {1, 3, 70}) {
    const RowMatrix q = random_matrix(queries, heads * kDim, 5) * factor;
    RowMatrix output = RowMatrix::Constant(queries, heads * kDim, NAN), expected = output;
    const ConstTensor from = tensor(q, heads);
    ASSERT_TRUE(reference_attention(cache, 0, from, tensor(expected, heads)).ok());
    const auto error = [&] {
      return output.hasNaN() ? INFINITY
                             : (output - expected).cwiseAbs().maxCoeff() / (1.0f + expected.cwiseAbs().maxCoeff());
    };
    ASSERT_TRUE(cache.attend(0, from, tensor(output, heads)).ok());
    EXPECT_LE(error(), allowed) << what << ", " << queries << " queries";
    output.setConstant(NAN);
    ASSERT_TRUE(cache
                    .attend_parallel(0, from, tensor(output, heads), {},
                                     [](Index count, const auto& task) {
                                       for (Index i = count - 1; i >= 0; --i) task(i);
                                     })
                    .ok());
    EXPECT_LE(error(), allowed) << what << ", " << queries << " queries in slices";
  }
}

TEST(Requantize, AttentionIsOfWhatReadsBack) {
  CacheOptions options;
  options.threads = 3;
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    for (const char* own : {"k8v8", "km5v6g128fcr@5"})
      for (const char* smaller : {"k4g64v4", "k3fcsv2fs", "km2v1g128fcsr"}) {
        AsymKVCache cache = filled(own, options, {1, 1, kDim, kDim});
        const std::string what = own + std::string(" to ") + smaller + " " + isa_name(isa);
        requantize(cache, 0, 256, smaller);
        requantize(cache, 512, 640, smaller);
        expect_attention(cache, 0.03f, 2e-2f, what);
        requantize(cache, 128, 512, "k1v1g128fcsr");  // up to three formats, side by side
        expect_attention(cache, 0.02f, 5e-2f, what + ", some to one bit");
      }
  }
}

TEST(Requantize, BytesAreTheSameOnEveryInstructionSet) {
  for (const char* own : {"k8v8", "km6v6g128fcsr@3"})
    for (const char* smaller : kSmaller) {
      std::vector<unsigned char> expected;
      for (Isa isa : machine_isas()) {
        ForcedIsa forced(isa);
        AsymKVCache cache = filled(own);
        requantize(cache, 0, 600, smaller);
        requantize(cache, 256, 900, "km1.5v1");
        const std::vector<unsigned char> bytes = sealed_bytes(cache);
        if (expected.empty()) expected = bytes;
        EXPECT_TRUE(bytes == expected) << own << " to " << smaller << " " << isa_name(isa);
      }
    }
}

TEST(Requantize, ConcernsCompletePagesInsideTheRangeAlone) {
  for (const auto& [first, last, begin, end] : {std::array<Index, 4>{0, 900, 0, 7},
                                                {0, 896, 0, 7},
                                                {0, 895, 0, 6},
                                                {1, 900, 1, 7},
                                                {128, 256, 1, 2},
                                                {129, 255, 0, 0},
                                                {100, 400, 1, 3},
                                                {0, 0, 0, 0},
                                                {900, 900, 0, 0},
                                                {5, 127, 0, 0}}) {
    AsymKVCache cache = filled("k8v8");
    const RowMatrix keys = read(cache, Side::keys, 1, 0, 900), values = read(cache, Side::values, 1, 0, 900);
    requantize(cache, first, last, "k2v2");
    for (Side side : {Side::keys, Side::values}) {
      const PageTable& pages = cache.side(0, side).pages();
      const RowMatrix &before = side == Side::keys ? keys : values, after = read(cache, side, 1, 0, 900);
      for (Index page = 0; page < 7; ++page) {
        const bool concerned = page >= begin && page < end && (side == Side::keys || page < 6);
        EXPECT_EQ(pages.format(page).layout.format.bits, concerned ? 2 : 8)
            << first << ".." << last << " page " << page;
        const Index count = std::min<Index>(128, pages[page].count);
        EXPECT_EQ(after.middleRows(page * 128, count) == before.middleRows(page * 128, count), !concerned)
            << first << ".." << last << " page " << page;
      }
    }
  }
}

TEST(Requantize, LaterTokensAreSealedAsBefore) {
  const Tokens more(600, 9);
  for (const char* own : {"k4v4", "k4g64v4g64@9", "balanced-1.7"}) {
    AsymKVCache cache = filled(own), plain = filled(own);
    requantize(cache, 0, 900, "km1v1g128fcs");
    for (AsymKVCache* each : {&cache, &plain}) append_in_chunks(*each, more, 0, 600, 70);
    for (AsymKVCache* each : {&cache, &plain}) ASSERT_TRUE(each->seal().ok());
    if (std::strcmp(own, "balanced-1.7") != 0) {  // whose widths follow those of the page before
      EXPECT_TRUE(read(cache, Side::keys, 1, 896, 604) == read(plain, Side::keys, 1, 896, 604)) << own;
    }
    EXPECT_TRUE(read(cache, Side::values, 1, 768, 732) == read(plain, Side::values, 1, 768, 732)) << own;
    for (Side side : {Side::keys, Side::values}) {
      const PageTable &pages = cache.side(0, side).pages(), &others = plain.side(0, side).pages();
      ASSERT_EQ(pages.size(), others.size());
      for (Index page = side == Side::keys ? 7 : 6; page < pages.size(); ++page) {
        EXPECT_EQ(pages[page].first, others[page].first);
        EXPECT_EQ(pages[page].count, others[page].count);
        EXPECT_EQ(pages[page].format, 0);
      }
    }
  }
}

TEST(Requantize, AgainAndToMoreBits) {
  AsymKVCache cache = filled("k8v8");
  const CacheBytes full = cache.bytes();
  requantize(cache, 0, 900, "k4v4");
  const std::vector<unsigned char> four = sealed_bytes(cache);
  const CacheBytes half = cache.bytes();
  EXPECT_LT(half.keys, full.keys);
  for (const char* same : {"k4v4", "k8v8", "k6v5", "k16v32", "float"}) {
    requantize(cache, 0, 900, same);
    EXPECT_TRUE(sealed_bytes(cache) == four) << same;
  }
  const RowMatrix keys = read(cache, Side::keys, 0, 0, 896);
  requantize(cache, 0, 900, "k2v16");
  EXPECT_TRUE(read(cache, Side::keys, 0, 0, 896) == quantized(KeyQuantizer<2>(), keys));
  EXPECT_EQ(cache.bytes().values, half.values);
  AsymKVCache twice = filled("k8v8"), direct = filled("k8v8");
  requantize(twice, 0, 900, "k1v1");
  requantize(direct, 0, 900, "k1v1");
  requantize(twice, 0, 900, "k1v1");
  EXPECT_TRUE(sealed_bytes(twice) == sealed_bytes(direct));
}

TEST(Requantize, ASideHasPagesOfFourFormatsAtMost) {
  AsymKVCache cache = filled("k8v8");
  requantize(cache, 0, 128, "k6v6");
  requantize(cache, 128, 256, "k5v5");
  requantize(cache, 256, 384, "k4v4");
  const std::vector<std::uint32_t> seen = everything_seen(cache);
  const CacheBytes bytes = cache.bytes();
  expect_error(cache.requantize(384, 512, policy_of("k3v4")), ErrorCode::unsupported, "policy: layer 0");
  expect_error(cache.requantize(384, 512, policy_of("k4v3")), ErrorCode::unsupported, "policy: layer 0");
  EXPECT_EQ(cache.bytes().total(), bytes.total());
  EXPECT_TRUE(everything_seen(cache) == seen);
  for (Index last : {0, 100, 127}) requantize(cache, 0, last, "k3v3");  // concerns no page
  EXPECT_TRUE(everything_seen(cache) == seen);
  requantize(cache, 0, 512, "k4v4");  // is there; and now two are free
  requantize(cache, 512, 640, "k3v3");
  requantize(cache, 640, 768, "k2v2");
  expect_attention(cache, 0.02f, 5e-2f, "four formats");
}

TEST(Requantize, FormatsOfNoPageDoNotCount) {
  AsymKVCache cache = filled("k8v8");
  for (const char* smaller : {"k6v6", "k5v5", "k4v4", "k3v3", "k2v2", "k1v1"}) requantize(cache, 0, 900, smaller);
  EXPECT_EQ(cache.side(0, Side::keys).pages().format(0).layout.format.bits, 1);
  ASSERT_TRUE(cache.trim(0).ok());
  append_in_chunks(cache, Tokens(900, 5), 0, 900, 100);
  ASSERT_TRUE(cache.seal().ok());
  Index first = 0;
  for (const char* smaller : {"k6v5", "k5v4", "k4v3"}) {
    requantize(cache, first, first + 128, smaller);
    first += 128;
  }
  expect_attention(cache, 0.02f, 2e-2f, "filled again");
}

TEST(Requantize, OfEachLayerAsThePolicySays) {
  const CacheShape shape{2, kHeads, kDim, kDim};
  AsymKVCache cache = filled("0:k8v8+1:k16v8", {}, shape);
  ASSERT_TRUE(cache.requantize(0, 900, policy_of("0:k2v16+1:k2v3", 2)).ok());
  EXPECT_EQ(cache.side(0, Side::keys).pages().format(0).layout.format.bits, 2);
  EXPECT_EQ(cache.side(0, Side::values).pages().format(0).layout.format.bits, 8);
  EXPECT_EQ(cache.side(1, Side::keys).pages().size(), 0);
  EXPECT_EQ(cache.side(1, Side::values).pages().format(0).layout.format.bits, 3);
}

TEST(Requantize, WrongArgumentsChangeNothing) {
  AsymKVCache cache = filled("k8v8");
  const std::vector<unsigned char> before = sealed_bytes(cache);
  const AsymKVPolicy policy = policy_of("k2v2");
  expect_error(cache.requantize(0, 900, policy_of("k2v2", 2)), ErrorCode::invalid_argument, "policy: is for 2 layers");
  EXPECT_EQ(cache.requantize_bytes(0, 900, policy_of("k2v2", 2)), 0);
  for (const auto& [first, last] : {std::pair<Index, Index>(-1, 5), {0, 901}, {6, 5}, {901, 901}})
    expect_error(cache.requantize(first, last, policy), ErrorCode::out_of_range, "first, last: are");
  EXPECT_TRUE(sealed_bytes(cache) == before);
  const CacheShape wide{1, 1, 288, 32};
  AsymKVCache wide_cache = filled("k8v8", {}, wide);
  const std::vector<unsigned char> wide_before = sealed_bytes(wide_cache);
  expect_error(wide_cache.requantize(0, 900, policy_of("km2v2")), ErrorCode::unsupported, "policy: layer 0 has mixed");
  EXPECT_TRUE(sealed_bytes(wide_cache) == wide_before);
  AsymKVCache moved = std::move(cache);
  expect_error(cache.requantize(0, 0, policy), ErrorCode::invalid_argument, "policy");
}

TEST(Requantize, MagnitudesBeyondTheFormatAreRefused) {
  Tokens tokens(500, 3);
  tokens.values(7, 3) = 30000.0f;
  AsymKVCache cache = make_cache("k4v4");
  append(cache, tokens, 0, 500);
  ASSERT_TRUE(cache.seal().ok());
  const std::vector<std::uint32_t> seen = everything_seen(cache);
  for (const char* smaller : {"k2v2fs", "k2v2g128fcr"}) {  // the keys' part would do
    expect_error(cache.requantize(0, 500, policy_of(smaller)), ErrorCode::overflow, "policy: values of layer 0");
    EXPECT_TRUE(everything_seen(cache) == seen);
  }
  requantize(cache, 0, 500, "k2v2");
  // rounded up, what was within a limit may read back beyond it
  Tokens large(500, 4);
  for (Index t = 0; t < 500; ++t) large.keys(t, 0) = large.values(t, 0) = t % 2 == 0 ? 22999.0f : -22999.0f;
  AsymKVCache edge = make_cache("k4v4");
  append(edge, large, 0, 500);
  ASSERT_TRUE(edge.seal().ok());
  requantize(edge, 0, 500, "k2fsv2fs");
  EXPECT_TRUE(read(edge, Side::keys, 0, 0, 384).allFinite() && read(edge, Side::values, 0, 0, 256).allFinite());
}

/// Counts what is asked of a pool's allocator.
struct CountingPool {
  Allocator pool;
  Index blocks = 0;  ///< handed out
  Allocator allocator() {
    Allocator a;
    a.context = this;
    a.allocate = [](void* context, std::size_t bytes) -> void* {
      auto* self = static_cast<CountingPool*>(context);
      void* const memory = self->pool.allocate(self->pool.context, bytes);
      self->blocks += memory != nullptr;
      return memory;
    };
    a.deallocate = [](void* context, void* memory, std::size_t bytes) {
      auto* self = static_cast<CountingPool*>(context);
      --self->blocks;
      self->pool.deallocate(self->pool.context, memory, bytes);
    };
    a.shrink = [](void* context, void* memory, std::size_t bytes, std::size_t fewer) {
      auto* self = static_cast<CountingPool*>(context);
      return self->pool.shrink(self->pool.context, memory, bytes, fewer);
    };
    return a;
  }
};

TEST(Requantize, AFullPoolGetsTheDifferenceBack) {
  constexpr Index budget = Index(4) << 20;
  Result<PagePool> pool = PagePool::create({budget, budget, Allocator()});
  ASSERT_TRUE(pool.ok());
  CountingPool counting{pool->allocator()};
  CacheOptions options;
  options.allocator = counting.allocator();
  AsymKVCache cache = filled("k8v8", options), same = filled("k8v8");
  std::vector<Buffer> rest;
  for (Index bytes : {1 << 20, 1 << 16, 1 << 12, 64})
    for (;;) {
      Buffer block;
      if (!block.allocate(bytes, pool->allocator())) break;
      rest.push_back(std::move(block));
    }
  const Index used = pool->bytes(), blocks = counting.blocks;
  const CacheBytes before = cache.bytes();
  EXPECT_EQ(cache.requantize_bytes(0, 900, policy_of("k2v3")), 0);
  requantize(cache, 0, 900, "k2v3");
  requantize(same, 0, 900, "k2v3");
  EXPECT_EQ(counting.blocks, blocks);
  EXPECT_TRUE(sealed_bytes(cache) == sealed_bytes(same));
  EXPECT_TRUE(everything_seen(cache) == everything_seen(same));
  const auto panel = [](const AsymKVCache& of, Side side, Index page) {
    return of.side(0, side).pages().format(page).panel_bytes;
  };
  const AsymKVCache fresh = filled("k8v8");
  const Index saved = kHeads * (7 * (panel(fresh, Side::keys, 0) - panel(cache, Side::keys, 0)) +
                                6 * (panel(fresh, Side::values, 0) - panel(cache, Side::values, 0)));
  EXPECT_EQ(used - pool->bytes(), saved);
  EXPECT_EQ(before.total() - cache.bytes().total(), saved);
  Buffer block;
  EXPECT_TRUE(block.allocate(panel(cache, Side::keys, 0), pool->allocator())) << "others can have it";
}

TEST(Requantize, WithoutShrinkingASmallerBlockIsTakenWhereThereIsOne) {
  const AsymKVPolicy policy = policy_of("k2v3");
  AsymKVCache expected = filled("k8v8");
  requantize(expected, 0, 900, "k2v3");
  const std::vector<std::uint32_t> seen = everything_seen(expected);
  AsymKVCache untouched = filled("k8v8");
  for (Index fail : {Index(-1), Index(0), Index(1), Index(2), Index(5)}) {
    CountingAllocator counting;
    CacheOptions options;
    options.allocator = counting.allocator();
    {
      AsymKVCache cache = filled("k8v8", options);
      counting.fail_at = fail < 0 ? -1 : counting.calls + fail;
      const Status status = cache.requantize(0, 900, policy);
      counting.fail_at = -1;
      EXPECT_EQ(cache.bytes().total(), counting.bytes) << fail;
      if (fail == 0 ||
          fail == 1) {  // not a block for each side's first page to move to: bits would be lost for nothing
        expect_error(status, ErrorCode::out_of_memory, "requantize");
        EXPECT_TRUE(everything_seen(cache) == everything_seen(untouched)) << fail;
      } else {
        EXPECT_TRUE(everything_seen(cache) == seen) << fail;
        EXPECT_TRUE(sealed_bytes(cache) == sealed_bytes(expected)) << fail;
      }
      requantize(cache, 0, 900, "k2v3");  // what there was no block for
      EXPECT_EQ(cache.bytes().total(), counting.bytes) << fail;
      EXPECT_EQ(cache.bytes().keys, expected.bytes().keys);
      EXPECT_EQ(cache.bytes().values, expected.bytes().values);
      AsymKVCache fork = *cache.fork();
      append(fork, Tokens(300, 7), 0, 300);
      ASSERT_TRUE(cache.requantize(0, 900, policy_of("k1v1")).ok());
    }
    EXPECT_EQ(counting.bytes, 0) << fail;
  }
}

TEST(Requantize, SharedPagesAreCopied) {
  for (const char* smaller : {"k2v3", "km2v1g128fcsr"}) {
    CountingAllocator counting;
    CacheOptions options;
    options.allocator = counting.allocator();
    AsymKVCache cache = filled("k8v8@3", options), alone = filled("k8v8@3");
    requantize(alone, 0, 640, smaller);
    const Index first_bytes = counting.bytes;
    requantize(cache, 256, 384, smaller);  // of the cache alone still, then shared
    Index bytes = counting.bytes;
    EXPECT_LT(bytes, first_bytes);
    AsymKVCache fork = *cache.fork();
    const std::vector<unsigned char> sealed = sealed_bytes(fork);
    const std::vector<std::uint32_t> seen = everything_seen(fork);
    bytes = counting.bytes;
    const AsymKVPolicy policy = policy_of(smaller);
    const Index extra = cache.requantize_bytes(0, 640, policy);
    EXPECT_GT(extra, 0);
    const Index calls = counting.calls;
    ASSERT_TRUE(cache.requantize(0, 640, policy).ok());
    // 4 pages of either side, and the two arrays that held them, which are back
    EXPECT_EQ(counting.calls - calls, 2 * (4 + 1));
    EXPECT_EQ(counting.bytes - bytes, extra - 8 * Index(sizeof(SharedBuffer)));
    EXPECT_TRUE(sealed_bytes(cache) == sealed_bytes(alone)) << smaller;
    EXPECT_TRUE(everything_seen(cache) == everything_seen(alone)) << smaller;
    EXPECT_TRUE(sealed_bytes(fork) == sealed) << smaller;
    EXPECT_TRUE(everything_seen(fork) == seen) << smaller;
    EXPECT_EQ(cache.requantize_bytes(0, 640, policy), 0);
    requantize(fork, 0, 640, smaller);  // the last that holds them: in place
    EXPECT_TRUE(everything_seen(fork) == everything_seen(alone)) << smaller;
    EXPECT_EQ(fork.bytes().shared, cache.bytes().shared);
  }
}

TEST(Requantize, WithoutMemoryForCopiesNothingChanges) {
  const CacheShape shape{2, kHeads, kDim, kDim};
  const AsymKVPolicy policy = policy_of("k2v3", 2);
  AsymKVCache expected = filled("k8v8", {}, shape);
  ASSERT_TRUE(expected.requantize(0, 640, policy).ok());
  const std::vector<std::uint32_t> after = everything_seen(expected);
  CountingAllocator counting;
  CacheOptions options;
  options.allocator = counting.allocator();
  AsymKVCache original = filled("k8v8", options, shape);
  const std::vector<std::uint32_t> seen = everything_seen(original);
  int fail = 0;
  for (bool done = false; !done; ++fail) {
    ASSERT_LT(fail, 100);
    AsymKVCache cache = *original.fork();
    const CacheBytes bytes = cache.bytes();
    const Index held = counting.bytes;
    counting.fail_at = counting.calls + fail;
    const Status status = cache.requantize(0, 640, policy);
    counting.fail_at = -1;
    done = status.ok();
    EXPECT_TRUE(everything_seen(original) == seen) << fail;
    EXPECT_TRUE(everything_seen(cache) == (done ? after : seen)) << fail;
    if (done) continue;
    EXPECT_EQ(status.code(), ErrorCode::out_of_memory);
    EXPECT_EQ(counting.bytes, held) << fail;
    EXPECT_EQ(cache.bytes().total(), bytes.total()) << fail;
    EXPECT_EQ(cache.bytes().keys, bytes.keys) << fail;
  }
  EXPECT_EQ(fail, 2 * 2 * (5 + 1) + 1);
}

TEST(Requantize, TrimsIntoRequantizedPages) {
  const Tokens more(700, 8);
  for (const char* own : {"k8v8", "k8v6g64@6"})
    for (Index cut : {3, 64, 128, 200, 256, 300, 512, 640, 700}) {
      AsymKVCache cache = filled(own);
      requantize(cache, 0, 640, "k3v2g64");
      const RowMatrix keys = read(cache, Side::keys, 1, 0, cut), values = read(cache, Side::values, 1, 0, cut);
      AsymKVCache fork = *cache.fork();
      const std::vector<std::uint32_t> seen = everything_seen(fork);
      ASSERT_TRUE(cache.trim(cut).ok());
      append_in_chunks(cache, more, 0, 700, 90);
      ASSERT_TRUE(cache.seal().ok());
      EXPECT_TRUE(read(cache, Side::keys, 1, 0, cut) == keys) << own << " " << cut;
      EXPECT_TRUE(read(cache, Side::values, 1, 0, cut) == values) << own << " " << cut;
      const auto error = [&](Side side, const RowMatrix& truth) {
        return (read(cache, side, 1, cut, 700) - truth.middleCols(kDim, kDim)).norm() /
               truth.middleCols(kDim, kDim).norm();
      };
      EXPECT_LT(error(Side::keys, more.keys), 0.02f) << own << " " << cut;
      EXPECT_LT(error(Side::values, more.values), 0.05f) << own << " " << cut;
      expect_attention(cache, 0.03f, 1e-2f, own + std::string(" cut at ") + std::to_string(cut));
      requantize(cache, 0, cache.length(), "k3v2g64");
      expect_attention(cache, 0.03f, 2e-2f, own + std::string(" again, cut at ") + std::to_string(cut));
      EXPECT_TRUE(everything_seen(fork) == seen) << own << " " << cut;
    }
}

TEST(Requantize, TokensThatMayComeBackStay) {
  const Tokens tokens(900, 3), drafts(100, 4);
  for (const char* own : {"k8v8", "k8v8@3"})
    for (Index most : {4, 90}) {
      CacheOptions options;
      options.residual_length = 32;
      options.rollback_tokens = most;
      AsymKVCache cache = make_cache(own, options);
      options.rollback_tokens = 0;
      AsymKVCache plain = make_cache(own, options);
      for (AsymKVCache* each : {&cache, &plain}) append_in_chunks(*each, tokens, 0, 708, 1);
      append_in_chunks(cache, drafts, 0, most, 1);
      requantize(cache, 0, cache.length(), "k2v2");
      ASSERT_TRUE(cache.trim(708).ok());
      for (AsymKVCache* each : {&cache, &plain}) append_in_chunks(*each, tokens, 708, 900, 1);
      for (Side side : {Side::keys, Side::values}) {
        const PageTable& pages = cache.side(0, side).pages();
        Index page = 0;
        while (page < pages.size() && pages[page].format != 0) ++page;
        // page 5 ends at 768; what precedes the drafts by R and more is sealed for good
        EXPECT_GE(page, (708 - 32 - 33) / 128) << own;
        EXPECT_LE(page, 5) << own;
        const Index first = pages[page].first;
        EXPECT_TRUE(read(cache, side, 1, first, 900 - first) == read(plain, side, 1, first, 900 - first)) << own;
        for (; page < pages.size(); ++page) EXPECT_EQ(pages[page].format, 0) << own;
      }
    }
}

TEST(Requantize, InSlidingWindows) {
  AsymKVCache cache = filled("k8v8@4");
  ASSERT_TRUE(cache.remove_front(0, 300).ok());
  requantize(cache, 0, 900, "k3v3");
  EXPECT_EQ(cache.side(0, Side::keys).pages().format(0).layout.format.bits, 3);
  expect_attention(cache, 0.03f, 1e-2f, "after remove_front");
  ASSERT_TRUE(cache.remove_front(0, 512).ok());
  append_in_chunks(cache, Tokens(500, 6), 0, 500, 50);
  expect_attention(cache, 0.03f, 1e-2f, "and on");
}

}  // namespace
