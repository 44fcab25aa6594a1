// Attention beside scale, causal and window: softcap, masks, ALiBi, sink logits, positions and log-sum-exps, alone and
// together, against the oracle on every instruction set; parts of a context merged; what is refused.
#include <array>
#include <asymkv/calibrate/recorder.hpp>

#include "support/attention_trial.hpp"
#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

/// Each part alone, pairs that meet in one place of the code, and all of them.
std::vector<Variant> variants(float softcap, Index length) {
  const std::optional<Index> none;
  return {{true, none, softcap, Mask::none, false, false, false},
          {true, none, 0.0f, Mask::shared, false, false, false},
          {true, none, 0.0f, Mask::of_heads, false, false, true},
          {true, none, 0.0f, Mask::hides_rows, false, false, true},
          {true, none, 0.0f, Mask::hides_rows, false, true, true},
          {true, none, 0.0f, Mask::none, true, false, false},
          {false, none, 0.0f, Mask::none, true, false, true},
          {true, none, 0.0f, Mask::none, false, true, false},
          {true, none, 0.0f, Mask::none, false, false, true},
          {true, 0, 0.0f, Mask::none, false, false, true},
          {true, length / 2, 0.0f, Mask::none, true, false, true},
          {true, length + 100, 0.0f, Mask::none, true, false, true},
          {true, -2, 0.0f, Mask::none, false, false, true},
          {true, -1000, 0.0f, Mask::none, false, true, true},
          {true, length / 3, softcap, Mask::of_heads, true, true, true},
          {false, -7, softcap, Mask::shared, true, true, true}};
}

/// Packed and dense sides, few rows and many, several heads together and several slices, with and without a window.
std::vector<AttentionCase> geometries() {
  return {{2, 1, 32, 2, 6, 64, 64, 400, 1, 64},       {4, 4, 64, 1, 4, 40, 48, 333, 5, 64, 150},
          {8, 3, 32, 1, 2, 32, 72, 300, 150, 64},     {32, 32, 32, 2, 4, 20, 24, 300, 3, 128},
          {16, 2, 32, 1, 1, 32, 32, 260, 40, 64, 33}, {3, 6, 32, 3, 3, 32, 32, 700, 2, 64, 0, 4},
          {4, 2, 32, 1, 2, 64, 32, 500, 90, 64, 0, 3}};
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> cases;
  for (AttentionCase c : geometries())
    for (const Variant& variant : variants(c.key_bits <= 2 ? 0.02f : 0.7f, c.length)) {
      c.variant = variant;
      cases.push_back(c);
    }
  return cases;
}

Comparison compare(const AttentionCase& c) {
  AttentionTrial trial(c);
  auto cache = cache_of(c);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return trial.compare(trial.attend<float>(*cache));
}

TEST(Variants, EqualTheOracle) {
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    for (const AttentionCase& c : cases()) {
      const Comparison comparison = compare(c);
      EXPECT_EQ(comparison.outside, 0) << isa_name(isa) << " " << c << ": error " << comparison.worst << " bounds";
    }
  }
}

TEST(Variants, HeadSizesOfAllKinds) {
  const Variant all{true, 200, 0.7f, Mask::of_heads, true, true, true};
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    for (Index dim : {8, 24, 72, 112, 192, 320, 512, 576})
      for (const Variant& variant : {Variant(), all}) {
        const Comparison comparison = compare({4, 3, 32, 1, 3, dim, dim, 300, 2, 64, 0, 1, variant});
        EXPECT_EQ(comparison.outside, 0) << isa_name(isa) << " " << dim << variant << comparison.worst;
      }
    for (Index queries : {1, 9}) {  // one latent head for all, the values narrower than the keys
      const Comparison comparison = compare({8, 4, 64, 1, 16, 576, 512, 300, queries, 64, 0, 2, all});
      EXPECT_EQ(comparison.outside, 0) << isa_name(isa) << " 576/512: " << comparison.worst;
    }
  }
}

