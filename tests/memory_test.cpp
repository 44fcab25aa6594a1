// The library's manners with memory: it touches nothing beside the caller's tensors and its own blocks, and asks for
// memory only to keep tokens, only from the caller's allocator.
#include "support/cache.hpp"
#include "support/guarded.hpp"
#include "support/heap_count.hpp"

namespace {

using namespace asymkv;
using namespace support;

TEST(Guard, OneElementTooFarIsAFault) {
  Guarded<float> before(3, 5, Edge::begin), after(3, 5, Edge::end);
  volatile float* const first = before.matrix().data();
  volatile float* const last = after.matrix().data() + 14;
  *first = *last = 1.0f;
  EXPECT_DEATH(*(first - 1) = 1.0f, "");
  EXPECT_DEATH(*(last + 1) = 1.0f, "");
}

/// What a cache answers when all its tensors are of type T, by each kind of reader: few query rows, many, read back.
struct Answers {
  RowMatrix few, many, keys, values;
};

constexpr Index kTokens = 179;

/// Asks a cache with every tensor at the edge of its pages.
template <class T>
Answers answers_at(Edge edge, const char* policy, const CacheShape& shape, const CacheOptions& options) {
  AsymKVCache cache = make_cache(policy, options, shape);
  const Index heads = 2 * shape.kv_heads;
  const Tokens tokens(kTokens, 5, shape);
  Index first = 0;
  for (Index count : {1, 130, 31, 17}) {
    Guarded<T> keys(tokens.keys.middleRows(first, count), edge), values(tokens.values.middleRows(first, count), edge);
    EXPECT_TRUE(cache.append(0, tensor(keys.matrix(), shape.kv_heads), tensor(values.matrix(), shape.kv_heads)).ok());
    first += count;
  }
  const auto attend = [&](Index count) {
    Guarded<T> queries(random_matrix(count, heads * shape.key_dim, 9), edge), out(count, heads * shape.value_dim, edge);
    EXPECT_TRUE(cache.attend(0, tensor(queries.matrix(), heads), tensor(out.matrix(), heads)).ok());
    return RowMatrix(out.matrix().template cast<float>());
  };
  const auto read_back = [&](Side side, Index dim) {
    Guarded<T> out(150, dim, edge);
    EXPECT_TRUE(
        (side == Side::keys ? cache.keys(0, 1, 29, tensor(out.matrix())) : cache.values(0, 1, 29, tensor(out.matrix())))
            .ok());
    return RowMatrix(out.matrix().template cast<float>());
  };
  return {attend(1), attend(17), read_back(Side::keys, shape.key_dim), read_back(Side::values, shape.value_dim)};
}

template <class T>
void nothing_beyond_the_edges(const char* policy, Index residual_length, Index dim) {
  const CacheShape shape{1, 2, dim, dim};
  const Answers expected = answers_at<T>(Edge::begin, policy, shape, {residual_length, 0, Allocator()});
  for (Edge edge : {Edge::begin, Edge::end}) {
    const Answers answers = answers_at<T>(edge, policy, shape, {residual_length, 0, guarded_allocator()});
    EXPECT_EQ(answers.few, expected.few) << policy << " dim " << dim;
    EXPECT_EQ(answers.many, expected.many) << policy << " dim " << dim;
    EXPECT_EQ(answers.keys, expected.keys) << policy << " dim " << dim;
    EXPECT_EQ(answers.values, expected.values) << policy << " dim " << dim;
  }
}

TEST(Guard, TensorsAndBlocksMayTouchForbiddenPages) {
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    for (const auto& [policy, residual_length] :
         {std::pair<const char*, Index>{"k2v3", 32}, {"k8v1", 32}, {"k16v32", 32}, {"km2v1g128fcsr", 128}})
      for (Index dim : {40, 64, 100}) {
        nothing_beyond_the_edges<float>(policy, residual_length, dim);
        nothing_beyond_the_edges<Eigen::half>(policy, residual_length, dim);
        nothing_beyond_the_edges<Eigen::bfloat16>(policy, residual_length, dim);
      }
  }
}

