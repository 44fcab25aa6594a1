// Forks: equal to their original, on their own from then on, with pages in common that none of them writes to; exact
// bytes over all of them, and threads that have a fork, or a workspace, each.
#include <array>
#include <asymkv/cache/page_pool.hpp>
#include <set>
#include <thread>

#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

constexpr CacheShape kTwoLayers{2, kHeads, kDim, kDim};
const char* const kPolicies[] = {"k2v2", "k1v16", "balanced-1.7", "0:k2v4g64+1:k16v3", "k4g64v1@5", "float"};

template <class T>
T forked(const T& cache) {
  Result<T> fork = cache.fork();
  EXPECT_TRUE(fork.ok()) << fork.status().message();
  return std::move(*fork);
}

/// Tokens [first, end), `chunk` at a time, for every layer.
void append_to_all(KVCache& cache, const Tokens& tokens, Index first, Index end, Index chunk) {
  for (; first < end; first += chunk)
    for (Index layer = 0; layer < cache.shape().layers; ++layer)
      append(cache, tokens, first, std::min(chunk, end - first), layer);
}

std::vector<unsigned char> all_sealed_bytes(const AsymKVCache& cache) {
  std::vector<unsigned char> bytes;
  for (Index layer = 0; layer < cache.shape().layers; ++layer) {
    const std::vector<unsigned char> more = sealed_bytes(cache, layer);
    bytes.insert(bytes.end(), more.begin(), more.end());
  }
  return bytes;
}
std::vector<unsigned char> all_sealed_bytes(const detail::SequenceCache&) { return {}; }

template <class T>
void expect_equal(T& cache, T& expected, const std::string& what) {
  EXPECT_TRUE(everything_seen(cache) == everything_seen(expected)) << what;
  EXPECT_TRUE(all_sealed_bytes(cache) == all_sealed_bytes(expected)) << what;
}

/// make() gives empty caches. A fork of one with `length` tokens is as that one; after both went on, each is as one
/// that got all its tokens.
template <class Make>
void expect_to_go_on_alone(const Make& make, Index length, const std::string& what) {
  const Tokens prefix(length, 1, kTwoLayers), one(700, 2, kTwoLayers), other(700, 3, kTwoLayers);
  auto original = make();
  append_to_all(original, prefix, 0, length, 77);
  auto fork = forked(original);
  expect_equal(fork, original, what);
  auto first = make(), second = make();
  for (auto* expected : {&first, &second}) append_to_all(*expected, prefix, 0, length, 77);
  Index from = 0;
  for (Index end : {1, 2, 40, 300, 700}) {
    append_to_all(fork, other, from, end, end - from);
    append_to_all(second, other, from, end, end - from);
    append_to_all(original, one, from, end, end - from);
    append_to_all(first, one, from, end, end - from);
    expect_equal(original, first, what + ", the original at " + std::to_string(end));
    expect_equal(fork, second, what + ", the fork at " + std::to_string(end));
    from = end;
  }
}

TEST(Fork, GoesOnAlone) {
  for (Index length : {3, 128, 129, 300, 515}) {
    const std::string at = " of " + std::to_string(length);
    for (const char* policy : kPolicies)
      expect_to_go_on_alone([&] { return make_cache(policy, {}, kTwoLayers); }, length, policy + at);
    CacheOptions options;
    options.residual_length = 32;
    expect_to_go_on_alone([&] { return make_cache("k2v2", options, kTwoLayers); }, length, "k2v2, R 32" + at);
    options.residual_length = 128;
    options.rollback_tokens = 9;
    expect_to_go_on_alone([&] { return make_cache("balanced-1.7", options, kTwoLayers); }, length, "rollback" + at);
    expect_to_go_on_alone([] { return std::move(*DenseKVCache<float>::create(kTwoLayers)); }, length, "dense f32" + at);
    expect_to_go_on_alone([] { return std::move(*DenseKVCache<Eigen::half>::create(kTwoLayers)); }, length,
                          "dense f16" + at);
  }
}

