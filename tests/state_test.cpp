// Saved state: its checksum, the streams that it goes through, and the caches that are saved and loaded.
#include <functional>

#include "fuzz/state_fuzz.hpp"
#include "support/cache.hpp"
#include "support/guarded.hpp"

namespace {

using namespace asymkv;
using namespace support;
using state_fuzz::Bytes;
using state_fuzz::repair_checksums;
using state_fuzz::saved;
using state_fuzz::StateParts;

/// Division by the polynomial, a bit at a time, not reflected: x^32 + x^28 + ... as the books write it.
std::uint32_t crc32c_of_bits(const unsigned char* data, std::size_t bytes) {
  std::uint32_t remainder = 0xffffffffu, reversed = 0;
  for (std::size_t i = 0; i < bytes; ++i)
    for (int bit = 0; bit < 8; ++bit) {  // the lowest bit of a byte comes first
      const bool divides = (remainder >> 31 != 0) != ((data[i] >> bit & 1) != 0);
      remainder <<= 1;
      if (divides) remainder ^= 0x1edc6f41u;
    }
  for (int bit = 0; bit < 32; ++bit)
    if ((remainder >> bit & 1u) != 0) reversed |= 0x80000000u >> bit;
  return ~reversed;
}

std::vector<unsigned char> random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<unsigned char> bytes(count);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(generator() >> 24);
  return bytes;
}

TEST(Crc32c, GivesThePublishedValues) {
  EXPECT_EQ(crc32c("123456789", 9), 0xe3069283u);
  unsigned char bytes[4][32];  // RFC 3720, B.4
  for (int i = 0; i < 32; ++i) {
    bytes[0][i] = 0x00;
    bytes[1][i] = 0xff;
    bytes[2][i] = static_cast<unsigned char>(i);
    bytes[3][i] = static_cast<unsigned char>(31 - i);
  }
  const std::uint32_t expected[4] = {0x8a9136aau, 0x62a8ab43u, 0x46dd794eu, 0x113fdb5cu};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(crc32c(bytes[i], 32), expected[i]) << i;
    EXPECT_EQ(crc32c_of_bits(bytes[i], 32), expected[i]) << "the oracle, " << i;
  }
}

TEST(Crc32c, OfNothingIsWhatCameBefore) {
  EXPECT_EQ(crc32c(nullptr, 0), 0u);
  EXPECT_EQ(crc32c(nullptr, 0, 0xe3069283u), 0xe3069283u);
}

TEST(Crc32c, AgreesWithTheOracleAtAllAddressesAndLengths) {
  const std::vector<unsigned char> bytes = random_bytes(16 + 70, 1);
  for (std::size_t first = 0; first < 16; ++first)
    for (std::size_t count = 0; count <= 70; ++count)
      EXPECT_EQ(crc32c(bytes.data() + first, Index(count)), crc32c_of_bits(bytes.data() + first, count))
          << count << " bytes from " << first;
  const std::vector<unsigned char> many = random_bytes(100003, 2);
  EXPECT_EQ(crc32c(many.data(), Index(many.size())), crc32c_of_bits(many.data(), many.size()));
}

TEST(Crc32c, OfPartsIsThatOfTheWhole) {
  const std::vector<unsigned char> bytes = random_bytes(61, 3);
  const std::uint32_t whole = crc32c_of_bits(bytes.data(), bytes.size());
  for (Index first = 0; first <= 61; ++first)
    for (Index second = first; second <= 61; ++second) {
      std::uint32_t crc = crc32c(bytes.data(), first);
      crc = crc32c(bytes.data() + first, second - first, crc);
      EXPECT_EQ(crc32c(bytes.data() + second, 61 - second, crc), whole) << first << ", " << second;
    }
}

TEST(Crc32c, ReadsNothingBeyondTheEnd) {
  for (Index floats = 1; floats < 9; ++floats) {
    support::Guarded<float> at_end(1, floats, support::Edge::end);
    at_end.matrix().setConstant(1.5f);
    const std::vector<float> same(std::size_t(floats), 1.5f);
    for (Index skip = 0; skip < 4; ++skip)
      EXPECT_EQ(crc32c(reinterpret_cast<const char*>(at_end.matrix().data()) + skip, 4 * floats - skip),
                crc32c(reinterpret_cast<const char*>(same.data()) + skip, 4 * floats - skip));
  }
}

TEST(MemorySource, GivesAllBytesInOrderThenFails) {
  const std::vector<unsigned char> bytes = random_bytes(100, 5);
  MemorySource memory(bytes.data(), 100);
  const ByteSource source = memory.source();
  std::vector<unsigned char> read;
  for (Index count : {1, 30, 8, 61}) {
    unsigned char next[61];
    ASSERT_TRUE(source.read(source.context, next, count));
    read.insert(read.end(), next, next + count);
    EXPECT_EQ(memory.remaining(), 100 - Index(read.size()));
  }
  EXPECT_EQ(read, bytes);
  unsigned char none = 7;
  EXPECT_FALSE(source.read(source.context, &none, 1));
  EXPECT_EQ(none, 7);
}

