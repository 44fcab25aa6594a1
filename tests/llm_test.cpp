// The decoder of examples/llm on a tiny model that the test writes itself.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "asymmetry.hpp"
#include "eval.hpp"
#include "gguf.hpp"
#include "passkey.hpp"
#include "policy_cache.hpp"
#include "policy_list.hpp"
#include "statistics.hpp"
#include "support/support.hpp"
#include "tokenizer.hpp"

namespace {

using llm::Matrix;
using llm::Token;

/// Writes GGUF by its specification.
class Writer {
 public:
  template <class T>
  void put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_string(const std::string& text) {
    put(std::uint64_t(text.size()));
    bytes_ += text;
  }
  void number(const std::string& key, std::uint32_t value) {
    put_string(key);
    put(std::uint32_t(4));
    put(value);
    ++values;
  }
  void real(const std::string& key, float value) {
    put_string(key);
    put(std::uint32_t(6));
    put(value);
    ++values;
  }
  void text(const std::string& key, const std::string& value) {
    put_string(key);
    put(std::uint32_t(8));
    put_string(value);
    ++values;
  }
  void strings(const std::string& key, const std::vector<std::string>& list) {
    put_string(key);
    put(std::uint32_t(9));
    put(std::uint32_t(8));
    put(std::uint64_t(list.size()));
    for (const std::string& s : list) put_string(s);
    ++values;
  }
  void integers(const std::string& key, const std::vector<std::int32_t>& list) {
    put_string(key);
    put(std::uint32_t(9));
    put(std::uint32_t(5));
    put(std::uint64_t(list.size()));
    for (std::int32_t i : list) put(i);
    ++values;
  }
  /// Data goes behind all infos; `type` as in the specification.
  void tensor(const std::string& name, std::uint64_t rows, std::uint64_t columns, std::uint32_t type,
              const std::string& data) {
    tensors.push_back({name, rows, columns, type, data});
  }
  std::string finish() {
    std::string body = std::move(bytes_);
    bytes_ = "GGUF";
    put(std::uint32_t(3));
    put(std::uint64_t(tensors.size()));
    put(values);
    bytes_ += body;
    std::uint64_t offset = 0;
    for (const Tensor& t : tensors) {
      put_string(t.name);
      put(std::uint32_t(2));
      put(t.columns);
      put(t.rows);
      put(t.type);
      put(offset);
      offset += (t.data.size() + 31) / 32 * 32;
    }
    bytes_.resize((bytes_.size() + 31) / 32 * 32);
    for (const Tensor& t : tensors) {
      bytes_ += t.data;
      bytes_.resize((bytes_.size() + 31) / 32 * 32);
    }
    return bytes_;
  }

 private:
  struct Tensor {
    std::string name;
    std::uint64_t rows, columns;
    std::uint32_t type;
    std::string data;
  };
  std::string bytes_;
  std::uint64_t values = 0;
  std::vector<Tensor> tensors;
};

std::string floats(std::size_t count, unsigned seed, float scale, float mean = 0.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(mean, scale);
  std::string data;
  for (std::size_t i = 0; i < count; ++i) {
    const float x = normal(generator);
    data.append(reinterpret_cast<const char*>(&x), 4);
  }
  return data;
}

std::string save(const std::string& bytes, const char* name) {
  const std::string path = ::testing::TempDir() + "asymkv_" + std::to_string(::getpid()) + "_" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

constexpr int kLayers = 2, kWidth = 64, kHidden = 96;

/// Every byte is a token; then merges "t h", "th e", "Ġ the"; then one special token.
std::string tiny_model() {
  Writer w;
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

std::vector<Token> random_tokens(std::size_t count) {
  std::mt19937 generator(3);
  std::vector<Token> tokens(count);
  for (Token& t : tokens) t = Token(generator() % 260);
  return tokens;
}

TEST(LlmGguf, DequantizesEveryType) {
  Writer w;
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

TEST(LlmGguf, UnknownTypesAreRefused) {
  Writer w;
  w.tensor("q6_k", 1, 256, 14, std::string(210, 'x'));
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
          const llm::Llama model(file);
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
  const llm::Tokenizer tokenizer(file);
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
  const llm::Llama model(file);
  const std::vector<Token> tokens = random_tokens(50);
  llm::Workers one(1), three(3);
  llm::Decoder serial(model, one), parallel(model, three);
  const auto whole = llm::make_cache("float", model.shape.cache_shape(), 50);
  const auto single = llm::make_cache("float", model.shape.cache_shape(), 50);
  const Matrix at_once = parallel.feed(tokens.data(), 50, *whole, 0);
  for (Eigen::Index i = 0; i < 50; ++i) {
    const Matrix& logits = serial.feed(&tokens[std::size_t(i)], 1, *single, 0);
    EXPECT_LT((logits - at_once.row(i)).cwiseAbs().maxCoeff(), 2e-4f);
  }
}

TEST(LlmEval, MoreBitsAreCloser) {
  const llm::GgufFile file(save(tiny_model(), "eval.gguf"));
  const llm::Llama model(file);
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

TEST(LlmEval, FirstWindowSplitsAText) {
  const llm::GgufFile file(save(tiny_model(), "split.gguf"));
  const llm::Llama model(file);
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
  const llm::Llama model(file);
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

TEST(LlmEval, JsonHasEveryField) {
  llm::EvalResult result;
  result.policy = "k2v1";
  result.kld_p999 = 0.5;
  llm::EvalOptions options;
  options.first_window = 7;
  const auto json = nlohmann::json::parse(llm::to_json("tiny", "random", options, {result}));
  EXPECT_EQ(json.at("model"), "tiny");
  EXPECT_EQ(json.at("text"), "random");
  EXPECT_EQ(json.at("first_window"), 7);
  for (const char* name : {"windows", "context", "skip", "residual", "chunk"}) EXPECT_TRUE(json.contains(name)) << name;
  const auto& row = json.at("results").at(0);
  EXPECT_EQ(row.at("policy"), "k2v1");
  EXPECT_EQ(row.at("kld_p999"), 0.5);
  for (const char* name : {"payload_bits", "all_in_bits", "cache_bytes", "perplexity", "kld_mean", "kld_median",
                           "kld_p99", "top1", "tokens_per_second"})
    EXPECT_TRUE(row.contains(name)) << name;
  EXPECT_NE(llm::to_table({result}).find("p99.9"), std::string::npos);
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
  for (const llm::Index layers : {1, 2, 5, 30})
    for (const std::string& name : llm::expand_policies("all", layers))
      EXPECT_TRUE(asymkv::AsymKVPolicy::parse(name, layers).ok()) << name << " of " << layers;
  for (const char* bad : {"", "k2v1,", ",k2v1", "k{1,2v1", "k1}v1", "k}1{v1", "k{1,{2,3}}v1"})
    EXPECT_THROW(llm::expand_policies(bad, 4), std::runtime_error) << bad;
}

TEST(LlmPasskey, TrialHidesTheKeyAtItsDepth) {
  const llm::GgufFile file(save(tiny_model(), "trial.gguf"));
  const llm::Tokenizer tokenizer(file);
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
  const llm::Llama model(file);
  const llm::Tokenizer tokenizer(file);
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
  const llm::Llama model(file);
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

}  // namespace