TEST(Heap, CountsEveryRoadToIt) {
  const auto counted = [](auto request) {
    const long before = heap_requests();
    request();
    return heap_requests() - before;
  };
  void* volatile seen;  // so that no request is optimized away
  EXPECT_EQ(counted([&] { std::free(seen = std::malloc(100)); }), 1);
  EXPECT_EQ(counted([&] { std::free(seen = std::calloc(10, 10)); }), 1);
  EXPECT_EQ(counted([&] { seen = std::vector<int>(100).data(); }), 1);
  EXPECT_EQ(counted([&] { seen = RowMatrix(10, 10).data(); }), 1);
  EXPECT_EQ(counted([&] {
              const Allocator allocator;
              allocator.deallocate(nullptr, seen = allocator.allocate(nullptr, 64), 64);
            }),
            1);
}

/// Pages of all sides of all layers.
Index pages_of(const AsymKVCache& cache) {
  Index pages = 0;
  for (Index layer = 0; layer < cache.shape().layers; ++layer)
    for (Side side : {Side::keys, Side::values}) pages += cache.side(layer, side).pages().size();
  return pages;
}

TEST(Heap, DecodingAsksForPagesAndNothingElse) {
  constexpr CacheShape shape{2, kHeads, kDim, kDim};
  constexpr Index steps = 1000, heads = 3 * kHeads;
  const AsymKVPolicy policy = *AsymKVPolicy::parse("k2v1", 2);
  const Tokens tokens(steps, 3, shape);
  const RowMatrix queries = random_matrix(steps, heads * kDim, 4);
  RowMatrix output(1, heads * kDim), keys(128, kDim);
  const long before = heap_requests();
  CountingAllocator counting;
  {
    auto cache = AsymKVCache::create(shape, policy, {128, 0, counting.allocator()});
    ASSERT_TRUE(cache.ok());
    for (Index layer : {0, 1}) append(*cache, tokens, 0, 1, layer);
    const Index calls = counting.calls;
    Index failed = 0;
    long attending = 0;
    for (Index step = 1; step < steps; ++step)
      for (Index layer : {0, 1}) {
        failed += !try_append(*cache, tokens, step, 1, layer).ok();
        const long requests = heap_requests();
        failed += !cache->attend(layer, tensor(queries.row(step), heads), tensor(output, heads)).ok();
        attending += heap_requests() - requests;
      }
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(attending, 0);
    const Index doublings = 2 * 2 * 4;  // of the four page tables: to 1, 2, 4, 8 pages
    EXPECT_EQ(pages_of(*cache), 2 * (7 + 7));
    EXPECT_LE(counting.calls - calls, pages_of(*cache) + doublings);
    EXPECT_TRUE(cache->seal().ok() && cache->keys(0, 1, 300, tensor(keys)).ok() && cache->trim(500).ok());
    cache->clear();
  }
  EXPECT_EQ(heap_requests() - before, counting.calls);
}

TEST(Heap, PrefillAttentionAsksForNothing) {
  for (const char* policy : {"k2v1", "k16v32"}) {
    AsymKVCache cache = make_cache(policy);
    append(cache, Tokens(400, 1), 0, 400);
    const RowMatrix queries = random_matrix(400, 4 * kDim, 2);
    RowMatrix output(400, 4 * kDim);
    const long before = heap_requests();
    EXPECT_TRUE(cache.attend(0, tensor(queries, 4), tensor(output, 4)).ok());
    EXPECT_EQ(heap_requests(), before);
  }
}

constexpr CacheShape kLongShape{2, 2, 64, 64};
constexpr Index kLongTokens = 16384, kRow = 2 * 64 * Index(sizeof(float));  // of a token of one side of one layer

/// How a prompt comes.
struct ChunkTrial {
  Index residual_length, rollback_tokens, chunk;
};