TEST(MemorySource, AReadOfTooMuchReadsNothing) {
  const std::vector<unsigned char> bytes = random_bytes(10, 6);
  MemorySource memory(bytes.data(), 10);
  unsigned char to[11] = {};
  EXPECT_FALSE(memory.source().read(memory.source().context, to, 11));
  EXPECT_EQ(memory.remaining(), 10);
  EXPECT_EQ(std::count(to, to + 11, 0), 11);
  EXPECT_TRUE(memory.source().read(memory.source().context, to, 10));
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), to));
}

TEST(MemorySource, OfNoBytesIsAtItsEnd) {
  MemorySource memory(nullptr, 0);
  unsigned char byte = 7;
  EXPECT_FALSE(memory.source().read(memory.source().context, &byte, 1));
  EXPECT_EQ(memory.remaining(), 0);
}

/// Counts bytes and drops them.
class CountingSink {
 public:
  /// Holds as long as this stays where it is.
  ByteSink sink() noexcept {
    return {[](void* self, const void*, Index bytes) {
              static_cast<CountingSink*>(self)->bytes_ += bytes;
              return true;
            },
            this};
  }
  Index bytes() const noexcept { return bytes_; }

 private:
  Index bytes_ = 0;
};

constexpr CacheShape kState{2, 2, 24, 40};

CacheOptions state_options(Index residual_length = 128, Index rollback_tokens = 0) {
  CacheOptions options;
  options.residual_length = residual_length;
  options.rollback_tokens = rollback_tokens;
  return options;
}

Result<AsymKVCache> load(const Bytes& bytes, const char* policy, const CacheOptions& options = {},
                         const CacheShape& shape = kState) {
  MemorySource memory(bytes.data(), Index(bytes.size()));
  return AsymKVCache::load(memory.source(), shape, *AsymKVPolicy::parse(policy, shape.layers), options);
}
template <class T>
Result<DenseKVCache<T>> load_dense(const Bytes& bytes, const CacheOptions& options = {},
                                   const CacheShape& shape = kState) {
  MemorySource memory(bytes.data(), Index(bytes.size()));
  return DenseKVCache<T>::load(memory.source(), shape, options);
}

/// What a caller sees of the tokens that are not removed, and what the cache says of itself.
std::vector<std::uint32_t> all_seen(KVCache& cache) {
  const CacheShape shape = cache.shape();
  const RowMatrix queries = random_matrix(3, 2 * shape.kv_heads * shape.key_dim, 78);
  RowMatrix output(3, 2 * shape.kv_heads * shape.value_dim);
  std::vector<std::uint32_t> seen;
  for (Index layer = 0; layer < shape.layers; ++layer) {
    const TokenRange removed = cache.removed(layer);
    const Index length = cache.length(layer);
    for (Index number : {length, removed.begin, removed.end}) seen.push_back(std::uint32_t(number));
    for (Index head = 0; head < shape.kv_heads; ++head)
      for (Side side : {Side::keys, Side::values})
        for (const TokenRange& tokens : {TokenRange{0, removed.begin}, TokenRange{removed.end, length}})
          add_bits(seen, read(cache, side, head, tokens.begin, tokens.end - tokens.begin, layer));
    if (length < 3) continue;
    EXPECT_TRUE(cache.attend(layer, tensor(queries, 2 * shape.kv_heads), tensor(output, 2 * shape.kv_heads)).ok());
    add_bits(seen, output);
  }
  return seen;
}

/// How a cache came to be.
struct History {
  const char* name;
  std::function<void(KVCache&)> make;
};

void append_to_all(KVCache& cache, Index first, Index count) {
  static const Tokens tokens(1200, 31, kState);
  for (Index layer = 0; layer < kState.layers; ++layer) append(cache, tokens, first, count, layer);
}
template <class T>
void append_as(KVCache& cache, Index count) {
  const Tokens tokens(count, 33, kState);
  const Eigen::Matrix<T, -1, -1, Eigen::RowMajor> keys = tokens.keys.cast<T>(), values = tokens.values.cast<T>();
  for (Index layer = 0; layer < kState.layers; ++layer)
    ASSERT_TRUE(cache.append(layer, tensor(keys, kState.kv_heads), tensor(values, kState.kv_heads)).ok());
}

