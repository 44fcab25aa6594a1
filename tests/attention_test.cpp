// Attention on packed codes against the oracle: every instruction set, head geometry, width, and length around a block.
#include "support/oracle.hpp"
#include "support/support.hpp"

namespace {

using namespace asymkv;
using support::ForcedIsa;
using support::RowMatrix;

struct Case {
  int key_bits, value_bits, group;
  Index kv_heads, heads, key_dim, value_dim, length, queries, residual;
  Index window = 0;
};

oracle::Matrix head_of(const RowMatrix& x, Index head, Index dim) {
  oracle::Matrix m(int(x.rows()), int(dim));
  for (Index t = 0; t < x.rows(); ++t)
    for (Index c = 0; c < dim; ++c) m(int(t), int(c)) = double(x(t, head * dim + c));
  return m;
}

/// Largest difference between the cache's attention and the oracle's, over the bound of its rounding.
double error_over_bound(const Case& c, const RowMatrix& output, const RowMatrix& queries, const RowMatrix& keys,
                        const RowMatrix& values) {
  // before the last append (of the queries' own tokens) all tokens but those were there; what they made due is sealed
  const int past = int(c.length - c.queries);
  const int sealed_keys = c.key_bits > 8 ? 0 : past / int(c.residual) * int(c.residual);
  const int sealed_values = c.value_bits > 8 ? 0 : std::max(0, past - int(c.residual));
  double worst = 0.0;
  for (Index h = 0; h < c.heads; ++h) {
    const Index kv = h / (c.heads / c.kv_heads);
    oracle::Matrix k = head_of(keys, kv, c.key_dim), v = head_of(values, kv, c.value_dim);
    oracle::quantize_keys(k, sealed_keys, c.group, c.key_bits);
    oracle::quantize_values(v, sealed_values, c.group, c.value_bits);
    double key_max = 0.0, value_max = 0.0;
    for (double x : k.data) key_max = std::fmax(key_max, std::fabs(x));
    for (double x : v.data) value_max = std::fmax(value_max, std::fabs(x));
    for (Index q = 0; q < c.queries; ++q) {
      std::vector<double> query;
      double query_sum = 0.0;
      for (Index i = 0; i < c.key_dim; ++i) {
        query.push_back(double(queries(q, h * c.key_dim + i)));
        query_sum += std::fabs(query.back());
      }
      const double scale = 1.0 / std::sqrt(double(c.key_dim));
      const int last = past + int(q) + 1, first = c.window == 0 ? 0 : std::max(0, last - int(c.window));
      const auto expected = oracle::attention(query, k, v, first, last, scale);
      // a score is off by at most 3 dim eps |q||k|, and a factor exp(that) reaches the output; sums add a few eps
      const double eps = 6e-8;
      const double bound = value_max * eps * (16.0 + 6.0 * std::sqrt(double(c.key_dim)) * scale * query_sum * key_max);
      for (Index i = 0; i < c.value_dim; ++i)
        worst = std::fmax(worst, std::fabs(double(output(q, h * c.value_dim + i)) - expected[std::size_t(i)]) / bound);
    }
  }
  return worst;
}

double run(const Case& c) {
  const CacheShape shape{1, c.kv_heads, c.key_dim, c.value_dim};
  Format key_format, value_format;
  key_format.bits = c.key_bits;
  value_format.bits = c.value_bits;
  key_format.group_size = value_format.group_size = c.group;
  CacheOptions options;
  options.residual_length = c.residual;
  auto cache = AsymKVCache::create(shape, *AsymKVPolicy::table({{key_format, value_format}}), options);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  const RowMatrix keys = support::random_matrix(c.length, c.kv_heads * c.key_dim, 1);
  const RowMatrix values = support::random_matrix(c.length, c.kv_heads * c.value_dim, 2);
  const RowMatrix queries = support::random_matrix(c.queries, c.heads * c.key_dim, 3);
  const Index past = c.length - c.queries;
  const RowMatrix old_keys = keys.topRows(past), old_values = values.topRows(past);
  const RowMatrix new_keys = keys.bottomRows(c.queries), new_values = values.bottomRows(c.queries);
  EXPECT_TRUE(cache->append(0, tensor(old_keys, c.kv_heads), tensor(old_values, c.kv_heads)).ok());
  EXPECT_TRUE(cache->append(0, tensor(new_keys, c.kv_heads), tensor(new_values, c.kv_heads)).ok());
  RowMatrix output(c.queries, c.heads * c.value_dim);
  AttentionParams params;
  params.window = c.window;
  const Status status = cache->attend(0, tensor(queries, c.heads), tensor(output, c.heads), params);
  EXPECT_TRUE(status.ok()) << status.message();
  return error_over_bound(c, output, queries, keys, values);
}

void expect_oracle(const std::vector<Case>& cases) {
  for (Isa isa : support::machine_isas()) {
    ForcedIsa forced(isa);
    for (const Case& c : cases) {
      const double slack = c.key_bits == 16 || c.value_bits == 16 ? 3e4 : 1.0;  // f16 sides round their input
      EXPECT_LE(run(c), slack) << isa_name(isa) << " k" << c.key_bits << "v" << c.value_bits << " g" << c.group
                               << " heads " << c.heads << "/" << c.kv_heads << " dim " << c.key_dim << " length "
                               << c.length << " queries " << c.queries << " window " << c.window;
    }
  }
}

TEST(Attention, EqualsTheOracleEverywhere) {
  std::vector<Case> cases;
  const int widths[][2] = {{1, 8}, {2, 6}, {3, 5}, {4, 4}, {5, 3}, {6, 2}, {8, 1}, {32, 2}, {2, 32}};
  for (const auto& bits : widths) cases.push_back({bits[0], bits[1], 32, 2, 6, 64, 64, 400, 1, 64});
  for (Index length : {1, 2, 31, 32, 33, 127, 128, 129, 160, 255, 256, 257, 385, 513})
    cases.push_back({2, 1, 32, 1, 3, 64, 64, length, 1, 32});
  for (Index dim : {8, 16, 20, 40, 80, 96, 128, 136, 256}) cases.push_back({3, 2, 64, 1, 2, dim, dim + 8, 300, 1, 64});
  for (Index queries : {2, 4, 5, 9, 64, 130, 200}) cases.push_back({2, 2, 32, 2, 4, 32, 48, 333, queries, 32});
  for (Index heads : {1, 2, 4, 7, 8, 16, 71}) cases.push_back({1, 4, 128, 1, heads, 32, 32, 300, 1, 128});
  cases.push_back({16, 16, 32, 2, 4, 64, 64, 300, 3, 128});
  expect_oracle(cases);
}

TEST(Attention, WindowEqualsTheOracle) {
  // 400 tokens, R = 64: keys are sealed up to 384, values up to 335, pages begin at 0, 128 and 256
  std::vector<Case> cases;
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
  expect_oracle(cases);
}

TEST(Attention, CostFollowsTheWindow) {
  static int packed_calls, dense_calls;
  const auto work = [](const char* policy, Index window) {
    auto cache = AsymKVCache::create({1, 1, 32, 32}, *AsymKVPolicy::parse(policy, 1), {});
    const RowMatrix x = support::random_matrix(2048, 32, 1), q = support::random_matrix(1, 32, 2);
    EXPECT_TRUE(cache->append(0, tensor(x, 1), tensor(x, 1)).ok() && cache->seal().ok());
    kernels::Table counting = **kernels::choose_table();
    counting.packed_product = [](const kernels::PanelView&, const kernels::Rows&, const kernels::ResultRows&, float*) {
      ++packed_calls;
    };
    counting.dense_scores = [](const kernels::DenseView&, Index, const kernels::Rows&, const kernels::ResultRows&,
                               float*) { ++dense_calls; };
    const auto& keys = cache->side(0, Side::keys);
    const auto& values = cache->side(0, Side::values);
    AttentionScratch scratch;
    EXPECT_TRUE(scratch.allocate(32, 32, 4096, {}));
    RowMatrix out(1, 32);
    AttentionParams params;
    params.window = window;
    packed_calls = dense_calls = 0;
    detail::attend(counting, keys, values, 1, scratch, tensor(q, 1), tensor(out, 1), params, 1.0f);
    return packed_calls + dense_calls;
  };
  EXPECT_EQ(work("k2v2", 0), 16 + 15);  // the last 128 values are not sealed
  EXPECT_EQ(work("k2v2", 256), 2 + 1);
  EXPECT_EQ(work("k2v2", 257), 3 + 2);
  EXPECT_EQ(work("float", 0), 16);
  EXPECT_EQ(work("float", 256), 2);
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
    ASSERT_LT((out - expected).cwiseAbs().maxCoeff(), 4e-4f) << step;
    if (step % 3 != 2) continue;
    ASSERT_TRUE(cache->trim(Index(generator()) % (cache->length() + 1)).ok());
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

TEST(Attention, AllocatesNothing) {
  support::CountingAllocator counting;
  auto cache = AsymKVCache::create({1, 2, 64, 64}, *AsymKVPolicy::parse("k2v1", 1), {128, 0, counting.allocator()});
  const RowMatrix x = support::random_matrix(400, 128, 1);
  ASSERT_TRUE(cache->append(0, tensor(x, 2), tensor(x, 2)).ok());
  const Index calls = counting.calls;
  RowMatrix out(400, 256);
  const RowMatrix q = support::random_matrix(400, 256, 2);
  ASSERT_TRUE(cache->attend(0, tensor(q, 4), tensor(out, 4)).ok());
  EXPECT_EQ(counting.calls, calls);
}

TEST(Attention, BadInputIsNamed) {
  auto cache = DenseKVCache<float>::create({1, 2, 32, 32});
  RowMatrix q = support::random_matrix(2, 128, 1), out(2, 128);
  const auto code = [&](const ConstTensor& queries, const Tensor& output, AttentionParams params = {},
                        Index layer = 0) { return cache->attend(layer, queries, output, params).code(); };
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 4)), ErrorCode::out_of_range);  // empty cache
  const RowMatrix k = support::random_matrix(4, 64, 1);
  ASSERT_TRUE(cache->append(0, tensor(k, 2), tensor(k, 2)).ok());
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 4)), ErrorCode::ok);
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 4), {}, 1), ErrorCode::out_of_range);
  EXPECT_EQ(code(tensor(q, 1), tensor(out, 1)), ErrorCode::invalid_argument);
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 2)), ErrorCode::invalid_argument);
  EXPECT_EQ(code({}, tensor(out, 4)), ErrorCode::invalid_argument);
  AttentionParams params;
  params.scale = NAN;
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 4), params), ErrorCode::invalid_argument);
  params.scale = 0.0f;
  params.window = -1;
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 4), params), ErrorCode::invalid_argument);
  EXPECT_EQ(reference_attention(*cache, 0, tensor(q, 4), tensor(out, 4), params).code(), ErrorCode::invalid_argument);
  params.window = 0;
  params.scale = 1e37f;
  out.setConstant(7.0f);
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 4), params), ErrorCode::overflow);
  q(1, 3) = NAN;
  EXPECT_EQ(code(tensor(q, 4), tensor(out, 4)), ErrorCode::non_finite);
  EXPECT_TRUE((out.array() == 7.0f).all());
}

}  // namespace