TEST(Fork, OfAForkOutlivesBoth) {
  const Tokens tokens(600, 4, kTwoLayers), more(300, 5, kTwoLayers);
  for (const char* policy : kPolicies) {
    CountingAllocator counting;
    CacheOptions options;
    options.allocator = counting.allocator();
    {
      std::optional<AsymKVCache> original(make_cache(policy, options, kTwoLayers));
      append_to_all(*original, tokens, 0, 500, 99);
      std::optional<AsymKVCache> child(forked(*original));
      append_to_all(*child, tokens, 500, 600, 50);
      AsymKVCache grandchild = forked(*child);
      original.reset();
      child.reset();
      append_to_all(grandchild, more, 0, 300, 150);
      AsymKVCache expected = make_cache(policy, {}, kTwoLayers);
      append_to_all(expected, tokens, 0, 500, 99);
      append_to_all(expected, tokens, 500, 600, 50);
      append_to_all(expected, more, 0, 300, 150);
      expect_equal(grandchild, expected, policy);
      EXPECT_EQ(grandchild.bytes().shared, 0);
      EXPECT_EQ(grandchild.bytes().total(), counting.bytes);
    }
    EXPECT_EQ(counting.bytes, 0);
  }
}

TEST(Fork, OfEmptyTrimmedAndMovedFromCaches) {
  const Tokens tokens(600, 4, kTwoLayers), more(300, 5, kTwoLayers);
  for (const char* policy : kPolicies)
    for (Index length : {0, 2, 5, 77, 300, 499}) {
      AsymKVCache original = make_cache(policy, {}, kTwoLayers);
      if (length > 0) append_to_all(original, tokens, 0, 600, 150);
      ASSERT_TRUE(original.trim(length).ok());
      AsymKVCache fork = forked(original);
      EXPECT_EQ(fork.length(), length);
      append_to_all(fork, more, 0, 300, 150);
      append_to_all(original, more, 0, 300, 150);
      expect_equal(fork, original, policy + std::string(" trimmed to ") + std::to_string(length));
    }
  AsymKVCache original = make_cache("k2v2");
  const AsymKVCache moved = std::move(original);
  expect_error(original.fork().status(), ErrorCode::out_of_range, "layer");
  EXPECT_EQ(forked(moved).length(), 0);
  auto dense = DenseKVCache<float>::create(kShape);
  const DenseKVCache<float> dense_moved = std::move(*dense);
  expect_error(dense->fork().status(), ErrorCode::out_of_range, "layer");
}

TEST(Fork, KeepsTheTypeOfItsTokens) {
  AsymKVCache original = make_cache("k2v2");
  const Tokens tokens(200, 6);
  append(original, tokens, 0, 200);
  AsymKVCache fork = forked(original);
  const Eigen::Matrix<Eigen::half, -1, -1, Eigen::RowMajor> half = tokens.keys.cast<Eigen::half>();
  expect_error(fork.append(0, tensor(half, kHeads), tensor(half, kHeads)), ErrorCode::invalid_argument, "keys, values");
}

TEST(Fork, TrimmedIntoSharedPagesLeavesThemToTheOthers) {
  const Tokens tokens(700, 7, kTwoLayers), more(400, 8, kTwoLayers);
  for (const char* policy : kPolicies)
    for (Index cut : {1, 5, 32, 64, 77, 256, 300, 420, 511}) {
      AsymKVCache original = make_cache(policy, {}, kTwoLayers), alone = make_cache(policy, {}, kTwoLayers);
      for (AsymKVCache* cache : {&original, &alone}) append_to_all(*cache, tokens, 0, 700, 90);
      const std::vector<std::uint32_t> seen = everything_seen(original);
      const std::vector<unsigned char> sealed = all_sealed_bytes(original);
      AsymKVCache fork = forked(original), sibling = forked(original);
      for (AsymKVCache* cache : {&fork, &alone}) {
        ASSERT_TRUE(cache->trim(cut).ok());
        append_to_all(*cache, more, 0, 400, 80);
      }
      expect_equal(fork, alone, policy + std::string(" cut at ") + std::to_string(cut));
      for (AsymKVCache* cache : {&original, &sibling}) {
        EXPECT_TRUE(all_sealed_bytes(*cache) == sealed) << policy << " cut at " << cut;
        EXPECT_TRUE(everything_seen(*cache) == seen) << policy << " cut at " << cut;
      }
    }
}

