// Calibration: recorder, curves, budgets.
#include <asymkv/calibrate.hpp>
#include <thread>

#include "support/support.hpp"

namespace {

using namespace asymkv;
using support::random_matrix;

constexpr CacheShape kShape{2, 2, 64, 32};
constexpr Index kHeads = 4, kTokens = 400;

/// Two layers of random tensors; attention to them is sharp enough to tell keys apart.
Recorder recording(unsigned seed, Index tokens = kTokens, Index chunk = kTokens, const AttentionParams& params = {}) {
  Recorder recorder = *Recorder::create(kShape, kHeads);
  for (Index layer = 0; layer < kShape.layers; ++layer) {
    const unsigned start = seed + 10 * unsigned(layer);
    const auto queries = random_matrix(tokens, kHeads * kShape.key_dim, start);
    const auto keys = random_matrix(tokens, kShape.kv_heads * kShape.key_dim, start + 1);
    const auto values = random_matrix(tokens, kShape.kv_heads * kShape.value_dim, start + 2);
    for (Index i = 0; i < tokens; i += chunk) {
      const Index count = std::min(chunk, tokens - i);
      EXPECT_TRUE(recorder
                      .record(layer, tensor(queries.middleRows(i, count), kHeads),
                              tensor(keys.middleRows(i, count), kShape.kv_heads),
                              tensor(values.middleRows(i, count), kShape.kv_heads), params)
                      .ok());
    }
  }
  return recorder;
}

std::vector<Recorder> recordings() { return {recording(1), recording(100)}; }

TEST(Recorder, RefusesWhatDoesNotFitAndRecordsNothing) {
  EXPECT_EQ(Recorder::create({0, 2, 64, 32}, 4).status().code(), ErrorCode::invalid_argument);
  for (const Index heads : {-2, 0, 3}) EXPECT_FALSE(Recorder::create(kShape, heads).ok()) << heads;
  Recorder recorder = *Recorder::create(kShape, kHeads);
  const std::vector<float> x(1000);
  const ConstTensor queries = tensor(x.data(), 3, 4, 64), keys = tensor(x.data(), 3, 2, 64),
                    values = tensor(x.data(), 3, 2, 32);
  for (const Index layer : {-1, 2}) {
    const Status status = recorder.record(layer, queries, keys, values);
    EXPECT_EQ(status.code(), ErrorCode::out_of_range);
    EXPECT_NE(std::string(status.message()).find("the number of layers is 2"), std::string::npos) << status.message();
  }
  const auto refused = [&](const ConstTensor& q, const ConstTensor& k, const ConstTensor& v, AttentionParams p = {}) {
    const Status status = recorder.record(0, q, k, v, p);
    EXPECT_EQ(status.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(recorder.length(0), 0);
    return std::string(status.message());
  };
  EXPECT_NE(refused(keys, keys, values).find("queries"), std::string::npos);
  EXPECT_NE(refused(queries, tensor(x.data(), 2, 2, 64), values).find("keys"), std::string::npos);
  EXPECT_NE(refused(queries, keys, keys).find("values: shape is [3, 2, 64], must be [3, 2, 32]"), std::string::npos);
  EXPECT_NE(refused(queries, keys, tensor(static_cast<const float*>(nullptr), 3, 2, 32)).find("null"),
            std::string::npos);
  refused(tensor(x.data(), -1, 4, 64), tensor(x.data(), -1, 2, 64), tensor(x.data(), -1, 2, 32));
  refused(queries, keys, values, {0.0f, false, 0});
  refused(queries, keys, values, {0.0f, true, -1});
  EXPECT_TRUE(recorder.record(0, queries, keys, values).ok());
  EXPECT_EQ(recorder.length(0), 3);
  EXPECT_EQ(recorder.length(1), 0);
  Recorder& left = recorder;
  const Recorder taken = std::move(left);
  EXPECT_EQ(taken.length(0), 3);
  EXPECT_EQ(recorder.record(0, queries, keys, values).code(), ErrorCode::out_of_range);
}

TEST(Recorder, KeepsWhatCameInAnyTypeOrderAndPieces) {
  const Recorder whole = recording(5), pieces = recording(5, kTokens, 7);
  for (Index i = 0; i < kTokens * kShape.kv_heads * kShape.key_dim; ++i)
    ASSERT_EQ(load_scalar(whole.keys(1, 0, kTokens).data, ScalarType::f32, i),
              load_scalar(pieces.keys(1, 0, kTokens).data, ScalarType::f32, i));
  Recorder turned = *Recorder::create({1, 1, 2, 2}, 1);
  const Eigen::half halves[] = {Eigen::half(1), Eigen::half(2), Eigen::half(3), Eigen::half(4)};
  ConstTensor columns = tensor(halves, 2, 1, 2);
  std::swap(columns.token_stride, columns.dim_stride);
  ASSERT_TRUE(turned.record(0, columns, columns, columns).ok());
  const float* queries = static_cast<const float*>(turned.queries(0, 0, 2).data);
  EXPECT_EQ(std::vector<float>(queries, queries + 4), (std::vector<float>{1, 3, 2, 4}));
}

/// The damage of one point, written anew: caches of whole models, attention by the reference in double.
double damage(const std::vector<Recorder>& recordings, Index layer, LayerFormat format, const MeasureOptions& options) {
  double error = 0, size = 0;
  for (const Recorder& r : recordings) {
    const AsymKVPolicy policy =
        *AsymKVPolicy::table(std::vector<LayerFormat>(2, format))->with_sinks(options.sink_length);
    AsymKVCache coarse = *AsymKVCache::create(kShape, policy);
    auto exact = *DenseKVCache<float>::create(kShape);
    for (Index first = 0; first < r.length(layer); first += options.chunk) {
      const Index count = std::min(options.chunk, r.length(layer) - first);
      support::RowMatrix found(count, kHeads * kShape.value_dim), expected = found;
      for (KVCache* cache : {static_cast<KVCache*>(&coarse), static_cast<KVCache*>(&exact)}) {
        EXPECT_TRUE(cache->append(layer, r.keys(layer, first, count), r.values(layer, first, count)).ok());
        EXPECT_TRUE(reference_attention(*cache, layer, r.queries(layer, first, count),
                                        tensor(cache == &exact ? expected : found, kHeads), r.params(layer))
                        .ok());
      }
      const Index judged = std::min(count, std::max(Index(0), first + count - options.skip));
      error += (found - expected).bottomRows(judged).cast<double>().squaredNorm();
      size += expected.bottomRows(judged).cast<double>().squaredNorm();
    }
  }
  return error / size;
}

TEST(Calibrate, CurvesAreTheErrorsOfTheReference) {
  MeasureOptions options;
  options.skip = 300;
  options.chunk = 150;
  for (const Index window : {0, 200}) {
    const std::vector<Recorder> recorded = {recording(1, 400, 400, {0.05f, true, window}),
                                            recording(2, 350, 350, {0.05f, true, window})};
    Curve keys{1, Side::keys, {{Format{1}}, {Format{2}}, {Format{32}}, {Format::mixed_keys(2)}}};
    Curve values{0, Side::values, {{Format::rotated_values(1)}, {Format{4}}}};
    for (Curve* curve : {&keys, &values}) {
      ASSERT_TRUE(measure_curve(recorded, options, *curve).ok());
      for (const CurvePoint& point : curve->points) {
        LayerFormat format{Format{32}, Format{32}};
        (curve->side == Side::keys ? format.keys : format.values) = point.format;
        const double expected = damage(recorded, curve->layer, format, options);
        EXPECT_NEAR(point.damage, expected, 0.02 * expected + 1e-9);
      }
    }
    EXPECT_GT(keys.points[0].damage, keys.points[1].damage);
    EXPECT_GT(keys.points[1].damage, 0.001);
    EXPECT_EQ(keys.points[2].damage, 0.0);
    EXPECT_GT(values.points[0].damage, values.points[1].damage);
  }
}

CalibrationOptions options_of(double bits) {
  CalibrationOptions options;
  options.budget_bits = bits;
  return options;
}

TEST(Calibrate, NeverExceedsItsBudgetByAByte) {
  const std::vector<Recorder> recorded = {recording(7, 300)};
  std::mt19937 generator(4);
  for (int round = 0; round < 8; ++round) {
    const double bits = 1.0 + double(generator() % 30000) / 10000;
    const auto result = calibrate(recorded, options_of(bits));
    ASSERT_TRUE(result.ok()) << result.status().message();
    EXPECT_LE(result->policy.all_in_bits(kShape), bits);
    // what the sealed pages of a real cache take: 256 tokens, the sink among them, are two pages of keys, one of values
    AsymKVCache cache = *AsymKVCache::create(kShape, result->policy);
    for (Index layer = 0; layer < kShape.layers; ++layer)
      ASSERT_TRUE(cache.append(layer, recorded[0].keys(layer, 0, 256), recorded[0].values(layer, 0, 256)).ok());
    ASSERT_TRUE(cache.seal().ok());
    EXPECT_EQ(cache.bytes().keys / 2 + cache.bytes().values, result->bytes) << bits;
    EXPECT_LE(result->bytes, result->budget);
    EXPECT_LE(double(result->bytes) * 8, bits * 128 * 2 * 2 * (64 + 32));
  }
}

TEST(Calibrate, IsTheSameInAnyOrderOfJobs) {
  const std::vector<Recorder> recorded = recordings();
  CalibrationOptions options = options_of(1.6);
  const auto serial = calibrate(recorded, options);
  options.run = [](Index count, const std::function<void(Index)>& job) {
    std::vector<std::thread> threads;
    for (Index i = count; i-- > 0;) threads.emplace_back([&job, i] { job(i); });
    for (std::thread& thread : threads) thread.join();
  };
  std::atomic<Index> calls{0};
  options.progress = [&](Index done, Index total) { calls += done >= 1 && done <= total && total == 4; };
  const auto parallel = calibrate(recorded, options);
  ASSERT_TRUE(serial.ok() && parallel.ok());
  EXPECT_EQ(calls, 4);
  EXPECT_EQ(serial->policy, parallel->policy);
  for (std::size_t i = 0; i < serial->curves.size(); ++i)
    for (std::size_t p = 0; p < serial->curves[i].points.size(); ++p)
      EXPECT_EQ(serial->curves[i].points[p].damage, parallel->curves[i].points[p].damage);
}

TEST(Calibrate, ModelsAnswerScalesTheCurves) {
  const std::vector<Recorder> recorded = recordings();
  CalibrationOptions options = options_of(1.8);
  const auto plain = calibrate(recorded, options);
  ASSERT_TRUE(plain.ok());
  options.model_damage = [](const std::vector<AsymKVPolicy>& probes) -> Result<std::vector<double>> {
    EXPECT_EQ(probes.size(), 4u);
    EXPECT_EQ(probes[2].name(), "0:k32v32+1:km0.5v32@1");
    EXPECT_EQ(probes[3].name(), "0:k32v32+1:k32v1g128fcsr@1");
    return std::vector<double>{0.25, -1e-9, 0.5, 1000.0};  // layer 1's values are all that matters
  };
  const auto asked = calibrate(recorded, options);
  ASSERT_TRUE(asked.ok()) << asked.status().message();
  EXPECT_EQ(asked->curves[0].points[0].damage, 0.25);
  EXPECT_EQ(asked->curves[1].points[0].damage, 0.0);
  EXPECT_NEAR(asked->curves[2].points[3].damage,
              0.5 * plain->curves[2].points[3].damage / plain->curves[2].points[0].damage, 1e-12);
  EXPECT_GT(asked->policy.layer(1).values.bits, plain->policy.layer(1).values.bits);
  EXPECT_EQ(asked->policy.layer(0).values.bits, 1);
  options.model_damage = [](const auto&) -> Result<std::vector<double>> { return std::vector<double>{1.0}; };
  EXPECT_EQ(calibrate(recorded, options).status().code(), ErrorCode::invalid_argument);
  options.model_damage = [](const auto&) -> Result<std::vector<double>> {
    return Status::error(ErrorCode::unsupported, "no model");
  };
  EXPECT_STREQ(calibrate(recorded, options).status().message(), "no model");
}

TEST(Calibrate, OptionsAreChecked) {
  const std::vector<Recorder> recorded = {recording(7, 300)};
  const auto code = [&](const CalibrationOptions& options) { return calibrate(recorded, options).status().code(); };
  EXPECT_EQ(code(options_of(0.5)), ErrorCode::out_of_range);  // below 0.5-bit keys and 1-bit values with their scales
  EXPECT_NE(std::string(calibrate(recorded, options_of(0.5)).status().message()).find("the least is"),
            std::string::npos);
  for (const double bits : {-1.0, 65.0, std::nan("")}) EXPECT_EQ(code(options_of(bits)), ErrorCode::invalid_argument);
  CalibrationOptions options;
  options.measure.skip = 300;
  EXPECT_EQ(code(options), ErrorCode::invalid_argument);
  options.measure.skip = 0;
  options.measure.chunk = 0;
  EXPECT_EQ(code(options), ErrorCode::invalid_argument);
  options.measure.chunk = 64;
  options.candidates.keys = {Format{2, 48}};
  EXPECT_EQ(code(options), ErrorCode::invalid_argument);
  EXPECT_EQ(calibrate({}, {}).status().code(), ErrorCode::invalid_argument);
}

}  // namespace
