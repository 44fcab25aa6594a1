// The quantizers against KIVI's own output, against the fp16 chain in double, and against bad input.
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/oracle.hpp"
#include "support/support.hpp"

namespace {

using namespace asymkv;
using support::ForcedIsa;
using support::RowMatrix;

std::vector<std::uint32_t> hex_numbers(const std::string& text) {
  std::vector<std::uint32_t> numbers;
  std::istringstream in(text);
  for (std::string word; in >> word;) numbers.push_back(std::uint32_t(std::stoul(word, nullptr, 16)));
  return numbers;
}

template <class Function>
void with_bits(int bits, Function f) {
  switch (bits) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 6:
      return f(std::integral_constant<int, 6>());
    default:
      return f(std::integral_constant<int, 8>());
  }
}

/// Quantizes one row, a channel of keys or a token of values.
template <class Matrix>
Result<QuantizedMatrix> quantize_row(bool key, int bits, int group, const Matrix& row) {
  Result<QuantizedMatrix> result = Status();
  with_bits(bits, [&](auto b) {
    result = key ? KeyQuantizer<b()>(group).quantize(row.transpose()) : ValueQuantizer<b()>(group).quantize(row);
  });
  return result;
}

TEST(Golden, KiviBitForBit) {
  std::ifstream file(ASYMKV_GOLDEN_DIR "/kivi_quantizer.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  for (Isa isa : support::machine_isas()) {
    ForcedIsa forced(isa);
    int rows = 0;
    for (const auto& entry : golden["rows"]) {
      const auto x = hex_numbers(entry["x"]);
      Eigen::Matrix<Eigen::half, 1, Eigen::Dynamic> row(Index(x.size()));
      for (std::size_t i = 0; i < x.size(); ++i)
        row[Index(i)] = Eigen::half_impl::raw_uint16_to_half(static_cast<unsigned short>(x[i]));
      const bool key = entry["axis"].get<std::string>().substr(0, 3) == "key";
      const auto quantized = quantize_row(key, entry["bits"], entry["group"], row);
      ASSERT_TRUE(quantized.ok()) << quantized.status().message();
      const Result<KiviMatrix> kivi = export_kivi(*quantized);
      ASSERT_TRUE(kivi.ok()) << kivi.status().message();
      EXPECT_EQ(kivi->words, hex_numbers(entry["words"]));
      const auto scales = hex_numbers(entry["scale"]);
      const auto minima = hex_numbers(entry["min"]);
      EXPECT_EQ(kivi->scales, std::vector<std::uint16_t>(scales.begin(), scales.end()));
      EXPECT_EQ(kivi->minima, std::vector<std::uint16_t>(minima.begin(), minima.end()));
      const auto back = import_kivi(quantized->side(), quantized->bits(), int(quantized->group_size()),
                                    quantized->tokens(), quantized->channels(), *kivi);
      ASSERT_TRUE(back.ok());
      EXPECT_EQ(std::memcmp(back->data(), quantized->data(), std::size_t(back->bytes())), 0);
      ++rows;
    }
    EXPECT_EQ(rows, 96);
  }
}

TEST(Golden, WorkedExample) {
  Eigen::Matrix<Eigen::half, 1, 32> x;
  for (int i = 0; i < 32; ++i) x[i] = Eigen::half(float((37 * i) % 101 - 50) / 16.0f);
  const auto one = export_kivi(*ValueQuantizer<1>().quantize(x));
  EXPECT_EQ(one->words, (std::vector<std::uint32_t>{0x6d2d25a4}));
  EXPECT_EQ(one->scales[0], 0x4640);
  EXPECT_EQ(one->minima[0], 0xc240);
  const auto four = export_kivi(*ValueQuantizer<4>().quantize(x));
  EXPECT_EQ(four->words, (std::vector<std::uint32_t>{0x93d72b60, 0x82c60a4e, 0x61a5f93d, 0x5f94e82c}));
}

