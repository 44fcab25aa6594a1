// What a cache says of itself: kernels and why, tokens and bytes by purpose.
#include <string>

#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

LayerExplanation explain(const AsymKVCache& cache, Index layer = 0) {
  const Result<LayerExplanation> explanation = cache.explain(layer);
  EXPECT_TRUE(explanation.ok()) << explanation.status().message();
  return *explanation;
}

bool says(const SideExplanation& side, const char* what) {
  return std::string(side.kernel).find(what) != std::string::npos;
}

TEST(Explain, CountsTokensAndBytesByPurpose) {
  CacheOptions options;
  options.rollback_tokens = 4;
  AsymKVCache cache = make_cache("k2v4@2", options);
  const Tokens tokens(600, 1);
  append_in_chunks(cache, tokens, 0, 600, 1);
  const LayerExplanation of = explain(cache);
  EXPECT_EQ(of.keys.format.bits, 2);
  EXPECT_EQ(of.values.format.bits, 4);
  EXPECT_EQ(of.keys.sinks, 2);
  EXPECT_EQ(of.keys.sealed, 512 - 2);
  EXPECT_EQ(of.keys.window, 600 - 512);
  EXPECT_EQ(of.values.sealed, 599 - 128 - 2);
  EXPECT_EQ(of.values.window, 129);
  EXPECT_EQ(of.keys.kept, 0);
  EXPECT_EQ(of.values.kept, 4);
  EXPECT_EQ(of.keys.pages, 4);
  const CacheBytes bytes = cache.bytes();
  EXPECT_EQ(of.keys.page_bytes, bytes.keys);
  EXPECT_EQ(of.values.page_bytes, bytes.values);
  EXPECT_EQ(of.keys.dense_bytes + of.values.dense_bytes, bytes.dense);
  const Result<AsymKVCache> fork = cache.fork();
  ASSERT_TRUE(fork.ok() && cache.requantize(0, 256, *AsymKVPolicy::parse("k1v1@2", 1)).ok());
  EXPECT_EQ(explain(cache).keys.requantized_pages, 2);
  EXPECT_EQ(explain(cache).keys.shared_pages, 2);
  EXPECT_EQ(explain(*fork).keys.requantized_pages, 0);
  EXPECT_LT(explain(cache).keys.page_bytes, explain(*fork).keys.page_bytes);
}

TEST(Explain, NamesTheKernelsAndWhy) {
  for (Isa isa : machine_isas()) {
    ForcedIsa forced(isa);
    const AsymKVCache cache = make_cache("k8v16");
    const LayerExplanation of = explain(cache);
    EXPECT_EQ(of.keys.isa, isa);
    EXPECT_TRUE(says(of.keys, isa_name(isa)) && says(of.keys, "ASYMKV_FORCE_ISA")) << of.keys.kernel;
    const Index few = kernels::table_of(isa)->few_rows_of_8_bits;
    EXPECT_EQ(of.keys.few_rows, few);
    EXPECT_TRUE(says(of.keys, ("up to " + std::to_string(few) + " rows").c_str())) << of.keys.kernel;
    EXPECT_EQ(says(of.keys, "tile registers"), isa == Isa::amx);
    EXPECT_EQ(of.values.few_rows, 0);
    EXPECT_TRUE(says(of.values, "f16")) << of.values.kernel;
  }
  const AsymKVCache cache = make_cache("balanced-1.7");
  EXPECT_EQ(explain(cache).keys.isa, machine_isas().back());
  EXPECT_TRUE(says(explain(cache).keys, "the best")) << explain(cache).keys.kernel;
  EXPECT_TRUE(says(explain(cache).keys, "codes of 2 bits")) << explain(cache).keys.kernel;
  for (const char c : {'.', '\n'}) EXPECT_EQ(std::strchr(explain(cache).keys.kernel, c), nullptr);
  EXPECT_LT(std::strlen(explain(cache).keys.kernel) + 20, sizeof SideExplanation::kernel);
  expect_error(cache.explain(1).status(), ErrorCode::out_of_range, "layer");
}

}  // namespace
