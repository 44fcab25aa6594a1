// state_fuzz.hpp: the body of the fuzzer of saved state: bytes, or edits of a good state, go to load(); what is
// accepted must save to the same bytes and serve every call. Used by state_fuzz.cpp and, over a fixed set of inputs, by
// state_test.cpp.
#pragma once

#include <asymkv/asymkv.hpp>
#include <cstdlib>
#include <vector>

namespace state_fuzz {

using namespace asymkv;
using Bytes = std::vector<unsigned char>;

constexpr CacheShape kShape{2, 2, 20, 36};
constexpr Index kQueryHeads = 4;

/// Caches of some kinds, each with a state to edit.
struct Target {
  const char* policy;  ///< null for DenseKVCache<Eigen::bfloat16>
  Index residual_length, rollback_tokens;
  ScalarType input;
};
constexpr Target kTargets[] = {
    {"k2v1", 32, 0, ScalarType::f32},           {"km2v1g128fcsr@1", 128, 0, ScalarType::bf16},
    {"k4g64fcv6@3", 64, 20, ScalarType::f16},   {"0:km3.5v3g128fcsr+1:k8v16", 128, 150, ScalarType::f32},
    {"k32v5g64fs@2", 64, 40, ScalarType::bf16}, {nullptr, 32, 0, ScalarType::f32},
};
constexpr int kTargetCount = int(sizeof kTargets / sizeof *kTargets);

/// Tokens whose elements follow from their numbers.
class Input {
 public:
  Input(Index tokens, Index dim, Index seed, ScalarType type) : tokens_(tokens), dim_(dim), type_(type) {
    const Index count = tokens * kShape.kv_heads * dim;
    data_.resize(std::size_t(count * scalar_bytes(type)));
    for (Index i = 0; i < count; ++i)
      store_scalar(data_.data(), type, i, float((i * 37 + seed * 11) % 61 - 30) / 16.0f * (i % dim == 5 ? 4.0f : 1.0f));
  }
  ConstTensor tensor() const {
    const Index row = kShape.kv_heads * dim_;
    return {data_.data(), type_, tokens_, kShape.kv_heads, dim_, row, dim_, 1};
  }

 private:
  Index tokens_, dim_;
  ScalarType type_;
  Bytes data_;
};

inline bool append(KVCache& cache, Index layer, Index tokens, Index seed, ScalarType type) {
  return cache
      .append(layer, Input(tokens, kShape.key_dim, seed, type).tensor(),
              Input(tokens, kShape.value_dim, seed + 1, type).tensor())
      .ok();
}

inline ByteSink sink_to(Bytes& bytes) {
  return {[](void* to, const void* data, Index count) {
            const auto* const from = static_cast<const unsigned char*>(data);
            static_cast<Bytes*>(to)->insert(static_cast<Bytes*>(to)->end(), from, from + count);
            return true;
          },
          &bytes};
}
template <class Cache>
Bytes saved(const Cache& cache) {
  Bytes bytes;
  return cache.save(sink_to(bytes)).ok() ? bytes : Bytes();
}

inline CacheOptions options_of(const Target& target) {
  CacheOptions options;
  options.residual_length = target.residual_length;
  options.rollback_tokens = target.rollback_tokens;
  return options;
}

/// Calls function(create, load) for the kind of cache that a target is; load takes a ByteSource.
template <class Function>
auto with_target(const Target& target, Function function) {
  const CacheOptions options = options_of(target);
  if (target.policy == nullptr) {
    using Cache = DenseKVCache<Eigen::bfloat16>;
    return function([&] { return Cache::create(kShape, options); },
                    [&](const ByteSource& source) { return Cache::load(source, kShape, options); });
  }
  const AsymKVPolicy policy = *AsymKVPolicy::parse(target.policy, kShape.layers);
  return function([&] { return AsymKVCache::create(kShape, policy, options); },
                  [&](const ByteSource& source) { return AsymKVCache::load(source, kShape, policy, options); });
}

inline void requantize(AsymKVCache& cache, Index last) {
  for (const char* policy : {"k1v1", "km1v1"}) {
    const Result<AsymKVPolicy> fewer = AsymKVPolicy::parse(policy, kShape.layers);
    if (fewer.ok()) (void)cache.requantize(0, last, *fewer);
  }
}
inline void requantize(DenseKVCache<Eigen::bfloat16>&, Index) {}

/// A state with a page that was cut, pages of another format, and in layer 1 removed tokens.
inline Bytes seed_state(const Target& target) {
  return with_target(target, [&](auto create, auto) {
    auto cache = create();
    for (Index layer : {0, 1}) append(*cache, layer, 400, layer, target.input);
    for (Index layer : {0, 1}) append(*cache, layer, 1, 7, target.input);
    (void)cache->trim(200 + target.residual_length / 2);
    for (Index layer : {0, 1}) append(*cache, layer, 120 + 9 * layer, 3, target.input);
    (void)cache->seal();
    requantize(*cache, 128);
    (void)cache->remove_front(1, 150);
    return saved(*cache);
  });
}
inline const Bytes& seed_state(int target) {
  static const std::vector<Bytes> states = [] {
    std::vector<Bytes> all;
    for (const Target& t : kTargets) all.push_back(seed_state(t));
    return all;
  }();
  return states[std::size_t(target)];
}

/// The state's parts, found by its own numbers and not by the library's code.
class StateParts {
 public:
  /// As far as the numbers make sense.
  explicit StateParts(const Bytes& bytes) : bytes_(bytes) { walk(); }

