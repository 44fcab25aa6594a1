// Rollback: drafts that are trimmed leave no trace where CacheOptions::rollback_tokens is as many, sealed or not; what
// it costs, and what deeper trims do.
#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

constexpr CacheShape kSmall{1, 1, 32, 48};

struct Kind {
  const char* policy;
  Index residual;
};
const Kind kKinds[] = {{"k2v2", 32},
                       {"k2v2", 128},
                       {"k4v4g64", 64},
                       {"k4v4g64@70", 128},
                       {"k2v3@5", 32},
                       {"balanced-1.7", 128},
                       {"km2.5v2g128fcsr@9", 256},
                       {"k16v2", 64},
                       {"k3v32@1", 96}};

std::string words(const Kind& kind) { return kind.policy + std::string(", R ") + std::to_string(kind.residual); }

AsymKVCache cache_of(const Kind& kind, Index rollback, const Allocator& allocator = {}) {
  CacheOptions options;
  options.residual_length = kind.residual;
  options.rollback_tokens = rollback;
  options.allocator = allocator;
  return make_cache(kind.policy, options, kSmall);
}

/// As everything_seen, of any length.
std::vector<std::uint32_t> seen(AsymKVCache& cache) {
  return cache.length() < 3 ? std::vector<std::uint32_t>{std::uint32_t(cache.length())} : everything_seen(cache);
}

/// Pages as far as tokens are sealed: what they read back as, and how they are divided.
std::vector<std::uint32_t> sealed_numbers(const AsymKVCache& cache) {
  std::vector<std::uint32_t> bits;
  for (Side which : {Side::keys, Side::values}) {
    const SideStore& side = cache.side(0, which);
    for (const Page& page : side.pages())
      bits.insert(bits.end(), {std::uint32_t(page.first), std::uint32_t(page.count), std::uint32_t(page.format)});
    if (!side.packed()) continue;
    const Index first = side.sinks().count();
    add_bits(bits, read(cache, which, 0, first, side.sealed() - first));
  }
  return bits;
}

void expect_equal(AsymKVCache& cache, AsymKVCache& expected, const std::string& what) {
  ASSERT_EQ(cache.length(), expected.length()) << what;
  for (Side side : {Side::keys, Side::values})
    ASSERT_EQ(cache.side(0, side).sealed(), expected.side(0, side).sealed()) << what << " " << side_name(side);
  ASSERT_TRUE(sealed_numbers(cache) == sealed_numbers(expected)) << what;
  ASSERT_TRUE(seen(cache) == seen(expected)) << what;
}

TEST(Rollback, DraftsLeaveNoTrace) {
  const Tokens tokens(1200, 1, kSmall), drafts(400, 2, kSmall);
  for (const Kind& kind : kKinds)
    for (Index most : {1, 4, 40, 150}) {
      const Index r = kind.residual;
      AsymKVCache plain = cache_of(kind, 0);
      AsymKVCache with = cache_of(kind, most);
      Index length = 0;
      for (Index next : {Index(1), Index(6), r - 1, r, r + 1, r + 2, 2 * r - 1, 2 * r, 2 * r + 1, 2 * r + 3, 3 * r,
                         4 * r, 4 * r + 1}) {
        if (next <= length) continue;
        append_in_chunks(plain, tokens, length, next, 1);
        append_in_chunks(with, tokens, length, next, 1);
        length = next;
        for (Index count : {Index(1), most / 2, most})
          for (Index chunk : {Index(1), Index(3), count}) {
            if (count == 0) continue;
            const std::string what = words(kind) + ", " + std::to_string(count) + " of " + std::to_string(most) +
                                     " drafts by " + std::to_string(chunk) + " behind " + std::to_string(length);
            append_in_chunks(with, drafts, 0, count, chunk);
            ASSERT_TRUE(with.trim(length).ok());
            ASSERT_NO_FATAL_FAILURE(expect_equal(with, plain, what));
          }
      }
      // once more, and then a tail behind all that drafts had been
      append_in_chunks(with, drafts, 100, 100 + most, 1);
      ASSERT_TRUE(with.trim(length).ok() && with.seal().ok() && plain.seal().ok());
      ASSERT_NO_FATAL_FAILURE(expect_equal(with, plain, words(kind) + " sealed"));
      for (AsymKVCache* cache : {&with, &plain})
        append_in_chunks(*cache, tokens, length, std::min<Index>(1200, length + most + 2 * r), 31);
      ASSERT_TRUE(with.seal().ok() && plain.seal().ok());
      EXPECT_TRUE(sealed_bytes(with) == sealed_bytes(plain)) << words(kind);
      EXPECT_TRUE(everything_seen(with) == everything_seen(plain)) << words(kind);
    }
}

