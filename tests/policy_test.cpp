// Policies: the paper's figures, names both ways, errors, bytes.
#include "support/support.hpp"

namespace {

using namespace asymkv;

constexpr CacheShape kShape{32, 8, 128, 128};

AsymKVPolicy parsed(const char* name, Index layers = 32) {
  const Result<AsymKVPolicy> policy = AsymKVPolicy::parse(name, layers);
  EXPECT_TRUE(policy.ok()) << name << ": " << policy.status().message();
  return *policy;
}

TEST(Policy, BitsOfThePaper) {
  const struct {
    const char* name;
    double payload, all_in;
  } rows[] = {{"AsymKV-16/0", 1.25, 2.25}, {"AsymKV-32/0", 1.5, 2.5},  {"KIVI-2", 2.0, 3.0},
              {"AsymKV-0/0", 1.0, 2.0},    {"KIVI-4", 4.0, 5.0},       {"float", 32.0, 32.0},
              {"k16v2", 9.0, 9.5},         {"k8g128v4g64", 6.0, 6.375}};
  for (const auto& row : rows) {
    EXPECT_DOUBLE_EQ(parsed(row.name).payload_bits(kShape), row.payload) << row.name;
    EXPECT_DOUBLE_EQ(parsed(row.name).all_in_bits(kShape), row.all_in) << row.name;
  }
}

TEST(Policy, ThreeQuartersOfMatricesAtOneBit) {
  const AsymKVPolicy policy = *AsymKVPolicy::prefix(32, 16, 0);
  int one_bit = 0;
  for (Index i = 0; i < 32; ++i) {
    one_bit += (policy.layer(i).keys.bits == 1) + (policy.layer(i).values.bits == 1);
    EXPECT_EQ(policy.layer(i).keys.bits, i < 16 ? 2 : 1);
  }
  EXPECT_EQ(one_bit, 48);
}

TEST(Policy, NamesAreTheShortest) {
  for (const char* name : {"float", "KIVI-2", "k4v2", "AsymKV-16/0", "AsymKV-4/1-16/0", "AsymKV-3/2-1/31",
                           "0-3:k8v4+4-31:k4v2", "k2g64v1g128", "0:k16v32+1-31:k1v1"})
    EXPECT_EQ(parsed(name).name(), name);
  EXPECT_EQ(parsed("0-31:k2v2").name(), "KIVI-2");
  EXPECT_EQ(parsed("AsymKV-32/0").name(), "k2v1");
}

TEST(Policy, EveryTableHasANameThatReadsBack) {
  std::mt19937 generator(7);
  const int bits[] = {1, 2, 3, 4, 5, 6, 8, 16, 32};
  const int groups[] = {32, 64, 128};
  for (int round = 0; round < 3000; ++round) {
    std::vector<LayerFormat> layers(1 + generator() % 12);
    const unsigned kinds = 1 + generator() % 9;
    for (LayerFormat& layer : layers)
      for (Format* format : {&layer.keys, &layer.values}) {
        format->bits = bits[generator() % kinds];
        format->group_size = round % 2 ? groups[generator() % 3] : 32;
      }
    const AsymKVPolicy policy = *AsymKVPolicy::table(layers);
    const Result<AsymKVPolicy> back = AsymKVPolicy::parse(policy.name(), policy.num_layers());
    ASSERT_TRUE(back.ok()) << policy.name() << ": " << back.status().message();
    ASSERT_EQ(*back, policy) << policy.name();
  }
}

TEST(Policy, BadNamesSayWhatIsWrong) {
  for (const char* name : {"",
                           "bad",
                           "KIVI-",
                           "KIVI-7",
                           "KIVI-2 ",
                           "KIVI-16",
                           "AsymKV-33/0",
                           "AsymKV-1",
                           "AsymKV--1/0",
                           "AsymKV-2/1-1/0/",
                           "AsymKV-9/1-1/0",
                           "AsymKV-99999999999/0",
                           "k7v1",
                           "k2",
                           "k2v2x",
                           "k2g48v2",
                           "kv",
                           "0-3:k8v4",
                           "0-3:k8v4+",
                           "0-3:k8v4+5-31:k4v2",
                           "0-3:k8v4+3-31:k4v2",
                           "3-0:k8v4",
                           "0-32:k2v2",
                           "1-31:k2v2",
                           "0-31k2v2",
                           "float "}) {
    const Result<AsymKVPolicy> policy = AsymKVPolicy::parse(name, 32);
    ASSERT_FALSE(policy.ok()) << name;
    EXPECT_GT(std::strlen(policy.status().message()), 10u) << name;
  }
  EXPECT_FALSE(AsymKVPolicy::prefix(32, -1, 0).ok());
  EXPECT_FALSE(AsymKVPolicy::prefix(0, 0, 0).ok());
  EXPECT_FALSE(AsymKVPolicy::uniform(65537, 2, 2).ok());
  EXPECT_FALSE(AsymKVPolicy::uniform(2, 7, 2).ok());
  EXPECT_FALSE(AsymKVPolicy::table({}).ok());
}

TEST(Policy, BytesCountWholePages) {
  const CacheShape shape{2, 3, 64, 64};
  const AsymKVPolicy policy = parsed("k2v16", 2);
  const Index key_page = 3 * (128 * 64 * 2 / 8 + 4 * 64 * 4), value_token = 3 * 64 * 2;
  EXPECT_EQ(policy.bytes(shape, 0), 0);
  EXPECT_EQ(policy.bytes(shape, 1), 2 * (key_page + value_token));
  EXPECT_EQ(policy.bytes(shape, 128), 2 * (key_page + 128 * value_token));
  EXPECT_EQ(policy.bytes(shape, 129), 2 * (2 * key_page + 129 * value_token));
}

}  // namespace
