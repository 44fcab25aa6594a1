// Gemma 3 in examples/llm, on a tiny model that the test writes itself: the forward pass against its formulas in
// double, and SentencePiece's BPE.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "asymmetry.hpp"
#include "decoder.hpp"
#include "eval.hpp"
#include "generate.hpp"
#include "passkey.hpp"
#include "policy_cache.hpp"
#include "sentencepiece_tokenizer.hpp"
#include "support/decoding.hpp"
#include "support/gguf_writer.hpp"
#include "support/support.hpp"

namespace {

using llm::Matrix;
using llm::Token;
using support::floats;
using support::GgufWriter;
using support::save;

constexpr int kLayers = 7, kWidth = 32, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kHidden = 48, kWindow = 10;
constexpr int kGlobalLayer = 5;

struct Piece {
  std::string text;
  std::int32_t type;
  float score;
};

/// Special tokens, user-defined pieces, all bytes, then pieces whose scores fall.
std::vector<Piece> vocabulary() {
  std::vector<Piece> pieces{{"<pad>", 3, 0.0f}, {"<eos>", 3, 0.0f}, {"<bos>", 3, 0.0f}, {"<unk>", 2, 0.0f}};
  for (const char* text : {"\n", "\n\n", "\n\n\n", "  ", "   ", "<td>", "<td><td>"})
    pieces.push_back({text, 4, -1000.0f});
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", unsigned(byte));
    pieces.push_back({name, 6, 0.0f});
  }
  float score = 0.0f;
  for (const char* text : {"he", "\xe2\x96\x81t", "th", "aa", "\xe2\x96\x81the", "the", "\xe2\x96\x81", "t", "h", "e",
                           "a", "b", "<", ">", "d", "x", "s", "o"})
    pieces.push_back({text, 1, score--});
  return pieces;
}

Token token_of(const std::string& text) {
  const std::vector<Piece> pieces = vocabulary();
  for (std::size_t i = 0; i < pieces.size(); ++i)
    if (pieces[i].text == text) return Token(i);
  return -1;
}

void put_vocabulary(GgufWriter& w) {
  std::vector<std::string> texts;
  std::vector<std::int32_t> types;
  std::vector<float> scores;
  for (const Piece& piece : vocabulary()) {
    texts.push_back(piece.text);
    types.push_back(piece.type);
    scores.push_back(piece.score);
  }
  w.text("tokenizer.ggml.model", "llama");
  w.strings("tokenizer.ggml.tokens", texts);
  w.integers("tokenizer.ggml.token_type", types);
  w.reals("tokenizer.ggml.scores", scores);
  w.number("tokenizer.ggml.bos_token_id", 2);
  w.number("tokenizer.ggml.eos_token_id", 1);
}

void put_tensors(GgufWriter& w) {
  unsigned seed = 1;
  const auto matrix = [&](const std::string& name, std::uint64_t rows, std::uint64_t columns, float scale = 0.2f) {
    w.tensor(name, rows, columns, 0, floats(rows * columns, seed++, scale));
  };
  const auto norm = [&](const std::string& name, std::uint64_t size) {
    w.tensor(name, 1, size, 0, floats(size, seed++, 0.2f, 1.0f));
  };
  matrix("token_embd.weight", vocabulary().size(), kWidth, 0.3f);
  norm("output_norm.weight", kWidth);
  for (int i = 0; i < kLayers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    for (const char* name : {"attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"})
      norm(block + name + ".weight", kWidth);
    norm(block + "attn_q_norm.weight", kHeadDim);
    norm(block + "attn_k_norm.weight", kHeadDim);
    matrix(block + "attn_q.weight", kHeads * kHeadDim, kWidth);
    matrix(block + "attn_k.weight", kKvHeads * kHeadDim, kWidth);
    matrix(block + "attn_v.weight", kKvHeads * kHeadDim, kWidth);
    matrix(block + "attn_output.weight", kWidth, kHeads * kHeadDim);
    matrix(block + "ffn_gate.weight", kHidden, kWidth);
    matrix(block + "ffn_up.weight", kHidden, kWidth);
    matrix(block + "ffn_down.weight", kWidth, kHidden);
  }
}

