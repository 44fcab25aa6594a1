// Tensors as engines have them: any scalar type, any strides, any kind of Eigen matrix; the numbers alone count.
#include "support/attention_trial.hpp"
#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

template <class Matrix>
using ViewOf = decltype(tensor(std::declval<Matrix>(), Index(2)));
template <class Matrix>
constexpr bool is_read_only = std::is_same_v<ViewOf<Matrix>, ConstTensor>;
template <class Matrix>
constexpr bool is_writable = std::is_same_v<ViewOf<Matrix>, Tensor>;

using Halves = Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic>;
using Strided = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;

static_assert(is_writable<RowMatrix&> && is_writable<Halves&>);
static_assert(is_read_only<const RowMatrix&> && is_read_only<RowMatrix&&>);
static_assert(is_writable<Eigen::Map<RowMatrix>&> && is_writable<Eigen::Map<Halves, 0, Strided>&>);
static_assert(is_read_only<Eigen::Map<const RowMatrix>&> && is_read_only<const Eigen::Map<const RowMatrix>&>);
static_assert(is_read_only<Eigen::Map<const Halves, 0, Strided>&>);
static_assert(is_writable<Eigen::Ref<RowMatrix>&> && is_writable<Eigen::Ref<RowMatrix, 0, Strided>&>);
static_assert(is_read_only<Eigen::Ref<const RowMatrix>&> && is_read_only<const Eigen::Ref<const RowMatrix>&>);
static_assert(is_writable<Eigen::Block<RowMatrix>&>);
static_assert(is_read_only<Eigen::Block<const RowMatrix>&> && is_read_only<const Eigen::Block<const RowMatrix>&>);
static_assert(is_read_only<Eigen::Block<Eigen::Map<const RowMatrix>>&>);
static_assert(std::is_same_v<decltype(tensor(std::declval<float*>(), 1, 1, 1)), Tensor>);
static_assert(std::is_same_v<decltype(tensor(std::declval<const float*>(), 1, 1, 1)), ConstTensor>);

TEST(Tensor, ViewsOfMatricesHaveTheirNumbers) {
  const RowMatrix x = random_matrix(7, 12, 1);
  Eigen::Map<const RowMatrix> map(x.data(), 7, 12);
  Eigen::Ref<const RowMatrix> ref(x);
  Eigen::Block<const RowMatrix> block = x.block(2, 3, 4, 6);
  const Eigen::MatrixXf by_column = x;
  const auto expect_block = [&](const ConstTensor& view, Index row, Index column) {
    for (Index t = 0; t < view.tokens; ++t)
      for (Index h = 0; h < 3; ++h)
        for (Index i = 0; i < view.dim; ++i)
          EXPECT_EQ(load_scalar(view.row(t, h), view.type, i * view.dim_stride), x(row + t, column + h * view.dim + i));
  };
  for (const ConstTensor& whole : {tensor(map, 3), tensor(ref, 3), tensor(x, 3), tensor(by_column, 3)}) {
    EXPECT_EQ(whole.tokens, 7);
    EXPECT_EQ(whole.dim, 4);
    expect_block(whole, 0, 0);
  }
  expect_block(tensor(block, 3), 2, 3);
  EXPECT_EQ(tensor(block, 3).dim, 2);
  EXPECT_EQ(tensor(x, 5).dim, 0);
}

enum class Layout { contiguous, by_head, by_dim, padded, reversed };
constexpr Layout kLayouts[] = {Layout::contiguous, Layout::by_head, Layout::by_dim, Layout::padded, Layout::reversed};

