// Attention cut into slices for several threads: right however it is cut, the same whoever does which slice when, and
// nothing written when an argument is wrong.
#include <asymkv/thread_pool.hpp>
#include <numeric>

#include "support/attention_trial.hpp"
#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

/// {2, 2, ...}: both packed; lengths of less and of more spans than threads, rows of one block and of several.
std::vector<AttentionCase> sliced_cases() {
  std::vector<AttentionCase> cases;
  for (Index threads : {2, 3, 5, 8, 64})
    for (Index heads : {1, 3}) {
      cases.push_back({2, 1, 32, heads, 2 * heads, 64, 64, 1000, 1, 64, 0, threads});
      cases.push_back({2, 3, 32, heads, heads, 32, 48, 100, 2, 64, 0, threads});
      cases.push_back({4, 4, 32, heads, 4 * heads, 32, 32, 700, 150, 64, 0, threads});
      cases.push_back({32, 2, 32, heads, heads, 32, 32, 900, 7, 64, 300, threads});
      cases.push_back({2, 2, 32, heads, heads, 32, 32, 1, 1, 64, 0, threads});
    }
  return cases;
}

TEST(Slices, EqualTheOracle) {
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    for (const AttentionCase& c : sliced_cases()) {
      AttentionTrial trial(c);
      auto cache = cache_of(c);
      ASSERT_TRUE(cache.ok()) << cache.status().message();
      const Comparison comparison = trial.compare(trial.attend<float>(*cache));
      EXPECT_EQ(comparison.outside, 0) << isa_name(isa) << " " << c << ": error " << comparison.worst << " bounds";
    }
  }
}

/// A cache that has been trimmed into its pages, with sinks and rotated values, and queries for it.
struct Decoding {
  static constexpr CacheShape shape{1, 3, 32, 48};
  static constexpr Index heads = 6;
  Tokens tokens{900, 5, shape};
  RowMatrix queries = random_matrix(2, heads* shape.key_dim, 7);
  AsymKVCache cache;

  explicit Decoding(Index threads, const char* policy = "balanced-1.7")
      : cache(make_cache(policy, with(threads), shape)) {
    append(cache, tokens, 0, 500);
    EXPECT_TRUE(cache.seal().ok() && cache.trim(333).ok());
    append(cache, tokens, 333, 567);
  }
  static CacheOptions with(Index threads) {
    CacheOptions options;
    options.threads = threads;
    return options;
  }
  ConstTensor q() const { return tensor(queries, heads); }

  /// By parallel_for, or of one thread where this is null.
  template <class ParallelFor>
  RowMatrix attend(const ParallelFor& parallel_for, const AttentionParams& params = {}) {
    RowMatrix output(2, heads * shape.value_dim);
    const Status status = cache.attend_parallel(0, q(), tensor(output, heads), params, parallel_for);
    EXPECT_TRUE(status.ok()) << status.message();
    return output;
  }
};

const auto in_order = [](Index count, const auto& task) {
  for (Index i = 0; i < count; ++i) task(i);
};

TEST(Slices, OneIsAttendBitForBit) {
  Decoding whole(1), sliced(7);
  RowMatrix expected(2, whole.heads * whole.shape.value_dim), output = expected;
  ASSERT_TRUE(whole.cache.attend(0, whole.q(), tensor(expected, whole.heads)).ok());
  ASSERT_TRUE(sliced.cache.attend_slice(0, sliced.q(), tensor(output, whole.heads), {}, {0, 1}).ok());
  ASSERT_TRUE(sliced.cache.merge_slices(0, sliced.q(), tensor(output, whole.heads), {}, {0, 1}).ok());
  EXPECT_EQ(output, expected);
  EXPECT_LT((sliced.attend(in_order) - expected).norm(), 2e-4f * expected.norm());
}

TEST(Slices, OrderDoesNotMatter) {
  std::mt19937 generator(3);
  for (Index threads : {2, 3, 4, 7, 30}) {
    Decoding decoding(threads);
    const RowMatrix expected = decoding.attend(in_order);
    for (int i = 0; i < 5; ++i)
      EXPECT_EQ(decoding.attend([&](Index count, const auto& task) {
        std::vector<Index> order(static_cast<std::size_t>(count));
        std::iota(order.begin(), order.end(), Index(0));
        std::shuffle(order.begin(), order.end(), generator);
        for (Index slice : order) task(slice);
      }),
                expected);
  }
}