/// `extra` may put what makes the file one to refuse.
template <class Extra>
std::string tiny_gemma(bool space_prefix, Extra extra) {
  GgufWriter w;
  w.text("general.architecture", "gemma3");
  w.number("gemma3.block_count", kLayers);
  w.number("gemma3.context_length", 512);
  w.number("gemma3.embedding_length", kWidth);
  w.number("gemma3.feed_forward_length", kHidden);
  w.number("gemma3.attention.head_count", kHeads);
  w.number("gemma3.attention.head_count_kv", kKvHeads);
  w.number("gemma3.attention.key_length", kHeadDim);
  w.number("gemma3.attention.value_length", kHeadDim);
  w.number("gemma3.attention.sliding_window", kWindow);
  w.real("gemma3.attention.layer_norm_rms_epsilon", 1e-6f);
  w.real("gemma3.rope.freq_base", 1e6f);
  w.flag("tokenizer.ggml.add_space_prefix", space_prefix);
  put_vocabulary(w);
  put_tensors(w);
  extra(w);
  return w.finish();
}

std::string tiny_gemma() {
  return tiny_gemma(false, [](GgufWriter&) {});
}

std::vector<Token> random_tokens(std::size_t count) { return support::random_tokens(count, vocabulary().size()); }

/// Gemma 3 as its formulas say it, in double, all tokens at once.
class Formulas {
 public:
  using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  explicit Formulas(const llm::GgufFile& file) : file_(file) {}

  Rows logits(const std::vector<Token>& tokens) const {
    const Rows embedding = weight("token_embd", Eigen::Index(vocabulary().size()), kWidth);
    Rows x(Eigen::Index(tokens.size()), kWidth);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      x.row(Eigen::Index(i)) = embedding.row(tokens[i]) * std::sqrt(double(kWidth));
    for (int i = 0; i < kLayers; ++i) {
      const std::string block = "blk." + std::to_string(i) + ".";
      x += norm(attention(norm(x, block + "attn_norm"), block, i == kGlobalLayer), block + "post_attention_norm");
      x += norm(feed_forward(norm(x, block + "ffn_norm"), block), block + "post_ffw_norm");
    }
    return norm(x, "output_norm") * embedding.transpose();
  }

 private:
  Rows weight(const std::string& name, Eigen::Index rows, Eigen::Index columns) const {
    Matrix matrix(rows, columns);
    file_.read(name + ".weight", matrix);
    return matrix.cast<double>();
  }

  Rows norm(const Rows& x, const std::string& name) const {
    const Rows w = weight(name, 1, x.cols());
    Rows y = x;
    for (Eigen::Index t = 0; t < x.rows(); ++t)
      y.row(t) = x.row(t).cwiseProduct(w.row(0)) / std::sqrt(x.row(t).squaredNorm() / double(x.cols()) + 1e-6);
    return y;
  }

  static Rows rotated(const Rows& x, double base) {
    Rows y = x;
    for (Eigen::Index t = 0; t < x.rows(); ++t)
      for (int i = 0; i < kHeadDim / 2; ++i) {
        const double angle = double(t) * std::pow(base, -2.0 * i / kHeadDim);
        y(t, i) = x(t, i) * std::cos(angle) - x(t, i + kHeadDim / 2) * std::sin(angle);
        y(t, i + kHeadDim / 2) = x(t, i) * std::sin(angle) + x(t, i + kHeadDim / 2) * std::cos(angle);
      }
    return y;
  }