/// The numbers of [tokens x heads*dim] as T in some layout, NaN where no element lies.
template <class T>
class LaidOut {
 public:
  LaidOut(const RowMatrix& x, Index heads, Layout layout) {
    const Index tokens = x.rows(), dim = x.cols() / heads;
    view_ = {nullptr, ScalarTypeOf<T>::value, tokens, heads, dim, heads * dim, dim, 1};
    Index origin = 0;
    if (layout == Layout::by_head) set_strides(dim, tokens * dim, 1);
    if (layout == Layout::by_dim) set_strides(1, dim * tokens, tokens);
    if (layout == Layout::padded) {
      set_strides(heads * (dim + 3) + 7, dim + 3, 1);
      origin = 5;
    }
    if (layout == Layout::reversed) {
      set_strides(heads * dim, dim, -1);
      origin = dim - 1;
    }
    const Index room = tokens * std::max(view_.token_stride, heads * dim) + origin + 32;
    memory_.assign(std::size_t(room), T(NAN));
    for (Index t = 0; t < tokens; ++t)
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < dim; ++i) at(origin, t, h, i) = T(x(t, h * dim + i));
    view_.data = memory_.data() + origin;
  }

  ConstTensor tokens(Index first, Index count) const {
    ConstTensor part = view_;
    part.data = view_.row(first, 0);
    part.tokens = count;
    return part;
  }

 private:
  void set_strides(Index token, Index head, Index dim) {
    view_.token_stride = token;
    view_.head_stride = head;
    view_.dim_stride = dim;
  }
  T& at(Index origin, Index token, Index head, Index i) {
    return memory_[std::size_t(origin + token * view_.token_stride + head * view_.head_stride + i * view_.dim_stride)];
  }

  ConstTensor view_;
  std::vector<T> memory_;
};

constexpr CacheShape kOdd{1, 2, 40, 100};

/// Numbers that float, half and bfloat16 all hold exactly.
RowMatrix common_numbers(const RowMatrix& x) { return representable<Eigen::half>(representable<Eigen::bfloat16>(x)); }

/// What a cache stores and reads back after appends of these tokens as T in this layout.
struct Stored {
  std::vector<unsigned char> sealed;
  std::vector<std::uint32_t> read;
};
bool operator==(const Stored& a, const Stored& b) { return a.sealed == b.sealed && a.read == b.read; }

template <class T>
Stored stored(const char* policy, const Tokens& tokens, Layout layout) {
  CacheOptions options;
  options.residual_length = 64;
  AsymKVCache cache = make_cache(policy, options, kOdd);
  const LaidOut<T> keys(tokens.keys, kOdd.kv_heads, layout), values(tokens.values, kOdd.kv_heads, layout);
  Index first = 0;
  for (Index count : {1, 150, 64, 85}) {
    const Status status = cache.append(0, keys.tokens(first, count), values.tokens(first, count));
    EXPECT_TRUE(status.ok()) << status.message();
    first += count;
  }
  EXPECT_TRUE(cache.seal().ok());
  EXPECT_EQ(cache.side(0, Side::keys).dense().type(),
            cache.side(0, Side::keys).packed() ? ScalarTypeOf<T>::value : ScalarType::f16);
  return {sealed_bytes(cache), everything_seen(cache)};
}

TEST(Input, TypesAndStridesLeaveNoTrace) {
  Tokens tokens(300, 7, kOdd);
  tokens.keys = common_numbers(tokens.keys);
  tokens.values = common_numbers(tokens.values);
  for (const char* policy : {"k2v3", "k4g64v1", "k16v8"}) {
    Stored reference;
    for (Isa isa : machine_isas()) {
      ForcedIsa forced(isa);
      const Stored expected = stored<float>(policy, tokens, Layout::contiguous);
      if (reference.sealed.empty()) reference = expected;
      EXPECT_GT(reference.sealed.size(), 1000u);
      EXPECT_TRUE(expected.sealed == reference.sealed) << policy << " " << isa_name(isa);
      for (Layout layout : kLayouts) {
        EXPECT_TRUE(stored<float>(policy, tokens, layout) == expected)
            << policy << " f32, layout " << int(layout) << " " << isa_name(isa);
        EXPECT_TRUE(stored<Eigen::half>(policy, tokens, layout) == expected)
            << policy << " f16, layout " << int(layout) << " " << isa_name(isa);
        EXPECT_TRUE(stored<Eigen::bfloat16>(policy, tokens, layout) == expected)
            << policy << " bf16, layout " << int(layout) << " " << isa_name(isa);
      }
    }
  }
}