TEST(Variants, EachOneShows) {
  for (AttentionCase c : cases()) {
    if (c.variant.position || (c.variant.lse && c.variant.mask == Mask::none && !c.variant.alibi)) continue;
    if (c.key_bits <= 2 && c.variant.softcap != 0.0f) continue;  // scores are too small to be bounded visibly
    c.variant.lse = false;
    AttentionTrial trial(c);
    AttentionCase plain = c;
    plain.variant = {};
    auto cache = cache_of(plain);
    EXPECT_GT(trial.compare(AttentionTrial(plain).attend<float>(*cache)).outside, 0) << c;
  }
}

/// A context of 700 tokens whole, and in three caches of its parts.
class Parts : public testing::Test {
 protected:
  static constexpr Index kLength = 700, kQueries = 3, kQueryHeads = 4;
  static constexpr Index kBounds[] = {0, 250, 256, 700};

  Parts() : tokens(kLength, 3), queries(random_matrix(kQueries, kQueryHeads * kDim, 5)) {
    whole.emplace(make_cache("float"));
    append(*whole, tokens, 0, kLength);
    for (int i = 0; i < 3; ++i) {
      parts.push_back(make_cache("float"));
      append(parts.back(), tokens, kBounds[i], kBounds[i + 1] - kBounds[i]);
    }
  }

  struct Result {
    RowMatrix output{kQueries, kQueryHeads*kDim}, lse{kQueries, kQueryHeads};
  };
  Result attend(KVCache& cache, AttentionParams params) const {
    Result result;
    params.lse = tensor(result.lse, kQueryHeads);
    const Status status = cache.attend(0, tensor(queries, kQueryHeads), tensor(result.output, kQueryHeads), params);
    EXPECT_TRUE(status.ok()) << status.message();
    return result;
  }
  static void merge(const Result& more, Result& result) {
    const Status status = merge_attention(tensor(more.output, kQueryHeads), tensor(more.lse, kQueryHeads),
                                          tensor(result.output, kQueryHeads), tensor(result.lse, kQueryHeads));
    EXPECT_TRUE(status.ok()) << status.message();
  }

  Tokens tokens;
  RowMatrix queries;
  std::optional<AsymKVCache> whole;
  std::vector<AsymKVCache> parts;
  const std::vector<float> slopes{0.1f, 0.02f, 0.003f, 0.0f}, sinks{1.0f, 9.0f, -2.0f, 3.0f};
};

TEST_F(Parts, MergeToTheWholeInAnyOrder) {
  for (Index window : {0, 300, 445})  // 300: the first part's tokens are seen by nobody
    for (Index position : {697, 5, 255, 2000}) {
      AttentionParams params;
      params.window = window;
      params.position = position;
      params.alibi_slopes = {slopes.data(), kQueryHeads};
      params.softcap = 20.0f;
      AttentionParams with_sinks = params;
      with_sinks.sink_logits = {sinks.data(), kQueryHeads};
      const Result expected = attend(*whole, with_sinks);
      for (const std::array<int, 3>& order : {std::array{0, 1, 2}, std::array{2, 0, 1}, std::array{1, 2, 0}}) {
        std::optional<Result> result;
        for (int i : order) {
          AttentionParams of_part = i == 1 ? with_sinks : params;  // of one part alone
          of_part.position = position - kBounds[i];
          const Result part = attend(parts[std::size_t(i)], of_part);
          if (result)
            merge(part, *result);
          else
            result = part;
        }
        EXPECT_LT((result->output - expected.output).cwiseAbs().maxCoeff(), 2e-5f) << window << " " << position;
        EXPECT_LT((result->lse - expected.lse).cwiseAbs().maxCoeff(), 2e-5f) << window << " " << position;
      }
    }
}