TEST(Fork, CopiesTheOpenPageAlone) {
  const Tokens tokens(600, 9);
  for (Index length : {450, 513}) {  // values: 2 full pages and some more; 3 full pages
    AsymKVCache original = make_cache("k2v2");
    append_in_chunks(original, tokens, 0, length, 1);
    AsymKVCache fork = forked(original);
    const auto data = [](const AsymKVCache& cache, Side side, Index page) {
      return cache.side(0, side).pages()[page].data();
    };
    const auto count = [](const AsymKVCache& cache, Side side) { return cache.side(0, side).pages().size(); };
    for (Side side : {Side::keys, Side::values})
      for (Index page = 0; page < count(original, side); ++page)
        EXPECT_EQ(data(fork, side, page), data(original, side, page));
    const unsigned char* const open = data(original, Side::values, count(original, Side::values) - 1);
    const Index shared = fork.bytes().shared;
    append(fork, tokens, length, 1);
    for (Index page = 0; page < count(original, Side::keys); ++page)
      EXPECT_EQ(data(fork, Side::keys, page), data(original, Side::keys, page));
    const Index full = fork.side(0, Side::values).sealed() / 128;
    for (Index page = 0; page < std::min(full, count(original, Side::values)); ++page)
      EXPECT_EQ(data(fork, Side::values, page), data(original, Side::values, page));
    if (length == 450) {
      EXPECT_NE(data(fork, Side::values, full), open);
      EXPECT_EQ(shared - fork.bytes().shared,
                fork.side(0, Side::values).pages().page_bytes() + SharedBuffer::header_bytes);
    } else {
      EXPECT_EQ(fork.bytes().shared, shared);
    }
    append(original, tokens, length, 1);
    EXPECT_EQ(data(original, Side::values, count(original, Side::values) - 1),
              length == 450 ? open : data(original, Side::values, 3));
  }
}

/// What caches that share pages and working memory hold of an allocator: own bytes, pages of several once, and the
/// working memory of all once.
Index bytes_of_all(const std::vector<const AsymKVCache*>& caches) {
  std::set<const unsigned char*> pages;
  Index bytes = caches[0]->bytes().scratch;
  for (const AsymKVCache* cache : caches) {
    const CacheBytes own = cache->bytes();
    bytes += own.total() - own.shared - own.scratch;
    Index shared = 0;
    for (Index layer = 0; layer < cache->shape().layers; ++layer)
      for (Side side : {Side::keys, Side::values})
        for (const Page& page : cache->side(layer, side).pages())
          if (page.memory.shared()) {
            const Index size = SharedBuffer::header_bytes + page.memory.bytes();
            shared += size;
            if (pages.insert(page.data()).second) bytes += size;
          }
    EXPECT_EQ(own.shared, shared);
  }
  return bytes;
}

TEST(Fork, BytesOfAllAreWhatTheAllocatorHandedOut) {
  const Tokens tokens(600, 4, kTwoLayers), more(300, 5, kTwoLayers);
  for (const char* policy : kPolicies) {
    CountingAllocator counting;
    CacheOptions options;
    options.allocator = counting.allocator();
    {
      AsymKVCache original = make_cache(policy, options, kTwoLayers);
      append_to_all(original, tokens, 0, 500, 99);
      EXPECT_EQ(bytes_of_all({&original}), counting.bytes);
      EXPECT_EQ(original.bytes().shared, 0);
      const CacheBytes before = original.bytes();
      AsymKVCache fork = forked(original);
      EXPECT_EQ(bytes_of_all({&original, &fork}), counting.bytes);
      EXPECT_EQ(original.bytes().keys + original.bytes().values, 0);
      EXPECT_EQ(original.bytes().total(), before.total());
      AsymKVCache second = forked(fork);
      append_to_all(fork, more, 0, 1, 1);
      EXPECT_EQ(bytes_of_all({&original, &fork, &second}), counting.bytes) << policy;
      append_to_all(original, more, 0, 300, 100);
      EXPECT_EQ(bytes_of_all({&original, &fork, &second}), counting.bytes) << policy;
      ASSERT_TRUE(second.trim(200).ok());
      EXPECT_EQ(bytes_of_all({&original, &fork, &second}), counting.bytes) << policy;
      original.clear();
      EXPECT_EQ(bytes_of_all({&original, &fork, &second}), counting.bytes) << policy;
      fork.clear();
      EXPECT_EQ(second.bytes().shared, 0);
      EXPECT_EQ(bytes_of_all({&original, &fork, &second}), counting.bytes) << policy;
    }
    EXPECT_EQ(counting.bytes, 0);
  }
}