TEST(Slices, ShareTheWorkEvenly) {
  static Index panels;
  kernels::Table counting = **kernels::choose_table();
  counting.few_rows_product =
      counting.many_rows_product = [](const kernels::PanelView& view, const kernels::Rows&, const kernels::ResultRows&,
                                      float*) { panels += view.count; };
  const CacheShape shape{1, 3, 32, 32};
  AsymKVCache cache = make_cache("k2v2", Decoding::with(1), shape);
  const Tokens tokens(20 * 128, 1, shape);
  append(cache, tokens, 0, 20 * 128);
  ASSERT_TRUE(cache.seal().ok());
  const RowMatrix queries = random_matrix(1, 3 * 32, 2);
  RowMatrix output(1, 3 * 32);
  const ConstTensor q = tensor(queries, 3);
  const Tensor out = tensor(output, 3);
  const AttentionParams params;
  const detail::AttentionCall call(3, cache.length(), {}, q, out, params);
  const Result<Workspace> workspace = Workspace::create(shape, 16);
  ASSERT_TRUE(workspace.ok());
  for (Index nth : {2, 3, 4, 7, 16}) {
    Index total = 0;
    for (Index ith = 0; ith < nth; ++ith) {
      panels = 0;
      const detail::LayerAttention attention(counting, cache.side(0, Side::keys), cache.side(0, Side::values), 3, call);
      attention.run(attention.place({attention.work(), nth}, 0), ith, *workspace);
      EXPECT_NEAR(double(panels), 2.0 * 3 * 20 / double(nth), 4.0) << ith << " of " << nth;
      total += panels;
    }
    EXPECT_EQ(total, 3 * (20 + 19)) << nth;  // the last 128 values are not sealed
  }
}

TEST(Slices, WrongOnesAreRefusedAndWriteNothing) {
  Decoding decoding(4);
  RowMatrix output = RowMatrix::Constant(2, decoding.heads * decoding.shape.value_dim, 7.0f);
  const RowMatrix before = output;
  const Tensor out = tensor(output, decoding.heads);
  for (const AttentionSlice& slice : {AttentionSlice{-1, 2}, {2, 2}, {0, 0}, {0, -1}, {0, 5}, {4, 5}}) {
    expect_error(decoding.cache.attend_slice(0, decoding.q(), out, {}, slice), ErrorCode::invalid_argument, "slice");
    expect_error(decoding.cache.merge_slices(0, decoding.q(), out, {}, slice), ErrorCode::invalid_argument, "slice");
  }
  RowMatrix queries = decoding.queries;
  queries(1, 3) = NAN;
  for (Index ith = 0; ith < 4; ++ith)
    expect_error(decoding.cache.attend_slice(0, tensor(queries, decoding.heads), out, {}, {ith, 4}),
                 ErrorCode::non_finite, "queries");
  expect_error(decoding.cache.attend_parallel(0, tensor(queries, decoding.heads), out, {}, in_order),
               ErrorCode::non_finite, "queries");
  expect_error(decoding.cache.attend_parallel(1, decoding.q(), out, {}, in_order), ErrorCode::out_of_range, "layer");
  EXPECT_EQ(output, before);
  for (Index threads : {0, -1, 1025})
    expect_error(AsymKVCache::create(kShape, *AsymKVPolicy::parse("k2v2", 1), Decoding::with(threads)).status(),
                 ErrorCode::invalid_argument, "options: threads");
}

TEST(Slices, BytesAreWhatTheAllocatorHandedOut) {
  CountingAllocator counting;
  CacheOptions options;
  options.allocator = counting.allocator();
  Index earlier = 0;
  for (Index threads : {1, 2, 5}) {
    options.threads = threads;
    const AsymKVCache cache = make_cache("balanced-1.7", options);
    EXPECT_EQ(cache.bytes().total(), counting.bytes);
    EXPECT_EQ(cache.threads(), threads);
    EXPECT_GT(cache.bytes().scratch, earlier);
    earlier = cache.bytes().scratch;
  }
  EXPECT_EQ(counting.bytes, 0);
}

TEST(ThreadPool, AttendsAsOneThreadDoes) {
  const auto pool = ThreadPool::create(4);
  ASSERT_TRUE(pool.ok());
  Decoding decoding(4);
  for (Index window : {0, 200, 1}) {
    AttentionParams params;
    params.window = window;
    const RowMatrix expected = decoding.attend(in_order, params);
    for (int i = 0; i < 50; ++i) ASSERT_EQ(decoding.attend(*pool, params), expected);
  }
}

TEST(ThreadPool, DoesEveryTaskOnce) {
  for (Index threads : {1, 2, 7}) {
    auto made = ThreadPool::create(threads);
    ASSERT_TRUE(made.ok());
    const ThreadPool pool = std::move(*made);
    EXPECT_EQ(pool.threads(), threads);
    for (Index count : {0, 1, 2, 7, 100}) {
      std::vector<int> done(std::size_t(count), 0);
      pool(count, [&](Index i) { ++done[std::size_t(i)]; });
      EXPECT_EQ(std::count(done.begin(), done.end(), 1), count);
    }
  }
  for (Index threads : {0, -3, 1025})
    expect_error(ThreadPool::create(threads).status(), ErrorCode::invalid_argument, "threads");
}

}  // namespace