TEST_F(Parts, ThatSawNothingCountForNothing) {
  Result nothing = attend(parts[2], [] {
    AttentionParams before;
    before.position = -50;
    return before;
  }());
  EXPECT_EQ(nothing.output, RowMatrix::Zero(kQueries, kQueryHeads * kDim));
  EXPECT_TRUE((nothing.lse.array() == -INFINITY).all());
  const Result some = attend(parts[0], {});
  Result result = some;
  merge(nothing, result);
  EXPECT_EQ(result.output, some.output);
  EXPECT_EQ(result.lse, some.lse);
  merge(nothing, nothing);
  EXPECT_EQ(nothing.output, RowMatrix::Zero(kQueries, kQueryHeads * kDim));
  EXPECT_TRUE((nothing.lse.array() == -INFINITY).all());
  merge(some, nothing);
  EXPECT_EQ(nothing.output, some.output);
}

TEST_F(Parts, MergeInAnyTypeAndLayout) {
  AttentionParams of_back;
  of_back.position = kLength;
  const Result front = attend(parts[0], {}), back = attend(parts[2], of_back);
  Result expected = front;
  merge(back, expected);
  const Eigen::Matrix<Eigen::half, -1, -1> half = back.output.cast<Eigen::half>();  // by column
  const Eigen::MatrixXf more_lse = back.lse;
  Eigen::Matrix<Eigen::bfloat16, -1, -1, Eigen::RowMajor> output = front.output.cast<Eigen::bfloat16>();
  Eigen::MatrixXf lse = front.lse;
  const Status status = merge_attention(tensor(half, kQueryHeads), tensor(more_lse, kQueryHeads),
                                        tensor(output, kQueryHeads), tensor(lse, kQueryHeads));
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(lse, expected.lse);
  EXPECT_LT((output.cast<float>() - expected.output).cwiseAbs().maxCoeff(), 0.03f);
  RowMatrix unwritten = RowMatrix::Constant(kQueries, kQueryHeads * kDim, NAN);  // begun with nothing
  RowMatrix nothing = RowMatrix::Constant(kQueries, kQueryHeads, -INFINITY);
  ASSERT_TRUE(merge_attention(tensor(back.output, kQueryHeads), tensor(back.lse, kQueryHeads),
                              tensor(unwritten, kQueryHeads), tensor(nothing, kQueryHeads))
                  .ok());
  EXPECT_EQ(unwritten, back.output);
  EXPECT_EQ(nothing, back.lse);
}

TEST_F(Parts, EmptyOnesSeeNothing) {
  AsymKVCache empty = make_cache("balanced-1.7");
  AttentionParams params;
  params.position = 3;
  params.sink_logits = {sinks.data(), kQueryHeads};
  const Result result = attend(empty, params);
  EXPECT_EQ(result.output, RowMatrix::Zero(kQueries, kQueryHeads * kDim));
  for (Index head = 0; head < kQueryHeads; ++head) EXPECT_NEAR(result.lse(0, head), sinks[std::size_t(head)], 1e-5f);
}

TEST_F(Parts, MergeNamesBadInput) {
  Result a = attend(parts[0], {}), b = attend(parts[1], {});
  const Result before = b;
  const auto merge_as = [&](const ConstTensor& more, const ConstTensor& more_lse, const Tensor& output,
                            const Tensor& lse) { return merge_attention(more, more_lse, output, lse); };
  const ConstTensor more = tensor(a.output, kQueryHeads), more_lse = tensor(a.lse, kQueryHeads);
  const Tensor output = tensor(b.output, kQueryHeads), lse = tensor(b.lse, kQueryHeads);
  ConstTensor halves = more_lse;
  halves.type = ScalarType::f16;
  const ErrorCode invalid = ErrorCode::invalid_argument;
  expect_error(merge_as({}, more_lse, output, lse), invalid, "more: data is null");
  expect_error(merge_as(more, {}, output, lse), invalid, "more_lse: data is null");
  expect_error(merge_as(more, more_lse, {}, lse), invalid, "output: data is null");
  expect_error(merge_as(more, more_lse, output, {}), invalid, "lse: data is null");
  expect_error(merge_as(tensor(a.output, 1), more_lse, output, lse), invalid, "more: shape is [3, 1, 192]");
  expect_error(merge_as(more, tensor(a.lse, 2), output, lse), invalid, "more_lse: shape is [3, 2, 2]");
  expect_error(merge_as(more, halves, output, lse), invalid, "more_lse: is in f16");
  Tensor negative = output;
  negative.tokens = -1;
  expect_error(merge_as(more, more_lse, negative, lse), invalid, "output: shape is [-1, 4, 48]");
  for (float wrong : {float(NAN), float(INFINITY)}) {
    a.lse(2, 1) = wrong;
    expect_error(merge_as(more, more_lse, output, lse), ErrorCode::non_finite, "more_lse: of token 2, head 1");
  }
  EXPECT_EQ(b.output, before.output);
  EXPECT_EQ(b.lse, before.lse);
}