/// Decodes as engines with drafts do: of some drafts, in one append or in several, the first ones are right; the others
/// are trimmed, and one more token follows.
void speculate(unsigned seed) {
  std::mt19937 generator(seed);
  const auto dice = [&](Index a, Index b) { return a + Index(generator() % std::uint32_t(b - a + 1)); };
  const Kind& kind = kKinds[dice(0, 8)];
  const Index most = dice(0, 3) == 0 ? dice(1, 200) : dice(1, 12), prompt = dice(1, 400);
  const Tokens tokens(1600, seed, kSmall), wrong(200, seed + 7, kSmall);
  AsymKVCache plain = cache_of(kind, 0), with = cache_of(kind, most);
  const Index chunk = dice(1, prompt);
  for (AsymKVCache* cache : {&plain, &with}) append_in_chunks(*cache, tokens, 0, prompt, chunk);
  Index length = prompt, furthest = prompt;
  for (int round = 0; round < 25 && length + most + 1 < 1200; ++round) {
    const Index count = dice(1, most), right = dice(0, count);
    Index first = 0;
    while (first < right) {
      const Index step = dice(1, right - first);
      append(with, tokens, length + first, step);
      first += step;
    }
    if (dice(0, 2) == 0) {
      ASSERT_TRUE(with.seal().ok());
    }
    while (first < count) {
      const Index step = dice(1, count - first);
      append(with, wrong, first, step);
      first += step;
    }
    furthest = std::max(furthest, length + count);
    ASSERT_TRUE(with.trim(length + right).ok());
    append(plain, tokens, length, right);
    length += right;
    for (AsymKVCache* cache : {&plain, &with}) append(*cache, tokens, length, 1);
    ++length;
    ASSERT_NO_FATAL_FAILURE(
        expect_equal(with, plain, words(kind) + " seed " + std::to_string(seed) + " round " + std::to_string(round)));
  }
  for (AsymKVCache* cache : {&plain, &with})
    append_in_chunks(*cache, tokens, length, std::min<Index>(1600, furthest + 2 * kind.residual), 50);
  ASSERT_TRUE(with.seal().ok() && plain.seal().ok());
  EXPECT_TRUE(sealed_bytes(with) == sealed_bytes(plain)) << words(kind) << " seed " << seed;
}

TEST(Rollback, SpeculationsChosenByChance) {
  for (unsigned seed = 0; seed < 100; ++seed) ASSERT_NO_FATAL_FAILURE(speculate(seed));
}

TEST(Rollback, WithoutTrimsNothingDiffers) {
  const Tokens tokens(900, 1, kSmall);
  for (const Kind& kind : kKinds)
    for (Index most : {1, 30, 500})
      for (Index chunk : {1, 20, 300}) {
        AsymKVCache plain = cache_of(kind, 0), with = cache_of(kind, most);
        for (Index first = 0; first < 900; first += chunk) {
          append(plain, tokens, first, chunk);
          append(with, tokens, first, chunk);
          if (chunk == 1 && first % 37 != 5) continue;
          ASSERT_TRUE(seen(with) == seen(plain)) << words(kind) << " at " << first;
        }
        ASSERT_TRUE(plain.seal().ok() && with.seal().ok());
        EXPECT_TRUE(sealed_bytes(with) == sealed_bytes(plain)) << words(kind);
        EXPECT_TRUE(everything_seen(with) == everything_seen(plain)) << words(kind);
      }
}