std::vector<History> histories() {
  return {
      {"nothing was appended", [](KVCache&) {}},
      {"one token", [](KVCache& cache) { append_to_all(cache, 0, 1); }},
      {"some tokens in the window", [](KVCache& cache) { append_to_all(cache, 0, 50); }},
      {"pages that are full and one that is not",
       [](KVCache& cache) {
         for (Index first = 0; first < 700; first += 70) append_to_all(cache, first, 70);
       }},
      {"all that is due is sealed",
       [](KVCache& cache) {
         append_to_all(cache, 0, 517);
         EXPECT_TRUE(cache.seal().ok());
       }},
      {"a step that broke off between layers",
       [](KVCache& cache) {
         append_to_all(cache, 0, 300);
         append(cache, Tokens(9, 8, kState), 0, 9, 0);
       }},
      {"trimmed into a page, and appended to",
       [](KVCache& cache) {
         append_to_all(cache, 0, 600);
         append_to_all(cache, 600, 1);
         EXPECT_TRUE(cache.trim(203).ok());
         append_to_all(cache, 203, 400);
         EXPECT_TRUE(cache.seal().ok());
       }},
      {"trimmed into the first page",
       [](KVCache& cache) {
         append_to_all(cache, 0, 600);
         append_to_all(cache, 600, 1);
         EXPECT_TRUE(cache.trim(40).ok());
       }},
      {"trimmed to nothing",
       [](KVCache& cache) {
         append_to_all(cache, 0, 300);
         EXPECT_TRUE(cache.trim(0).ok());
       }},
      {"cleared",
       [](KVCache& cache) {
         append_to_all(cache, 0, 300);
         cache.clear();
       }},
      {"the front is removed",
       [](KVCache& cache) {
         append_to_all(cache, 0, 700);
         append_to_all(cache, 700, 3);
         EXPECT_TRUE(cache.remove_front(0, 333).ok());
         EXPECT_TRUE(cache.remove_front(1, 703).ok());
       }},
      {"half", [](KVCache& cache) { append_as<Eigen::half>(cache, 333); }},
      {"bfloat16", [](KVCache& cache) { append_as<Eigen::bfloat16>(cache, 333); }},
  };
}

/// Both have the same state, look the same, and go on in the same way.
template <class Cache>
void expect_same_future(Cache& a, Cache& b, Index rollback) {
  EXPECT_TRUE(saved(a) == saved(b));
  EXPECT_TRUE(all_seen(a) == all_seen(b));
  const bool halves = a.length() == 333;  // of another type than what append_to_all has
  for (Index count : {1, 150, 2}) {
    for (Cache* cache : {&a, &b}) {
      if (halves)
        EXPECT_TRUE(cache->seal().ok());
      else
        append_to_all(*cache, 10, count);
    }
    EXPECT_TRUE(saved(a) == saved(b)) << count;
  }
  for (Index fewer : {rollback, Index(170)}) {
    if (a.length() < fewer) continue;
    for (Cache* cache : {&a, &b}) EXPECT_TRUE(cache->trim(cache->length() - fewer).ok() || cache->removed(1).end > 0);
    EXPECT_TRUE(saved(a) == saved(b)) << "trimmed by " << fewer;
    EXPECT_TRUE(all_seen(a) == all_seen(b)) << "trimmed by " << fewer;
  }
}

struct Stored {
  const char* policy;
  Index residual_length = 128, rollback_tokens = 0;
};
const Stored kStored[] = {{"smallest-1.2"},
                          {"small-1.4"},
                          {"balanced-1.7"},
                          {"fine-2.4"},
                          {"finest-3.4"},
                          {"KIVI-2", 32},
                          {"k2v2@3", 64},
                          {"k1v16"},
                          {"k32v4@2", 64},
                          {"float"},
                          {"float@5"},
                          {"half"},
                          {"k4g64fcv6g128fs", 128, 40},
                          {"balanced-1.7", 128, 200},
                          {"0:k2v8+1:k8v1@7", 32, 3}};

TEST(State, ALoadedCacheIsTheOneThatWasSaved) {
  for (const Stored& stored : kStored)
    for (const History& history : histories()) {
      SCOPED_TRACE(std::string(stored.policy) + ", " + history.name);
      const CacheOptions options = state_options(stored.residual_length, stored.rollback_tokens);
      AsymKVCache cache = make_cache(stored.policy, options, kState);
      history.make(cache);
      const Bytes bytes = saved(cache);
      EXPECT_EQ(cache.state_bytes(), Index(bytes.size()));
      Result<AsymKVCache> loaded = load(bytes, stored.policy, options);
      ASSERT_TRUE(loaded.ok()) << loaded.status().message();
      EXPECT_TRUE(sealed_bytes(*loaded, 0) == sealed_bytes(cache, 0));
      EXPECT_TRUE(sealed_bytes(*loaded, 1) == sealed_bytes(cache, 1));
      expect_same_future(cache, *loaded, stored.rollback_tokens);
    }
}

template <class T>
void expect_dense_round_trip() {
  for (const History& history : histories()) {
    SCOPED_TRACE(history.name);
    auto cache = DenseKVCache<T>::create(kState);
    ASSERT_TRUE(cache.ok());
    history.make(*cache);
    Result<DenseKVCache<T>> loaded = load_dense<T>(saved(*cache));
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    expect_same_future(*cache, *loaded, 0);
  }
}
TEST(State, ADenseCacheToo) {
  expect_dense_round_trip<float>();
  expect_dense_round_trip<Eigen::half>();
  expect_dense_round_trip<Eigen::bfloat16>();
}

