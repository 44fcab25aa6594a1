// Policies as KVTuner's YAML files: both ways, and files that are wrong.
#include <gtest/gtest.h>

#include <asymkv/yaml/kvtuner.hpp>

namespace {

using namespace asymkv;

TEST(Kvtuner, ReadsItsFiles) {
  const std::string text =
      "0:\n  nbits_key: 8\n  nbits_value: 4\n1:\n  nbits_key: 2\n  nbits_value: 2\n2:\n  nbits_value: 1\n"
      "  nbits_key: 4\n";
  const auto policy = read_kvtuner(text, 3);
  ASSERT_TRUE(policy.ok()) << policy.status().message();
  EXPECT_EQ(policy->name(), "0:k8v4+1:k2v2+2:k4v1");
  EXPECT_EQ(*read_kvtuner(write_kvtuner(*policy), 3), *policy);
  EXPECT_EQ(write_kvtuner(*AsymKVPolicy::parse("k8v4", 1)), "0:\n  nbits_key: 8\n  nbits_value: 4\n");
}

TEST(Kvtuner, WritesWhatItCannotSayBeside) {
  for (const char* name : {"balanced-1.7", "smallest-1.2", "KIVI-2", "KIVI-2@4", "float", "AsymKV-2/1", "k16v3g64fcsr",
                           "0:km1.5v1g128fcsr+1-2:k2g64fcv32@1"}) {
    const AsymKVPolicy policy = *AsymKVPolicy::parse(name, 3);
    const auto back = read_kvtuner(write_kvtuner(policy), 3);
    ASSERT_TRUE(back.ok()) << name << ": " << back.status().message();
    EXPECT_EQ(*back, policy) << name;
  }
  const std::string text = write_kvtuner(*AsymKVPolicy::parse("km1.5v1g128fcsr@1", 1));
  EXPECT_EQ(text, "asymkv: \"km1.5v1g128fcsr@1\"\n0:\n  nbits_key: 2\n  nbits_value: 1\n");
}

TEST(Kvtuner, RefusesBadFilesWithLineAndEntry) {
  const std::string one = "{nbits_key: 2, nbits_value: 2}";
  const struct {
    std::string text;
    const char* message;
  } files[] = {
      {"", "0 documents"},
      {"- 1\n", "line 1"},
      {"just words", "no map"},
      {"0: " + one + "\n", "layer 1 is missing"},
      {"0: " + one + "\n1: 7\n", "line 2: layer 1 is no map"},
      {"0: " + one + "\n1: {nbits_key: 2}\n", "layer 1 lacks nbits_value"},
      {"0: " + one + "\n1: {nbits_value: 2}\n", "layer 1 lacks nbits_key"},
      {"0: " + one + "\n1: {nbits_key: 7, nbits_value: 2}\n", "nbits_key other than"},
      {"0: " + one + "\n1: {nbits_key: 2, nbits_value: -1}\n", "nbits_value other than"},
      {"0: " + one + "\n1: {nbits_key: 2, nbits_value: 2.0}\n", "nbits_value other than"},
      {"0: " + one + "\n1: {nbits_key: 99999999999999999999, nbits_value: 2}\n", "nbits_key other than"},
      {"0: " + one + "\n1: {nbits_key: [2], nbits_value: 2}\n", "nbits_key other than"},
      {"0: " + one + "\n1: {nbits_key: 2, nbits_key: 4, nbits_value: 2}\n", "nbits_key twice"},
      {"0: " + one + "\n1: {nbits_key: 2, nbits_value: 2, axis: 0}\n", "'axis'"},
      {"0: " + one + "\n0: " + one + "\n1: " + one + "\n", "line 2: layer 0 stands there twice"},
      {"0: " + one + "\n1: " + one + "\n2: " + one + "\n", "line 3: layer 2 is beyond"},
      {"0: " + one + "\n1: " + one + "\n4000000000: " + one + "\n", "is no layer"},
      {"0: " + one + "\n1: " + one + "\n-1: " + one + "\n", "is no layer"},
      {"0: " + one + "\n1: " + one + "\n[1]: " + one + "\n", "is no layer"},
      {"0: " + one + "\n1: " + one + "\n---\n0: " + one + "\n", "2 documents"},
      {"0: {nbits_key: 2\n1: }{", "is no YAML"},
      {"\t: %", "is no YAML"},
      {"0: *nothing\n", "is no YAML"},
      {"asymkv: [KIVI-2]\n0: " + one + "\n1: " + one + "\n", "line 1: 'asymkv' is not one"},
      {"asymkv: KIVI-2\nasymkv: KIVI-2\n0: " + one + "\n1: " + one + "\n", "is not one policy name"},
      {"asymkv: KIVI-9\n0: " + one + "\n1: " + one + "\n", "bits other than"},
      {"asymkv: KIVI-4\n0: " + one + "\n1: " + one + "\n", "other bits than nbits of layer 0"},
      {std::string(200000, '['), "is no YAML"},
  };
  for (const auto& file : files) {
    const auto policy = read_kvtuner(file.text, 2);
    ASSERT_FALSE(policy.ok()) << file.text.substr(0, 200);
    EXPECT_EQ(policy.status().code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(policy.status().message()).find(file.message), std::string::npos)
        << file.text.substr(0, 200) << "\n"
        << policy.status().message();
  }
  for (const Index layers : {0, -1, 65537}) EXPECT_FALSE(read_kvtuner("0: " + one, layers).ok());
}

}  // namespace