/// Compares every group of a [tokens x channels] matrix with the oracle; returns how many it compared.
int compare_with_oracle(const QuantizedMatrix& q, const RowMatrix& x, int& differing) {
  const bool key = q.side() == Side::keys;
  const Index lines = key ? x.cols() : x.rows(), length = key ? x.rows() : x.cols();
  int groups = 0;
  for (Index line = 0; line < lines; ++line)
    for (Index start = 0; start < length; start += q.group_size(), ++groups) {
      std::vector<double> input;
      const Index end = std::min(length, start + q.group_size());
      const auto token = [&](Index i) { return key ? i : line; };
      const auto channel = [&](Index i) { return key ? line : i; };
      for (Index i = start; i < end; ++i) input.push_back(double(x(token(i), channel(i))));
      const oracle::Group expected = oracle::quantize(input, q.bits());
      bool same = double(q.scale(token(start), channel(start))) == expected.scale &&
                  double(q.zero_point(token(start), channel(start))) == expected.minimum;
      for (Index i = start; i < end; ++i)
        same = same && q.code(token(i), channel(i)) == expected.codes[std::size_t(i - start)];
      differing += !same;
    }
  return groups;
}

RowMatrix hard_matrix(Index rows, Index columns, unsigned seed) {
  RowMatrix x = support::random_matrix(rows, columns, seed);
  std::mt19937 generator(seed + 1);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) switch ((i / 3 + j / 5) % 11) {
        case 0:
          x(i, j) = std::round(x(i, j) * 2.0f) / 2.0f;
          break;  // ties
        case 1:
          x(i, j) *= 1e-6f;
          break;  // subnormal in binary16
        case 2:
          x(i, j) = generator() % 2 ? 0.0f : -0.0f;
          break;  // zeros of both signs
        case 3:
          x(i, j) = generator() % 7 ? x(i, j) : std::min(32752.0f, std::max(-32752.0f, x(i, j) * 1e4f));
          break;
        default:
          break;
      }
  x.row(rows / 2).setConstant(0.75f);
  x.col(columns / 2).setConstant(-1.5f);
  return x;
}

TEST(Quantizer, EveryGroupEqualsTheHalfPrecisionChain) {
  for (Isa isa : support::machine_isas()) {
    ForcedIsa forced(isa);
    int groups = 0, differing = 0;
    for (int bits : {1, 2, 3, 4, 5, 6, 8})
      for (int group : {32, 64, 128}) {
        for (Index columns : {136, 144}) {  // of which values are transposed and written as they lie
          const RowMatrix x = hard_matrix(256, columns, unsigned(bits * group));
          with_bits(bits, [&](auto b) {
            const auto keys = KeyQuantizer<b()>(group).quantize(x);
            const auto values = ValueQuantizer<b()>(group).quantize(x);
            ASSERT_TRUE(keys.ok() && values.ok());
            groups += compare_with_oracle(*keys, x, differing) + compare_with_oracle(*values, x, differing);
          });
        }
      }
    EXPECT_GE(groups, 36864);
    EXPECT_EQ(differing, 0) << isa_name(isa) << ", of " << groups;
    RecordProperty(std::string("groups_") + isa_name(isa), groups);
  }
}

/// Groups of a column: two extremes, and between them numbers of binary16 up to eight from where a code rises, middles
/// between neighbours of these, and the next numbers of binary32 on both sides of a middle.
RowMatrix matrix_near_steps(Index columns, int levels, unsigned seed) {
  constexpr Index group = 128;
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> exponent(-16.0, 14.0), mantissa(1.0, 2.0);
  const auto signed_number = [&] {
    return (generator() % 2 ? 1 : -1) * mantissa(generator) * std::exp2(exponent(generator));
  };
  RowMatrix x(group, columns);
  for (Index c = 0; c < columns; ++c) {
    const double first = generator() % 8 == 0 ? 0.0 : signed_number(), range = std::fabs(signed_number());
    const auto inside = [](double v) { return float(std::clamp(v, -32752.0, 32752.0)); };
    const Eigen::half least(inside(first)), greatest(inside(first + range));
    for (Index t = 0; t < group; ++t) {
      const double step = (double(generator() % unsigned(levels)) + 0.5) * (double(greatest) - double(least)) / levels;
      const double near = double(least) + step,
                   unit = std::max(0x1p-24, std::exp2(std::floor(std::log2(std::fabs(near))) - 10));
      const Eigen::half moved(inside(near + (double(generator() % 17) - 8.0) * unit));
      const float middle = float(moved) + float(std::ldexp(unit, -1)),
                  infinity = std::numeric_limits<float>::infinity();
      const float numbers[] = {float(moved), middle, std::nextafter(middle, infinity),
                               std::nextafter(middle, -infinity)};
      x(t, c) = std::clamp(numbers[generator() % 4], float(least), float(greatest));
    }
    x(3, c) = float(least);
    x(90, c) = float(greatest);
  }
  return x;
}

