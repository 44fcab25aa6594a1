// The decoder of examples/llm on a tiny model that the test writes itself.
#include <cmath>

#include "byte_level_tokenizer.hpp"
#include "decoder.hpp"
#include "eval.hpp"
#include "gguf.hpp"
#include "policy_cache.hpp"
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

std::vector<Token> random_tokens(std::size_t count) {
  std::mt19937 generator(3);
  std::vector<Token> tokens(count);
  for (Token& t : tokens) t = Token(generator() % 260);
  return tokens;
}

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
  const llm::Model model(file);
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
  const llm::Model model(file);
  llm::EvalOptions options;
  options.policies = {"float", "k32v32", "k8v8", "k2v2", "k1v1"};
  options.windows = 2;
  options.context = 400;
  options.skip = 256;
  const auto results = llm::evaluate(model, random_tokens(800), options, false);
  ASSERT_EQ(results.size(), 5u);
  EXPECT_EQ(results[0].kld_mean, 0.0);
  EXPECT_EQ(results[0].top1, 1.0);
  EXPECT_NEAR(results[1].kld_mean, 0.0, 1e-6);
  EXPECT_LT(results[2].kld_mean, results[3].kld_mean);
  EXPECT_LT(results[3].kld_mean, results[4].kld_mean);
  EXPECT_GT(results[4].kld_p99, results[4].kld_median);
  EXPECT_LT(results[3].cache_bytes, results[0].cache_bytes);
  options.skip = 399;
  EXPECT_THROW(llm::evaluate(model, random_tokens(800), options, false), std::runtime_error);
  options.skip = 0;
  EXPECT_THROW(llm::evaluate(model, random_tokens(799), options, false), std::runtime_error);
}

}  // namespace