/// Bytes that a fork takes: its layers, its windows and its page tables.
Index bytes_of_a_fork(const AsymKVCache& of) {
  Index bytes = of.shape().layers * Index(sizeof(detail::Layer));
  for (Index layer = 0; layer < of.shape().layers; ++layer)
    for (Side which : {Side::keys, Side::values}) {
      const SideStore& side = of.side(layer, which);
      const Index tokens = side.sinks().count() + side.dense().kept() + side.dense().count();
      bytes += side.pages().size() * Index(sizeof(Page)) +
               tokens * of.shape().kv_heads * padded_dim(side.dim()) * Index(sizeof(float));
    }
  return bytes;
}

TEST(Fork, AThousandOfAPrefixTakeTheirTailsAlone) {
  constexpr Index prefix = 8192, forks = 1000, tail = 40;
  constexpr CacheShape shape{2, 1, 32, 32};
  static_assert(sizeof(Page) == 24, "AsymKVCache::fork says so");
  const Tokens tokens(prefix, 1, shape), tails(tail * 7, 2, shape);
  CountingAllocator counting;
  CacheOptions options;
  options.allocator = counting.allocator();
  options.residual_length = 32;
  AsymKVCache original = make_cache("k2v2@4", options, shape);
  append_to_all(original, tokens, 0, prefix, 512);
  ASSERT_TRUE(original.seal().ok());  // what is due is sealed once, not by each fork
  const Index alone = counting.bytes;
  std::vector<AsymKVCache> sequences;
  for (Index i = 0; i < forks; ++i) {
    const Index before = counting.bytes;
    sequences.push_back(forked(original));
    ASSERT_EQ(counting.bytes - before, bytes_of_a_fork(original));
  }
  const Index forked_bytes = counting.bytes;
  for (Index i = 0; i < forks; ++i)
    append_to_all(sequences[std::size_t(i)], tails, i % 7 * tail, i % 7 * tail + tail, 8);
  std::vector<const AsymKVCache*> all = {&original};
  Index own_pages = 0;
  for (const AsymKVCache& sequence : sequences) {
    all.push_back(&sequence);
    own_pages += sequence.bytes().keys + sequence.bytes().values;
  }
  EXPECT_EQ(bytes_of_all(all), counting.bytes);
  // of two layers each a page of keys, whose last was full, and a copy of the open page of values, which now is
  Index pages = 0;
  for (Side side : {Side::keys, Side::values}) pages += 2 * original.side(0, side).pages().page_bytes();
  EXPECT_EQ(own_pages, forks * pages);
  RecordProperty("bytes_of_the_prefix", std::to_string(alone));
  RecordProperty("bytes_of_1000_forks", std::to_string(forked_bytes - alone));
  RecordProperty("bytes_of_1000_tails", std::to_string(counting.bytes - forked_bytes));
  for (Index i : {Index(0), Index(500), forks - 1}) {
    AsymKVCache expected = make_cache("k2v2@4", options, shape);
    append_to_all(expected, tokens, 0, prefix, 512);
    ASSERT_TRUE(expected.seal().ok());
    append_to_all(expected, tails, i % 7 * tail, i % 7 * tail + tail, 8);
    expect_equal(sequences[std::size_t(i)], expected, "fork " + std::to_string(i));
  }
}

/// Makes `call` while the allocator fails from its first, second, ... request on, until it succeeds; before each try
/// `prepare` is called without failures. Every failure must leave the original, and what the allocator has given, as
/// they were. Returns how many requests could fail.
template <class Call>
int fail_at_every_request(const char* policy, const Call& call) {
  const Tokens tokens(450, 4, kTwoLayers);
  CountingAllocator counting;
  CacheOptions options;
  options.allocator = counting.allocator();
  options.rollback_tokens = 3;
  AsymKVCache original = make_cache(policy, options, kTwoLayers);
  append_to_all(original, tokens, 0, 450, 150);
  const std::vector<unsigned char> sealed = all_sealed_bytes(original);
  const std::vector<std::uint32_t> seen = everything_seen(original);
  const Index bytes = counting.bytes;
  for (int fail = 0; fail < 100; ++fail) {
    const bool done = call(original, counting, fail);
    EXPECT_TRUE(all_sealed_bytes(original) == sealed) << policy << " request " << fail;
    EXPECT_TRUE(everything_seen(original) == seen) << policy << " request " << fail;
    EXPECT_EQ(counting.bytes, bytes) << policy << " request " << fail;
    EXPECT_EQ(original.bytes().total(), bytes) << policy << " request " << fail;
    if (done) return fail;
  }
  ADD_FAILURE() << policy << ": never succeeds";
  return 0;
}