TEST(Variants, ReferenceEqualsTheOracle) {
  for (const AttentionCase& c : cases()) {
    if (c.key_bits != 32 || c.threads != 1) continue;
    AttentionTrial trial(c);
    auto cache = cache_of(c);
    trial.attend<float>(*cache);
    EXPECT_EQ(trial.compare(trial.reference(*cache)).outside, 0) << c;
  }
}

/// Numbers from a to b.
struct Dice {
  std::mt19937 generator;
  Index operator()(Index a, Index b) { return a + Index(generator() % std::uint32_t(b - a + 1)); }
  bool one_of(Index n) { return (*this)(1, n) == 1; }
};

/// One attention with everything chosen by chance: format, sinks, trims, heads, slices, and what is asked for. The
/// reference reads back what the cache keeps, so it knows all of it. Returns the error over what the format allows.
float error_of_chance(unsigned seed) {
  Dice dice{std::mt19937(seed)};
  constexpr struct {
    const char* policy;
    float queries, allowed;  // a bound for scores that they keep below about 1
  } kinds[] = {{"float", 0.7f, 2e-5f},         {"half", 0.7f, 1e-3f},    {"k4v4", 0.1f, 4e-3f},
               {"k8v3g64fcsr@3", 0.1f, 4e-3f}, {"k2v2@40", 0.02f, 0.1f}, {"balanced-1.7", 0.02f, 0.1f}};
  const auto& kind = kinds[dice(0, 5)];
  const CacheShape shape{1, dice(1, 3), 8 * dice(1, 9), 8 * dice(1, 9)};
  const Index heads = shape.kv_heads * dice(1, 4);
  CacheOptions options;
  options.threads = dice(1, 9);
  AsymKVCache cache = make_cache(kind.policy, options, shape);
  const auto add = [&](Index count) { append(cache, Tokens(count, unsigned(dice(0, 99)), shape), 0, count); };
  add(dice(1, 500));
  if (dice.one_of(2)) add(dice(1, 300));
  if (dice.one_of(3)) {
    EXPECT_TRUE(cache.seal().ok() && cache.trim(dice(1, cache.length())).ok());
    add(dice(1, 300));
  }
  const Index length = cache.length(), queries = dice.one_of(4) ? dice(1, 150) : dice(1, 5);
  Variant variant;
  variant.causal = !dice.one_of(4);
  if (queries > length || dice.one_of(2))
    variant.position = dice.one_of(4) ? dice(-1000, 2000) : dice(-10, length + 10);
  if (dice.one_of(3)) variant.softcap = std::exp2(float(dice(-3, 40)));
  variant.mask = dice.one_of(2) ? Mask::none : Mask(dice(1, 3));
  variant.alibi = dice.one_of(3);
  variant.sinks = dice.one_of(3);
  VariantNumbers numbers(variant, queries, heads, length);
  AttentionParams params = numbers.params(dice.one_of(3) ? dice(1, length + 50) : 0);
  if (params.mask.data != nullptr && dice.one_of(3)) params.mask.token_stride = 0;
  const RowMatrix q = random_matrix(queries, heads * shape.key_dim, seed) * kind.queries;
  RowMatrix output = RowMatrix::Constant(queries, heads * shape.value_dim, NAN), expected = output;
  RowMatrix lse = RowMatrix::Constant(queries, heads, NAN), expected_lse = lse;
  params.lse = tensor(lse, heads);
  const Status status =
      cache.attend_parallel(0, tensor(q, heads), tensor(output, heads), params, [](Index count, const auto& task) {
        for (Index i = count - 1; i >= 0; --i) task(i);
      });
  EXPECT_TRUE(status.ok()) << status.message();
  params.lse = tensor(expected_lse, heads);
  EXPECT_TRUE(reference_attention(cache, 0, tensor(q, heads), tensor(expected, heads), params).ok());
  float worst = (output - expected).cwiseAbs().maxCoeff() / (1.0f + expected.cwiseAbs().maxCoeff());
  if (output.hasNaN()) worst = INFINITY;
  for (Index i = 0; i < lse.size(); ++i) {
    const float found = lse.data()[i], right = expected_lse.data()[i];
    if (found != right) worst = std::max(worst, std::fabs(found - right) / (1.0f + std::fabs(right)));
    if (std::isnan(found)) worst = INFINITY;
  }
  return worst / kind.allowed;
}

