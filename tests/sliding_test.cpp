// Sliding windows: attention over what remove_front leaves, against the oracle over those tokens alone; removed tokens
// are refused, and their memory comes back.
#include "support/cache.hpp"
#include "support/guarded.hpp"
#include "support/variant.hpp"

namespace {

using namespace asymkv;
using namespace support;

constexpr CacheShape kTwoLayers{2, kHeads, kDim, kDim};
constexpr CacheShape kSmall{1, 1, 32, 48};

/// What keeps scores below about 1, and the error of an output that it allows, for each format.
struct Kind {
  const char* policy;
  Index sinks;
  float queries, allowed;
};
const Kind kKinds[] = {{"float", 0, 0.7f, 2e-5f},   {"k16v16@3", 3, 0.7f, 2e-5f}, {"k4v4g64@128", 128, 0.1f, 4e-3f},
                       {"k2v2", 0, 0.02f, 0.1f},    {"k2v2@40", 40, 0.02f, 0.1f}, {"balanced-1.7", 1, 0.02f, 0.1f},
                       {"k16v4@5", 5, 0.1f, 4e-3f}, {"k4v32@7", 7, 0.1f, 4e-3f},  {"k8v8", 0, 0.1f, 1e-3f}};

/// What one attention asks for beside its format.
struct Question {
  Index queries = 1;
  Index window = 0;
  Variant variant = {};
};

/// Greatest error of the attention of a layer over that of the oracle, which has only what reads back of the tokens
/// that are kept: [0, sinks) and [end, length).
float error_of_attention(KVCache& cache, Index layer, Index sinks, Index end, const Question& question, float factor) {
  const CacheShape& shape = cache.shape();
  const Index heads = 2 * shape.kv_heads, length = cache.length(layer), queries = question.queries;
  const Index first = std::min(sinks, length), kept = first + length - std::max(end, first);
  const RowMatrix q = random_matrix(queries, heads * shape.key_dim, 21) * factor;
  VariantNumbers numbers(question.variant, queries, heads, length);
  RowMatrix output = RowMatrix::Constant(queries, heads * shape.value_dim, NAN);
  const Status status = cache.attend_parallel(layer, tensor(q, heads), tensor(output, heads),
                                              numbers.params(question.window), [](Index count, const auto& task) {
                                                for (Index i = count - 1; i >= 0; --i) task(i);
                                              });
  EXPECT_TRUE(status.ok()) << status.message();
  if (output.hasNaN()) return INFINITY;
  const auto kept_of = [&](Side side, Index head) {
    const Index dim = side == Side::keys ? shape.key_dim : shape.value_dim;
    RowMatrix x(kept, dim);
    x.topRows(first) = read(cache, side, head, 0, first, layer);
    x.bottomRows(kept - first) = read(cache, side, head, length - (kept - first), kept - first, layer);
    oracle::Matrix m{int(kept), int(dim)};
    for (Index i = 0; i < x.size(); ++i) m.data[std::size_t(i)] = double(x.data()[i]);
    return oracle::Kept(m, oracle::exact);
  };
  double worst = 0.0, greatest = 0.0;
  for (Index head = 0; head < heads; ++head) {
    const oracle::Kept keys = kept_of(Side::keys, head / 2), values = kept_of(Side::values, head / 2);
    for (Index i = 0; i < queries; i += std::max<Index>(1, queries / 4)) {  // of many, some in each block of rows
      std::vector<double> query;
      for (Index c = 0; c < shape.key_dim; ++c) query.push_back(double(q(i, head * shape.key_dim + c)));
      const auto visible = numbers.visible(i, question.window);
      oracle::Terms terms = numbers.terms(i, head);
      std::vector<double> added;
      for (Index t = 0; t < length; ++t) {
        if (t >= first && t < end) continue;
        const bool seen = t >= visible.first && t < visible.last;
        added.push_back(!seen ? -INFINITY : terms.added.empty() ? 0.0 : terms.added[std::size_t(t)]);
      }
      terms.added = added;
      const oracle::Attention expected =
          oracle::attention(query, keys, values, 0, int(kept), 1.0 / std::sqrt(double(shape.key_dim)), terms);
      for (Index c = 0; c < shape.value_dim; ++c) {
        const double right = expected.output[std::size_t(c)];
        worst = std::max(worst, std::fabs(double(output(i, head * shape.value_dim + c)) - right));
        greatest = std::max(greatest, std::fabs(right));
      }
      if (question.variant.lse) {
        const double lse = double(numbers.lse(i, head));
        if (lse != expected.lse) worst = std::max(worst, std::fabs(lse - expected.lse));
      }
    }
  }
  return float(worst / (1.0 + greatest));
}

std::vector<Question> questions() {
  Variant alibi, masked, anywhere;
  alibi.alibi = alibi.sinks = alibi.lse = true;
  masked.mask = Mask::of_heads;
  masked.lse = true;
  anywhere.causal = false;
  anywhere.position = 130;
  anywhere.mask = Mask::hides_rows;
  return {{1}, {3, 200}, {2, 0, alibi}, {3, 0, masked}, {2, 300, anywhere}, {150}, {70, 90, masked}};
}

/// Tokens whose removed ones are loud: one that is not removed after all is heard.
Tokens loud_tokens(Index length, Index sinks, Index end, const CacheShape& shape = kShape) {
  Tokens tokens(length, 31, shape);
  if (end > sinks) tokens.values.middleRows(sinks, end - sinks) *= 100.0f;
  return tokens;
}

TEST(Sliding, EqualsTheOracleOverTheTokensThatAreKept) {
  for (const Kind& kind : kKinds)
    for (Index threads : {1, 3}) {
      CacheOptions options;
      options.residual_length = 64;
      if (std::strcmp(kind.policy, "balanced-1.7") == 0) options.residual_length = 128;
      options.threads = threads;
      float worst = 0.0f;
      for (Index end : {1, 41, 128, 129, 255, 256, 300, 511, 640, 650, 699}) {
        AsymKVCache cache = make_cache(kind.policy, options, kSmall);
        const Tokens tokens = loud_tokens(700, kind.sinks, end, kSmall);
        append_in_chunks(cache, tokens, 0, 700, 90);
        ASSERT_TRUE(cache.remove_front(0, end).ok());
        EXPECT_EQ(cache.removed(0).end, end > kind.sinks ? end : 0);
        for (const Question& question : questions()) {
          const float error =
              error_of_attention(cache, 0, kind.sinks, std::max(end, kind.sinks), question, kind.queries);
          EXPECT_LE(error, kind.allowed) << kind.policy << " end " << end << " queries " << question.queries
                                         << question.variant << " window " << question.window << " threads " << threads;
          worst = std::max(worst, error / kind.allowed);
        }
      }
      EXPECT_GT(worst, 0.005f) << kind.policy << ": too much is allowed";
    }
}

TEST(Sliding, DenseCachesToo) {
  for (Index end : {1, 128, 300, 699, 700}) {
    CacheOptions options;
    options.threads = 2;
    auto cache = DenseKVCache<float>::create(kSmall, options);
    ASSERT_TRUE(cache.ok());
    append_in_chunks(*cache, loud_tokens(700, 0, end, kSmall), 0, 700, 90);
    ASSERT_TRUE(cache->remove_front(0, end).ok());
    for (const Question& question : questions())
      EXPECT_LE(error_of_attention(*cache, 0, 0, end, question, 0.7f), 2e-5f) << end << question.variant;
  }
}

TEST(Sliding, EverythingButTheSinksMayGo) {
  for (const Kind& kind : kKinds) {
    AsymKVCache cache = make_cache(kind.policy, {}, kSmall);
    append_in_chunks(cache, loud_tokens(512, kind.sinks, 512, kSmall), 0, 512, 100);
    ASSERT_TRUE(cache.remove_front(0, 512).ok());
    Variant variant;
    variant.lse = true;
    EXPECT_LE(error_of_attention(cache, 0, kind.sinks, 512, {2, 0, variant}, kind.queries), kind.allowed);
    append(cache, Tokens(30, 5, kSmall), 0, 30);
    EXPECT_EQ(cache.length(), 542);
    EXPECT_LE(error_of_attention(cache, 0, kind.sinks, 512, {2, 0, variant}, kind.queries), kind.allowed);
  }
}

TEST(Sliding, ReadsNothingBeforeWhatIsKept) {
  for (const Kind& kind : kKinds)
    for (Index end : {100, 383, 511, 560, 600}) {  // in pages of keys, of values, and in windows
      CacheOptions options;
      options.allocator = guarded_allocator();
      AsymKVCache cache = make_cache(kind.policy, options, kSmall);
      append_in_chunks(cache, loud_tokens(600, kind.sinks, end, kSmall), 0, 600, 100);
      ASSERT_TRUE(cache.remove_front(0, end).ok());
      Result<AsymKVCache> fork = cache.fork();  // whose windows begin where their memory does
      ASSERT_TRUE(fork.ok());
      for (Index queries : {1, 80})
        EXPECT_LE(error_of_attention(*fork, 0, kind.sinks, std::max(end, kind.sinks), {queries}, kind.queries),
                  kind.allowed)
            << kind.policy << " end " << end;
    }
}

TEST(Sliding, ReferenceSeesTheSame) {
  AsymKVCache cache = make_cache("k4v4@3");
  append_in_chunks(cache, loud_tokens(500, 3, 333), 0, 500, 90);
  ASSERT_TRUE(cache.remove_front(0, 333).ok());
  const RowMatrix q = random_matrix(4, 4 * kDim, 9) * 0.1f;
  RowMatrix output(4, 4 * kDim), expected = output;
  ASSERT_TRUE(cache.attend(0, tensor(q, 4), tensor(output, 4)).ok());
  ASSERT_TRUE(reference_attention(cache, 0, tensor(q, 4), tensor(expected, 4)).ok());
  EXPECT_LT((output - expected).cwiseAbs().maxCoeff(), 4e-3f);
}

TEST(Sliding, RemovedTokensAreRefusedAndOthersReadAsBefore) {
  const Tokens tokens(600, 3);
  for (const Kind& kind : kKinds) {
    AsymKVCache cache = make_cache(kind.policy);
    append_in_chunks(cache, tokens, 0, 600, 80);
    const RowMatrix keys = read(cache, Side::keys, 1, 0, 600), values = read(cache, Side::values, 1, 0, 600);
    ASSERT_TRUE(cache.remove_front(0, 300).ok());
    EXPECT_EQ(cache.length(), 600);
    EXPECT_EQ(read(cache, Side::keys, 1, 300, 300), keys.bottomRows(300)) << kind.policy;
    EXPECT_EQ(read(cache, Side::values, 1, 300, 300), values.bottomRows(300)) << kind.policy;
    EXPECT_EQ(read(cache, Side::keys, 1, 0, kind.sinks), keys.topRows(kind.sinks)) << kind.policy;
    EXPECT_EQ(read(cache, Side::values, 1, 0, kind.sinks), values.topRows(kind.sinks)) << kind.policy;
    RowMatrix out(2, kDim);
    for (Index first : {kind.sinks - 1, kind.sinks, Index(200), Index(298), Index(299)}) {
      if (first < 0) continue;
      expect_error(cache.keys(0, 1, first, tensor(out)), ErrorCode::out_of_range, "first: tokens");
      expect_error(cache.values(0, 1, first, tensor(out)), ErrorCode::out_of_range, "first: tokens");
    }
    RowMatrix all(600, kDim);
    expect_error(cache.keys(0, 1, 0, tensor(all)), ErrorCode::out_of_range, "first: tokens");
  }
}

TEST(Sliding, EndsThatChangeNothingOrAreRefused) {
  CountingAllocator counting;
  CacheOptions options;
  options.allocator = counting.allocator();
  AsymKVCache cache = make_cache("k2v2@4", options, kTwoLayers);
  const Tokens tokens(300, 3, kTwoLayers);
  for (Index layer : {0, 1}) append(cache, tokens, 0, 300, layer);
  const std::vector<std::uint32_t> seen = everything_seen(cache);
  for (Index end : {0, 3, 4}) EXPECT_TRUE(cache.remove_front(0, end).ok());
  EXPECT_EQ(cache.removed(0).end, 0);
  expect_error(cache.remove_front(0, -1), ErrorCode::out_of_range, "end: is -1; use 0..300");
  expect_error(cache.remove_front(0, 301), ErrorCode::out_of_range, "end: is 301; use 0..300");
  expect_error(cache.remove_front(2, 5), ErrorCode::out_of_range, "layer");
  expect_error(cache.remove_front(-1, 5), ErrorCode::out_of_range, "layer");
  EXPECT_TRUE(everything_seen(cache) == seen);
  ASSERT_TRUE(cache.remove_front(1, 200).ok());
  const Index bytes = counting.bytes;
  for (Index end : {0, 100, 200}) EXPECT_TRUE(cache.remove_front(1, end).ok());
  EXPECT_EQ(cache.removed(1).begin, 4);
  EXPECT_EQ(cache.removed(1).end, 200);
  EXPECT_EQ(counting.bytes, bytes);
  EXPECT_EQ(cache.removed(0).end, 0) << "of one layer alone";
  EXPECT_EQ(cache.removed(2).end, 0);
  EXPECT_LE(error_of_attention(cache, 1, 4, 200, {2}, 0.02f), 0.1f);
  EXPECT_LE(error_of_attention(cache, 0, 0, 0, {2}, 0.02f), 0.1f);
  cache.clear();
  EXPECT_EQ(cache.removed(1).end, 0);
  AsymKVCache moved = std::move(cache);
  expect_error(cache.remove_front(0, 0), ErrorCode::out_of_range, "layer");
  struct Other : KVCache {
    CacheShape own = kShape;
    const CacheShape& shape() const noexcept override { return own; }
    Status append(Index, const ConstTensor&, const ConstTensor&) noexcept override { return {}; }
    Status attend(Index, const ConstTensor&, const Tensor&, const AttentionParams&) noexcept override { return {}; }
    Status keys(Index, Index, Index, const Tensor&) const noexcept override { return {}; }
    Status values(Index, Index, Index, const Tensor&) const noexcept override { return {}; }
    Status seal() noexcept override { return {}; }
    Index length(Index) const noexcept override { return 0; }
    Status trim(Index) noexcept override { return {}; }
    void clear() noexcept override {}
    CacheBytes bytes() const noexcept override { return {}; }
  } other;
  expect_error(other.remove_front(0, 0), ErrorCode::unsupported, "remove_front");
  EXPECT_EQ(other.removed(0).end, 0);
}

TEST(Sliding, MemoryStaysWhatItIs) {
  constexpr Index kept = 300;
  const CacheShape shape{1, 1, 32, 32};
  const Tokens tokens(1000, 3, shape);
  for (const Kind& kind : kKinds)
    for (Index chunk : {1, 50})
      for (Index rollback : {0, 5}) {
        CountingAllocator counting;
        CacheOptions options;
        options.allocator = counting.allocator();
        options.rollback_tokens = rollback;
        {
          AsymKVCache cache = make_cache(kind.policy, options, shape);
          Index early = 0, late = 0;
          for (Index length = chunk; length <= 10000; length += chunk) {
            append(cache, tokens, (length - chunk) % 1000, chunk);
            ASSERT_TRUE(cache.remove_front(0, std::max<Index>(0, length - kept)).ok());
            ASSERT_EQ(cache.bytes().total(), counting.bytes);
            Index& most = length <= 2500 ? early : late;
            most = std::max(most, counting.bytes);
          }
          EXPECT_LE(late, early) << kind.policy << " chunks of " << chunk;
          for (Side side : {Side::keys, Side::values}) {
            // what is kept, begun pages at both ends, and a window that is yet to be sealed
            const Index most = (kept + chunk) / 128 + 3;
            EXPECT_LE(cache.side(0, side).pages().size(), most) << kind.policy << " " << side_name(side);
          }
          EXPECT_LE(error_of_attention(cache, 0, kind.sinks, 10000 - kept, {2}, kind.queries), kind.allowed);
        }
        EXPECT_EQ(counting.bytes, 0);
      }
}

TEST(Sliding, TrimStaysAboveRemovedTokensOrGoesToTheSinks) {
  const Tokens tokens(600, 3), more(600, 4);
  for (const Kind& kind : kKinds) {
    AsymKVCache cache = make_cache(kind.policy);
    append_in_chunks(cache, tokens, 0, 600, 80);
    ASSERT_TRUE(cache.remove_front(0, 301).ok());
    const Index bytes = cache.bytes().total();
    for (Index length : {kind.sinks + 1, Index(300)}) {
      expect_error(cache.trim(length), ErrorCode::out_of_range, "tokens: cannot trim");
      EXPECT_EQ(cache.length(), 600);
      EXPECT_EQ(cache.bytes().total(), bytes);
    }
    ASSERT_TRUE(cache.trim(301).ok());
    EXPECT_EQ(cache.length(), 301);
    EXPECT_EQ(cache.removed(0).end, 301);
    append_in_chunks(cache, more, 0, 300, 60);
    EXPECT_LE(error_of_attention(cache, 0, kind.sinks, 301, {2}, kind.queries), kind.allowed) << kind.policy;
    for (Index length : {kind.sinks, kind.sinks / 2, Index(0)}) {
      ASSERT_TRUE(cache.trim(length).ok());
      EXPECT_EQ(cache.removed(0).end, 0);
      AsymKVCache expected = make_cache(kind.policy);
      append(expected, tokens, 0, length);
      for (AsymKVCache* each : {&cache, &expected}) append_in_chunks(*each, more, 0, 500, 70);
      EXPECT_TRUE(everything_seen(cache) == everything_seen(expected)) << kind.policy << " from " << length;
      ASSERT_TRUE(cache.remove_front(0, 400).ok());
    }
  }
}

/// Where pages begin at token 333: cut there before they went on.
AsymKVCache with_pages_from_333(const char* policy, const Tokens& tokens, const CacheOptions& options,
                                const CacheShape& shape = kShape) {
  AsymKVCache cache = make_cache(policy, options, shape);
  append_in_chunks(cache, tokens, 0, 500, 100);
  EXPECT_TRUE(cache.seal().ok() && cache.trim(333).ok());
  append_in_chunks(cache, tokens, 333, 900, 100);
  return cache;
}

TEST(Sliding, PagesOfKeysAndValuesNeedNotBeAligned) {
  for (const Kind& kind : kKinds)
    for (Index end : {332, 333, 334, 384, 461, 512, 589, 590, 717, 800, 899}) {
      const Tokens tokens = loud_tokens(900, kind.sinks, end, kSmall);
      CacheOptions options;
      options.threads = 2;
      AsymKVCache cache = with_pages_from_333(kind.policy, tokens, options, kSmall);
      ASSERT_TRUE(cache.remove_front(0, end).ok());
      for (const Question& question : questions())
        EXPECT_LE(error_of_attention(cache, 0, kind.sinks, end, question, kind.queries), kind.allowed)
            << kind.policy << " end " << end << " queries " << question.queries << question.variant;
    }
}

TEST(Sliding, TrimmedToTheRemovedTokensItGoesOnHoweverTokensCome) {
  const Tokens tokens(900, 3), more(700, 4);
  for (const char* policy : {"k2v2", "k4v4@7", "k3v2g64", "balanced-1.7"}) {
    std::vector<unsigned char> expected;
    for (Index chunk : {1, 30, 96, 700}) {
      CacheOptions options;
      options.residual_length = std::strcmp(policy, "balanced-1.7") == 0 ? 128 : 64;
      AsymKVCache cache = with_pages_from_333(policy, tokens, options);
      ASSERT_TRUE(cache.remove_front(0, 333).ok() && cache.trim(333).ok());
      append_in_chunks(cache, more, 0, 700, chunk);
      ASSERT_TRUE(cache.seal().ok());
      if (expected.empty()) expected = sealed_bytes(cache);
      EXPECT_TRUE(sealed_bytes(cache) == expected) << policy << " chunk " << chunk;
      const Index sealed = cache.side(0, Side::keys).sealed();
      EXPECT_EQ(sealed, 333 + 700 / options.residual_length * options.residual_length);
      EXPECT_LE(cache.side(0, Side::keys).pages().size(), (sealed - 333 + 127) / 128) << policy;
      EXPECT_LT((read(cache, Side::keys, 1, 333, 700) - more.keys.block(0, kDim, 700, kDim)).norm(),
                more.keys.block(0, kDim, 700, kDim).norm() * 0.5f);
      // pages that begin there have no token before it to be requantized with
      AsymKVCache aligned = make_cache(policy, options);
      append_in_chunks(aligned, more, 0, 700, chunk);
      ASSERT_TRUE(aligned.seal().ok());
      if (std::strchr(policy, '@') == nullptr && std::strcmp(policy, "balanced-1.7") != 0) {
        EXPECT_TRUE(read(cache, Side::keys, 1, 333, 600) == read(aligned, Side::keys, 1, 0, 600)) << policy;
        const AsymKVPolicy one_bit = *AsymKVPolicy::parse("k1v1g64", 1);
        ASSERT_TRUE(cache.requantize(333, cache.length(), one_bit).ok() &&
                    aligned.requantize(0, aligned.length(), one_bit).ok());
        EXPECT_TRUE(read(cache, Side::keys, 1, 333, 600) == read(aligned, Side::keys, 1, 0, 600)) << policy;
      }
    }
  }
}

TEST(Sliding, SharedPagesGoWithTheLastThatHoldsThem) {
  CountingAllocator counting;
  CacheOptions options;
  options.allocator = counting.allocator();
  {
    AsymKVCache original = make_cache("k2v2@4", options);
    append_in_chunks(original, Tokens(800, 3), 0, 800, 80);
    ASSERT_TRUE(original.seal().ok());
    const std::vector<std::uint32_t> seen = everything_seen(original);
    Result<AsymKVCache> fork = original.fork(), second = original.fork();
    ASSERT_TRUE(fork.ok() && second.ok());
    const Index page_bytes = original.side(0, Side::keys).pages().page_bytes() +
                             original.side(0, Side::values).pages().page_bytes() + 2 * SharedBuffer::header_bytes;
    const Index all = counting.bytes;
    ASSERT_TRUE(fork->remove_front(0, 512).ok() && second->remove_front(0, 256).ok());
    EXPECT_EQ(counting.bytes, all);
    EXPECT_TRUE(everything_seen(original) == seen);
    EXPECT_LE(error_of_attention(*fork, 0, 4, 512, {2}, 0.02f), 0.1f);
    ASSERT_TRUE(original.remove_front(0, 384).ok());
    EXPECT_EQ(counting.bytes, all - 2 * page_bytes);
    EXPECT_LE(error_of_attention(original, 0, 4, 384, {2}, 0.02f), 0.1f);
    ASSERT_TRUE(second->remove_front(0, 512).ok());
    EXPECT_EQ(counting.bytes, all - 3 * page_bytes);
    original.clear();
    EXPECT_LE(error_of_attention(*second, 0, 4, 512, {2}, 0.02f), 0.1f);
    Result<AsymKVCache> late = second->fork();
    ASSERT_TRUE(late.ok());
    EXPECT_EQ(late->removed(0).end, 512);
    EXPECT_LE(error_of_attention(*late, 0, 4, 512, {2}, 0.02f), 0.1f);
  }
  EXPECT_EQ(counting.bytes, 0);
}

/// A sequence of appends, trims, removals, forks, seals and requantizations chosen by chance. The tokens that were put
/// in are known, so what reads back must be near them, and attention is as the oracle's over what reads back.
void live_by_chance(unsigned seed) {
  std::mt19937 generator(seed);
  const auto dice = [&](Index a, Index b) { return a + Index(generator() % std::uint32_t(b - a + 1)); };
  struct {
    const char* policy;
    const char* smaller;
    Index sinks;
  } const kinds[] = {
      {"k8v8", "k6v6", 0}, {"k8v8g64@9", "k6v6g64", 9}, {"k8v16@100", "k6v8", 100}, {"k32v8@1", "k8v6", 1}};
  const auto& kind = kinds[dice(0, 3)];
  CacheOptions options;
  options.residual_length = 64 * dice(1, 3);
  options.rollback_tokens = dice(0, 1) * dice(1, 40);
  options.threads = dice(1, 4);
  CountingAllocator counting;
  options.allocator = counting.allocator();
  std::optional<AsymKVCache> cache(make_cache(kind.policy, options)), other;
  RowMatrix keys(0, kHeads * kDim), values = keys;  // of the cache
  Index removed = 0;
  for (int step = 0; step < 40; ++step) {
    const Index length = cache->length();
    switch (dice(0, 9)) {
      case 0: {
        const bool high = removed > kind.sinks && dice(0, 4) > 0;
        const Index low = dice(0, 2) > 0 ? std::max<Index>(removed, length - 50) : removed;
        const Index cut =
            high || removed <= kind.sinks ? dice(std::min(low, length), length) : dice(0, std::min(kind.sinks, length));
        ASSERT_TRUE(cache->trim(cut).ok());
        keys.conservativeResize(cut, Eigen::NoChange);
        values.conservativeResize(cut, Eigen::NoChange);
        if (cut <= kind.sinks) removed = 0;
        break;
      }
      case 1: {
        const Index end = dice(0, 3) > 0 ? dice(0, length) / 2 : dice(0, length);
        ASSERT_TRUE(cache->remove_front(0, end).ok());
        if (end > std::max(kind.sinks, removed)) removed = end;
        break;
      }
      case 2:
        ASSERT_TRUE(cache->seal().ok());
        break;
      case 3:
        other = std::move(*cache->fork());  // a dead end that still shares, or the one that goes on
        if (dice(0, 1) == 1) std::swap(cache, other);
        break;
      case 4: {
        const Index first = dice(0, length);
        const Status status = cache->requantize(first, dice(first, length), *AsymKVPolicy::parse(kind.smaller, 1));
        ASSERT_TRUE(status.ok()) << status.message();
        break;
      }
      default: {
        const Index count = dice(0, 2) == 0 ? dice(1, 400) : dice(1, 5);
        const Tokens tokens(count, unsigned(dice(0, 1 << 20)));
        append(*cache, tokens, 0, count);
        keys.conservativeResize(length + count, Eigen::NoChange);
        values.conservativeResize(length + count, Eigen::NoChange);
        keys.bottomRows(count) = tokens.keys;
        values.bottomRows(count) = tokens.values;
      }
    }
    const Index now = cache->length(), first = std::min(kind.sinks, now), from = std::max(first, removed);
    ASSERT_EQ(now, keys.rows());
    if (now == 0) continue;
    for (Index head = 0; head < kHeads; ++head)
      for (Side side : {Side::keys, Side::values}) {
        const RowMatrix& truth = side == Side::keys ? keys : values;
        RowMatrix found = truth.middleCols(head * kDim, kDim);
        found.topRows(first) = read(*cache, side, head, 0, first);
        found.bottomRows(now - from) = read(*cache, side, head, from, now - from);
        // half a step of 6 bits over a group that spans 50 at most, twice
        ASSERT_LE((found - truth.middleCols(head * kDim, kDim)).cwiseAbs().maxCoeff(), 1.0f)
            << "seed " << seed << " step " << step << " " << side_name(side);
      }
    Variant variant;
    variant.lse = true;
    const Question question{dice(1, std::min<Index>(now, 4)), dice(0, 1) * dice(1, now), variant};
    ASSERT_LE(error_of_attention(*cache, 0, first, from, question, 0.1f), 2e-3f) << "seed " << seed << " step " << step;
    if (!other) {
      ASSERT_EQ(cache->bytes().total(), counting.bytes) << "seed " << seed << " step " << step;
    }
  }
  other.reset();
  EXPECT_EQ(cache->bytes().total(), counting.bytes);
  cache.reset();
  EXPECT_EQ(counting.bytes, 0);
}

TEST(Sliding, LivesChosenByChance) {
  for (unsigned seed = 0; seed < 25; ++seed) ASSERT_NO_FATAL_FAILURE(live_by_chance(seed)) << "seed " << seed;
}

TEST(Sliding, PagesOfTokensThatWereInTheWindowFollow) {
  const Tokens tokens(2300, 1);
  for (Index rollback : {0, 300}) {
    CacheOptions options;
    options.rollback_tokens = rollback;
    AsymKVCache cache = make_cache("k2v2@4", options);
    append(cache, tokens, 0, 2000);  // none is sealed yet
    ASSERT_TRUE(cache.remove_front(0, 2000).ok());
    append_in_chunks(cache, tokens, 2000, 2300, 10);
    for (Side side : {Side::keys, Side::values}) {
      const PageTable& pages = cache.side(0, side).pages();
      ASSERT_LE(pages.size(), rollback == 0 ? 3 : 6);
      if (rollback > 0) continue;
      EXPECT_GT(pages[1].end(), 2000);  // the first is whole removed, the last before those that are kept
    }
  }
}

TEST(Sliding, EveryCacheOfTheLibraryIsASequence) {
  const AsymKVCache packed = make_cache("k2v2");
  const auto dense = DenseKVCache<float>::create(kShape);
  for (const KVCache* cache : {static_cast<const KVCache*>(&packed), static_cast<const KVCache*>(&*dense)})
    EXPECT_EQ(cache->sequence(), cache);
}

}  // namespace