/// The bound that AsymKVCache states, for k2v2, whose groups of 32 take 3 bits an element.
Index most_bytes(const ChunkTrial& trial, Index tokens, const CacheBytes& bytes) {
  const Index r = trial.residual_length, k = trial.rollback_tokens > 0 ? trial.rollback_tokens + r : 0;
  const Index window = kRow * (r + k + (trial.chunk < r ? r + std::max<Index>(32, trial.chunk) : trial.chunk));
  const Index pages = (tokens + page_tokens - 1) / page_tokens, page = 2 * 64 * page_tokens * 3 / 8;
  const Index former_table = pages * Index(sizeof(Page));  // while a table grows
  return 2 * 2 * (pages * page + window) + 2 * window + bytes.scratch + bytes.tables + former_table;
}

/// The most that the allocator handed out at once while a prompt came in chunks.
Index peak_of_prefill(const ChunkTrial& trial) {
  CountingAllocator counting;
  CacheOptions options;
  options.residual_length = trial.residual_length;
  options.rollback_tokens = trial.rollback_tokens;
  options.allocator = counting.allocator();
  AsymKVCache cache = make_cache("k2v2", options, kLongShape);
  const Tokens tokens(trial.chunk, 1, kLongShape);
  for (Index fed = 0; fed < kLongTokens; fed += trial.chunk) {
    const Index count = std::min(trial.chunk, kLongTokens - fed);
    for (Index layer : {0, 1}) append(cache, tokens, 0, count, layer);
    EXPECT_LE(counting.peak, most_bytes(trial, fed + count, cache.bytes()))
        << fed + count << " tokens in chunks of " << trial.chunk;
  }
  EXPECT_EQ(counting.bytes, cache.bytes().total());
  return counting.peak;
}

TEST(Prefill, NeedsNoDenseCopyOfItself) {
  const Index dense = 2 * 2 * kRow * kLongTokens;
  const Index peak = peak_of_prefill({128, 0, 512});
  EXPECT_LT(peak, dense / 6);
  CacheBytes none;
  EXPECT_GT(peak, most_bytes({128, 0, 512}, kLongTokens, none) / 5 * 4);  // the bound is not far off
  EXPECT_GE(peak_of_prefill({128, 0, kLongTokens}), dense);               // at once it does
}

TEST(Prefill, TakesNoMoreThanIsStated) {
  for (const ChunkTrial& trial : {ChunkTrial{128, 8, 512},
                                  {32, 0, 512},
                                  {32, 5, 500},
                                  {128, 0, 100},
                                  {128, 40, 127},
                                  {256, 0, 256},
                                  {256, 9, 300},
                                  {128, 3, 7},
                                  {32, 0, 1}})
    peak_of_prefill(trial);
}

/// The most that the allocator handed out at once while a cache grew so, and was sealed.
template <class Cache>
Index peak_of_growth(Cache& cache, const CountingAllocator& counting, const Growth& growth) {
  const CacheShape& shape = cache.shape();
  const Tokens tokens(std::max<Index>(growth.chunk, 1), 1, shape);
  const auto append_step = [&](Index count) {
    using Halves = Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const RowMatrix keys = tokens.keys.topRows(count), values = tokens.values.topRows(count);
    const Halves half_keys = keys.cast<Eigen::half>(), half_values = values.cast<Eigen::half>();
    for (Index layer = 0; layer < shape.layers; ++layer) {
      const Status status =
          growth.type == ScalarType::f32
              ? cache.append(layer, tensor(keys, shape.kv_heads), tensor(values, shape.kv_heads))
              : cache.append(layer, tensor(half_keys, shape.kv_heads), tensor(half_values, shape.kv_heads));
      EXPECT_TRUE(status.ok()) << status.message();
    }
  };
  for (Index fed = 0; fed < growth.prompt; fed += growth.chunk)
    append_step(std::min(growth.chunk, growth.prompt - fed));
  for (Index i = 0; i < growth.decoded; ++i) append_step(1);
  EXPECT_TRUE(cache.seal().ok());
  return counting.peak;
}