TEST(Variants, ChosenByChanceEqualTheReference) {
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    float worst = 0.0f;
    for (unsigned seed = 0; seed < 60; ++seed) {
      const float error = error_of_chance(seed);
      EXPECT_LE(error, 1.0f) << isa_name(isa) << " seed " << seed;
      worst = std::max(worst, error);
    }
    EXPECT_GT(worst, 0.02f) << "too much is allowed";
  }
}

TEST(Variants, ExtremesThatAreAllowed) {
  AsymKVCache cache = make_cache("k4v4");
  append(cache, Tokens(300, 1), 0, 300);
  const RowMatrix queries = random_matrix(2, 2 * kDim, 2);
  const auto both = [&](const AttentionParams& params) {
    RowMatrix output(2, 2 * kDim), expected = output;
    const Status status = cache.attend(0, tensor(queries, 2), tensor(output, 2), params);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(reference_attention(cache, 0, tensor(queries, 2), tensor(expected, 2), params).ok());
    EXPECT_LT((output - expected).cwiseAbs().maxCoeff(), 4e-2f);
    return output;
  };
  AttentionParams params;
  const RowMatrix plain = both(params);
  for (bool causal : {true, false}) {
    AttentionParams wide;
    wide.causal = causal;
    wide.window = std::numeric_limits<Index>::max();
    for (Index position : {-(Index(1) << 32), Index(-3), Index(298), Index(1) << 32}) {
      wide.position = position;
      AttentionParams without = wide;
      without.window = 0;
      EXPECT_EQ(both(wide), both(without)) << position;
    }
  }
  for (float cap : {0x1p60f, 1e8f}) {
    params.softcap = cap;
    EXPECT_LT((both(params) - plain).cwiseAbs().maxCoeff(), 1e-4f) << "far above all scores";
  }
  params.softcap = 0x1p-60f;
  both(params);
  params.softcap = 0.0f;
  RowMatrix mask = RowMatrix::Zero(2, 300);
  for (float hidden : {-std::numeric_limits<float>::max(), -float(INFINITY), -0x1.8p100f}) {
    mask.setZero();
    mask.leftCols(200).setConstant(hidden);
    params.mask = tensor(mask);
    AttentionParams windowed;
    windowed.window = 99;  // of the first query; the second sees one token more here
    const RowMatrix output = both(params);
    EXPECT_LT((output.row(0) - both(windowed).row(0)).cwiseAbs().maxCoeff(), 4e-3f) << hidden;
    mask.setConstant(hidden);
    EXPECT_EQ(both(params), RowMatrix::Zero(2, 2 * kDim)) << hidden;
  }
  mask.setZero();
  mask(0, 7) = mask(1, 7) = 0x1p100f;  // that token alone counts
  const RowMatrix value = read(cache, Side::values, 0, 7, 1);
  EXPECT_LT((both(params).row(0).head(kDim) - value.row(0)).cwiseAbs().maxCoeff(), 4e-3f);
  params.mask = {};
  const std::vector<float> none{-INFINITY, -INFINITY}, all{0x1p100f, 0x1p100f};
  params.sink_logits = {none.data(), 2};
  EXPECT_EQ(both(params), plain);
  params.sink_logits = {all.data(), 2};
  EXPECT_EQ(both(params), RowMatrix::Zero(2, 2 * kDim));
}

