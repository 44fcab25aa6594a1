// Instruction sets: decoding what the machine says, forcing one, and refusing what the machine or the library does not
// have.
#include "support/support.hpp"

namespace {

using namespace asymkv;
using kernels::decode_aarch64_isas;
using kernels::decode_isas;
using support::ForcedIsa;

template <class... Isas>
constexpr std::uint32_t set_of(Isas... isas) {
  return ((1u << int(Isa::scalar)) | ... | (1u << int(isas)));
}
constexpr kernels::CpuidWords kSapphireRapids{1u << 12 | 1u << 23 | 1u << 27 | 1u << 28 | 1u << 29,
                                              1u << 5 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31,
                                              1u << 8 | 1u << 11,
                                              1u << 22 | 1u << 24,
                                              1u << 4,
                                              0x600e6};
/// What is left of it without some bits of one word.
template <class Word>
constexpr std::uint32_t without(Word kernels::CpuidWords::*word, Word bits) {
  kernels::CpuidWords words = kSapphireRapids;
  words.*word &= ~bits;
  return decode_isas(words);
}
using kernels::CpuidWords;
static_assert(decode_isas({}) == set_of(), "scalar always");
static_assert(decode_isas(kSapphireRapids) == set_of(Isa::avx2, Isa::avxvnni, Isa::avx512, Isa::avx512vnni, Isa::amx),
              "all");
static_assert(without(&CpuidWords::leaf1_ecx, 1u << 23) == set_of(), "no POPCNT");
static_assert(without(&CpuidWords::leaf1_ecx, 1u << 27) == set_of(), "no OSXSAVE");
static_assert(without(&CpuidWords::leaf7_ebx, 1u << 5) == set_of(), "no AVX2");
static_assert(without(&CpuidWords::xcr0, std::uint64_t(4)) == set_of(), "system does not save ymm");
static_assert(without(&CpuidWords::leaf7_1_eax, 1u << 4) == set_of(Isa::avx2, Isa::avx512, Isa::avx512vnni, Isa::amx),
              "no AVX-VNNI");
static_assert(without(&CpuidWords::leaf7_ebx, 1u << 30) == set_of(Isa::avx2, Isa::avxvnni), "no BW");
static_assert(without(&CpuidWords::xcr0, std::uint64_t(0xe0)) == set_of(Isa::avx2, Isa::avxvnni),
              "system does not save zmm");
static_assert(without(&CpuidWords::leaf7_ecx, 1u << 11) == set_of(Isa::avx2, Isa::avxvnni, Isa::avx512), "no VNNI");
static_assert(without(&CpuidWords::leaf7_ecx, 1u << 8) == set_of(Isa::avx2, Isa::avxvnni, Isa::avx512), "no GFNI");
static_assert(without(&CpuidWords::leaf7_edx, 1u << 22) ==
                  set_of(Isa::avx2, Isa::avxvnni, Isa::avx512, Isa::avx512vnni),
              "no bfloat16 in tiles");
static_assert(without(&CpuidWords::xcr0, std::uint64_t(0x40000)) ==
                  set_of(Isa::avx2, Isa::avxvnni, Isa::avx512, Isa::avx512vnni),
              "system does not save tiles");
static_assert(decode_aarch64_isas(false, false) == set_of(), "scalar always");
static_assert(decode_aarch64_isas(true, false) == set_of(Isa::neon), "NEON");
static_assert(decode_aarch64_isas(true, true) == set_of(Isa::neon, Isa::neondot), "NEON with dot products");

TEST(Dispatch, ForcingForces) {
  const CacheShape shape{1, 1, 32, 32};
  for (Isa isa : support::machine_isas()) {
    ForcedIsa forced(isa);
    const auto cache = DenseKVCache<float>::create(shape);
    ASSERT_TRUE(cache.ok());
    EXPECT_EQ(cache->isa(), isa);
    EXPECT_EQ((*kernels::choose_table())->isa, isa);
  }
  EXPECT_EQ(DenseKVCache<float>::create(shape)->isa(), support::machine_isas().back());
}

TEST(Dispatch, IsasThatTheMachineLacksAreErrors) {
  int lacking = 0;
  for (int i = 0; i < isa_count; ++i) {
    if (isa_supported(Isa(i))) continue;
    ++lacking;
    const ForcedIsa forced{Isa(i)};
    const auto cache = DenseKVCache<float>::create({1, 1, 32, 32});
    EXPECT_EQ(cache.status().code(), ErrorCode::unsupported) << isa_name(Isa(i));
    EXPECT_NE(std::strstr(cache.status().message(), isa_name(Isa(i))), nullptr);
  }
  EXPECT_GE(lacking, 2) << "no machine has the instruction sets of two architectures";
}

TEST(Dispatch, UnknownNamesAreErrors) {
  const ForcedIsa forced("sse9");
  const auto cache = DenseKVCache<float>::create({1, 1, 32, 32});
  EXPECT_EQ(cache.status().code(), ErrorCode::invalid_argument);
  EXPECT_NE(std::strstr(cache.status().message(), "sse9"), nullptr);
  EXPECT_FALSE(KeyQuantizer<2>().quantize(support::random_matrix(32, 32, 1)).ok());
}

TEST(Scalar, HalfConversionsAgreeWithEigen) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = half_to_float(std::uint16_t(bits));
    const float expected = Eigen::half_impl::half_to_float(Eigen::half_impl::raw_uint16_to_half(std::uint16_t(bits)));
    if (expected != expected) {
      EXPECT_TRUE(x != x);
      continue;
    }
    ASSERT_EQ(float_bits(x), float_bits(expected)) << bits;
    ASSERT_EQ(float_to_half(x), bits);
  }
  std::mt19937 generator(1);
  for (int i = 0; i < 2000000; ++i) {
    const float x = bits_float(generator() % 0x47800000u | (generator() & 0x80000000u));
    ASSERT_EQ(float_to_half(x), Eigen::half(x).x) << x;
    ASSERT_EQ(float_to_bfloat16(x), Eigen::bfloat16(x).value) << x;
  }
}

