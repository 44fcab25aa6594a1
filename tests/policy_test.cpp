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

TEST(Policy, OneThatWasMovedFromHasNoLayersAndNoName) {
  AsymKVPolicy policy = parsed("KIVI-2@4");
  const AsymKVPolicy taken = std::move(policy);
  EXPECT_EQ(taken.name(), "KIVI-2@4");
  EXPECT_EQ(policy.num_layers(), 0);
  EXPECT_EQ(policy.name(), "");
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
  for (const char* name : {"k16g7v2", "k32g64v2", "k02v1", "AsymKV-016/0", "00-31:k2v2", "0-31:k2v2+x"})
    EXPECT_FALSE(AsymKVPolicy::parse(name, 32).ok()) << name;
  EXPECT_FALSE(AsymKVPolicy::prefix(32, -1, 0).ok());
  EXPECT_FALSE(AsymKVPolicy::prefix(0, 0, 0).ok());
  EXPECT_FALSE(AsymKVPolicy::uniform(65537, 2, 2).ok());
  EXPECT_FALSE(AsymKVPolicy::uniform(2, 7, 2).ok());
  EXPECT_FALSE(AsymKVPolicy::table({}).ok());
}

TEST(Policy, ErrorsNameThePart) {
  const struct {
    const char* name;
    const char* message;
  } rows[] = {
      {"bad",
       "policy name: 'bad' is no policy name (case matters); use smallest-1.2, small-1.4, balanced-1.7, "
       "fine-2.4, finest-3.4, AsymKV-16/0, KIVI-2, k4v2, half or float"},
      {"kivi-2",
       "policy name: 'kivi-2' is no policy name (case matters); use smallest-1.2, small-1.4, balanced-1.7, "
       "fine-2.4, finest-3.4, AsymKV-16/0, KIVI-2, k4v2, half or float"},
      {"km8v1",
       "policy name: 'km8v1' is not of the form kXvY (X and Y: bits, then gN, f, c, s, r; or X: m and 0.5 to 6 bits by "
       "halves)"},
      {"km9v1",
       "policy name: 'km9v1' is not of the form kXvY (X and Y: bits, then gN, f, c, s, r; or X: m and 0.5 to 6 bits by "
       "halves)"},
      {"@200", "policy name: '@200' has nothing in front of '@'"},
      {"AsymKV-1/2-16/0", "policy name: 'AsymKV-1/2-16/0' has fewer bits in its first layers than in the rest"},
      {"AsymKV-33/0", "policy name: 'AsymKV-33/0' has more layers than the model: 33; the model has 32"},
      {"AsymKV-4/1-2/40", "policy name: 'AsymKV-4/1-2/40' has more layers than the model: 40; the model has 32"},
      {"0-3:k7v4+4-31:k4v2", "policy name: 'k7v4' format: bits is 7; use 1..6, 8, 16 (f16) or 32 (f32)"},
      {"3-0:k8v4", "policy name: '3-0:k8v4' runs backwards"},
      {"0-3:k8v4+5-31:k4v2", "policy name: '5-31:k4v2' leaves layers out before it; ranges stand in order"},
      {"4-31:k8v4+0-3:k4v2", "policy name: '4-31:k8v4' leaves layers out before it; ranges stand in order"},
      {"0-3:k8v4+3-31:k4v2", "policy name: '3-31:k4v2' overlaps the range before it; ranges stand in order"},
      {"0-32:k2v2", "policy name: '0-32:k2v2' ends beyond the model's last layer"},
      {"0-3:k8v4", "policy name: '0-3:k8v4' does not cover every layer, only 4 of 32"},
      {"0-31k2v2", "policy name: '0-31k2v2' lacks ':' after its layers"},
      {"0-:k2v2", "policy name: '0-:k2v2' lacks the last layer of its range"},
      {"0-3:k2v2+k2v2", "policy name: 'k2v2' lacks a range of layers"},
      {"0-3:k2v2+4", "policy name: '4' lacks ':' after its layers"},
  };
  for (const auto& row : rows) {
    const Status status = AsymKVPolicy::parse(row.name, 32).status();
    EXPECT_EQ(status.code(), ErrorCode::invalid_argument) << row.name;
    EXPECT_STREQ(status.message(), row.message);
  }
  for (const char* name : {"fine-2.5", "2bit", "4-bit", "2", "1.7"})  // a number may stand in front
    for (int i = 0; i < preset_count; ++i) {
      const Status status = AsymKVPolicy::parse(name, 32).status();
      EXPECT_NE(std::strstr(status.message(), "is no policy name"), nullptr) << status.message();
      EXPECT_NE(std::strstr(status.message(), presets()[i].name), nullptr) << status.message();
    }
  // the list of names has room behind the longest part that is quoted
  const Status status = AsymKVPolicy::parse(std::string(300, 'x'), 32).status();
  EXPECT_NE(std::strstr(status.message(), "half or float"), nullptr) << status.message();
  std::vector<LayerFormat> layers(3);
  layers[2].values.bits = 7;
  EXPECT_STREQ(AsymKVPolicy::table(layers).status().message(),
               "layers: values of layer 2: format: bits is 7; use 1..6, 8, 16 (f16) or 32 (f32)");
  EXPECT_EQ(AsymKVPolicy::prefix(4, 1, 5).status().code(), ErrorCode::out_of_range);
  EXPECT_STREQ(AsymKVPolicy::prefix(4, 1, 1, 1, 2).status().message(),
               "high, low: 1 and 2 bits; high must be at least low");
  EXPECT_TRUE(AsymKVPolicy::prefix(4, 1, 1, 2, 2).ok());
}

