// Instruction sets: decoding what the machine says, forcing one, and refusing what the machine or the library does not
// have.
#include "support/support.hpp"

namespace {

using namespace asymkv;
using kernels::decode_aarch64_isas;
using kernels::decode_isas;
using support::ForcedIsa;

constexpr std::uint32_t kLeaf1 = 1u << 12 | 1u << 23 | 1u << 27 | 1u << 28 | 1u << 29;
constexpr std::uint32_t kAvx512 = 1u << 5 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
static_assert(decode_isas({0, 0, 0, 0}) == 1, "scalar always");
static_assert(decode_isas({kLeaf1, 1u << 5, 0, 6}) == 3, "AVX2 with FMA, POPCNT and F16C");
static_assert(decode_isas({kLeaf1, 1u << 5, 0, 2}) == 1, "system does not save ymm");
static_assert(decode_isas({kLeaf1 & ~(1u << 23), 1u << 5, 0, 6}) == 1, "no POPCNT");
static_assert(decode_isas({kLeaf1 & ~(1u << 27), 1u << 5, 0, 6}) == 1, "no OSXSAVE");
constexpr std::uint32_t kVnni = 1u << 11, kGfni = 1u << 8;
static_assert(decode_isas({kLeaf1, kAvx512, kVnni | kGfni, 0xe6}) == 7, "AVX-512");
static_assert(decode_isas({kLeaf1, kAvx512, kVnni | kGfni, 6}) == 3, "system does not save zmm");
static_assert(decode_isas({kLeaf1, kAvx512 & ~(1u << 30), kVnni | kGfni, 0xe6}) == 3, "no BW");
static_assert(decode_isas({kLeaf1, kAvx512, kGfni, 0xe6}) == 3, "no VNNI");
static_assert(decode_isas({kLeaf1, kAvx512, kVnni, 0xe6}) == 3, "no GFNI");
static_assert(decode_aarch64_isas(false, false) == 1, "scalar always");
static_assert(decode_aarch64_isas(true, false) == 9, "NEON");
static_assert(decode_aarch64_isas(true, true) == 25, "NEON with dot products");

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

}  // namespace