/// Appends and attends with two numbers that are refused, the first of them at (token 3, head 1, element 17), in every
/// layout; what lies between the elements is NaN and must not be found instead.
template <class T>
void expect_bad_numbers_are_placed(float bad, float also_bad, const std::string& words) {
  const std::string place = words + ", first at token 3, head 1, element 17 of this call, counted from 0";
  const CacheShape shape{1, 2, 40, 40};
  const RowMatrix good = random_matrix(5, 80, 3);
  RowMatrix x = good;
  x(3, 40 + 17) = bad;
  x(4, 2) = also_bad;  // an earlier head and element of a later token
  for (Layout layout : kLayouts) {
    AsymKVCache cache = make_cache("k2v1", {}, shape);
    const LaidOut<T> fine(good, 2, layout), with(x, 2, layout);
    EXPECT_EQ(cache.append(0, with.tokens(0, 5), fine.tokens(0, 5)).message(), "keys: " + place) << int(layout);
    EXPECT_EQ(cache.append(0, fine.tokens(0, 5), with.tokens(0, 5)).message(), "values: " + place) << int(layout);
    ASSERT_TRUE(cache.append(0, fine.tokens(0, 5), fine.tokens(0, 5)).ok());
    if (std::isfinite(bad)) continue;
    RowMatrix output(5, 80);
    const Status status = cache.attend(0, with.tokens(0, 5), tensor(output, 2));
    EXPECT_EQ(status.message(), "queries: " + place) << int(layout);
  }
}

TEST(Input, BadNumbersAreFoundWhereTheyLie) {
  const std::string non_finite = "contains NaN or infinity";
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    expect_bad_numbers_are_placed<float>(bad, NAN, non_finite);
    expect_bad_numbers_are_placed<Eigen::half>(bad, NAN, non_finite);
    expect_bad_numbers_are_placed<Eigen::bfloat16>(bad, NAN, non_finite);
  }
  const std::string overflow = "magnitude 32768 is above 32752, the most this format takes (f32 takes more)";
  for (float bad : {32768.0f, -32768.0f}) {
    expect_bad_numbers_are_placed<float>(bad, 40960.0f, overflow);
    expect_bad_numbers_are_placed<Eigen::half>(bad, 40960.0f, overflow);
    expect_bad_numbers_are_placed<Eigen::bfloat16>(bad, 40960.0f, overflow);
  }
}

/// Where there is a NaN, it is named, though a number that is too large comes before it.
TEST(Input, NaNIsNamedBeforeOverflow) {
  RowMatrix x = random_matrix(5, 80, 3);
  x(0, 0) = 1e9f;
  x(2, 1) = NAN;
  AsymKVCache cache = make_cache("k2v1", {}, {1, 2, 40, 40});
  EXPECT_STREQ(cache.append(0, tensor(x, 2), tensor(x, 2)).message(),
               "keys: contains NaN or infinity, first at token 2, head 0, element 1 of this call, counted from 0");
}

template <class T>
void windows_equal_the_oracle() {
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    for (Index dim : {40, 64})
      for (Index queries : {1, 4, 30}) {
        const AttentionCase c{2, 3, 32, 2, 4, dim, dim + 60, 333, queries, 128};
        AttentionTrial trial(c);
        auto cache = cache_of(c);
        ASSERT_TRUE(cache.ok()) << cache.status().message();
        const Comparison comparison = trial.compare(trial.attend<T>(*cache));
        EXPECT_EQ(cache->side(0, Side::values).dense().type(), ScalarTypeOf<T>::value);
        EXPECT_EQ(comparison.outside, 0) << isa_name(isa) << " " << c << ": error " << comparison.worst << " bounds";
      }
  }
}

TEST(Input, AttentionOverHalfWindowsEqualsTheOracle) {
  windows_equal_the_oracle<Eigen::half>();
  windows_equal_the_oracle<Eigen::bfloat16>();
}

/// Output of type T is the float output rounded once.
template <class T>
void output_is_rounded_once(oracle::Rounding rounding) {
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    AsymKVCache cache = make_cache("k2v3");
    append(cache, Tokens(200, 3), 0, 200);
    const RowMatrix queries = random_matrix(3, 4 * kDim, 8);
    RowMatrix exact(3, 4 * kDim);
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic> output(3, 4 * kDim);
    ASSERT_TRUE(cache.attend(0, tensor(queries, 4), tensor(exact, 4)).ok());
    ASSERT_TRUE(cache.attend(0, tensor(queries, 4), tensor(output, 4)).ok());
    for (Index q = 0; q < 3; ++q)
      for (Index i = 0; i < 4 * kDim; ++i) ASSERT_EQ(double(float(output(q, i))), rounding(double(exact(q, i))));
  }
}

TEST(Input, OutputsAreRoundedOnce) {
  output_is_rounded_once<Eigen::half>(oracle::half);
  output_is_rounded_once<Eigen::bfloat16>(oracle::bfloat16);
}

}  // namespace