TEST(State, RequantizedPagesKeepTheirFormats) {
  for (const char* policy : {"k8v8", "k6v4@4", "km5v5"}) {
    AsymKVCache cache = make_cache(policy, {}, kState);
    append_to_all(cache, 0, 700);
    append_to_all(cache, 700, 1);
    Index bytes = cache.state_bytes();
    for (const char* fewer : {"k3g128v2g128", "smallest-1.2"}) {
      ASSERT_TRUE(cache.requantize(0, 300, *AsymKVPolicy::parse(fewer, kState.layers)).ok());
      EXPECT_LT(cache.state_bytes(), bytes) << "only what is in use is saved";
      bytes = cache.state_bytes();
      Result<AsymKVCache> loaded = load(saved(cache), policy);
      ASSERT_TRUE(loaded.ok()) << loaded.status().message();
      EXPECT_EQ(loaded->side(1, Side::keys).pages().format(0).layout.format,
                cache.side(1, Side::keys).pages().format(0).layout.format);
    }
    Result<AsymKVCache> loaded = load(saved(cache), policy);
    ASSERT_TRUE(loaded.ok());
    for (AsymKVCache* c : {&cache, &*loaded})
      ASSERT_TRUE(c->requantize(0, 600, *AsymKVPolicy::parse("km1v1", kState.layers)).ok());
    expect_same_future(cache, *loaded, 0);
  }
}

TEST(State, WhatMayBeUnsealedIsSavedToo) {
  const CacheOptions options = state_options(64, 100);
  AsymKVCache cache = make_cache("k2v2", options, kState);
  for (Index token = 0; token < 333; ++token) append_to_all(cache, token, 1);
  Result<AsymKVCache> loaded = load(saved(cache), "k2v2", options);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  AsymKVCache shorter = make_cache("k2v2", options, kState);
  for (Index token = 0; token < 233; ++token) append_to_all(shorter, token, 1);
  ASSERT_TRUE(loaded->trim(233).ok());
  EXPECT_TRUE(all_seen(*loaded) == all_seen(shorter)) << "as if it had never been longer";
}

TEST(State, OfForksIsThatOfCachesThatShareNothing) {
  AsymKVCache cache = make_cache("k2v2@1", {}, kState);
  append_to_all(cache, 0, 500);
  append_to_all(cache, 500, 1);
  Result<AsymKVCache> fork = cache.fork();
  ASSERT_TRUE(fork.ok());
  const Bytes bytes = saved(cache);
  EXPECT_TRUE(saved(*fork) == bytes);
  append_to_all(*fork, 600, 300);
  EXPECT_TRUE(saved(cache) == bytes);
  Result<AsymKVCache> loaded = load(saved(*fork), "k2v2@1");
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->bytes().shared, 0);
  Result<AsymKVCache> next = loaded->fork();
  ASSERT_TRUE(next.ok());
  expect_same_future(*fork, *next, 0);
}

TEST(State, IsTheSameOnEveryInstructionSet) {
  for (const Stored& stored : kStored) {
    const CacheOptions options = state_options(stored.residual_length, stored.rollback_tokens);
    Bytes bytes;
    for (Isa isa : machine_isas()) {
      ForcedIsa forced(isa);
      AsymKVCache cache = make_cache(stored.policy, options, kState);
      append_to_all(cache, 0, 500);
      append_to_all(cache, 500, 1);
      if (bytes.empty()) bytes = saved(cache);
      EXPECT_TRUE(saved(cache) == bytes) << stored.policy << ", " << isa_name(isa);
      Result<AsymKVCache> loaded = load(bytes, stored.policy, options);  // of the first instruction set
      ASSERT_TRUE(loaded.ok()) << loaded.status().message();
      EXPECT_EQ(loaded->isa(), isa);
      EXPECT_TRUE(all_seen(*loaded) == all_seen(cache)) << stored.policy << ", " << isa_name(isa);
    }
  }
}

TEST(State, AStateOfOneKindOfCacheIsLoadedByTheOtherWhereTheyStoreAlike) {
  auto dense = DenseKVCache<float>::create(kState);
  append_to_all(*dense, 0, 50);
  Result<AsymKVCache> packed = load(saved(*dense), "float");
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  EXPECT_TRUE(load_dense<float>(saved(*packed)).ok());
}

TEST(State, FollowsOneAfterTheOther) {
  AsymKVCache first = make_cache("k2v2", {}, kState), second = make_cache("k4v1", {}, kState);
  append_to_all(first, 0, 300);
  append_to_all(second, 5, 400);
  Bytes bytes = saved(first);
  ASSERT_TRUE(second.save(state_fuzz::sink_to(bytes)).ok());
  MemorySource memory(bytes.data(), Index(bytes.size()));
  const ByteSource source = memory.source();
  ASSERT_TRUE(AsymKVCache::load(source, kState, *AsymKVPolicy::parse("k2v2", 2)).ok());
  Result<AsymKVCache> loaded = AsymKVCache::load(source, kState, *AsymKVPolicy::parse("k4v1", 2));
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_TRUE(all_seen(*loaded) == all_seen(second));
  EXPECT_EQ(memory.remaining(), 0);
}