TEST(Variants, BadInputIsNamedAndNothingWritten) {
  CacheOptions options;
  options.threads = 2;
  AsymKVCache cache = make_cache("k2v2", options);
  append(cache, Tokens(300, 1), 0, 300);
  const RowMatrix queries = random_matrix(2, 4 * kDim, 2);
  RowMatrix output = RowMatrix::Constant(2, 4 * kDim, 7.0f), lse = RowMatrix::Constant(2, 4, 7.0f);
  RowMatrix mask = RowMatrix::Zero(2, 4 * 300);
  std::vector<float> numbers(4, 1.0f);
  const auto expect = [&](ErrorCode code, const char* begin, auto change) {
    AttentionParams params;
    params.lse = tensor(lse, 4);
    change(params);
    expect_error(cache.attend(0, tensor(queries, 4), tensor(output, 4), params), code, begin);
    expect_error(cache.attend_slice(0, tensor(queries, 4), tensor(output, 4), params, {1, 2}), code, begin);
    expect_error(cache.merge_slices(0, tensor(queries, 4), tensor(output, 4), params, {1, 2}), code, begin);
    EXPECT_TRUE((output.array() == 7.0f).all() && (lse.array() == 7.0f).all()) << begin;
  };
  const ErrorCode invalid = ErrorCode::invalid_argument;
  for (float cap : {-1.0f, float(NAN), float(INFINITY), 1e-30f, 1e30f})
    expect(invalid, "params: softcap", [&](AttentionParams& p) { p.softcap = cap; });
  for (Index position : {-(Index(1) << 32) - 1, (Index(1) << 32) + 1, std::numeric_limits<Index>::min()})
    expect(invalid, "params: position", [&](AttentionParams& p) { p.position = position; });
  expect(invalid, "params: mask: shape is [2, 4, 100], must be [2, 1 or 4, 300]",
         [&](AttentionParams& p) { p.mask = tensor(mask.data(), 2, 4, 100); });
  expect(invalid, "params: mask: shape is [1, 4, 300]",
         [&](AttentionParams& p) { p.mask = tensor(mask.data(), 1, 4, 300); });
  expect(invalid, "params: mask: shape is [2, 2, 300]",
         [&](AttentionParams& p) { p.mask = tensor(mask.data(), 2, 2, 300); });
  expect(invalid, "params: mask: data is null",
         [&](AttentionParams& p) { p.mask = tensor(static_cast<const float*>(nullptr), 2, 4, 300); });
  for (float wrong : {float(NAN), float(INFINITY), 2e30f})
    for (Index at : {Index(0), Index(299), mask.size() - 1}) {
      mask.setZero();
      mask.data()[at] = wrong;
      const std::string begin = "params: mask: " +
                                std::string(std::isnan(wrong)   ? "nan"
                                            : std::isinf(wrong) ? "inf"
                                                                : "2e+30") +
                                " at query " + std::to_string(at / 1200) + ", head " + std::to_string(at / 300 % 4) +
                                ", token " + std::to_string(at % 300) + "; use numbers";
      const ErrorCode code = std::isfinite(wrong) ? ErrorCode::overflow : ErrorCode::non_finite;
      expect(code, begin.c_str(), [&](AttentionParams& p) { p.mask = tensor(mask, 4); });
      const RowMatrix turned = mask.reshaped<Eigen::RowMajor>(8, 300).transpose();  // tokens apart
      expect(code, begin.c_str(),
             [&](AttentionParams& p) { p.mask = {turned.data(), ScalarType::f32, 2, 4, 300, 4, 1, 8}; });
    }
  expect(invalid, "params: alibi_slopes has 3", [&](AttentionParams& p) { p.alibi_slopes = {numbers.data(), 3}; });
  expect(invalid, "params: alibi_slopes: data", [&](AttentionParams& p) { p.alibi_slopes = {nullptr, 4}; });
  expect(invalid, "params: sink_logits has 5", [&](AttentionParams& p) { p.sink_logits = {numbers.data(), 5}; });
  expect(invalid, "params: sink_logits: data", [&](AttentionParams& p) { p.sink_logits = {nullptr, 4}; });
  for (float wrong : {float(NAN), float(INFINITY), -2e30f}) {
    numbers[2] = wrong;
    const ErrorCode code = std::isnan(wrong) ? ErrorCode::non_finite : ErrorCode::overflow;
    expect(code, "params: alibi_slopes: ", [&](AttentionParams& p) { p.alibi_slopes = {numbers.data(), 4}; });
    expect(code, "params: sink_logits: ", [&](AttentionParams& p) { p.sink_logits = {numbers.data(), 4}; });
  }
  numbers[2] = 0x1p90f;  // times the distance to a far position
  expect(ErrorCode::overflow, "params: alibi_slopes: ", [&](AttentionParams& p) {
    p.alibi_slopes = {numbers.data(), 4};
    p.position = -5000;
  });
  expect(invalid, "params: mask: data is null", [&](AttentionParams& p) { p.mask.heads = 1; });
  expect(invalid, "params: lse: is [2, 2, 2]", [&](AttentionParams& p) { p.lse = tensor(lse, 2); });
  expect(invalid, "params: lse: is [2, 4, 1] in f16", [&](AttentionParams& p) { p.lse.type = ScalarType::f16; });
  expect(invalid, "params: lse: data is null", [&](AttentionParams& p) { p.lse.data = nullptr; });
  Recorder recorder = *Recorder::create(kShape, 4);
  for (auto change : {+[](AttentionParams& p) { p.position = 3; }, +[](AttentionParams& p) { p.causal = false; }}) {
    AttentionParams params;
    change(params);
    const ConstTensor none = tensor(static_cast<const float*>(nullptr), 0, 2, kDim);
    expect_error(recorder.record(0, tensor(queries.data(), 0, 4, kDim), none, none, params), invalid, "params");
  }
}

