// The decoder of examples/llm on a tiny model that the test writes itself.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "asymmetry.hpp"
#include "byte_level_tokenizer.hpp"
#include "calibration.hpp"
#include "decoder.hpp"
#include "eval_report.hpp"
#include "gguf.hpp"
#include "model_file.hpp"
#include "passkey.hpp"
#include "policy_cache.hpp"
#include "policy_list.hpp"
#include "statistics.hpp"
#include "support/decoding.hpp"
#include "support/gguf_writer.hpp"
#include "support/support.hpp"

namespace {

using llm::Matrix;
using llm::Token;
using support::floats;
using support::GgufWriter;
using support::save;

constexpr int kLayers = 2, kWidth = 64, kHidden = 96;

/// Every byte is a token; then merges "t h", "th e", "Ġ the"; then one special token.
std::string tiny_model() {
  GgufWriter w;
  w.text("general.architecture", "llama");
  w.number("llama.block_count", kLayers);
  w.number("llama.context_length", 512);
  w.number("llama.embedding_length", kWidth);
  w.number("llama.feed_forward_length", kHidden);
  w.number("llama.attention.head_count", 4);
  w.number("llama.attention.head_count_kv", 2);
  w.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  w.real("llama.rope.freq_base", 10000.0f);
  w.text("tokenizer.ggml.model", "gpt2");
  w.text("tokenizer.ggml.pre", "smollm");
  std::vector<std::string> tokens;
  for (unsigned b = 0, next = 256; b < 256; ++b) {
    const unsigned point = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : next++;
    tokens.push_back(point < 128 ? std::string(1, char(point))
                                 : std::string{char(0xc0 | point >> 6), char(0x80 | (point & 0x3f))});
  }
  for (const char* merged : {"th", "the", "\xc4\xa0the", "<|im_end|>"}) tokens.push_back(merged);
  w.strings("tokenizer.ggml.tokens", tokens);
  std::vector<std::int32_t> types(tokens.size(), 1);
  types.back() = 3;
  w.integers("tokenizer.ggml.token_type", types);
  w.strings("tokenizer.ggml.merges", {"t h", "th e", "\xc4\xa0 the"});
  w.number("tokenizer.ggml.eos_token_id", 259);
  unsigned seed = 1;
  const auto matrix = [&](const std::string& name, std::uint64_t rows, std::uint64_t columns) {
    w.tensor(name, rows, columns, 0, floats(rows * columns, seed++, 0.1f));
  };
  const auto norm = [&](const std::string& name) { w.tensor(name, 1, kWidth, 0, floats(kWidth, seed++, 0.1f, 1.0f)); };
  w.tensor("token_embd.weight", 260, kWidth, 0, floats(260 * kWidth, seed++, 1.0f));
  norm("output_norm.weight");
  for (int i = 0; i < kLayers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    norm(block + "attn_norm.weight");
    norm(block + "ffn_norm.weight");
    matrix(block + "attn_q.weight", kWidth, kWidth);
    matrix(block + "attn_k.weight", kWidth / 2, kWidth);
    matrix(block + "attn_v.weight", kWidth / 2, kWidth);
    matrix(block + "attn_output.weight", kWidth, kWidth);
    matrix(block + "ffn_gate.weight", kHidden, kWidth);
    matrix(block + "ffn_up.weight", kHidden, kWidth);
    matrix(block + "ffn_down.weight", kWidth, kHidden);
  }
  return w.finish();
}

std::vector<Token> random_tokens(std::size_t count) { return support::random_tokens(count, 260); }

TEST(LlmGguf, DequantizesEveryType) {
  GgufWriter w;
  std::string q8{0x00, 0x38}, q4_0{0x00, 0x38}, q4_1{0x00, 0x38, 0x00, 0x3c};  // scale 0.5; minimum 1
  for (int i = 0; i < 32; ++i) q8 += char(i - 16);
  for (int i = 0; i < 16; ++i) {
    q4_0 += char(i | (15 - i) << 4);
    q4_1 += char(i | (15 - i) << 4);
  }
  const std::string f16{0x00, 0x3c, 0x00, char(0xc0)}, bf16{char(0x80), 0x3f, 0x00, char(0xc0)};
  w.tensor("f32", 1, 2, 0, floats(2, 1, 1.0f));
  w.tensor("f16", 1, 2, 1, f16);
  w.tensor("bf16", 1, 2, 30, bf16);
  w.tensor("q8_0", 1, 32, 8, q8);
  w.tensor("q4_0", 1, 32, 2, q4_0);
  w.tensor("q4_1", 1, 32, 3, q4_1);
  const llm::GgufFile file(save(w.finish(), "types.gguf"));
  const auto read = [&](const char* name, Eigen::Index columns) {
    Matrix matrix(1, columns);
    file.read(name, matrix);
    return matrix;
  };
  EXPECT_EQ(read("f16", 2), (Matrix(1, 2) << 1.0f, -2.0f).finished());
  EXPECT_EQ(read("bf16", 2), (Matrix(1, 2) << 1.0f, -2.0f).finished());
  for (int i = 0; i < 32; ++i) {
    const int code = i < 16 ? i : 31 - i;
    EXPECT_EQ(read("q8_0", 32)(0, i), 0.5f * float(i - 16));
    EXPECT_EQ(read("q4_0", 32)(0, i), 0.5f * float(code - 8));
    EXPECT_EQ(read("q4_1", 32)(0, i), 0.5f * float(code) + 1.0f);
  }
  EXPECT_THROW(read("missing", 2), std::runtime_error);
  EXPECT_THROW(read("f16", 3), std::runtime_error);
}

/// Writes integers of some bits each, one after the other from the lowest bit on: a way to lay out a block's parts that
/// has nothing in common with how they are read.
class BitField {
 public:
  explicit BitField(std::size_t bytes) : bytes_(bytes, '\0') {}
  void put(std::size_t bit, int bits, int value) {
    for (int i = 0; i < bits; ++i)
      if (value >> i & 1)
        bytes_[(bit + std::size_t(i)) / 8] = char(bytes_[(bit + std::size_t(i)) / 8] | 1 << (bit + std::size_t(i)) % 8);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

TEST(LlmGguf, DequantizesFiveBitBlocks) {
  BitField block(22);
  block.put(0, 16, 0x3800);  // 0.5
  for (std::size_t i = 0; i < 32; ++i) {
    const int code = int(i * 7 % 32);
    block.put(16 + i, 1, code >> 4);
    block.put(48 + i % 16 * 8 + i / 16 * 4, 4, code & 15);
  }
  GgufWriter w;
  w.tensor("q5_0", 1, 32, 6, block.bytes());
  const llm::GgufFile file(save(w.finish(), "q5_0.gguf"));
  Matrix x(1, 32);
  file.read("q5_0", x);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(x(0, i), 0.5f * float(i * 7 % 32 - 16)) << i;
}

TEST(LlmGguf, DequantizesSuperBlocks) {
  const auto scale_of = [](int j) { return (j * 11 + 38) % 64; };
  const auto minimum_of = [](int j) { return (j * 23 + 17) % 64; };
  BitField q4(144), q6(210);
  q4.put(0, 16, 0x3800);   // 0.5
  q4.put(16, 16, 0x3400);  // 0.25
  for (std::size_t j = 0; j < 8; ++j) {
    const int scale = scale_of(int(j)), minimum = minimum_of(int(j));
    if (j < 4) {
      q4.put(32 + 8 * j, 6, scale);
      q4.put(64 + 8 * j, 6, minimum);
    } else {
      q4.put(96 + 8 * (j - 4), 4, scale & 15);
      q4.put(100 + 8 * (j - 4), 4, minimum & 15);
      q4.put(38 + 8 * (j - 4), 2, scale >> 4);
      q4.put(70 + 8 * (j - 4), 2, minimum >> 4);
    }
  }
  for (std::size_t i = 0; i < 256; ++i) q4.put(128 + (i / 64 * 32 + i % 32) * 8 + i / 32 % 2 * 4, 4, int(i * 5 % 16));
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128, run = i / 32 % 4, lane = i % 32;
    const int code = int(i * 13 % 64);
    q6.put((half * 64 + run % 2 * 32 + lane) * 8 + run / 2 * 4, 4, code & 15);
    q6.put(1024 + (half * 32 + lane) * 8 + run * 2, 2, code >> 4);
  }
  for (std::size_t j = 0; j < 16; ++j) q6.put(1536 + 8 * j, 8, int(j * 16) - 120);
  q6.put(1664, 16, 0x3800);
  GgufWriter w;
  w.tensor("q4_k", 1, 256, 12, q4.bytes());
  w.tensor("q6_k", 1, 256, 14, q6.bytes());
  const llm::GgufFile file(save(w.finish(), "super.gguf"));
  Matrix four(1, 256), six(1, 256);
  file.read("q4_k", four);
  file.read("q6_k", six);
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(four(0, i), 0.5f * float(scale_of(i / 32) * (i * 5 % 16)) - 0.25f * float(minimum_of(i / 32))) << i;
    EXPECT_EQ(six(0, i), 0.5f * float((i / 16 * 16 - 120) * (i * 13 % 64 - 32))) << i;
  }
}

TEST(LlmGguf, UnknownTypesAreRefused) {
  GgufWriter w;
  w.tensor("q3_k", 1, 256, 11, std::string(110, 'x'));
  const std::string path = save(w.finish(), "unknown.gguf");
  EXPECT_THROW(llm::GgufFile{path}, std::runtime_error);
}

TEST(LlmGguf, EveryTruncationIsRefused) {
  const std::string whole = tiny_model();
  for (std::size_t size = 0; size < whole.size(); size += size < 3000 ? 97 : 9973) {
    const std::string path = save(whole.substr(0, size), "cut.gguf");
    EXPECT_THROW(
        {
          const llm::GgufFile file(path);
          const llm::Model model(file);
        },
        std::runtime_error)
        << size;
  }
}

TEST(LlmTokenizer, SplitsAndMerges) {
  const auto pieces = [](const char* text) {
    std::vector<std::string> list;
    for (std::string_view rest = text; !rest.empty(); rest.remove_prefix(list.back().size()))
      list.emplace_back(rest.substr(0, llm::first_piece(rest)));
    return list;
  };
  using List = std::vector<std::string>;
  EXPECT_EQ(pieces("in, we're"), (List{"in", ",", " we", "'re"}));
  EXPECT_EQ(pieces("a   b\n\n c  "), (List{"a", "  ", " b", "\n\n", " c", "  "}));
  EXPECT_EQ(pieces("caf\xc3\xa9 \xe2\x80\x93x\xff"), (List{"caf\xc3\xa9", " \xe2\x80\x93", "x", "\xff"}));
  const llm::GgufFile file(save(tiny_model(), "tokens.gguf"));
  const llm::ByteLevelTokenizer tokenizer(file);
  EXPECT_EQ(tokenizer.encode("the the"), (std::vector<Token>{257, 258}));
  EXPECT_EQ(tokenizer.encode("2 10"), (std::vector<Token>{'2', ' ', '1', '0'}));
  EXPECT_EQ(tokenizer.special("<|im_end|>"), 259);
  EXPECT_EQ(tokenizer.encode_with_specials("th<|im_end|>"), (std::vector<Token>{256, 259}));
  EXPECT_EQ(tokenizer.encode("th<|im_end|>").front(), 256);
  EXPECT_GT(tokenizer.encode("th<|im_end|>").size(), 2u);
  const std::string text = "Then \xc3\xa9 7\xf0\x9f\x98\x80!\n";
  std::string back;
  for (Token t : tokenizer.encode(text)) back += tokenizer.text(t);
  EXPECT_EQ(back, text);
}

TEST(LlmModel, ChunksGiveTheLogitsOfSingleSteps) {
  const llm::GgufFile file(save(tiny_model(), "model.gguf"));
  support::expect_chunks_equal_single_steps(llm::Model(file), random_tokens(50), 50);
}

TEST(LlmEval, MoreBitsAreCloser) {
  const llm::GgufFile file(save(tiny_model(), "eval.gguf"));
  const llm::Model model(file);
  llm::EvalOptions options;
  options.policies = {"float", "k32v32", "k8v8", "k2v2", "k1v1"};
  options.windows = 2;
  options.context = 400;
  options.skip = 256;
  const auto results = llm::evaluate(model, random_tokens(800), options, nullptr);
  ASSERT_EQ(results.size(), 5u);
  EXPECT_EQ(results[0].kld_mean, 0.0);
  EXPECT_EQ(results[0].top1, 1.0);
  EXPECT_NEAR(results[1].kld_mean, 0.0, 1e-6);
  EXPECT_LT(results[2].kld_mean, results[3].kld_mean);
  EXPECT_LT(results[3].kld_mean, results[4].kld_mean);
  EXPECT_GT(results[4].kld_p99, results[4].kld_median);
  EXPECT_LT(results[3].cache_bytes, results[0].cache_bytes);
  options.skip = 399;
  EXPECT_THROW(llm::evaluate(model, random_tokens(800), options, nullptr), std::runtime_error);
  options.skip = 0;
  EXPECT_THROW(llm::evaluate(model, random_tokens(799), options, nullptr), std::runtime_error);
}

/// What a call throws.
template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "nothing";
}