/// Parts lie where a program that maps the state finds them aligned, and panels as the kernels read them.
TEST(State, CanBeMapped) {
  AsymKVCache cache = make_cache("balanced-1.7", {}, kState);
  append_to_all(cache, 0, 400);
  append_to_all(cache, 400, 1);
  const Bytes bytes = saved(cache);
  const StateParts parts(bytes);
  EXPECT_EQ(bytes.size() % 64, 0u);
  Index pages = 0;
  std::vector<unsigned char> panels, stored;
  for (const StateParts::Record& record : parts.records()) {
    EXPECT_EQ(record.at % 64, 0) << record.at;
    pages += record.size == 64;
  }
  for (const StateParts::Checked& part : parts.checked())
    if (part.begin % 64 == 0 && part.crc == part.begin - 32)  // the CRC stands in the page's record, right before
      stored.insert(stored.end(), bytes.begin() + part.begin, bytes.begin() + part.end);
  for (Index layer = 0; layer < kState.layers; ++layer)
    for (Side side : {Side::keys, Side::values}) {
      const PageTable& table = cache.side(layer, side).pages();
      pages -= table.size();
      for (Index page = 0; page < table.size(); ++page)
        panels.insert(panels.end(), table[page].data(), table[page].data() + table.page_bytes());
    }
  EXPECT_EQ(pages, 0);
  EXPECT_TRUE(stored == panels);
}

TEST(State, TellsWhatCacheItIsOf) {
  for (const Stored& stored : kStored) {
    const CacheOptions options = state_options(stored.residual_length, stored.rollback_tokens);
    AsymKVCache cache = make_cache(stored.policy, options, kState);
    append_to_all(cache, 0, 200);
    append(cache, Tokens(9, 8, kState), 0, 9, 1);
    const Bytes bytes = saved(cache);
    MemorySource memory(bytes.data(), 192);  // no more than the first bytes
    const Result<StateDescription> state = describe_state(memory.source());
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_TRUE(state->policy == *AsymKVPolicy::parse(stored.policy, kState.layers));
    EXPECT_EQ(state->shape.layers, 2);
    EXPECT_EQ(state->shape.kv_heads, 2);
    EXPECT_EQ(state->shape.key_dim, 24);
    EXPECT_EQ(state->shape.value_dim, 40);
    EXPECT_EQ(state->residual_length, stored.residual_length);
    EXPECT_EQ(state->rollback_tokens, stored.rollback_tokens);
    EXPECT_EQ(state->length, 200);
    EXPECT_EQ(state->bytes, Index(bytes.size()));
    const std::string_view name = stored.policy;
    EXPECT_EQ(state->dense.has_value(), name == "float" || name == "half");
  }
  const Bytes dense = saved(*DenseKVCache<Eigen::bfloat16>::create(kState));
  MemorySource memory(dense.data(), Index(dense.size()));
  const Result<StateDescription> state = describe_state(memory.source());
  ASSERT_TRUE(state.ok()) << state.status().message();
  EXPECT_FALSE(state->policy.has_value());
  EXPECT_EQ(state->dense, ScalarType::bf16);
}

/// A sink, two pages of keys, of which one was cut, two of values, and a token in the window. Elements are whole 16ths,
/// so that no rounding of the machine is in them.
Bytes small_state() {
  constexpr CacheShape shape{1, 1, 16, 16};
  AsymKVCache cache = make_cache("km1v2g128fcsr@1", {}, shape);
  RowMatrix x(260, 16);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = float((i * 29 + i / 16 * 7) % 97 - 48) / 16.0f;
  const auto append_rows = [&](Index first, Index count) {
    const RowMatrix rows = x.middleRows(first, count);
    EXPECT_TRUE(cache.append(0, tensor(rows, 1), tensor(rows, 1)).ok());
  };
  append_rows(0, 259);
  append_rows(259, 1);
  EXPECT_TRUE(cache.trim(132).ok());
  return saved(cache);
}
Result<AsymKVCache> load_small(const Bytes& bytes, const CacheOptions& options = {}) {
  return load(bytes, "km1v2g128fcsr@1", options, {1, 1, 16, 16});
}

/// These bytes are on people's disks. Red is legitimate where a new state_version comes, which must still read this
/// one, or where a quantizer chooses other codes: then
/// the last CRC changes alone.
TEST(State, BytesArePinned) {
  const Bytes bytes = small_state();
  const unsigned char header[72] = {
      0x89, 'a',  's',  'y',  'm',  'k',  'v',  '\n', 0x01, 0x00, 0x00, 0x00,  // magic, version
      0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00,  // layers, heads, key_dim
      0x10, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00,  // value_dim, sinks, residual_length
      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // rollback_tokens
      0x80, 0x0c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x84, 0x00, 0x00, 0x00,  // bytes, length
      0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00};
  ASSERT_EQ(bytes.size(), 3200u);
  EXPECT_TRUE(std::equal(header, header + 72, bytes.begin()));
  EXPECT_EQ(std::count(bytes.begin() + 72, bytes.begin() + 124, 0), 52);
  const unsigned char formats[16] = {8, 128, 1, 1, 0, 0, 2, 0, 2, 128, 1, 1, 1, 1, 0, 0};
  EXPECT_TRUE(std::equal(formats, formats + 16, bytes.begin() + 128));
  EXPECT_EQ(crc32c(bytes.data(), 320), 0x6b97fd6bu) << "header, formats and record of the layer";
  EXPECT_EQ(crc32c(bytes.data(), Index(bytes.size())), 0x54704369u);
}