TEST(Variants, OfOtherTypesAndLayouts) {
  AsymKVCache cache = make_cache("k4v4");
  append(cache, Tokens(200, 1), 0, 200);
  const RowMatrix queries = random_matrix(2, 4 * kDim, 2);
  const RowMatrix mask = representable<Eigen::bfloat16>(random_matrix(2, 4 * 200, 9));
  RowMatrix expected(2, 4 * kDim), output = expected, lse(4, 2), expected_lse(2, 4);
  const auto attend = [&](const ConstTensor& as, RowMatrix& to, const Tensor& lse_as) {
    AttentionParams params;
    params.mask = as;
    params.lse = lse_as;
    const Status status = cache.attend(0, tensor(queries, 4), tensor(to, 4), params);
    ASSERT_TRUE(status.ok()) << status.message();
  };
  attend(tensor(mask, 4), expected, tensor(expected_lse, 4));
  const Eigen::Matrix<Eigen::bfloat16, -1, -1> by_column = mask.cast<Eigen::bfloat16>();
  attend(tensor(by_column, 4), output, {lse.data(), ScalarType::f32, 2, 4, 1, 1, 2, 1});  // [heads, tokens]
  EXPECT_EQ(output, expected);
  EXPECT_EQ(lse.transpose(), expected_lse);
}

}  // namespace