TEST(Fork, WithoutMemoryLeavesTheOriginalAsItWas) {
  const auto fork = [](AsymKVCache& original, CountingAllocator& counting, int fail) {
    counting.fail_at = counting.calls + fail;
    const Result<AsymKVCache> result = original.fork();
    counting.fail_at = -1;
    if (result.ok()) return true;
    expect_error(result.status(), ErrorCode::out_of_memory, "fork: no memory");
    return false;
  };
  EXPECT_EQ(fail_at_every_request("k2v2", fork), 1 + 2 * 2 * 2);
  EXPECT_EQ(fail_at_every_request("balanced-1.7", fork), 1 + 2 * 2 * 3);
  EXPECT_EQ(fail_at_every_request("k2v16", fork), 1 + 2 * 3);
}

TEST(Fork, AnAppendWithoutMemoryLeavesIt) {
  const Tokens more(300, 5, kTwoLayers);
  for (const char* policy : kPolicies) {
    const auto append_to_fork = [&](AsymKVCache& original, CountingAllocator& counting, int fail) {
      AsymKVCache cache = forked(original);
      AsymKVCache expected = forked(original);
      append(expected, more, 0, 300, 1);
      const std::vector<std::uint32_t> seen = everything_seen(cache);
      counting.fail_at = counting.calls + fail;
      const Status status = try_append(cache, more, 0, 300, 1);
      counting.fail_at = -1;
      EXPECT_EQ(bytes_of_all({&original, &cache, &expected}), counting.bytes) << policy << " request " << fail;
      if (status.ok()) return true;
      EXPECT_EQ(status.code(), ErrorCode::out_of_memory);
      EXPECT_TRUE(everything_seen(cache) == seen) << policy << " request " << fail;
      append(cache, more, 0, 300, 1);
      expect_equal(cache, expected, policy);
      return false;
    };
    EXPECT_GE(fail_at_every_request(policy, append_to_fork), 2) << policy;
  }
}

/// One query of each of 2 * kHeads heads over a layer, with working memory of the caller's.
RowMatrix attend(const AsymKVCache& cache, Index layer, const RowMatrix& queries, const Workspace& workspace) {
  RowMatrix output(queries.rows(), 2 * kHeads * kDim);
  const Status status =
      cache.attend(layer, tensor(queries, 2 * kHeads), tensor(output, 2 * kHeads), AttentionParams(), workspace);
  EXPECT_TRUE(status.ok()) << status.message();
  return output;
}

/// Generates on a fork of its own: appends, attends, drops drafts, and forks in turn.
void generate(AsymKVCache cache, const Tokens& tokens, const RowMatrix& queries, std::vector<RowMatrix>& outputs) {
  const Result<Workspace> workspace = Workspace::create(cache.shape());
  ASSERT_TRUE(workspace.ok());
  const Index length = cache.length();
  for (Index i = 0; i < 200; ++i)
    for (Index layer = 0; layer < 2; ++layer) {
      const Status status = cache.append(layer, tensor(tokens.keys.middleRows(i, 1), kHeads),
                                         tensor(tokens.values.middleRows(i, 1), kHeads), *workspace);
      ASSERT_TRUE(status.ok()) << status.message();
      if (layer == 0 || i % 8 != 0) continue;
      if (i == 80) {
        ASSERT_TRUE(cache.requantize(0, 256, *AsymKVPolicy::parse("k1v1", 2), *workspace).ok());
      }
      outputs.push_back(attend(cache, layer, queries, *workspace));
      if (i % 32 != 0) continue;
      AsymKVCache draft = forked(cache);
      ASSERT_TRUE(draft.trim(length - 60).ok());
      ASSERT_TRUE(draft.seal(*workspace).ok());
      outputs.push_back(attend(draft, layer, queries, *workspace));
    }
}