  Rows attention(const Rows& x, const std::string& block, bool global) const {
    const double base = global ? 1e6 : 1e4;
    const Rows q = x * weight(block + "attn_q", kHeads * kHeadDim, kWidth).transpose();
    const Rows k = x * weight(block + "attn_k", kKvHeads * kHeadDim, kWidth).transpose();
    const Rows v = x * weight(block + "attn_v", kKvHeads * kHeadDim, kWidth).transpose();
    Rows mixed = Rows::Zero(x.rows(), kHeads * kHeadDim);
    for (int head = 0; head < kHeads; ++head) {
      const int kv = head / (kHeads / kKvHeads);
      const Rows query = rotated(norm(q.middleCols(head * kHeadDim, kHeadDim), block + "attn_q_norm"), base);
      const Rows key = rotated(norm(k.middleCols(kv * kHeadDim, kHeadDim), block + "attn_k_norm"), base);
      for (Eigen::Index t = 0; t < x.rows(); ++t) {
        double sum = 0.0;
        for (Eigen::Index u = global ? 0 : std::max<Eigen::Index>(0, t - kWindow + 1); u <= t; ++u) {
          const double p = std::exp(query.row(t).dot(key.row(u)) / std::sqrt(double(kHeadDim)));
          mixed.row(t).segment(head * kHeadDim, kHeadDim) += p * v.row(u).segment(kv * kHeadDim, kHeadDim);
          sum += p;
        }
        mixed.row(t).segment(head * kHeadDim, kHeadDim) /= sum;
      }
    }
    return mixed * weight(block + "attn_output", kWidth, kHeads * kHeadDim).transpose();
  }

  Rows feed_forward(const Rows& x, const std::string& block) const {
    const Rows gate = x * weight(block + "ffn_gate", kHidden, kWidth).transpose();
    const Rows up = x * weight(block + "ffn_up", kHidden, kWidth).transpose();
    const Rows gelu = gate.unaryExpr([](double g) {
      return 0.5 * g * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979323846) * (g + 0.044715 * g * g * g)));
    });
    return gelu.cwiseProduct(up) * weight(block + "ffn_down", kWidth, kHidden).transpose();
  }

  const llm::GgufFile& file_;
};

TEST(LlmGemma, LogitsAreThoseOfTheFormulas) {
  const llm::GgufFile file(save(tiny_gemma(), "gemma.gguf"));
  const llm::Model model(file);
  const std::vector<Token> tokens = random_tokens(40);  // four windows
  llm::Workers one(1);
  llm::Decoder decoder(model, one);
  const auto cache = llm::make_cache("float", model.shape.cache_shape(), 40);
  const Matrix logits = decoder.feed(tokens.data(), 40, *cache, 0);
  const auto expected = Formulas(file).logits(tokens);
  EXPECT_GT(expected.cwiseAbs().maxCoeff(), 3.0);
  EXPECT_LT((logits.cast<double>() - expected).cwiseAbs().maxCoeff(), 1e-4);
}

TEST(LlmGemma, ChunksGiveTheLogitsOfSingleSteps) {
  const llm::GgufFile file(save(tiny_gemma(), "gemma_chunks.gguf"));
  support::expect_chunks_equal_single_steps(llm::Model(file), random_tokens(300), 75);
}

TEST(LlmGemma, VariantsItDoesNotComputeAreRefused) {
  const auto load = [](const std::string& bytes) {
    const llm::GgufFile file(save(bytes, "gemma_refused.gguf"));
    llm::read_tokenizer(file);
    const llm::Model model(file);
  };
  EXPECT_NO_THROW(load(tiny_gemma()));
  EXPECT_THROW(load(tiny_gemma(true, [](GgufWriter&) {})), std::runtime_error);
  for (const char* key :
       {"gemma3.rope.scaling.type", "gemma3.final_logit_softcapping", "gemma3.attn_logit_softcapping"})
    EXPECT_THROW(load(tiny_gemma(false, [&](GgufWriter& w) { w.text(key, "x"); })), std::runtime_error) << key;
  EXPECT_THROW(
      load(tiny_gemma(false, [](GgufWriter& w) { w.tensor("blk.0.attn_q.bias", 1, 1, 0, floats(1, 1, 1.0f)); })),
      std::runtime_error);
}

