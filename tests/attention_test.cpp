// Attention on packed codes against the oracle: every instruction set, head geometry, width, and length around a block.
#include "support/attention_trial.hpp"
#include "support/cache.hpp"

namespace {

using namespace asymkv;
using support::AttentionCase;
using support::AttentionTrial;
using support::Comparison;
using support::ForcedIsa;
using support::RowMatrix;

std::vector<AttentionCase> cases_of_the_packed_cache() {
  std::vector<AttentionCase> cases;
  const int widths[][2] = {{1, 8}, {2, 6}, {3, 5}, {4, 4}, {5, 3}, {6, 2}, {8, 1}, {32, 2}, {2, 32}, {16, 2}, {2, 16}};
  for (const auto& bits : widths) {
    cases.push_back({bits[0], bits[1], 32, 2, 6, 64, 64, 400, 1, 64});
    cases.push_back({bits[0], bits[1], 32, 1, 5, 72, 88, 300, 7, 64});
  }
  for (Index length : {1, 2, 31, 32, 33, 127, 128, 129, 160, 255, 256, 257, 385, 513, 4000})
    cases.push_back({2, 1, 32, 1, 3, 64, 64, length, 1, 32});
  for (Index dim : {8, 16, 20, 40, 80, 96, 128, 136, 256}) cases.push_back({3, 2, 64, 1, 2, dim, dim + 8, 300, 1, 64});
  for (Index queries : {2, 4, 5, 9, 64, 130, 200}) cases.push_back({2, 2, 32, 2, 4, 32, 48, 333, queries, 32});
  for (Index heads : {1, 2, 4, 7, 8, 16, 71}) cases.push_back({1, 4, 128, 1, heads, 32, 32, 300, 1, 128});
  return cases;
}

/// Of caches that quantize nothing; lengths above a block, rows that fold (1, 3) and that do not (10).
std::vector<AttentionCase> dense_cases(int bits) {
  std::vector<AttentionCase> cases;
  for (Index dim : {20, 64, 100})
    for (Index queries : {1, 3, 10}) cases.push_back({bits, bits, 32, 2, 4, dim, dim + 4, 300, queries, 128});
  return cases;
}

/// Every case on every instruction set; make(case) gives the cache, which rounds what it does not quantize.
template <class Make>
void expect_oracle(const std::vector<AttentionCase>& cases, Make make, oracle::Rounding rounding) {
  for (Isa isa : support::machine_isas()) {
    ForcedIsa forced(isa);
    double worst = 0.0;
    for (const AttentionCase& c : cases) {
      AttentionTrial trial(c);
      auto cache = make(c);
      ASSERT_TRUE(cache.ok()) << cache.status().message();
      const Comparison comparison = trial.compare(trial.attend<float>(*cache), rounding);
      EXPECT_EQ(comparison.outside, 0) << isa_name(isa) << " " << c << ": error " << comparison.worst << " bounds";
      worst = std::max(worst, comparison.worst);
    }
    EXPECT_GT(worst, 0.02) << "the bound is far too wide to see anything: lower kErrorConstant";
    testing::Test::RecordProperty(std::string("worst_percent_of_bound_") + isa_name(isa), int(100.0 * worst));
  }
}

TEST(Attention, EqualsTheOracleEverywhere) {
  expect_oracle(cases_of_the_packed_cache(), support::cache_of, oracle::exact);
}

template <class T>
Result<DenseKVCache<T>> dense_cache_of(const AttentionCase& c) {
  return DenseKVCache<T>::create({1, c.kv_heads, c.key_dim, c.value_dim});
}

TEST(Attention, DenseCachesEqualTheOracle) {
  expect_oracle(dense_cases(16), support::cache_of, oracle::exact);
  expect_oracle(dense_cases(32), dense_cache_of<float>, oracle::exact);
  expect_oracle(dense_cases(32), dense_cache_of<Eigen::half>, oracle::half);
  expect_oracle(dense_cases(32), dense_cache_of<Eigen::bfloat16>, oracle::bfloat16);
}

TEST(Attention, WindowEqualsTheOracle) {
  // 400 tokens, R = 64: keys are sealed up to 384, values up to 335, pages begin at 0, 128 and 256
  std::vector<AttentionCase> cases;
  for (Index window : {1, 2, 15, 16, 17, 64, 65, 66, 127, 128, 129, 143, 144, 145, 272, 273, 399, 400, 401, 5000}) {
    cases.push_back({2, 1, 32, 1, 3, 64, 64, 400, 1, 64, window});
    cases.push_back({32, 32, 32, 2, 4, 32, 48, 400, 1, 64, window});
    cases.push_back({2, 2, 32, 1, 4, 32, 32, 400, 150, 64, window});
    cases.push_back({32, 32, 32, 1, 4, 32, 32, 400, 150, 64, window});
  }
  for (Index window : {1, 100, 250}) {
    cases.push_back({32, 2, 32, 1, 2, 32, 32, 400, 7, 64, window});
    cases.push_back({2, 32, 32, 1, 2, 32, 32, 400, 7, 64, window});
    cases.push_back({4, 4, 32, 1, 1, 32, 32, 400, 400, 64, window});
  }
  expect_oracle(cases, support::cache_of, oracle::exact);
}

TEST(Attention, CostFollowsTheWindow) {
  static int packed_calls, dense_calls;
  const auto work = [](const char* policy, Index window) {
    auto cache = AsymKVCache::create({1, 1, 32, 32}, *AsymKVPolicy::parse(policy, 1), {});
    const RowMatrix x = support::random_matrix(2048, 32, 1), q = support::random_matrix(1, 32, 2);
    EXPECT_TRUE(cache->append(0, tensor(x, 1), tensor(x, 1)).ok() && cache->seal().ok());
    kernels::Table counting = **kernels::choose_table();
    counting.few_rows_product = [](const kernels::PanelView&, const kernels::Rows&, const kernels::ResultRows&,
                                   float*) { ++packed_calls; };
    counting.dense_scores = [](const kernels::DenseView&, Index, const kernels::Rows&, const kernels::ResultRows&,
                               float*) { ++dense_calls; };
    const auto& keys = cache->side(0, Side::keys);
    const auto& values = cache->side(0, Side::values);
    const Result<Workspace> workspace = Workspace::create({1, 1, 32, 32});
    EXPECT_TRUE(workspace.ok());
    RowMatrix out(1, 32);
    AttentionParams params;
    params.window = window;
    packed_calls = dense_calls = 0;
    const ConstTensor queries = tensor(q, 1);
    const Tensor output = tensor(out, 1);
    const detail::AttentionCall call(1, cache->length(), {}, queries, output, params);
    const detail::LayerAttention attention(counting, keys, values, 1, call);
    attention.run(attention.place({attention.work(), 1}, 0), 0, *workspace);
    return packed_calls + dense_calls;
  };
  EXPECT_EQ(work("k2v2", 0), 16 + 15);  // the last 128 values are not sealed
  EXPECT_EQ(work("k2v2", 256), 2 + 1);
  EXPECT_EQ(work("k2v2", 257), 3 + 2);
  EXPECT_EQ(work("float", 0), 16);
  EXPECT_EQ(work("float", 256), 2);
}

TEST(Attention, RowsThatAreManyGoThroughTiles) {
  kernels::Table counting = **kernels::choose_table();
  counting.few_rows_of_8_bits = 4;
  static int few, many;
  using namespace kernels;
  counting.few_rows_product = [](const PanelView&, const Rows&, const ResultRows&, float*) { ++few; };
  counting.many_rows_product = [](const PanelView&, const Rows&, const ResultRows&, float*) { ++many; };
  const auto are_few = [&](const char* policy, Index rows) {
    const Format keys = AsymKVPolicy::parse(policy, 1)->layer(0).keys;
    few = many = 0;
    counting.packed_product({page_layout(keys, Side::keys, 32), nullptr, 0, 1, 128, 32, nullptr}, {nullptr, 32, rows},
                            {nullptr, 128}, nullptr);
    EXPECT_EQ(few + many, 1);
    return few == 1;
  };
  for (const char* policy : {"k1v1", "k6v1", "km4v1"})
    EXPECT_TRUE(are_few(policy, few_rows) && !are_few(policy, few_rows + 1)) << policy;
  EXPECT_TRUE(are_few("k8v1", 4) && !are_few("k8v1", 5));
}

TEST(Attention, ComparisonSeesNoOutputAndAWrongSign) {
  for (const AttentionCase& c : cases_of_the_packed_cache()) {
    AttentionTrial trial(c);
    auto cache = support::cache_of(c);
    const RowMatrix right = trial.attend<float>(*cache);
    const int elements = int(right.size());
    EXPECT_GT(trial.compare(RowMatrix::Zero(right.rows(), right.cols())).outside, elements / 4) << c;
    EXPECT_GT(trial.compare(-right).outside, elements / 2) << c;
  }
}

TEST(Attention, ComparisonSeesWhatIsWrong) {
  const ForcedIsa forced(Isa::scalar);  // whose bound has no part for rounded rows
  AttentionTrial trial({2, 2, 32, 1, 6, 32, 32, 100, 3, 32});
  auto cache = support::cache_of({2, 2, 32, 1, 6, 32, 32, 100, 3, 32});
  const RowMatrix right = trial.attend<float>(*cache);
  EXPECT_EQ(trial.compare(right).outside, 0);
  EXPECT_GT(trial.compare(right, oracle::bfloat16).outside, int(right.size()) / 2);
  for (float wrong : {float(NAN), float(INFINITY), right(2, 33) + 1e-2f, -right(2, 33)}) {
    RowMatrix output = right;
    output(2, 33) = wrong;
    EXPECT_EQ(trial.compare(output).outside, 1) << wrong;
  }
}

TEST(Attention, ReferenceAgreesAfterTrims) {
  const CacheShape shape{1, 2, 64, 32};
  std::mt19937 generator(5);
  auto cache = AsymKVCache::create(shape, *AsymKVPolicy::parse("k4v3", 1), {32, 0, {}});
  for (int step = 0; step < 60; ++step) {
    const Index count = 1 + Index(generator() % 90);
    const RowMatrix k = support::random_matrix(count, 128, unsigned(step)),
                    v = support::random_matrix(count, 64, unsigned(step) + 99);
    ASSERT_TRUE(cache->append(0, tensor(k, 2), tensor(v, 2)).ok());
    const RowMatrix q = support::random_matrix(count, 6 * 64, unsigned(step) + 7);
    RowMatrix out(count, 6 * 32), expected(count, 6 * 32);
    AttentionParams params;
    params.window = step % 2 == 0 ? 0 : 1 + Index(generator() % 200);
    params.causal = step % 5 != 4;
    ASSERT_TRUE(cache->attend(0, tensor(q, 6), tensor(out, 6), params).ok());
    ASSERT_TRUE(reference_attention(*cache, 0, tensor(q, 6), tensor(expected, 6), params).ok());
    // three rows a token, in blocks: the last one is rounded where it has few, all are in tile registers; outputs are
    // about 13, since scores of some hundred choose single tokens
    const bool few = (3 * count - 1) % attention_rows < kernels::few_rows;
    const float rounding = few ? 2e-3f : cache->isa() == Isa::amx ? 2e-4f : 0.0f;
    const float bound = 4e-4f + rounding * expected.cwiseAbs().maxCoeff();
    ASSERT_LT((out - expected).cwiseAbs().maxCoeff(), bound) << step;
    if (step % 3 != 2) continue;
    ASSERT_TRUE(cache->trim(Index(generator()) % (cache->length() + 1)).ok());
  }
}

TEST(Attention, WhatATrimmedPageHeldPlaysNoPart) {
  // values: 172 sealed, 160 kept, 165 sealed: slots 37 to 43 of the second page hold tokens that are no more
  auto cache = AsymKVCache::create({1, 2, 32, 32}, *AsymKVPolicy::parse("k4v4", 1));
  const RowMatrix x = support::random_matrix(300, 64, 1);
  const auto append = [&](Index tokens) {
    const RowMatrix part = x.topRows(tokens);
    return cache->append(0, tensor(part, 2), tensor(part, 2)).ok();
  };
  ASSERT_TRUE(append(300) && append(1) && cache->trim(160).ok() && append(133) && append(1));
  const PageTable& pages = cache->side(0, Side::values).pages();
  ASSERT_EQ(pages[pages.size() - 1].count, 37);
  for (Index rows : {1, 2, 3, 4, 5}) {
    const RowMatrix q = support::random_matrix(1, 2 * rows * 32, 3);
    RowMatrix out(1, 2 * rows * 32), expected = out;
    ASSERT_TRUE(cache->attend(0, tensor(q, 2 * rows), tensor(out, 2 * rows)).ok());
    ASSERT_TRUE(reference_attention(*cache, 0, tensor(q, 2 * rows), tensor(expected, 2 * rows)).ok());
    EXPECT_LT((out - expected).cwiseAbs().maxCoeff(), 4e-3f) << rows << " rows";  // stale ones cost 0.05 and more
  }
}

/// Sixteen elements of a row, each a third of what its byte can hold, must show in the sum: each is lost if it is
/// rounded for itself (dot.inl).
class SmallElements : public testing::Test {
 protected:
  static constexpr Index kTokens = 160, kDim = 128, kEvery = 8;
  static constexpr float kShare = 0.32f / 127.0f;  // of the greatest element
  RowMatrix keys = RowMatrix::Zero(kTokens, kDim), values = RowMatrix::Zero(kTokens, kDim);
  RowMatrix query = RowMatrix::Zero(1, kDim), output = RowMatrix::Zero(1, kDim);