TEST(Quantizer, ElementsNextToStepsOfTheirCode) {
  for (Isa isa : support::machine_isas()) {
    ForcedIsa forced(isa);
    int groups = 0, differing = 0;
    for (int bits : {1, 2, 4})
      with_bits(bits, [&](auto b) {
        const RowMatrix x = matrix_near_steps(4000, (1 << bits) - 1, unsigned(bits));
        const auto keys = KeyQuantizer<b()>(128).quantize(x);
        ASSERT_TRUE(keys.ok()) << keys.status().message();
        const RowMatrix rows = x.transpose();
        const auto values = ValueQuantizer<b()>(128).quantize(rows);
        ASSERT_TRUE(values.ok()) << values.status().message();
        groups += compare_with_oracle(*keys, x, differing) + compare_with_oracle(*values, rows, differing);
      });
    EXPECT_EQ(groups, 24000);
    EXPECT_EQ(differing, 0) << isa_name(isa);
  }
}

TEST(Quantizer, TypesAndStridesGiveTheSameCodes) {
  const Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic> half = hard_matrix(70, 45, 3).cast<Eigen::half>();
  const RowMatrix x = half.cast<float>();
  const RowMatrix reversed = x.rowwise().reverse();
  const auto from_half = ValueQuantizer<3>().quantize(half);
  const auto from_float = ValueQuantizer<3>().quantize(x);
  ASSERT_TRUE(from_half.ok() && from_float.ok());
  EXPECT_EQ(std::memcmp(from_half->data(), from_float->data(), std::size_t(from_float->bytes())), 0);
  ConstTensor backwards = tensor(reversed);
  backwards.data = reversed.data() + 44;
  backwards.dim_stride = -1;
  const auto strided = ValueQuantizer<3>().quantize(backwards);
  ASSERT_TRUE(strided.ok());
  EXPECT_EQ(std::memcmp(strided->data(), from_float->data(), std::size_t(from_float->bytes())), 0);
}

TEST(Quantizer, DequantizedIsOneFusedMultiplyAdd) {
  const RowMatrix x = hard_matrix(75, 90, 5);
  for (Isa isa : support::machine_isas()) {
    ForcedIsa forced(isa);
    with_bits(5, [&](auto b) {
      const KeyQuantizer<b()> quantizer(64);
      const auto q = quantizer.quantize(x);
      Eigen::MatrixXf out(75, 90);
      ASSERT_TRUE(quantizer.dequantize(*q, out).ok());
      for (Index t = 0; t < 75; ++t)
        for (Index c = 0; c < 90; ++c)
          ASSERT_EQ(out(t, c), std::fmaf(float(q->code(t, c)), q->scale(t, c), q->zero_point(t, c)));
    });
  }
}

TEST(Quantizer, ExactBytes) {
  const auto q = KeyQuantizer<2>().quantize(support::random_matrix(128, 64, 1));
  EXPECT_EQ(q->code_bytes(), 128 * 64 * 2 / 8);
  EXPECT_EQ(q->metadata_bytes(), 4 * 64 * 4);
  EXPECT_EQ(q->bytes(), q->code_bytes() + q->metadata_bytes());
}

void expect_refused(const Status& status, const char* message) {
  EXPECT_EQ(status.code(), ErrorCode::invalid_argument);
  EXPECT_STREQ(status.message(), message);
}