TEST(State, EveryTruncationIsRefused) {
  const Bytes bytes = small_state();
  ASSERT_TRUE(load_small(bytes).ok());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const Result<AsymKVCache> loaded = load_small(Bytes(bytes.begin(), bytes.begin() + std::ptrdiff_t(size)));
    EXPECT_EQ(loaded.status().code(), ErrorCode::stream_failed) << size;
  }
  EXPECT_STREQ(load_small(Bytes(bytes.begin(), bytes.begin() + 130)).status().message(),
               "source: ended early, or failed, in the 8 bytes from 128 on");
}

TEST(State, EveryFlippedBitIsRefused) {
  const Bytes bytes = small_state();
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (int bit = 0; bit < 9; ++bit) {
      Bytes flipped = bytes;
      flipped[at] = static_cast<unsigned char>(flipped[at] ^ (bit == 8 ? 0xff : 1 << bit));
      const Status status = load_small(flipped).status();
      const bool newer = at >= 8 && at < 12 && status.code() == ErrorCode::unsupported;
      EXPECT_TRUE(status.code() == ErrorCode::corrupt_state || newer) << at << ", bit " << bit << status.message();
    }
}

TEST(State, ANewerVersionIsRefused) {
  Bytes bytes = small_state();
  bytes[8] = 2;
  repair_checksums(bytes);
  for (int from_header : {0, 1}) {  // its checksum may be elsewhere
    if (from_header != 0) bytes[124] ^= 1;
    const Status status = load_small(bytes).status();
    EXPECT_EQ(status.code(), ErrorCode::unsupported);
    EXPECT_STREQ(status.message(), "state: is of format version 2, this library reads up to 1; use a newer one");
    MemorySource memory(bytes.data(), Index(bytes.size()));
    EXPECT_EQ(describe_state(memory.source()).status().code(), ErrorCode::unsupported);
  }
  bytes = small_state();
  bytes[8] = 0;
  repair_checksums(bytes);
  expect_error(load_small(bytes).status(), ErrorCode::corrupt_state, "state: its header says what no cache can be");
  bytes[0] = 'a';
  expect_error(load_small(bytes).status(), ErrorCode::corrupt_state, "state: its first 8 bytes are not those of");
}

TEST(State, AnotherShapePolicyOrOptionIsNamed) {
  AsymKVCache cache = make_cache("k2v2@1", state_options(64, 5), kState);
  append_to_all(cache, 0, 300);
  const Bytes bytes = saved(cache);
  const auto expect = [&](const char* policy, const CacheOptions& options, const CacheShape& shape,
                          const char* message) {
    const Status status = load(bytes, policy, options, shape).status();
    EXPECT_EQ(status.code(), ErrorCode::invalid_argument) << message;
    EXPECT_STREQ(status.message(), message);
  };
  const CacheOptions options = state_options(64, 5);
  expect("k2v2@1", options, {3, 2, 24, 40}, "shape: is {3, 2, 24, 40}, but the state's is {2, 2, 24, 40}");
  expect("k2v2@1", options, {2, 2, 24, 41}, "shape: is {2, 2, 24, 41}, but the state's is {2, 2, 24, 40}");
  expect("k2v2", options, kState, "policy: has 0 sinks, but the state's has 1");
  expect("0:k2v2+1:k2v3@1", options, kState, "policy: stores values of layer 1 as v3, but the state's as v2");
  expect("k2fv2@1", options, kState, "policy: stores keys of layer 0 as k2f, but the state's as k2");
  expect("k16v2@1", options, kState, "policy: stores keys of layer 0 as f16, but the state's as k2");
  expect("k2v2@1", state_options(128, 5), kState, "options: residual_length is 128, but the state's is 64");
  expect("k2v2@1", state_options(64, 0), kState, "options: rollback_tokens is 0, but the state's is 5");
  const Bytes half = saved(*DenseKVCache<Eigen::half>::create(kState));
  const Status status = load_dense<Eigen::bfloat16>(half).status();
  EXPECT_EQ(status.code(), ErrorCode::invalid_argument);
  EXPECT_STREQ(status.message(), "element type: stores keys of layer 0 as bf16, but the state's as f16");
  EXPECT_EQ(load(bytes, "k2v2@1", state_options(63, 5)).status().code(), ErrorCode::invalid_argument) << "as create";
}