TEST(LlmGemma, TokenizesAsSentencePieceDoes) {
  const llm::GgufFile file(save(tiny_gemma(), "gemma_tokens.gguf"));
  const llm::SentencePieceTokenizer tokenizer(file);
  const auto expect = [&](const std::string& text, const std::vector<std::string>& pieces) {
    std::vector<Token> tokens;
    for (const std::string& piece : pieces) tokens.push_back(token_of(piece));
    EXPECT_EQ(tokenizer.encode(text), tokens) << text;
    std::string back;
    for (Token t : tokens) back += tokenizer.text(t);
    EXPECT_EQ(back, text);
  };
  const std::string blank = "\xe2\x96\x81";
  expect("", {});
  expect("the", {"the"});                         // h e first, since `he` has the best score; then t he
  expect(" the", {blank + "the"});                // `he`, then `_t`, then both
  expect(" that", {blank + "t", "h", "a", "t"});  // `_t` before `th`
  expect("aaa", {"aa", "a"});                     // leftmost first
  expect("   the", {"   ", "the"});               // a run of spaces is a piece, and takes no part in merges
  expect("a    b", {"a", "   ", blank, "b"});     // the longest first
  expect("\n\n\n\n", {"\n\n\n", "\n"});
  expect("<td><td><td>a", {"<td><td>", "<td>", "a"});
  expect("<td", {"<", "t", "d"});
  expect("b\xc3\xa9\xf0\x9f\x98\x80", {"b", "<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"});
  expect(
      "\xff"
      "a\xc3",
      {"<0xFF>", "a", "<0xC3>"});
  expect("<bos>", {"<", "b", "o", "s", ">"});  // names of special tokens are text
  EXPECT_EQ(tokenizer.encode_with_specials("a<bos>"), (std::vector<Token>{token_of("a"), 2}));
  EXPECT_EQ(tokenizer.begin_of_text(), 2);
  EXPECT_TRUE(tokenizer.ends_text(1));
  EXPECT_EQ(tokenizer.text(2), "");
}

TEST(LlmGemma, SequencesBeginWithTheirToken) {
  const llm::GgufFile file(save(tiny_gemma(), "gemma_begin.gguf"));
  const auto tokenizer = llm::read_tokenizer(file);
  const Token a = token_of("a"), b = token_of("b");
  EXPECT_EQ(llm::window_tokens(*tokenizer, "abab", 3), (std::vector<Token>{2, a, b, 2, a, b}));
  EXPECT_EQ(llm::window_tokens(*tokenizer, "aba", 3), (std::vector<Token>{2, a, b, 2, a}));
  llm::GenerateOptions options;
  options.prompt = "ab";
  options.tokens = 1;
  std::ostringstream text, report;
  llm::generate(llm::Model(file), *tokenizer, options, text, report);
  EXPECT_EQ(report.str().find("prompt 3 tokens"), 0u) << report.str();
  const llm::PasskeyTrial trial =
      llm::make_passkey_trial(*tokenizer, tokenizer->encode(std::string(2000, 'a')), 900, 0.5, 1);
  EXPECT_EQ(trial.prompt.size() + trial.key.size(), 900u);
  EXPECT_EQ(trial.prompt.front(), 2);
  EXPECT_EQ(std::count(trial.prompt.begin(), trial.prompt.end(), 2), 1);
}

TEST(LlmGemma, AsymmetryStaysInsideTheSlidingWindow) {
  const llm::GgufFile file(save(tiny_gemma(), "gemma_sliding.gguf"));
  const llm::Model model(file);
  llm::AsymmetryOptions options;
  options.windows = 1;
  options.context = 96;
  options.skip = 95;
  std::vector<Token> tokens = random_tokens(96);
  const auto before = llm::measure_asymmetry(model, tokens, options, nullptr);
  tokens[0] = Token((tokens[0] + 1) % Token(vocabulary().size()));
  const auto after = llm::measure_asymmetry(model, tokens, options, nullptr);
  // the last query sees tokens 86 to 95, which token 0 reaches through the global layer alone
  for (std::size_t i = 0; i <= kGlobalLayer; ++i) {
    EXPECT_NE(before[i].key_error, after[i].key_error) << i;  // of all tokens
    EXPECT_EQ(before[i].score_error == after[i].score_error, i < kGlobalLayer) << i;
    EXPECT_EQ(before[i].output_by_keys == after[i].output_by_keys, i < kGlobalLayer) << i;
    EXPECT_EQ(before[i].output_by_values == after[i].output_by_values, i < kGlobalLayer) << i;
  }
}

}  // namespace