TEST(LlmOptions, AreNamedWithValueAndRange) {
  const llm::GgufFile file(save(tiny_model(), "options.gguf"));
  const llm::Model model(file);
  const auto eval = [&](llm::Index llm::EvalOptions::*option, llm::Index value) {
    llm::EvalOptions options;
    options.policies = {"float", "k2v1"};
    options.context = 400;
    options.*option = value;
    return refusal([&] { llm::evaluate(model, random_tokens(512), options, nullptr); });
  };
  const std::string range = "; use 258..512 (--skip + 2 to the model's context)";
  for (const llm::Index context : {-5, 0, 100, 257, 513})
    EXPECT_EQ(eval(&llm::EvalOptions::context, context), "--context: is " + std::to_string(context) + range);
  EXPECT_EQ(eval(&llm::EvalOptions::windows, 0), "--windows: is 0; use 1 or more");
  EXPECT_EQ(eval(&llm::EvalOptions::first_window, -1), "--first-window: is -1; use 0 or more");
  EXPECT_EQ(eval(&llm::EvalOptions::chunk, 0), "--chunk: is 0; use 1 or more");
  EXPECT_EQ(eval(&llm::EvalOptions::skip, 511), "--skip: is 511; use 0..510 (up to the model's context - 2)");
  EXPECT_EQ(eval(&llm::EvalOptions::residual, 0), "--residual: is 0; use 1..4294967296");

  llm::AsymmetryOptions asymmetry;
  asymmetry.context = 256;
  EXPECT_EQ(refusal([&] { llm::measure_asymmetry(model, random_tokens(512), asymmetry, nullptr); }),
            "--context: is 256; use 257..512 (--skip + 1 to the model's context)");
  llm::PasskeyOptions passkey;
  passkey.policies = {"float"};
  const llm::ByteLevelTokenizer tokenizer(file);
  const auto find = [&] { llm::find_passkeys(model, tokenizer, random_tokens(512), passkey, nullptr); };
  EXPECT_EQ(refusal(find), "--contexts: is 1024; use 1..512 (up to the model's context)");
  passkey.trials = 0;
  EXPECT_EQ(refusal(find), "--trials: is 0; use 1 or more");
}