TEST(Rollback, BelowAnEarlierChunk) {
  const Tokens tokens(600, 1, kSmall), drafts(100, 2, kSmall);
  for (const Kind& kind : kKinds) {
    AsymKVCache plain = cache_of(kind, 0), with = cache_of(kind, 60);
    append_in_chunks(plain, tokens, 0, 300, 1);
    append(with, tokens, 0, 100);
    append(with, tokens, 100, 150);
    append(with, tokens, 250, 75);  // of which 25 will go
    append(with, drafts, 0, 30);
    append(with, drafts, 30, 5);
    ASSERT_TRUE(with.trim(300).ok());
    for (AsymKVCache* cache : {&plain, &with}) append(*cache, tokens, 300, 1);
    expect_equal(with, plain, words(kind));
  }
}

TEST(Rollback, DeeperTrimsKeepWhatIsSealedForGood) {
  const Tokens tokens(900, 1, kSmall), more(400, 2, kSmall);
  for (const Kind& kind : kKinds)
    for (Index most : {3, 50})
      for (Index cut : {Index(0), Index(1), Index(6), Index(77), 500 - 2 * kind.residual, Index(340), 499 - most}) {
        if (cut < 0) continue;
        AsymKVCache cache = cache_of(kind, most);
        append_in_chunks(cache, tokens, 0, 500, 1);
        const std::string what = words(kind) + " cut at " + std::to_string(cut);
        for (Side which : {Side::keys, Side::values}) {
          AsymKVCache trimmed = *cache.fork();
          const SideStore& side = cache.side(0, which);
          // tokens that are not sealed for good read as they came, others as before
          const Index same = std::min(cut, side.packed() ? side.immutable_end() : cut);
          const RowMatrix before = read(cache, which, 0, 0, cut);
          ASSERT_TRUE(trimmed.trim(cut).ok());
          const RowMatrix after = read(trimmed, which, 0, 0, cut);
          EXPECT_TRUE(after.topRows(same) == before.topRows(same)) << what;
          const RowMatrix& input = which == Side::keys ? tokens.keys : tokens.values;
          const Index sealed = std::max(same, trimmed.side(0, which).sealed());
          EXPECT_TRUE(after.middleRows(same, sealed - same) == before.middleRows(same, sealed - same)) << what;
          if (side.packed()) {
            EXPECT_TRUE(after.bottomRows(cut - sealed) == input.middleRows(sealed, cut - sealed)) << what;
          }
          append_in_chunks(trimmed, more, 0, 400, 40);
          ASSERT_TRUE(trimmed.seal().ok());
          const RowMatrix& fresh = which == Side::keys ? more.keys : more.values;
          EXPECT_LT((read(trimmed, which, 0, cut, 400) - fresh).norm(), 0.7f * fresh.norm()) << what;
          EXPECT_TRUE(read(trimmed, which, 0, 0, same) == before.topRows(same)) << what;
        }
      }
}

TEST(Rollback, MemoryIsBounded) {
  const Tokens tokens(1000, 1, kSmall);
  for (const Kind& kind : kKinds)
    for (Index most : {5, 100})
      for (Index chunk : {1, 40}) {
        CountingAllocator counting;
        AsymKVCache cache = cache_of(kind, most, counting.allocator());
        for (Index length = 0; length < 3000; length += chunk) {
          append(cache, tokens, length % 1000, chunk);
          ASSERT_EQ(cache.bytes().total(), counting.bytes);
          for (Side which : {Side::keys, Side::values}) {
            const SideStore& side = cache.side(0, which);
            if (!side.packed()) continue;
            // R, the drafts and what R needs beside them; three steps, as without drafts, and some to spare
            const Index bound = kind.residual + most + kind.residual + 3 * chunk + 32 + kind.residual / 2;
            ASSERT_LE(side.dense().capacity(), bound) << words(kind) << " " << most << " " << side_name(which);
            ASSERT_LE(side.dense().kept(), most + (which == Side::keys ? kind.residual : 1));
          }
        }
      }
}

TEST(Rollback, OptionsAreChecked) {
  const AsymKVPolicy policy = *AsymKVPolicy::parse("k2v2", 1);
  for (Index tokens : {Index(-1), (Index(1) << 32) + 1}) {
    CacheOptions options;
    options.rollback_tokens = tokens;
    expect_error(AsymKVCache::create(kSmall, policy, options).status(), ErrorCode::invalid_argument,
                 "options: rollback_tokens");
    expect_error(DenseKVCache<float>::create(kSmall, options).status(), ErrorCode::invalid_argument,
                 "options: rollback_tokens");
  }
}