TEST(ForkThreads, GenerateAtTheSameTime) {
  constexpr int threads = 4;
  const Tokens prefix(450, 1, kTwoLayers);
  const RowMatrix queries = random_matrix(2, 2 * kHeads * kDim, 2);
  for (const char* policy : {"k2v2", "balanced-1.7"}) {
    Result<PagePool> pool = PagePool::create({0, 0, Allocator()});
    ASSERT_TRUE(pool.ok());
    CacheOptions options;
    options.allocator = pool->allocator();
    std::array<std::vector<RowMatrix>, threads> expected, outputs;
    {
      std::optional<AsymKVCache> original(make_cache(policy, options, kTwoLayers));
      append_to_all(*original, prefix, 0, 450, 150);
      const auto tokens_of = [](int i) { return Tokens(200, unsigned(10 + i), kTwoLayers); };
      for (int i = 0; i < threads; ++i) generate(forked(*original), tokens_of(i), queries, expected[std::size_t(i)]);
      std::vector<AsymKVCache> forks;
      for (int i = 0; i < threads; ++i) forks.push_back(forked(*original));
      std::vector<std::thread> running;
      for (int i = 0; i < threads; ++i)
        running.emplace_back([&, i, fork = std::move(forks[std::size_t(i)])]() mutable {
          generate(std::move(fork), tokens_of(i), queries, outputs[std::size_t(i)]);
        });
      original.reset();  // while the others generate
      for (std::thread& thread : running) thread.join();
    }
    EXPECT_EQ(outputs, expected) << policy;
    EXPECT_EQ(pool->bytes(), 0);
  }
}

TEST(ForkThreads, ReadOneCacheAtTheSameTime) {
  const Tokens tokens(450, 1, kTwoLayers);
  for (const char* policy : {"k2v2", "balanced-1.7", "k16v4"}) {
    AsymKVCache cache = make_cache(policy, {}, kTwoLayers);
    append_to_all(cache, tokens, 0, 450, 150);
    const std::vector<std::uint32_t> seen = everything_seen(cache);
    const RowMatrix queries = random_matrix(5, 2 * kHeads * kDim, 2);
    const auto read_all = [&](const AsymKVCache& from, std::vector<std::uint32_t>& bits) {
      const Result<Workspace> workspace = Workspace::create(from.shape());
      ASSERT_TRUE(workspace.ok());
      for (Index layer = 0; layer < 2; ++layer) {
        add_bits(bits, attend(from, layer, queries, *workspace));
        RowMatrix keys(450, kDim), values(450, kDim);
        ASSERT_TRUE(from.keys(layer, 1, 0, tensor(keys), *workspace).ok());
        ASSERT_TRUE(from.values(layer, 1, 0, tensor(values), *workspace).ok());
        add_bits(bits, keys);
        add_bits(bits, values);
        std::vector<std::uint32_t> bits_of_fork;
        const AsymKVCache fork = forked(from);
        add_bits(bits, attend(fork, layer, queries, *workspace));
        bits.push_back(std::uint32_t(fork.bytes().shared > 0));
      }
    };
    std::vector<std::uint32_t> expected;
    read_all(cache, expected);
    std::array<std::vector<std::uint32_t>, 6> bits;
    std::vector<std::thread> threads;
    for (std::vector<std::uint32_t>& own : bits) threads.emplace_back([&] { read_all(cache, own); });
    for (std::thread& thread : threads) thread.join();
    for (const std::vector<std::uint32_t>& own : bits) EXPECT_TRUE(own == expected) << policy;
    EXPECT_TRUE(everything_seen(cache) == seen);
  }
}

TEST(ForkThreads, WorkspacesAreChecked) {
  AsymKVCache cache = make_cache("k2v2");
  const Tokens tokens(20, 1);
  const ConstTensor k = tensor(tokens.keys, kHeads), v = tensor(tokens.values, kHeads);
  Workspace empty;
  Result<Workspace> other = Workspace::create({1, kHeads, kDim, 64});
  ASSERT_TRUE(other.ok());
  append(cache, tokens, 0, 20);
  const std::vector<std::uint32_t> seen = everything_seen(cache);
  RowMatrix out(20, kHeads * kDim), read_out(2, kDim);
  for (const Workspace* workspace : {const_cast<const Workspace*>(&empty), const_cast<const Workspace*>(&*other)}) {
    expect_error(cache.append(0, k, v, *workspace), ErrorCode::invalid_argument, "workspace");
    expect_error(cache.attend(0, k, tensor(out, kHeads), {}, *workspace), ErrorCode::invalid_argument, "workspace");
    expect_error(cache.keys(0, 0, 0, tensor(read_out), *workspace), ErrorCode::invalid_argument, "workspace");
    expect_error(cache.values(0, 0, 0, tensor(read_out), *workspace), ErrorCode::invalid_argument, "workspace");
    expect_error(cache.seal(*workspace), ErrorCode::invalid_argument, "workspace");
    expect_error(cache.requantize(0, 0, *AsymKVPolicy::parse("k1v1", 1), *workspace), ErrorCode::invalid_argument,
                 "workspace");
  }
  EXPECT_TRUE(everything_seen(cache) == seen);
}

}  // namespace