  void attend(const char* policy) {
    CacheOptions options;
    options.residual_length = 32;
    auto cache = AsymKVCache::create({1, 1, kDim, kDim}, *AsymKVPolicy::parse(policy, 1), options);
    ASSERT_TRUE(cache->append(0, tensor(keys, 1), tensor(values, 1)).ok());
    ASSERT_TRUE(cache->seal().ok());
    AttentionParams params;
    params.scale = 1.0f;
    ASSERT_TRUE(cache->attend(0, tensor(query, 1), tensor(output, 1), params).ok());
  }
};

TEST_F(SmallElements, OfWeightsAreNotLost) {
  keys.col(0).setConstant(-40.0f);
  for (Index t = 0; t < 128; t += kEvery) keys(t, 0) = std::log(kShare);
  keys(5, 0) = 0.0f;
  query(0, 0) = 1.0f;
  for (Index c = 0; c < kDim; ++c) values.col(c).setConstant(c % 2 == 0 ? 1.0f : -1.0f);
  values.row(5) *= -1.0f;
  const float others = kShare * 128.0f / kEvery, expected = (others - 1.0f) / (others + 1.0f);  // without them -1
  for (Isa isa : support::machine_isas())
    for (const char* policy : {"k32v1", "k32v2", "k32v3"}) {
      ForcedIsa forced(isa);
      attend(policy);
      for (Index c = 0; c < kDim; ++c)
        EXPECT_NEAR(output(0, c), c % 2 == 0 ? expected : -expected, 0.02) << policy << " " << isa_name(isa);
    }
}

TEST_F(SmallElements, OfQueriesAreNotLost) {
  constexpr float kGreatest = 20.0f;
  query(0, 5) = kGreatest;
  for (Index c = 0; c < kDim; c += kEvery) query(0, c) = kGreatest * kShare;
  for (Index t = 0; t < kTokens; ++t) {
    keys.row(t).setConstant(t % 2 == 0 ? 1.0f : -1.0f);
    keys(t, 5) = t % 4 < 2 ? 1.0f : -1.0f;
    values.row(t).setConstant(t % 2 == 0 ? 1.0f : 0.0f);
  }
  const double gap = 2.0 * double(kGreatest * kShare) * kDim / kEvery;
  for (Isa isa : support::machine_isas())
    for (const char* policy : {"k1v32", "k2v32", "k3v32"}) {
      ForcedIsa forced(isa);
      attend(policy);
      EXPECT_NEAR(output(0, 0), 1.0 / (1.0 + std::exp(-gap)), 0.07) << policy << " " << isa_name(isa);  // 0.5 without
    }
}

TEST(Attention, TypesLayoutsAndNoMask) {
  const CacheShape shape{1, 2, 32, 32};
  auto cache = DenseKVCache<Eigen::bfloat16>::create(shape);
  const RowMatrix k = support::random_matrix(50, 64, 1), v = support::random_matrix(50, 64, 2);
  ASSERT_TRUE(cache->append(0, tensor(k, 2), tensor(v, 2)).ok());
  const Eigen::Matrix<Eigen::half, -1, -1, Eigen::RowMajor> q = support::random_matrix(5, 128, 3).cast<Eigen::half>();
  Eigen::Matrix<Eigen::half, -1, -1> out(5, 128);
  RowMatrix expected(5, 128);
  AttentionParams params;
  params.causal = false;
  params.scale = 0.3f;
  ASSERT_TRUE(cache->attend(0, tensor(q, 4), tensor(out, 4), params).ok());
  ASSERT_TRUE(reference_attention(*cache, 0, tensor(q, 4), tensor(expected, 4), params).ok());
  EXPECT_LT((out.cast<float>() - expected).cwiseAbs().maxCoeff(), 1e-2f);
  // [heads, tokens, dim]: the same numbers by other strides
  std::vector<float> by_head(4 * 5 * 32), result(4 * 5 * 32);
  for (Index h = 0; h < 4; ++h)
    for (Index t = 0; t < 5; ++t)
      for (Index i = 0; i < 32; ++i) by_head[std::size_t((h * 5 + t) * 32 + i)] = float(q(t, h * 32 + i));
  const ConstTensor strided{by_head.data(), ScalarType::f32, 5, 4, 32, 32, 5 * 32, 1};
  const Tensor strided_out{result.data(), ScalarType::f32, 5, 4, 32, 32, 5 * 32, 1};
  ASSERT_TRUE(cache->attend(0, strided, strided_out, params).ok());
  for (Index h = 0; h < 4; ++h)
    for (Index t = 0; t < 5; ++t)
      for (Index i = 0; i < 32; ++i)
        ASSERT_NEAR(result[std::size_t((h * 5 + t) * 32 + i)], expected(t, h * 32 + i), 1e-5f);
}

TEST(Attention, BadInputIsNamed) {
  auto cache = DenseKVCache<float>::create({1, 2, 32, 32});
  RowMatrix q = support::random_matrix(2, 128, 1), out(2, 128);
  const auto attend = [&](const ConstTensor& queries, const Tensor& output, float scale = 0.0f, Index layer = 0) {
    AttentionParams params;
    params.scale = scale;
    return cache->attend(layer, queries, output, params);
  };
  support::expect_error(attend(tensor(q, 4), tensor(out, 4)), ErrorCode::out_of_range, "queries");  // empty cache
  const RowMatrix k = support::random_matrix(4, 64, 1);
  ASSERT_TRUE(cache->append(0, tensor(k, 2), tensor(k, 2)).ok());
  EXPECT_TRUE(attend(tensor(q, 4), tensor(out, 4)).ok());
  out.setConstant(7.0f);
  support::expect_error(attend(tensor(q, 4), tensor(out, 4), 0.0f, 1), ErrorCode::out_of_range, "layer");
  support::expect_error(attend(tensor(q, 1), tensor(out, 1)), ErrorCode::invalid_argument, "queries");
  support::expect_error(attend(tensor(q, 4), tensor(out, 2)), ErrorCode::invalid_argument, "output");
  support::expect_error(attend({}, tensor(out, 4)), ErrorCode::invalid_argument, "queries");
  for (float scale : {float(NAN), float(INFINITY), 3e38f, -3e38f})
    support::expect_error(attend(tensor(q, 4), tensor(out, 4), scale), ErrorCode::invalid_argument, "params");
  AttentionParams params;
  params.window = -1;
  support::expect_error(cache->attend(0, tensor(q, 4), tensor(out, 4), params), ErrorCode::invalid_argument, "params");
  support::expect_error(attend(tensor(q, 4), tensor(out, 4), 1e37f), ErrorCode::overflow, "queries");
  q(1, 3) = NAN;
  support::expect_error(attend(tensor(q, 4), tensor(out, 4)), ErrorCode::non_finite, "queries");
  EXPECT_TRUE((out.array() == 7.0f).all());
}

TEST(Attention, ReferenceNamesBadInput) {
  auto cache = DenseKVCache<float>::create({1, 2, 32, 16});
  const RowMatrix q = support::random_matrix(3, 128, 1);
  RowMatrix out = RowMatrix::Constant(3, 64, 7.0f);
  const auto attend = [&](const ConstTensor& queries, const Tensor& output, Index layer = 0) {
    return reference_attention(*cache, layer, queries, output);
  };
  support::expect_error(attend(tensor(q, 4), tensor(out, 4)), ErrorCode::out_of_range, "queries");  // empty cache
  const RowMatrix k = support::random_matrix(4, 64, 1), v = support::random_matrix(4, 32, 1);
  ASSERT_TRUE(cache->append(0, tensor(k, 2), tensor(v, 2)).ok());
  ConstTensor queries = tensor(q, 4);
  Tensor output = tensor(out, 4);
  for (Index layer : {-1, 1}) support::expect_error(attend(queries, output, layer), ErrorCode::out_of_range, "layer");
  queries.data = nullptr;
  support::expect_error(attend(queries, output), ErrorCode::invalid_argument, "queries");
  output.data = nullptr;
  support::expect_error(attend(tensor(q, 4), output), ErrorCode::invalid_argument, "output");
  queries = tensor(q, 4);
  output = tensor(out, 4);
  queries.tokens = output.tokens = 0;
  support::expect_error(attend(queries, output), ErrorCode::invalid_argument, "queries");
  support::expect_error(attend(tensor(q, 1), tensor(out, 1)), ErrorCode::invalid_argument, "queries");
  support::expect_error(attend(tensor(q, 4), tensor(out, 2)), ErrorCode::invalid_argument, "output");
  AttentionParams params;
  params.window = -1;
  support::expect_error(reference_attention(*cache, 0, tensor(q, 4), tensor(out, 4), params),
                        ErrorCode::invalid_argument, "params");
  EXPECT_TRUE((out.array() == 7.0f).all());
  EXPECT_TRUE(attend(tensor(q, 4), tensor(out, 4)).ok());
}

}  // namespace
