// The probe: its errors are those that the oracle finds, and what goes wrong leaves it usable.
#include <asymkv/probe.hpp>

#include "support/cache.hpp"
#include "support/heap_count.hpp"
#include "support/variant.hpp"

namespace {

using namespace asymkv;
using namespace support;

constexpr CacheShape kServed{3, 2, 48, 40};
constexpr Index kLayer = 1, kQueryHeads = 6;

AttentionProbe make_probe(const Allocator& allocator = {}) {
  Result<AttentionProbe> probe = AttentionProbe::create(kServed, kLayer, {0, allocator});
  EXPECT_TRUE(probe.ok()) << probe.status().message();
  return std::move(*probe);
}

AsymKVCache two_bits() {
  CacheOptions options;
  options.residual_length = 32;
  return make_cache("k2v2", options, kServed);
}

Status append_to(AttentionProbe& probe, const Tokens& tokens, Index first, Index count) {
  return probe.append(tensor(tokens.keys.middleRows(first, count), kServed.kv_heads),
                      tensor(tokens.values.middleRows(first, count), kServed.kv_heads));
}

/// The watched layer's tokens are `tokens`, those of others are not.
void append_to_both(KVCache& cache, AttentionProbe& probe, const Tokens& tokens, Index first, Index count) {
  const Tokens others(count, 90, kServed);
  for (Index layer = 0; layer < kServed.layers; ++layer)
    layer == kLayer ? append(cache, tokens, first, count, layer) : append(cache, others, 0, count, layer);
  const Status status = append_to(probe, tokens, first, count);
  ASSERT_TRUE(status.ok()) << status.message();
}

RowMatrix some_queries(Index count, unsigned seed = 8) {
  return random_matrix(count, kQueryHeads * kServed.key_dim, seed) * 0.3f;
}

RowMatrix attend(KVCache& cache, const RowMatrix& queries, const AttentionParams& params = {}) {
  RowMatrix output(queries.rows(), kQueryHeads * kServed.value_dim);
  const Status status = cache.attend(kLayer, tensor(queries, kQueryHeads), tensor(output, kQueryHeads), params);
  EXPECT_TRUE(status.ok()) << status.message();
  return output;
}

Result<AttentionError> compare(AttentionProbe& probe, const KVCache& cache, const RowMatrix& queries,
                               const RowMatrix& output, const AttentionParams& params = {}) {
  return probe.compare(cache, tensor(queries, kQueryHeads), tensor(output, kQueryHeads), params);
}

AttentionError error_of(AttentionProbe& probe, KVCache& cache, const RowMatrix& queries) {
  const Result<AttentionError> error = compare(probe, cache, queries, attend(cache, queries));
  EXPECT_TRUE(error.ok()) << error.status().message();
  return error.ok() ? *error : AttentionError();
}

void expect_equal(const AttentionError& a, const AttentionError& b) {
  EXPECT_EQ(a.squared_error, b.squared_error);
  EXPECT_EQ(a.squared_shadow, b.squared_shadow);
  EXPECT_EQ(a.greatest, b.greatest);
  EXPECT_EQ(a.rows, b.rows);
}

TEST(Probe, AFloatCacheHasNoError) {
  auto cache = DenseKVCache<float>::create(kServed);
  ASSERT_TRUE(cache.ok());
  AttentionProbe probe = make_probe();
  const Tokens tokens(80, 1, kServed);
  for (const auto& [first, count] : {std::pair<Index, Index>{0, 50}, {50, 1}, {51, 29}}) {
    append_to_both(*cache, probe, tokens, first, count);
    EXPECT_EQ(probe.length(), first + count);
    const AttentionError error = error_of(probe, *cache, some_queries(count));
    EXPECT_EQ(error.relative(), 0.0);
    EXPECT_EQ(error.greatest, 0.0);
    EXPECT_GT(error.squared_shadow, 0.0);
    EXPECT_EQ(error.rows, count * kQueryHeads);
  }
}

TEST(Probe, SeesOneElement) {
  auto cache = DenseKVCache<float>::create(kServed);
  ASSERT_TRUE(cache.ok());
  AttentionProbe probe = make_probe();
  append_to_both(*cache, probe, Tokens(20, 1, kServed), 0, 20);
  const RowMatrix queries = some_queries(3), exact = attend(*cache, queries);
  for (const auto& [row, column] : {std::pair<Index, Index>{0, 0}, {1, 100}, {2, exact.cols() - 1}}) {
    RowMatrix output = exact;
    output(row, column) -= 0.75f;
    const Result<AttentionError> error = compare(probe, *cache, queries, output);
    ASSERT_TRUE(error.ok()) << error.status().message();
    EXPECT_NEAR(error->greatest, 0.75, 1e-6);
    EXPECT_NEAR(error->relative(), 0.75 / exact.cast<double>().norm(), 1e-6);
  }
}

oracle::Matrix head_of(const RowMatrix& x, Index head, Index dim) {
  oracle::Matrix m(int(x.rows()), int(dim));
  for (Index t = 0; t < x.rows(); ++t)
    for (Index c = 0; c < dim; ++c) m(int(t), int(c)) = double(x(t, head * dim + c));
  return m;
}

/// What attention must give over these tokens, of which the first are quantized to two bits where `sealed` says so.
Eigen::MatrixXd expected_output(const Tokens& tokens, const RowMatrix& queries, const VariantNumbers& variant,
                                Index window, int sealed_keys, int sealed_values) {
  Eigen::MatrixXd output(queries.rows(), kQueryHeads * kServed.value_dim);
  for (Index head = 0; head < kQueryHeads; ++head) {
    const Index kv_head = head / (kQueryHeads / kServed.kv_heads);
    oracle::Kept keys(head_of(tokens.keys, kv_head, kServed.key_dim), oracle::exact);
    oracle::Kept values(head_of(tokens.values, kv_head, kServed.value_dim), oracle::exact);
    oracle::quantize_keys(keys, sealed_keys, 32, 2);
    oracle::quantize_values(values, sealed_values, 32, 2);
    for (Index q = 0; q < queries.rows(); ++q) {
      const auto [first, last] = variant.visible(q, window);
      const oracle::Attention attention =
          oracle::attention(head_of(queries.row(q), head, kServed.key_dim).data, keys, values, first, last,
                            1.0 / std::sqrt(double(kServed.key_dim)), variant.terms(q, head));
      for (Index i = 0; i < kServed.value_dim; ++i)
        output(q, head * kServed.value_dim + i) = attention.output[std::size_t(i)];
    }
  }
  return output;
}

/// Serves tokens in two bits, with outputs of type T that lie apart from each other, and compares what the probe finds
/// with the distances from the oracle: of the very output, which may differ by the shadow's rounding alone, and of the
/// output that the oracle expects from codes, which may differ by that of kernels.
template <class T>
void finds_what_the_oracle_finds(const Variant& variant, Index window) {
  constexpr Index past = 96, count = 40, length = past + count;  // rows enough to be multiplied in fp32
  AsymKVCache cache = two_bits();
  AttentionProbe probe = make_probe();
  const Tokens tokens(length, 3, kServed);
  append_to_both(cache, probe, tokens, 0, past);
  append_to_both(cache, probe, tokens, past, count);
  const RowMatrix queries = some_queries(count);
  VariantNumbers numbers(variant, count, kQueryHeads, length);
  const AttentionParams params = numbers.params(window);
  Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> columns(kQueryHeads * kServed.value_dim, 2 * count);
  Tensor output = tensor(columns.data(), count, kQueryHeads, kServed.value_dim);
  output.token_stride = 2;
  output.dim_stride = 2 * count;
  output.head_stride = kServed.value_dim * output.dim_stride;
  ASSERT_TRUE(cache.attend(kLayer, tensor(queries, kQueryHeads), output, params).ok());
  const RowMatrix lse = numbers.lse;
  const Result<AttentionError> error = probe.compare(cache, tensor(queries, kQueryHeads), output, params);
  ASSERT_TRUE(error.ok()) << error.status().message();
  EXPECT_TRUE(!numbers.has_lse() || numbers.lse == lse);  // written by cache, not by the probe

  const Eigen::MatrixXd exact = expected_output(tokens, queries, numbers, window, 0, 0);
  const Eigen::MatrixXd of_codes = expected_output(tokens, queries, numbers, window, past, past - 32);
  Eigen::MatrixXd served(count, kQueryHeads * kServed.value_dim);
  for (Index q = 0; q < count; ++q) served.row(q) = columns.col(2 * q).transpose().template cast<double>();
  EXPECT_NEAR(error->squared_error, (served - exact).squaredNorm(), 1e-4 * error->squared_error);
  EXPECT_NEAR(error->squared_shadow, exact.squaredNorm(), 1e-5 * error->squared_shadow);
  EXPECT_NEAR(error->greatest, (served - exact).cwiseAbs().maxCoeff(), 1e-4 * error->greatest);
  EXPECT_EQ(error->rows, count * kQueryHeads);
  EXPECT_NEAR(error->relative(), (of_codes - exact).norm() / exact.norm(), 0.01 * error->relative());
  EXPECT_GT(error->relative(), 0.05);
}

TEST(Probe, FindsWhatTheOracleFinds) {
  Variant all;
  all.softcap = 20.0f;
  all.mask = Mask::of_heads;
  all.alibi = all.sinks = all.lse = true;
  Variant elsewhere;
  elsewhere.causal = false;
  elsewhere.position = 60;
  for (const Variant& variant : {Variant(), all, elsewhere})
    for (Index window : {0, 70}) {
      SCOPED_TRACE(testing::Message() << "window " << window << variant);
      finds_what_the_oracle_finds<float>(variant, window);
      finds_what_the_oracle_finds<Eigen::half>(variant, window);
    }
}

TEST(Probe, AddsUpUntilItIsReset) {
  AsymKVCache cache = two_bits();
  AttentionProbe probe = make_probe();
  const Tokens tokens(130, 4, kServed);
  expect_equal(probe.total(), {});
  AttentionError sum;
  const auto find = [&](unsigned seed) {
    const AttentionError error = error_of(probe, cache, some_queries(1, seed));
    EXPECT_GT(error.relative(), 0.0);
    sum.squared_error += error.squared_error;
    sum.squared_shadow += error.squared_shadow;
    sum.greatest = std::max(sum.greatest, error.greatest);
    sum.rows += error.rows;
    expect_equal(probe.total(), sum);
  };
  append_to_both(cache, probe, tokens, 0, 120);
  for (Index step = 0; step < 10; ++step) {
    append_to_both(cache, probe, tokens, 120 + step, 1);
    if (step % 3 == 0) find(unsigned(step));
  }
  EXPECT_EQ(sum.rows, 4 * kQueryHeads);
  cache.clear();
  probe.clear();
  EXPECT_EQ(probe.length(), 0);
  expect_equal(probe.total(), sum);  // over sequences
  append_to_both(cache, probe, tokens, 10, 110);
  append_to_both(cache, probe, tokens, 120, 1);
  find(20);
  probe.reset_total();
  expect_equal(probe.total(), {});
}

TEST(Probe, RelativeErrorOfNothing) {
  AttentionError error;
  EXPECT_EQ(error.relative(), 0.0);
  error.squared_error = 1e-300;
  EXPECT_EQ(error.relative(), std::numeric_limits<double>::infinity());
  error.squared_shadow = 4e-300;
  EXPECT_DOUBLE_EQ(error.relative(), 0.5);
}

TEST(Probe, AnEmptyLayerIsComparedWherePositionAllowsAttention) {
  AsymKVCache cache = two_bits();
  AttentionProbe probe = make_probe();
  const RowMatrix queries = some_queries(2);
  AttentionParams params;
  params.position = 5;
  const RowMatrix output = attend(cache, queries, params);
  const Result<AttentionError> error = compare(probe, cache, queries, output, params);
  ASSERT_TRUE(error.ok()) << error.status().message();
  EXPECT_EQ(error->relative(), 0.0);
  expect_error(compare(probe, cache, queries, output).status(), ErrorCode::out_of_range, "queries: 2 tokens");
}

TEST(Probe, OtherLengthsAreRefusedUntilTheyAgree) {
  AsymKVCache cache = two_bits();
  AttentionProbe probe = make_probe();
  const Tokens tokens(90, 5, kServed);
  append_to_both(cache, probe, tokens, 0, 80);
  const RowMatrix queries = some_queries(1);
  const AttentionError before = error_of(probe, cache, queries);
  append(cache, tokens, 80, 7, kLayer);
  const Status status = compare(probe, cache, queries, attend(cache, queries)).status();
  expect_error(status, ErrorCode::invalid_argument, "served: layer 1 has 87 tokens, its shadow 80;");
  expect_equal(probe.total(), before);

  EXPECT_TRUE(append_to(probe, tokens, 80, 7).ok());
  error_of(probe, cache, queries);
  expect_error(probe.trim(88), ErrorCode::out_of_range, "tokens:");
  EXPECT_TRUE(probe.trim(80).ok());
  expect_error(compare(probe, cache, queries, attend(cache, queries)).status(), ErrorCode::invalid_argument, "served:");
  EXPECT_TRUE(cache.trim(80).ok());
  probe.reset_total();
  expect_equal(error_of(probe, cache, queries), probe.total());
  cache.clear();
  expect_error(compare(probe, cache, queries, RowMatrix(1, kQueryHeads * kServed.value_dim)).status(),
               ErrorCode::invalid_argument, "served: layer 1 has 0 tokens, its shadow 80;");
}

TEST(Probe, ATrimmedShadowIsThatOfTheFirstTokens) {
  auto cache = DenseKVCache<float>::create(kServed);
  ASSERT_TRUE(cache.ok());
  AttentionProbe probe = make_probe();
  const Tokens tokens(60, 6, kServed), others(60, 7, kServed);
  append_to_both(*cache, probe, tokens, 0, 60);
  ASSERT_TRUE(cache->trim(33).ok() && probe.trim(33).ok());
  append_to_both(*cache, probe, others, 33, 20);
  EXPECT_EQ(error_of(probe, *cache, some_queries(20)).relative(), 0.0);
}

TEST(Probe, CreateNamesWhatIsWrong) {
  CacheShape shape = kServed;
  expect_error(AttentionProbe::create(shape, 3).status(), ErrorCode::out_of_range, "layer: is 3;");
  expect_error(AttentionProbe::create(shape, -1).status(), ErrorCode::out_of_range, "layer: is -1;");
  shape.layers = 0;
  expect_error(AttentionProbe::create(shape, 0).status(), ErrorCode::invalid_argument, "shape:");
  shape = kServed;
  shape.value_dim = 1025;
  expect_error(AttentionProbe::create(shape, 0).status(), ErrorCode::invalid_argument, "shape:");
  Allocator allocator;
  allocator.deallocate = nullptr;
  expect_error(AttentionProbe::create(kServed, 0, {0, allocator}).status(), ErrorCode::invalid_argument,
               "options: allocator");
  const ForcedIsa unknown("none");
  expect_error(AttentionProbe::create(kServed, 0).status(), ErrorCode::invalid_argument, "ASYMKV_FORCE_ISA");
}

TEST(Probe, CallsThatFailNameWhatIsWrongAndChangeNothing) {
  AsymKVCache cache = two_bits();
  AttentionProbe probe = make_probe();
  const Tokens tokens(100, 5, kServed);
  append_to_both(cache, probe, tokens, 0, 100);
  const RowMatrix queries = some_queries(2), output = attend(cache, queries);
  const AttentionError before = error_of(probe, cache, queries);

  Tokens bad(2, 6, kServed);
  bad.values(1, 3) = INFINITY;
  expect_error(append_to(probe, bad, 0, 2), ErrorCode::non_finite, "values:");
  expect_error(probe.append(tensor(bad.keys, 1), tensor(bad.values, 2)), ErrorCode::invalid_argument, "keys:");

  expect_error(compare(probe, cache, queries, RowMatrix(1, output.cols())).status(), ErrorCode::invalid_argument,
               "output: shape");
  Tensor null = tensor(static_cast<float*>(nullptr), 2, kQueryHeads, kServed.value_dim);
  expect_error(probe.compare(cache, tensor(queries, kQueryHeads), null).status(), ErrorCode::invalid_argument,
               "output: data is null");
  expect_error(probe.compare(cache, tensor(queries, 5), tensor(output, kQueryHeads)).status(),
               ErrorCode::invalid_argument, "queries:");
  AttentionParams params;
  params.window = -1;
  expect_error(compare(probe, cache, queries, output, params).status(), ErrorCode::invalid_argument, "params: window");
  RowMatrix infinite = queries;
  infinite(1, 2) = NAN;
  expect_error(compare(probe, cache, infinite, output).status(), ErrorCode::non_finite, "queries:");
  infinite = output;
  infinite(1, 3 * kServed.value_dim) = NAN;
  expect_error(compare(probe, cache, queries, infinite).status(), ErrorCode::non_finite,
               "output: contains NaN or infinity, at query 1, head 3");
  infinite(1, 3 * kServed.value_dim) = -INFINITY;
  expect_error(compare(probe, cache, queries, infinite).status(), ErrorCode::non_finite, "output:");

  expect_equal(probe.total(), before);
  EXPECT_EQ(probe.length(), 100);
  expect_equal(error_of(probe, cache, queries), before);
}

/// Views of one row repeated, so that there is an output of 2^62 elements, of which nobody counts the bytes.
TEST(Probe, AnOutputBeyondAllMemoryIsRefused) {
  constexpr CacheShape shape{1, 1, 1, 1024};
  AsymKVCache cache = make_cache("k2v2", {}, shape);
  auto probe = AttentionProbe::create(shape, 0);
  ASSERT_TRUE(probe.ok());
  const std::vector<float> row(1024);
  ConstTensor queries = tensor(row.data(), Index(1) << 32, Index(1) << 20, 1);
  ConstTensor output = tensor(row.data(), Index(1) << 32, Index(1) << 20, 1024);
  queries.token_stride = queries.head_stride = output.token_stride = output.head_stride = 0;
  AttentionParams params;
  params.position = 0;
  expect_error(probe->compare(cache, queries, output, params).status(), ErrorCode::out_of_memory, "output:");
}

TEST(Probe, WhatAMovedProbeLeavesRefusesCalls) {
  AsymKVCache cache = two_bits();
  AttentionProbe probe = make_probe(), other = std::move(probe);
  const RowMatrix queries = some_queries(1), output(1, kQueryHeads * kServed.value_dim);
  AttentionParams params;
  params.position = 0;
  expect_error(append_to(probe, Tokens(1, 1, kServed), 0, 1), ErrorCode::out_of_range, "layer:");
  expect_error(compare(probe, cache, queries, output, params).status(), ErrorCode::out_of_range, "layer:");
  EXPECT_EQ(probe.length(), 0);
  append_to_both(cache, other, Tokens(1, 1, kServed), 0, 1);
  error_of(other, cache, queries);
}

TEST(Probe, BytesAreWhatTheAllocatorHandedOut) {
  CountingAllocator counting;
  AsymKVCache cache = two_bits();
  {
    AttentionProbe probe = make_probe(counting.allocator());
    const Tokens tokens(200, 8, kServed);
    EXPECT_EQ(probe.bytes(), counting.bytes);
    const Index created = counting.bytes;
    append_to_both(cache, probe, tokens, 0, 200);
    EXPECT_EQ(probe.bytes(), counting.bytes);
    for (Index queries : {2, 9, 4}) {
      error_of(probe, cache, some_queries(queries));
      EXPECT_EQ(probe.bytes(), counting.bytes);
    }
    const Index elements = 200 * kServed.kv_heads * (kServed.key_dim + kServed.value_dim);
    EXPECT_GE(probe.bytes() - created, 4 * (elements + 9 * kQueryHeads * kServed.value_dim));
    EXPECT_LE(probe.bytes() - created, 6 * elements + 4 * 9 * kQueryHeads * kServed.value_dim + 4096);

    const RowMatrix queries = some_queries(9), output = attend(cache, queries);
    const long requests = heap_requests();
    EXPECT_TRUE(compare(probe, cache, queries, output).ok());
    EXPECT_EQ(heap_requests(), requests);  // no larger output than before
    probe.clear();
    EXPECT_EQ(probe.bytes(), counting.bytes);
    EXPECT_EQ(counting.bytes, created);
  }
  EXPECT_EQ(counting.bytes, 0);
}

TEST(Probe, WithoutMemoryItStaysUsable) {
  AsymKVCache cache = two_bits();
  AttentionProbe untroubled = make_probe();
  const Tokens tokens(100, 9, kServed);
  append_to_both(cache, untroubled, tokens, 0, 100);
  const RowMatrix queries = some_queries(3), output = attend(cache, queries);
  const AttentionError expected = error_of(untroubled, cache, queries);

  const auto run = [&](int fail) {  // true when no request was left to fail
    CountingAllocator counting;
    counting.fail_at = fail;
    Status failed;
    Result<AttentionProbe> probe = AttentionProbe::create(kServed, kLayer, {0, counting.allocator()});
    const auto again_with_memory = [&](auto call) {
      Status status = call();
      if (status.ok()) return;
      failed = status;
      counting.fail_at = -1;
      status = call();
      EXPECT_TRUE(status.ok()) << status.message();
    };
    again_with_memory([&] {
      if (!probe.ok()) probe = AttentionProbe::create(kServed, kLayer, {0, counting.allocator()});
      return probe.status();
    });
    for (Index first : {0, 30})
      again_with_memory([&] {
        EXPECT_EQ(probe->length(), first);
        return append_to(*probe, tokens, first, first == 0 ? 30 : 70);
      });
    again_with_memory([&] {
      expect_equal(probe->total(), {});
      return compare(*probe, cache, queries, output).status();
    });
    expect_equal(probe->total(), expected);
    EXPECT_EQ(probe->bytes(), counting.bytes);
    EXPECT_TRUE(failed.ok() || failed.code() == ErrorCode::out_of_memory) << failed.message();
    return failed.ok();
  };
  int requests = 0;
  while (requests < 100 && !run(requests)) ++requests;
  EXPECT_GE(requests, 1 + 2 + 1);  // the shadow, its two sides, an output
}

TEST(Probe, AnAppendWithoutMemoryNamesTheLayerThatIsWatched) {
  CountingAllocator counting;
  AttentionProbe probe = make_probe(counting.allocator());
  counting.fail_at = counting.calls;
  const Status status = append_to(probe, Tokens(3, 1, kServed), 0, 3);
  expect_error(status, ErrorCode::out_of_memory, "append: no memory for 3 more tokens in the shadow of layer 1");
}

TEST(Probe, SlidingWindowsAreWatchedToo) {
  Result<AttentionProbe> probe = AttentionProbe::create(kServed, kLayer, {4});
  ASSERT_TRUE(probe.ok());
  AsymKVCache cache = make_cache("float@4", {}, kServed);
  const Tokens tokens(500, 3, kServed);
  append_to_both(cache, *probe, tokens, 0, 500);
  const RowMatrix queries = random_matrix(2, kQueryHeads * kServed.key_dim, 7);
  RowMatrix output(2, kQueryHeads * kServed.value_dim);
  const auto compare = [&] {
    EXPECT_TRUE(cache.attend(kLayer, tensor(queries, kQueryHeads), tensor(output, kQueryHeads)).ok());
    return probe->compare(cache, tensor(queries, kQueryHeads), tensor(output, kQueryHeads));
  };
  ASSERT_TRUE(cache.remove_front(kLayer, 300).ok());
  expect_error(compare().status(), ErrorCode::invalid_argument, "served: tokens [4, 300) of layer 1 are removed");
  ASSERT_TRUE(probe->remove_front(300).ok());
  const Result<AttentionError> error = compare();
  ASSERT_TRUE(error.ok()) << error.status().message();
  EXPECT_LT(error->relative(), 1e-6);
  expect_error(probe->remove_front(501), ErrorCode::out_of_range, "end");
  for (Index sinks : {-1, 129})
    expect_error(AttentionProbe::create(kServed, 0, {sinks}).status(), ErrorCode::invalid_argument,
                 "options: sink_length");
}

}  // namespace