TEST(LlmEval, FirstWindowSplitsAText) {
  const llm::GgufFile file(save(tiny_model(), "split.gguf"));
  const llm::Model model(file);
  const std::vector<Token> text = random_tokens(900);
  llm::EvalOptions options;
  options.policies = {"k2v2"};
  options.windows = 1;
  options.context = 300;
  options.first_window = 2;
  const auto judged = llm::evaluate(model, text, options, nullptr);
  options.first_window = 0;
  const auto alone = llm::evaluate(model, {text.begin() + 600, text.end()}, options, nullptr);
  EXPECT_EQ(judged[0].kld_mean, alone[0].kld_mean);
  EXPECT_NE(judged[0].kld_mean, llm::evaluate(model, text, options, nullptr)[0].kld_mean);
  options.first_window = 3;
  EXPECT_THROW(llm::evaluate(model, text, options, nullptr), std::runtime_error);
  options.first_window = -1;
  EXPECT_THROW(llm::evaluate(model, text, options, nullptr), std::runtime_error);
}

TEST(LlmEval, ResidualKeepsRecentTokensExact) {
  const llm::GgufFile file(save(tiny_model(), "residual.gguf"));
  const llm::Model model(file);
  llm::EvalOptions options;
  options.policies = {"k1v1"};
  options.windows = 1;
  options.context = 384;
  options.skip = 128;
  options.chunk = 32;
  options.residual = 32;
  const double quantized = llm::evaluate(model, random_tokens(384), options, nullptr)[0].kld_mean;
  options.residual = 384;
  const double exact = llm::evaluate(model, random_tokens(384), options, nullptr)[0].kld_mean;
  EXPECT_LT(std::abs(exact), 0.1 * std::abs(quantized));  // this model hardly looks back: both are small
  options.residual = 33;                                  // no multiple of the group
  EXPECT_THROW(llm::evaluate(model, random_tokens(384), options, nullptr), std::runtime_error);
}