TEST(Rollback, DenseCachesNeedNone) {
  const Tokens tokens(400, 1, kSmall), drafts(100, 2, kSmall);
  CacheOptions options;
  options.rollback_tokens = 50;
  auto with = DenseKVCache<float>::create(kSmall, options), plain = DenseKVCache<float>::create(kSmall);
  ASSERT_TRUE(with.ok() && plain.ok());
  append(*with, tokens, 0, 300);
  append(*plain, tokens, 0, 300);
  append_in_chunks(*with, drafts, 0, 100, 9);
  ASSERT_TRUE(with->trim(300).ok());
  EXPECT_TRUE(everything_seen(*with) == everything_seen(*plain));
}

TEST(Rollback, ForksHaveTheirOwn) {
  const Tokens tokens(700, 1, kSmall), drafts(200, 2, kSmall);
  for (const Kind& kind : kKinds) {
    AsymKVCache plain = cache_of(kind, 0), with = cache_of(kind, 20);
    append_in_chunks(plain, tokens, 0, 385, 1);
    append_in_chunks(with, tokens, 0, 385, 1);
    append_in_chunks(with, drafts, 0, 10, 1);
    AsymKVCache fork = *with.fork();
    append_in_chunks(fork, drafts, 50, 60, 10);
    ASSERT_TRUE(fork.trim(385).ok());
    expect_equal(fork, plain, words(kind) + " fork");
    append_in_chunks(with, drafts, 10, 20, 5);
    ASSERT_TRUE(with.trim(385).ok());
    expect_equal(with, plain, words(kind) + " original");
    for (AsymKVCache* cache : {&plain, &with, &fork}) append_in_chunks(*cache, tokens, 385, 700, 45);
    expect_equal(fork, plain, words(kind) + " fork, later");
    expect_equal(with, plain, words(kind) + " original, later");
  }
}

TEST(Rollback, AnAppendWithoutMemoryKeepsWhatIsNeeded) {
  const Tokens tokens(700, 1, kSmall), drafts(300, 2, kSmall);
  for (const Kind& kind : kKinds) {
    AsymKVCache plain = cache_of(kind, 0);
    append_in_chunks(plain, tokens, 0, 400, 1);
    int failures = 0;
    for (int fail = 0;; ++fail) {
      CountingAllocator counting;
      AsymKVCache with = cache_of(kind, 200, counting.allocator());
      append_in_chunks(with, tokens, 0, 400, 1);
      append(with, drafts, 0, 20);
      counting.fail_at = counting.calls + fail;
      const Status status = try_append(with, drafts, 20, 150);
      counting.fail_at = -1;
      EXPECT_EQ(with.bytes().total(), counting.bytes);
      failures += !status.ok();
      ASSERT_TRUE(with.trim(400).ok());
      ASSERT_NO_FATAL_FAILURE(expect_equal(with, plain, words(kind) + " request " + std::to_string(fail)));
      if (status.ok()) break;
    }
    EXPECT_GE(failures, 1) << words(kind);
  }
}

TEST(Rollback, GoesWithSlidingWindows) {
  const Tokens tokens(1000, 1, kSmall), drafts(100, 2, kSmall);
  for (const Kind& kind : kKinds) {
    AsymKVCache plain = cache_of(kind, 0), with = cache_of(kind, 10);
    const RowMatrix queries = random_matrix(2, 64, 3);
    RowMatrix output(2, 96), expected = output;
    for (Index length = 1; length <= 1000; ++length) {
      append(plain, tokens, length - 1, 1);
      append(with, tokens, length - 1, 1);
      append(with, drafts, length % 90, 1 + length % 10);
      ASSERT_TRUE(with.trim(length).ok());
      if (length > 200) {
        ASSERT_TRUE(plain.remove_front(0, length - 200).ok() && with.remove_front(0, length - 200).ok());
      }
      if (length % 7 != 0) continue;
      ASSERT_TRUE(plain.attend(0, tensor(queries, 2), tensor(expected, 2)).ok());
      ASSERT_TRUE(with.attend(0, tensor(queries, 2), tensor(output, 2)).ok());
      ASSERT_EQ(output, expected) << words(kind) << " at " << length;
    }
  }
}

}  // namespace