template <class From, class To>
void converts_as_eigen(const kernels::Table& kernels, ScalarType from_type, ScalarType to_type,
                       const std::vector<float>& numbers) {
  std::vector<From> from;
  for (const float x : numbers) from.push_back(From(x));
  for (Index count : {Index(1), Index(15), Index(16), Index(33), Index(from.size())}) {
    std::vector<To> to(from.size(), To(7.0f));
    kernels.convert(from.data(), from_type, to.data(), to_type, count);
    for (std::size_t i = 0; i < from.size(); ++i) {
      const To expected = Index(i) < count ? To(float(from[i])) : To(7.0f);
      ASSERT_EQ(std::memcmp(&to[i], &expected, sizeof expected), 0) << isa_name(kernels.isa) << " " << numbers[i];
    }
  }
}

TEST(Scalar, ConvertingRoundsAsEigenDoes) {
  // numbers of binary16, those between two of them, and those next to these; subnormal ones too
  std::vector<float> numbers;
  std::mt19937 generator(3);
  for (int i = 0; i < 20000; ++i) {
    const float x = half_to_float(std::uint16_t(generator() % 0x7bffu | (generator() & 0x8000u)));
    const std::uint32_t offsets[] = {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u};
    numbers.push_back(bits_float(float_bits(x) + offsets[generator() % 8]));
  }
  for (float& x : numbers)
    if (std::fabs(x) > 65000.0f) x = 1.0f;
  for (Isa isa : support::machine_isas()) {
    const kernels::Table& table = *kernels::table_of(isa);
    constexpr ScalarType f32 = ScalarType::f32, f16 = ScalarType::f16, bf16 = ScalarType::bf16;
    converts_as_eigen<float, float>(table, f32, f32, numbers);
    converts_as_eigen<float, Eigen::half>(table, f32, f16, numbers);
    converts_as_eigen<float, Eigen::bfloat16>(table, f32, bf16, numbers);
    converts_as_eigen<Eigen::half, float>(table, f16, f32, numbers);
    converts_as_eigen<Eigen::half, Eigen::bfloat16>(table, f16, bf16, numbers);
    converts_as_eigen<Eigen::bfloat16, float>(table, bf16, f32, numbers);
    converts_as_eigen<Eigen::bfloat16, Eigen::half>(table, bf16, f16, numbers);
  }
}

}  // namespace