TEST(LlmEval, JsonIsAListOfEveryField) {
  llm::EvalResult result;
  result.policy = "k2v1";
  result.kld_p999 = 0.5;
  llm::EvalResult other;
  other.passkey = 0.75;
  const auto json = nlohmann::json::parse(llm::to_json({{"tiny", "a.txt", {result, other}}, {"large", "b", {result}}}));
  ASSERT_TRUE(json.is_array());
  ASSERT_EQ(json.size(), 3u);
  EXPECT_EQ(json[0].at("policy"), "k2v1");
  EXPECT_EQ(json[0].at("kld_p999"), 0.5);
  EXPECT_TRUE(json[0].at("passkey").is_null());
  EXPECT_EQ(json[1].at("passkey"), 0.75);
  std::set<std::string> names;
  for (const auto& item : json[1].items()) names.insert(item.key());
  EXPECT_EQ(names, (std::set<std::string>{"all_in_bits", "cache_bytes", "kld_mean", "kld_median", "kld_p99", "kld_p999",
                                          "model", "passkey", "payload_bits", "perplexity", "policy", "text",
                                          "tokens_per_second", "top1"}));
  EXPECT_EQ(json[1].at("model"), "tiny");
  EXPECT_EQ(json[1].at("text"), "a.txt");
  EXPECT_EQ(json[2].at("model"), "large");
  EXPECT_EQ(json[2].at("text"), "b");
}