TEST(Quantizer, BadInputIsNamed) {
  RowMatrix x = support::random_matrix(32, 32, 1);
  x(3, 4) = NAN;
  EXPECT_EQ(KeyQuantizer<2>().quantize(x).status().code(), ErrorCode::non_finite);
  x(3, 4) = -INFINITY;
  EXPECT_EQ(ValueQuantizer<2>().quantize(x).status().code(), ErrorCode::non_finite);
  x(3, 4) = 32753.0f;
  EXPECT_EQ(KeyQuantizer<2>().quantize(x).status().code(), ErrorCode::overflow);
  x(3, 4) = -32752.0f;
  x(3, 5) = 32752.0f;
  EXPECT_TRUE(ValueQuantizer<1>().quantize(x).ok());
  EXPECT_EQ(KeyQuantizer<2>(48).quantize(x).status().code(), ErrorCode::invalid_argument);
  expect_refused(KeyQuantizer<2>().quantize(RowMatrix()).status(), "matrix: is empty, 0 tokens x 0 channels");
  expect_refused(KeyQuantizer<2>().quantize(RowMatrix(0, 32)).status(), "matrix: is empty, 0 tokens x 32 channels");
  const auto q = KeyQuantizer<2>().quantize(support::random_matrix(32, 32, 2));
  RowMatrix small(31, 32), none;
  EXPECT_EQ(KeyQuantizer<2>().dequantize(*q, small).code(), ErrorCode::invalid_argument);
  expect_refused(KeyQuantizer<2>().dequantize(*q, none), "out: is empty, 0 tokens x 0 channels");
  expect_refused(
      KeyQuantizer<3>().dequantize(*q, small),
      "quantized: made by another quantizer (keys, 2 bits, group 32) than this one (keys, 3 bits, group 32)");
  expect_refused(ValueQuantizer<2>(128).dequantize(*q, small),
                 "quantized: made by another quantizer (keys, 2 bits, group 32) than this one (values, 2 bits, group "
                 "128)");
  expect_refused(KeyQuantizer<2>(32, Fit::fitted, Metadata::compact, ZeroPoint::symmetric).dequantize(*q, small),
                 "quantized: made by another quantizer (keys, 2 bits, group 32) than this one (keys, 2 bits, group 32, "
                 "fitted, compact, symmetric)");
  EXPECT_EQ(export_kivi(*KeyQuantizer<3>().quantize(small)).status().code(), ErrorCode::unsupported);
  KiviMatrix kivi = *export_kivi(*q);
  kivi.words.pop_back();
  EXPECT_EQ(import_kivi(Side::keys, 2, 32, 32, 32, kivi).status().code(), ErrorCode::invalid_argument);
}

TEST(Quantizer, ViewsOfOneHeadAlone) {
  const RowMatrix x = support::random_matrix(32, 64, 1);
  RowMatrix out = RowMatrix::Constant(32, 64, 7.0f);
  const KeyQuantizer<2> quantizer;
  const auto q = quantizer.quantize(tensor(x));
  ASSERT_TRUE(q.ok());
  const auto refused = [&](ConstTensor matrix, Tensor to) {
    EXPECT_EQ(quantizer.quantize(matrix).status().code(), ErrorCode::invalid_argument);
    EXPECT_EQ(quantizer.dequantize(*q, to).code(), ErrorCode::invalid_argument);
  };
  refused(tensor(x, 2), tensor(out, 2));
  ConstTensor matrix = tensor(x);
  Tensor to = tensor(out);
  matrix.heads = to.heads = 0;
  refused(matrix, to);
  matrix.heads = to.heads = 2;
  refused(matrix, to);
  matrix = tensor(x);
  to = tensor(out);
  matrix.data = nullptr;
  to.data = nullptr;
  refused(matrix, to);
  EXPECT_TRUE((out.array() == 7.0f).all());
  EXPECT_TRUE(quantizer.dequantize(*q, tensor(out)).ok());
}

}  // namespace