TEST(Policy, NumberOfLayersIsCheckedBeforeAnythingElse) {
  for (const char* name : {"float", "KIVI-2", "k4v2", "AsymKV-0/0", "0-2147483646:k2v2"})
    for (Index layers : {Index(-1), Index(0), Index(65537), Index(2147483647)}) {
      const Status status = AsymKVPolicy::parse(name, layers).status();
      EXPECT_EQ(status.code(), ErrorCode::invalid_argument);
      EXPECT_EQ(std::string(status.message()).rfind("num_layers: ", 0), 0u) << status.message();
    }
  EXPECT_EQ(parsed("0-65535:k2v1", 65536).name(), "k2v1");
}

TEST(Policy, DamagedNamesNeverReadAsSomethingElse) {
  std::mt19937 generator(11);
  const std::string names[] = {"float", "KIVI-2", "k4g64v16", "AsymKV-4/1-5/0", "0-3:k8v4+4-6:k4v2+7:k1v1"};
  const std::string letters = "0123456789kvgAsymKVIflo/-+: ";
  int read = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string name = names[generator() % 5];
    for (unsigned edits = 1 + generator() % 2; edits > 0; --edits) {
      const std::size_t at = generator() % name.size(), removed = generator() % 2;
      name.replace(at, removed, 1, letters[generator() % letters.size()]);
    }
    const Result<AsymKVPolicy> policy = AsymKVPolicy::parse(name, 8);
    if (!policy.ok()) continue;
    ++read;
    ASSERT_EQ(*AsymKVPolicy::parse(policy->name(), 8), *policy) << name;
  }
  EXPECT_GT(read, 100);
}

TEST(Policy, PaddingIsNoPayload) {
  // keys of dim 80: 8 tiles of 16 tokens x 3 blocks of 32 channels x 2 vectors of 64 bytes, and 4 groups x 80 channels
  // x 4 bytes; values of dim 40: 3 tiles x 4 blocks x 3 vectors, and 1 group x 128 tokens x 4 bytes
  const CacheShape shape{1, 5, 80, 40};
  const AsymKVPolicy packed = parsed("k2v3g64", 1);
  EXPECT_DOUBLE_EQ(packed.payload_bits(shape), (2.0 * 80 + 3.0 * 40) / 120);
  EXPECT_EQ(packed.bytes(shape, 1), 5 * ((3072 + 1280) + (2304 + 512)));
  EXPECT_DOUBLE_EQ(packed.all_in_bits(shape), 8.0 * 7168 / (128 * 120));
  // f16 rows of 20 elements take the place of 32
  const CacheShape narrow{2, 1, 20, 20};
  EXPECT_DOUBLE_EQ(parsed("k16v16", 2).payload_bits(narrow), 16.0);
  EXPECT_DOUBLE_EQ(parsed("k16v16", 2).all_in_bits(narrow), 16.0 * 32 / 20);
}

TEST(Policy, BytesAreThoseOfTheCachesPages) {
  const CacheShape shape{3, 2, 80, 40};
  for (const char* name : {"AsymKV-2/1", "k3g64v5", "0:k8v1+1-2:k6v4g128"}) {
    const AsymKVPolicy policy = parsed(name, 3);
    Result<AsymKVCache> cache = AsymKVCache::create(shape, policy);
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    const std::vector<float> data(383 * 2 * 80, 1.0f);
    for (Index layer = 0; layer < 3; ++layer)
      ASSERT_TRUE(cache->append(layer, tensor(data.data(), 383, 2, 80), tensor(data.data(), 383, 2, 40)).ok());
    ASSERT_TRUE(cache->seal().ok());
    // 256 keys and 255 values are sealed: two pages of each
    EXPECT_EQ(cache->bytes().keys + cache->bytes().values, policy.bytes(shape, 256)) << name;
  }
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