  struct Record {
    Index at, size;
  };
  /// Bytes [begin, end), whose CRC lies at `crc`.
  struct Checked {
    Index begin, end, crc;
  };
  const std::vector<Record>& records() const { return records_; }
  const std::vector<Checked>& checked() const { return checked_; }

 private:
  Index get(Index at, Index size) const {
    Index value = 0;
    for (Index i = size; i-- > 0;) value = value << 8 | bytes_[std::size_t(at + i)];
    return value;
  }
  bool has(Index at, Index size) const {
    return at >= 0 && size >= 0 && at <= Index(bytes_.size()) && size <= Index(bytes_.size()) - at;
  }
  static Index to_64(Index bytes) { return (bytes + 63) / 64 * 64; }
  bool add_record(Index at, Index size) {
    if (!has(at, size)) return false;
    records_.push_back({at, size});
    return true;
  }
  void walk() {
    if (!add_record(0, 128)) return;
    checked_.push_back({0, 124, 124});
    const Index layers = get(12, 4);
    if (layers > 100 || !add_record(128, 16 * layers + 4)) return;
    checked_.push_back({128, 128 + 16 * layers, 128 + 16 * layers});
    Index at = 128 + to_64(16 * layers + 4);
    for (Index layer = 0; layer < layers; ++layer)
      if (at = walk_layer(at, layer); at < 0) return;
  }
  /// Where the layer ends, or -1. Records are checked after what they have the CRC of.
  Index walk_layer(Index at, Index layer) {
    const Index record = at;
    if (!add_record(at, 128)) return -1;
    const std::size_t first = checked_.size();
    checked_.push_back({record, record + 124, record + 124});
    at += 128;
    for (Index side = 0; side < 2; ++side) {
      const Index numbers = record + 8 + 40 * side, rows = rows_bytes(numbers, layer, side);
      if (rows < 0 || !has(at, rows)) return -1;
      checked_.insert(checked_.begin() + std::ptrdiff_t(first), Checked{at, at + rows, numbers + 36});
      at += rows;
      for (Index page = get(numbers + 24, 8); page > 0; --page) {
        if (!add_record(at, 64)) return -1;
        const Index bytes = get(at + 24, 8);
        if (!has(at + 64, bytes)) return -1;
        checked_.push_back({at + 64, at + 64 + bytes, at + 32});
        checked_.push_back({at, at + 60, at + 60});
        at += 64 + bytes;
      }
    }
    return at;
  }
  Index rows_bytes(Index numbers, Index layer, Index side) const {
    const Index format = 128 + 16 * layer + 8 * side, bits = bytes_[std::size_t(format)];
    const Index type = bits <= 8 ? bytes_[std::size_t(65 + side)] : bytes_[std::size_t(format + 7)];
    const Index heads = get(16, 4), dim = get(20 + 4 * side, 4), sealed = get(numbers, 8), dense = get(numbers + 8, 8),
                kept = get(numbers + 16, 8);
    for (Index count : {heads, dim, sealed, dense, kept})
      if (count < 0 || count > 1 << 20) return -1;
    const Index row = (dim + 15) / 16 * 16 * (type == 0 ? 4 : 2);
    const Index sinks = std::min(get(28, 4), sealed + dense);
    return to_64(heads * row * sinks) + to_64(heads * row * (kept + dense));
  }