const Growth kGrowths[] = {
    {0, 1, 0},   {1, 1, 0},     {128, 128, 0}, {700, 512, 300}, {1000, 64, 0},
    {0, 1, 700}, {513, 171, 1}, {300, 7, 40},  {2000, 999, 2},  {400, 100, 300, ScalarType::f16}};

TEST(BytesRequired, AreWhatTheAllocatorHandsOutAtMost) {
  constexpr CacheShape shape{2, 2, 48, 80};
  for (const char* policy : {"k2v2", "k4v1@5", "balanced-1.7", "0-0:k16v2+1-1:k3v32@128", "float"})
    for (const auto& [residual, rollback] : {std::pair<Index, Index>(128, 0), {256, 9}})
      for (const Growth& growth : kGrowths) {
        CountingAllocator counting;
        CacheOptions options;
        options.residual_length = residual;
        options.rollback_tokens = rollback;
        options.threads = 2;
        options.allocator = counting.allocator();
        const AsymKVPolicy formats = *AsymKVPolicy::parse(policy, 2);
        const auto required = AsymKVCache::bytes_required(shape, formats, options, growth);
        ASSERT_TRUE(required.ok()) << required.status().message();
        AsymKVCache cache = make_cache(policy, options, shape);
        EXPECT_EQ(*required, peak_of_growth(cache, counting, growth))
            << policy << " R " << residual << " prompt " << growth.prompt << " by " << growth.chunk << ", then "
            << growth.decoded;
      }
}

TEST(BytesRequired, OfDenseCachesWithSharedWorkspaces) {
  constexpr CacheShape shape{3, 2, 48, 80};
  CountingAllocator counting;
  CacheOptions options;
  options.reserve_tokens = 500;
  options.workspace = *Workspace::create(shape, 3);
  options.allocator = counting.allocator();
  for (const Growth& growth : kGrowths) {
    counting.peak = 0;
    auto cache = DenseKVCache<Eigen::bfloat16>::create(shape, options);
    ASSERT_TRUE(cache.ok());
    EXPECT_EQ(cache->threads(), 3);
    EXPECT_EQ(*DenseKVCache<Eigen::bfloat16>::bytes_required(shape, options, growth),
              peak_of_growth(*cache, counting, growth));
  }
}

TEST(BytesRequired, MoreThanCanBeCountedIsRefused) {
  CacheOptions options;
  options.reserve_tokens = Index(1) << 32;
  const auto required = DenseKVCache<float>::bytes_required({65536, 65536, 1024, 1024}, options, {1, 1, 0});
  expect_error(required.status(), ErrorCode::out_of_range, "growth");
  EXPECT_GT(*DenseKVCache<float>::bytes_required({1, 65536, 1024, 1024}, options, {1, 1, 0}), Index(1) << 60);
}

TEST(BytesRequired, WrongNumbersAreRefused) {
  const AsymKVPolicy policy = *AsymKVPolicy::parse("k2v2", 1);
  const auto refuse = [&](const CacheShape& shape, const CacheOptions& options, const Growth& growth,
                          const char* name) {
    expect_error(AsymKVCache::bytes_required(shape, policy, options, growth).status(), ErrorCode::invalid_argument,
                 name);
  };
  refuse(kShape, {}, {-1}, "growth");
  refuse(kShape, {}, {10, 0}, "growth");
  refuse(kShape, {}, {10, 1, -1}, "growth");
  refuse(kShape, {}, {Index(1) << 32, 1, 1}, "growth");
  refuse({2, 1, 8, 8}, {}, {}, "policy");
  refuse({1, 0, 8, 8}, {}, {}, "shape");
  CacheOptions options;
  options.residual_length = 100;
  refuse(kShape, options, {}, "options: residual_length");
  options = {};
  options.workspace = *Workspace::create({1, 1, 8, 8});
  refuse(kShape, options, {}, "options: workspace");
  expect_error(AsymKVCache::create(kShape, policy, options).status(), ErrorCode::invalid_argument,
               "options: workspace");
}

}  // namespace