TEST(State, WithoutMemoryThereIsNoCacheAndNothingIsKept) {
  for (const char* policy : {"k2v1@2", "k1v16", "balanced-1.7"}) {
    AsymKVCache cache = make_cache(policy, {}, kState);
    append_to_all(cache, 0, 300);
    append_to_all(cache, 300, 1);
    const Bytes bytes = saved(cache);
    int failures = 0;
    for (Index fail = 0;; ++fail) {
      CountingAllocator counting;
      CacheOptions options;
      options.allocator = counting.allocator();
      counting.fail_at = fail;
      {
        Result<AsymKVCache> loaded = load(bytes, policy, options);
        EXPECT_EQ(loaded.ok() ? loaded->bytes().total() : 0, counting.bytes);
        if (loaded.ok()) break;
        EXPECT_EQ(loaded.status().code(), ErrorCode::out_of_memory) << loaded.status().message();
      }
      EXPECT_EQ(counting.bytes, 0);
      ++failures;
    }
    EXPECT_GE(failures, 10) << policy;
  }
}

/// Does what another stream does, but fails in one of its calls.
struct FailingStream {
  Index fail_at = 0, calls = 0;
  MemorySource* from = nullptr;
  static bool write(void* context, const void*, Index) {
    auto* const self = static_cast<FailingStream*>(context);
    EXPECT_LE(self->calls, self->fail_at) << "called again after it failed";
    return self->calls++ != self->fail_at;
  }
  static bool read(void* context, void* data, Index bytes) {
    const ByteSource source = static_cast<FailingStream*>(context)->from->source();
    return write(context, data, bytes) && source.read(source.context, data, bytes);
  }
};

TEST(State, AStreamThatFailsIsReported) {
  AsymKVCache cache = make_cache("k2v1@2", {}, kState);
  append_to_all(cache, 0, 300);
  append_to_all(cache, 300, 1);
  const Bytes bytes = saved(cache);
  Index fail = 0;
  for (;; ++fail) {
    FailingStream stream{fail};
    const Status status = cache.save({FailingStream::write, &stream});
    if (status.ok()) break;
    expect_error(status, ErrorCode::stream_failed, "sink: failed after ");
  }
  EXPECT_GT(fail, 20);
  for (fail = 0;; ++fail) {
    MemorySource memory(bytes.data(), Index(bytes.size()));
    FailingStream stream{fail, 0, &memory};
    const Status status =
        AsymKVCache::load({FailingStream::read, &stream}, kState, *AsymKVPolicy::parse("k2v1@2", 2)).status();
    if (status.ok()) break;
    expect_error(status, ErrorCode::stream_failed, "source: ended early, or failed, in the ");
  }
  EXPECT_GT(fail, 20);
  EXPECT_TRUE(saved(cache) == bytes);
  expect_error(cache.save({}), ErrorCode::invalid_argument, "sink: write is null");
  expect_error(AsymKVCache::load({}, kState, *AsymKVPolicy::parse("k2v1", 2)).status(), ErrorCode::invalid_argument,
               "source: read is null");
  const AsymKVCache moved = std::move(cache);
  expect_error(cache.save({FailingStream::write, nullptr}), ErrorCode::out_of_range, "layer");  // NOLINT: moved from
}

TEST(State, CountsItsBytesInAdvance) {
  AsymKVCache cache = make_cache("k2v1@2", {}, kState);
  append_to_all(cache, 0, 300);
  CountingSink counting;
  ASSERT_TRUE(cache.save(counting.sink()).ok());
  EXPECT_EQ(counting.bytes(), cache.state_bytes());
}

/// State with right checksums that no cache has written.
class Forged {
 public:
  /// Of a policy whose keys are the first packed side.
  explicit Forged(const char* policy) : policy_(policy) {
    AsymKVCache cache = make_cache(policy, {}, kState);
    append_to_all(cache, 0, 300);
    append_to_all(cache, 300, 1);
    bytes_ = saved(cache);
  }
  unsigned char& operator[](Index at) { return bytes_[std::size_t(at)]; }
  template <class T>
  void put(Index at, T value) {
    std::memcpy(bytes_.data() + at, &value, sizeof value);
  }
  /// Of a page of keys of the first layer.
  Index page_record(std::size_t page = 0) const { return StateParts(bytes_).records()[3 + page].at; }
  PanelLayout panel() const {
    return page_layout(AsymKVPolicy::parse(policy_, 2)->format(0, Side::keys), Side::keys, kState.key_dim);
  }
  void expect_refused(const char* message) {
    repair_checksums(bytes_);
    const Status status = load(bytes_, policy_).status();
    EXPECT_EQ(status.code(), ErrorCode::corrupt_state) << status.message();
    EXPECT_NE(std::strstr(status.message(), message), nullptr) << status.message();
  }

 private:
  const char* policy_;
  Bytes bytes_;
};

constexpr Index kLayerRecord = 192;  // behind header and formats