TEST(LlmEval, ReportHasPasskeysWhereAskedFor) {
  const llm::ModelFile file(save(tiny_model(), "report.gguf"));
  std::string text;
  for (int i = 0; i < 600; ++i) text += char('a' + i * i % 23);
  llm::EvalOptions options;
  options.policies = {"float", "KIVI-2", "balanced-1.7"};
  options.windows = 1;
  options.context = 400;
  const llm::EvalReport plain = llm::report(file, "a.txt", text, options, nullptr);
  ASSERT_EQ(plain.results.size(), 3u);
  EXPECT_FALSE(plain.results[0].passkey);
  EXPECT_EQ(llm::to_table(plain).rfind(file.name() + " on a.txt\n", 0), 0u);
  EXPECT_EQ(llm::to_table(plain).find("passkey"), std::string::npos);
  options.passkey_trials = 1;
  const llm::EvalReport both = llm::report(file, "a.txt", text, options, nullptr);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(both.results[i].kld_mean, plain.results[i].kld_mean);
    ASSERT_TRUE(both.results[i].passkey);
  }
  EXPECT_NE(llm::to_table(both).find("passkey"), std::string::npos);
}

TEST(LlmEval, RatiosAreOfOneModelAndAgainstKivi) {
  const auto results = [](double kivi, double preset) {
    std::vector<llm::EvalResult> rows(3);
    rows[0].policy = "float";
    rows[1].policy = "KIVI-2";
    rows[1].kld_mean = kivi;
    rows[2].policy = "small";
    rows[2].kld_mean = preset;
    return rows;
  };
  const llm::EvalReport prose{"a", "prose", results(0.2, 0.1)}, code{"a", "code", results(0.4, 0.25)};
  const llm::EvalReport other{"b", "prose", results(0.2, 0.1)};
  const std::string table = llm::to_ratio_table({prose, code, other});
  const auto row = table.substr(table.find("\nsmall") + 1);
  for (const char* number : {"0.5000", "0.6250", "1.25\n"}) EXPECT_NE(row.find(number), std::string::npos) << table;
  EXPECT_EQ(table.find("float"), std::string::npos);
  EXPECT_EQ(table.find("b:"), std::string::npos);  // it has one text
  EXPECT_EQ(llm::to_ratio_table({prose, other}), "");
  llm::EvalReport without = code;
  without.results.erase(without.results.begin() + 1);
  EXPECT_EQ(llm::to_ratio_table({without, without}), "");
}