  const Bytes& bytes_;
  std::vector<Record> records_;
  std::vector<Checked> checked_;
};

/// Makes all checksums right, as far as there are parts.
inline void repair_checksums(Bytes& bytes) {
  const StateParts parts(bytes);
  for (const StateParts::Checked& part : parts.checked()) {
    const std::uint32_t crc = crc32c(bytes.data() + part.begin, part.end - part.begin);
    for (Index i = 0; i < 4; ++i) bytes[std::size_t(part.crc + i)] = static_cast<unsigned char>(crc >> 8 * i);
  }
}

/// What an edit does at a byte.
inline void edit(Bytes& bytes, std::size_t at, int what, unsigned char with) {
  const std::size_t run = std::min<std::size_t>(8, bytes.size() - at);
  switch (what) {
    case 0:
      bytes[at] = with;
      return;
    case 1:
      bytes[at] = static_cast<unsigned char>(bytes[at] ^ 1u << with % 8);
      return;
    case 2:
      bytes[at] = static_cast<unsigned char>(bytes[at] + with);
      return;
    case 3:
      std::fill_n(bytes.begin() + std::ptrdiff_t(at), run, with);
      return;
    case 4:
      std::rotate(bytes.begin() + std::ptrdiff_t(at), bytes.begin() + std::ptrdiff_t(at + run / 2),
                  bytes.begin() + std::ptrdiff_t(at + run));
      return;
    case 5:
      if (with % 8 == 0) bytes.resize(at);
      return;
    case 6:
      bytes.insert(bytes.begin() + std::ptrdiff_t(at / 64 * 64), 64, with);
      return;
    case 7:
      bytes.erase(bytes.begin() + std::ptrdiff_t(at / 64 * 64),
                  bytes.begin() + std::ptrdiff_t(std::min(bytes.size(), at / 64 * 64 + 64)));
      return;
    default:
      return;
  }
}
/// Edits of four bytes each: place, place, what, with what. Half of the places are in records.
inline void apply(const unsigned char* edits, std::size_t size, Bytes& bytes) {
  const StateParts parts(bytes);
  const std::size_t records = parts.records().size();
  for (; size >= 4 && !bytes.empty(); edits += 4, size -= 4) {
    const std::size_t place = std::size_t(edits[0] | edits[1] << 8);
    std::size_t at = place % bytes.size();
    if ((edits[2] & 0x80) != 0 && records > 0) {
      const StateParts::Record& record = parts.records()[place % records];
      at = std::size_t(record.at) + place / records % std::size_t(record.size);
    }
    if (at < bytes.size()) edit(bytes, at, edits[2] & 7, edits[3]);
  }
}

/// All that may be done with a cache; results do not matter.
template <class Cache>
void use(Cache& cache) {
  for (Index layer = 0; layer < kShape.layers; ++layer) {
    const Index length = cache.length(layer);
    for (Index queries : {1, 9}) {
      std::vector<float> q(std::size_t(queries * kQueryHeads * kShape.key_dim), 0.25f);
      std::vector<float> out(std::size_t(queries * kQueryHeads * kShape.value_dim));
      AttentionParams params;
      params.window = queries == 1 ? 0 : 170;
      (void)cache.attend(layer, tensor(q.data(), queries, kQueryHeads, kShape.key_dim),
                         tensor(out.data(), queries, kQueryHeads, kShape.value_dim), params);
    }
    const Index first = cache.removed(layer).end, count = std::min<Index>(length - first, 1000);
    std::vector<float> back(std::size_t(std::max<Index>(count, 0) * kShape.value_dim));
    for (Index head = 0; head < kShape.kv_heads && count > 0; ++head) {
      (void)cache.keys(layer, head, first, tensor(back.data(), count, 1, kShape.key_dim));
      (void)cache.values(layer, head, first, tensor(back.data(), count, 1, kShape.value_dim));
    }
  }
}
template <class Cache>
void go_on(Cache& cache, const Target& target) {
  for (Index tokens : {1, 70})
    for (Index layer = 0; layer < kShape.layers; ++layer) append(cache, layer, tokens, 5, target.input);
  use(cache);
  (void)cache.trim(std::max<Index>(0, cache.length() - target.rollback_tokens - 3));
  for (Index layer = 0; layer < kShape.layers; ++layer) append(cache, layer, 40, 6, target.input);
  (void)cache.remove_front(0, cache.length(0) / 2);
  requantize(cache, cache.length() / 2);
  (void)cache.seal();
  use(cache);
  (void)cache.trim(cache.length() / 2);
  use(cache);
}

/// Loads `bytes` as a target's cache; null, or what went wrong.
inline const char* check(const Target& target, const Bytes& bytes) {
  return with_target(target, [&](auto, auto load) -> const char* {
    MemorySource memory(bytes.data(), Index(bytes.size()));
    auto cache = load(memory.source());
    if (!cache.ok()) return cache.status().message()[0] != '\0' ? nullptr : "an error without a message";
    Bytes again = saved(*cache);
    if (Index(again.size()) != Index(bytes.size()) - memory.remaining() || Index(again.size()) != cache->state_bytes())
      return "what was loaded saves to another number of bytes";
    if (!std::equal(again.begin(), again.end(), bytes.begin())) return "what was loaded saves to other bytes";
    use(*cache);
    auto fork = cache->fork();
    go_on(*cache, target);
    if (fork.ok() && saved(*fork) != again) return "going on changes a fork";
    again = saved(*cache);
    MemorySource next(again.data(), Index(again.size()));
    return load(next.source()).ok() ? nullptr : "the state of a loaded cache that went on is refused";
  });
}

/// target | edited target, whose highest bits say: raw bytes, repair checksums, scalar kernels | edits, or bytes.
/// Null, or what went wrong.
inline const char* run(const unsigned char* data, std::size_t size) {
  if (size < 2) return nullptr;
  const Target& target = kTargets[data[0] % kTargetCount];
  const unsigned char mode = data[1];
  Bytes bytes = (mode & 0x80) != 0 ? Bytes(data + 2, data + size) : seed_state((mode & 0x1f) % kTargetCount);
  if ((mode & 0x80) == 0) apply(data + 2, size - 2, bytes);
  if ((mode & 0x40) != 0) repair_checksums(bytes);
  if ((mode & 0x20) != 0) setenv("ASYMKV_FORCE_ISA", "scalar", 1);
  const char* const fault = check(target, bytes);
  unsetenv("ASYMKV_FORCE_ISA");
  return fault;
}

}  // namespace state_fuzz