TEST(State, NumbersThatNoCacheHasAreRefused) {
  const std::int64_t huge = std::int64_t(1) << 62;
  for (Index field = 0; field < 9; ++field)  // removed; sealed, dense, kept and pages of either side
    for (std::int64_t value : {std::int64_t(-1), huge, (std::int64_t(1) << 32) + 1, std::int64_t(302)}) {
      Forged forged("k2v2@1");
      forged.put(kLayerRecord + (field < 5 ? 8 * field : 48 + 8 * (field - 5)), value);
      forged.expect_refused("state: the record of layer 0");
    }
  for (Index kept : {24, 64}) {  // of keys and of values; a cache without rollback_tokens keeps none
    Forged forged("k2v2@1");
    forged.put(kLayerRecord + kept, std::int64_t(1));
    forged.expect_refused("state: the record of layer 0");
  }
  Forged sink_removed("k2v2@1");
  sink_removed.put(kLayerRecord, std::int64_t(1));
  sink_removed.expect_refused("state: the record of layer 0");
  Forged still_there("float");  // removed tokens are not in the window
  still_there.put(kLayerRecord, std::int64_t(10));
  still_there.expect_refused("state: the record of layer 0");
  for (Index field : {48, 56}) {
    Forged forged("k2v2@1");
    forged.put(field, std::int64_t(64));
    forged.expect_refused("state: its header says ");
  }
  for (float greatest : {-1.0f, NAN, INFINITY, 32753.0f, 1e38f}) {
    Forged forged("k2v2@1");
    forged.put(kLayerRecord + 40, greatest);
    forged.expect_refused("has numbers that no cache has");
  }
  for (Index at : {12, 16, 20, 24, 37, 67, 100}) {  // no layers, heads, dims; a window beyond 2^32; beyond the fields
    Forged forged("k2v2@1");
    forged[at] = at < 30 ? 0 : 255;
    forged.expect_refused("its header says what no cache can be");
  }
}

TEST(State, PagesThatNoCacheHasAreRefused) {
  const auto with = [](Index field, auto value, const char* message) {
    Forged forged("k2v2@1");
    forged.put(forged.page_record() + field, value);
    forged.expect_refused(message);
  };
  with(0, std::int64_t(2), "numbers that no page has");  // leaves the first token behind the sink out
  with(0, std::int64_t(-1), "numbers that no page has");
  with(8, std::int64_t(129), "numbers that no page has");
  with(8, std::int64_t(0), "numbers that no page has");
  with(8, std::int64_t(127), "numbers that no page has");  // so the next one does not follow
  with(16, std::uint8_t(7), "numbers that no page has");
  with(16, std::uint8_t(16), "numbers that no page has");
  with(17, std::uint8_t(33), "numbers that no page has");
  with(22, std::uint8_t(1), "numbers that no page has");
  with(16, std::uint8_t(3), "another number of bytes");
  with(40, std::uint8_t(1), "numbers that no page has");
  Forged fewer("k2v2@1");  // the last page of keys ends before the window begins
  fewer.put(fewer.page_record(1) + 8, std::int64_t(127));
  fewer.expect_refused("the pages of layer 0");
}

TEST(State, NumbersInTokensAndPagesAreChecked) {
  Forged dense("k16v2@1");
  dense.put(kLayerRecord + 128, std::uint16_t(0x7e00));  // the first element of the sink
  dense.expect_refused("keys of layer 0, which ends at byte");
  Forged greater("float@1");
  greater.put(kLayerRecord + 128, 1e30f);
  greater.expect_refused("have elements greater than it says, or NaN");
  for (std::uint16_t scale : {std::uint16_t(0x7c00), std::uint16_t(0xfe01), std::uint16_t(0x7bff)}) {
    Forged packed("k2v2@1");
    for (Index offset : {packed.panel().scale_offset(), packed.panel().zero_point_offset()}) {
      Forged forged("k2v2@1");
      forged.put(forged.page_record() + 64 + offset, scale);
      forged.expect_refused("scales, zero points or widths");
    }
  }
  Forged mixed("km2v2@1");
  const Index widths = mixed.page_record() + 64 + mixed.panel().widths_offset();
  const Index set = mixed.panel().width_set_bytes();
  for (unsigned char value : {0x00, 0x01, 0xff, 0x10}) {
    for (Index byte = 0; byte < 4 * set; ++byte) {
      Forged forged("km2v2@1");
      if (forged[widths + byte] == value) continue;
      const bool fewer_vectors = value == 0x00;  // fewer bits may be a way to lie
      forged[widths + byte] = value;
      if (!fewer_vectors) forged.expect_refused("scales, zero points or widths");
    }
  }
}

/// The fuzzer's body (tests/fuzz) on edits that are the same in every run.
TEST(State, SurvivesTheFuzzersInputs) {
  std::mt19937 generator(7);
  for (int run = 0; run < 1500; ++run) {
    const std::size_t edits = 1 + generator() % 5;
    Bytes input(2 + 4 * edits);
    for (unsigned char& byte : input) byte = static_cast<unsigned char>(generator() >> 24);
    input[1] = static_cast<unsigned char>((input[1] & 0x60) | input[0] % state_fuzz::kTargetCount);
    const char* const fault = state_fuzz::run(input.data(), input.size());
    EXPECT_EQ(fault, nullptr) << "run " << run << ": " << fault;
  }
  for (int target = 0; target < state_fuzz::kTargetCount; ++target) {
    const unsigned char as_it_is[2] = {static_cast<unsigned char>(target), static_cast<unsigned char>(target)};
    EXPECT_EQ(state_fuzz::run(as_it_is, 2), nullptr) << target;
  }
}

}  // namespace