TEST(LlmStatistics, QuantilesAreElements) {
  std::vector<float> values(1000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = float(i * 7 % 1000 + 1);  // 1..1000, in some order
  EXPECT_EQ(llm::quantile(values, 0.5), 500.0);
  EXPECT_EQ(llm::quantile(values, 0.99), 990.0);
  EXPECT_EQ(llm::quantile(values, 0.999), 999.0);
  EXPECT_EQ(llm::quantile(values, 1.0), 1000.0);
  EXPECT_EQ(llm::quantile(values, 0.0), 1.0);
  std::vector<float> one{3.0f};
  EXPECT_EQ(llm::quantile(one, 0.999), 3.0);
}

TEST(LlmPolicyList, NamesSweepsAndAll) {
  using List = std::vector<std::string>;
  EXPECT_EQ(llm::expand_policies("float,KIVI-2", 4), (List{"float", "KIVI-2"}));
  EXPECT_EQ(llm::expand_policies("k{1,2,3}v{1,2},KIVI-2", 4),
            (List{"k1v1", "k1v2", "k2v1", "k2v2", "k3v1", "k3v2", "KIVI-2"}));
  EXPECT_EQ(llm::expand_policies("k2g{32,64,128}v1", 4), (List{"k2g32v1", "k2g64v1", "k2g128v1"}));
  EXPECT_EQ(llm::expand_policies("k2{,g64}v1,k2v1", 4), (List{"k2v1", "k2g64v1"}));
  const List all = llm::expand_policies("all", 30);
  const List paper{"float", "KIVI-4", "KIVI-2", "AsymKV-30/0", "AsymKV-0/30", "AsymKV-15/0", "AsymKV-0/15"};
  ASSERT_GE(all.size(), paper.size());
  EXPECT_EQ(List(all.begin(), all.begin() + int(paper.size())), paper);
  for (int i = 0; i < asymkv::preset_count; ++i)
    EXPECT_EQ(std::count(all.begin(), all.end(), asymkv::presets()[i].name), 1) << asymkv::presets()[i].name;
  for (const llm::Index layers : {1, 2, 5, 30})
    for (const std::string& name : llm::expand_policies("all", layers))
      EXPECT_TRUE(asymkv::AsymKVPolicy::parse(name, layers).ok()) << name << " of " << layers;
  const List ablation = llm::expand_policies("ablation", 30);
  std::vector<asymkv::AsymKVPolicy> distinct;
  for (const std::string& name : ablation) {
    const auto policy = asymkv::AsymKVPolicy::parse(name, 30);
    ASSERT_TRUE(policy.ok()) << name;
    EXPECT_EQ(std::count(distinct.begin(), distinct.end(), *policy), 0) << name;
    distinct.push_back(*policy);
  }
  EXPECT_EQ(ablation.front(), "k2v1");
  for (const char* bad : {"", "k2v1,", ",k2v1", "k{1,2v1", "k1}v1", "k}1{v1", "k{1,{2,3}}v1"})
    EXPECT_THROW(llm::expand_policies(bad, 4), std::runtime_error) << bad;
}

TEST(LlmPasskey, TrialHidesTheKeyAtItsDepth) {
  const llm::GgufFile file(save(tiny_model(), "trial.gguf"));
  const llm::ByteLevelTokenizer tokenizer(file);
  const std::vector<Token> text = tokenizer.encode(std::string(1000, 'x'));
  std::set<std::string> keys;
  std::size_t last = 0;
  for (const double depth : {0.0, 0.5, 1.0}) {
    const llm::PasskeyTrial trial = llm::make_passkey_trial(tokenizer, text, 500, depth, 1);
    EXPECT_EQ(trial.prompt, llm::make_passkey_trial(tokenizer, text, 500, depth, 1).prompt);
    EXPECT_NE(trial.key, llm::make_passkey_trial(tokenizer, text, 500, depth, 2).key);
    EXPECT_EQ(trial.prompt.size() + trial.key.size(), 500u);
    std::string prompt, key;
    for (const Token token : trial.prompt) prompt += tokenizer.text(token);
    for (const Token token : trial.key) key += tokenizer.text(token);
    EXPECT_EQ(key.size(), 5u);
    keys.insert(key);
    const std::size_t at = prompt.find(key);
    ASSERT_NE(at, std::string::npos);
    EXPECT_TRUE(last == 0 || at > last + 50);
    last = at;
  }
  EXPECT_EQ(keys.size(), 3u);
  EXPECT_THROW(llm::make_passkey_trial(tokenizer, text, 50, 0.5, 1), std::runtime_error);
  EXPECT_THROW(llm::make_passkey_trial(tokenizer, text, 5000, 0.5, 1), std::runtime_error);
}

TEST(LlmPasskey, ScoresEveryPolicyOnTheSameTrials) {
  const llm::GgufFile file(save(tiny_model(), "passkey.gguf"));
  const llm::Model model(file);
  const llm::ByteLevelTokenizer tokenizer(file);
  llm::PasskeyOptions options;
  options.policies = {"k1v1", "float", "k32v32"};
  options.contexts = {400, 450};
  options.depths = {0.2, 0.8};
  options.trials = 2;
  const std::vector<Token> text = tokenizer.encode(std::string(1000, 'x'));
  const auto results = llm::find_passkeys(model, tokenizer, text, options, nullptr);
  ASSERT_EQ(results.size(), 12u);
  EXPECT_EQ(results[0].policy, "k1v1");
  EXPECT_EQ(results[3].context, 450);
  EXPECT_EQ(results[3].depth, 0.8);
  for (std::size_t i = 4; i < 8; ++i) {
    EXPECT_EQ(results[i].agreement, 1.0);
    EXPECT_EQ(results[i + 4].agreement, 1.0);
    EXPECT_LT(results[i].log_probability, 0.0);
    EXPECT_NEAR(results[i].log_probability, results[i + 4].log_probability, 1e-4);
    EXPECT_NE(results[i].log_probability, results[i - 4].log_probability);
  }
  const auto means = llm::over_depths(results);
  ASSERT_EQ(means.size(), 6u);
  EXPECT_EQ(means[1].policy, "k1v1");
  EXPECT_EQ(means[1].context, 450);
  EXPECT_EQ(means[1].trials, 4);
  EXPECT_DOUBLE_EQ(means[1].log_probability, (results[2].log_probability + results[3].log_probability) / 2);
  EXPECT_DOUBLE_EQ(means[1].exact, (results[2].exact + results[3].exact) / 2);
  const std::string json = llm::to_json("tiny", "x", options, results);
  EXPECT_EQ(json, llm::to_json("tiny", "x", options, llm::find_passkeys(model, tokenizer, text, options, nullptr)));
  const auto row = nlohmann::json::parse(json).at("results").at(11);
  EXPECT_EQ(row.at("policy"), "k32v32");
  for (const char* name : {"context", "depth", "trials", "exact", "agreement", "log_probability"})
    EXPECT_TRUE(row.contains(name)) << name;
  options.contexts = {513};
  EXPECT_THROW(llm::find_passkeys(model, tokenizer, text, options, nullptr), std::runtime_error);
  options.contexts = {400};
  options.depths = {1.5};
  EXPECT_THROW(llm::find_passkeys(model, tokenizer, text, options, nullptr), std::runtime_error);
}

TEST(LlmAsymmetry, KeyErrorsGoThroughScoresAndValueErrorsDoNot) {
  const llm::GgufFile file(save(tiny_model(), "asymmetry.gguf"));
  const llm::Model model(file);
  llm::AsymmetryOptions options;
  options.windows = 2;
  options.context = 160;
  options.skip = 64;
  const auto layers = llm::measure_asymmetry(model, random_tokens(320), options, nullptr);
  ASSERT_EQ(layers.size(), std::size_t(kLayers));
  for (const llm::AsymmetryResult& layer : layers) {
    for (const double error : {layer.key_error, layer.score_error, layer.weight_error, layer.output_by_keys,
                               layer.value_error, layer.output_by_values})
      EXPECT_TRUE(error > 0.01 && error < 1.0) << error;
    // the value error reaches the output linearly
    EXPECT_NEAR(layer.output_by_equalized / layer.output_by_values, layer.key_error / layer.value_error, 0.02);
  }
  EXPECT_DOUBLE_EQ(llm::mean(layers).key_error, (layers[0].key_error + layers[1].key_error) / 2);
  const auto json = nlohmann::json::parse(llm::to_json("tiny", "random", options, layers));
  EXPECT_EQ(json.at("layers").size(), layers.size());
  EXPECT_TRUE(json.at("mean").contains("output_by_equalized"));
  options.context = 64;
  EXPECT_THROW(llm::measure_asymmetry(model, random_tokens(320), options, nullptr), std::runtime_error);
}

TEST(LlmCalibrate, ProbesAreWhatEvalMeasures) {
  const llm::GgufFile file(save(tiny_model(), "calibrate.gguf"));
  const llm::Model model(file);
  const asymkv::CacheShape shape = model.shape.cache_shape();
  const std::vector<Token> text = random_tokens(1200);
  llm::CalibrateOptions options;
  options.budget_bits = 4.5;  // heads of 16 are padded to 32
  options.first_window = 1;
  options.context = 400;
  const asymkv::Calibration result = llm::calibrate(model, text, options, nullptr);
  EXPECT_LE(result.policy.all_in_bits(shape), options.budget_bits);
  EXPECT_EQ(result.policy.bytes(shape, 128), result.bytes);
  EXPECT_EQ(result.policy, llm::calibrate(model, text, options, nullptr).policy);

  // the short way through upper layers and late chunks gives what the whole model does
  llm::EvalOptions eval;
  eval.first_window = 1;
  eval.windows = 2;
  eval.context = 400;
  eval.policies = {"0:km0.5v32+1:k32v32@1", "0:k32v1g128fcsr+1:k32v32@1", "0:k32v32+1:km0.5v32@1",
                   "0:k32v32+1:k32v1g128fcsr@1"};
  const auto probes = llm::evaluate(model, text, eval, nullptr);
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(result.curves[i].points[0].damage, probes[i].kld_mean, 1e-3 * probes[i].kld_mean + 1e-7) << i;

  const std::string table = llm::to_table(result, shape);
  EXPECT_NE(table.find(result.policy.name()), std::string::npos);
  const std::string path = save(llm::to_yaml(result.policy), "policy.yaml");
  EXPECT_EQ(llm::parse_policy(path, shape), result.policy);
  eval.policies = {path, result.policy.name()};
  const auto same = llm::evaluate(model, text, eval, nullptr);
  EXPECT_EQ(same[0].kld_mean, same[1].kld_mean);
  EXPECT_THROW(llm::parse_policy("/nowhere/policy.yaml", shape), std::runtime_error);
  EXPECT_THROW(llm::parse_policy(save("0: x", "bad.yaml"), shape), std::runtime_error);
  options.budget_bits = 0.5;
  EXPECT_THROW(llm::calibrate(model, text, options, nullptr), std::runtime_error);
  options.first_window = 2;
  EXPECT_THROW(llm::calibrate(model, text, options, nullptr), std::runtime_error);
}

}  // namespace
