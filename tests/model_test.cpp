// Random calls on up to 64 sequences that share memory, each of which is compared with a plain model of it: what is
// read back bit for bit, attention within its bound, bytes with the allocator's. A failure says how to run it again:
//   ASYMKV_MODEL_SEED=7 ASYMKV_MODEL_OPERATIONS=1000000 asymkv_tests --gtest_filter=Model.TwoBits
#include <atomic>
#include <deque>
#include <memory>
#include <set>
#include <thread>

#include "support/cache.hpp"
#include "support/model_attention.hpp"

namespace {

using namespace asymkv;
using namespace support;

/// Passes calls on to another allocator, of which those of a thread may be told to fail.
class FailingAllocator {
 public:
  explicit FailingAllocator(const Allocator& next) : next_(next) {}

  Allocator allocator() {
    Allocator allocator;
    allocator.context = this;
    allocator.allocate = [](void* context, std::size_t bytes) -> void* {
      if (remaining == 0) return nullptr;
      if (remaining > 0) --remaining;
      const Allocator& next = static_cast<FailingAllocator*>(context)->next_;
      return next.allocate(next.context, bytes);
    };
    allocator.deallocate = [](void* context, void* memory, std::size_t bytes) {
      const Allocator& next = static_cast<FailingAllocator*>(context)->next_;
      next.deallocate(next.context, memory, bytes);
    };
    allocator.shrink = [](void* context, void* memory, std::size_t bytes, std::size_t fewer) {
      const Allocator& next = static_cast<FailingAllocator*>(context)->next_;
      return remaining != 0 && next.shrink != nullptr && next.shrink(next.context, memory, bytes, fewer);
    };
    return allocator;
  }

  /// Requests of this thread that succeed before all others fail; negative: none fails.
  static thread_local Index remaining;

 private:
  Allocator next_;
};
thread_local Index FailingAllocator::remaining = -1;

struct Configuration {
  const char* policy;
  CacheShape shape;
  Index residual = 32, rollback = 0;
  ScalarType type = ScalarType::f32;
  Index threads = 1;
  /// Of the pool, behind what `threads` and shape ask for; a part of it is taken beforehand.
  Index budget = Index(12) << 20, reserve = 0;
  bool own_workspace = false;  ///< of the trial, instead of the caches'
  Index operations = 20000;
};

/// Tokens that appends take runs of, as floats and as the cache is given them.
class TokenSource {
 public:
  static constexpr Index rows = 2048;

  TokenSource(const CacheShape& shape, ScalarType type)
      : shape_(shape),
        type_(type),
        keys_(rounded(random_matrix(rows, shape.kv_heads * shape.key_dim, 1))),
        values_(rounded(random_matrix(rows, shape.kv_heads * shape.value_dim, 2).array() + 1.0f)),
        half_keys_(keys_.cast<Eigen::half>()),
        half_values_(values_.cast<Eigen::half>()) {}

  ConstTensor keys(Index first, Index count) const { return view(keys_, half_keys_, first, count); }
  ConstTensor values(Index first, Index count) const { return view(values_, half_values_, first, count); }
  const float* key_row(Index first) const { return keys_.row(first).data(); }
  const float* value_row(Index first) const { return values_.row(first).data(); }

 private:
  using HalfMatrix = Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  RowMatrix rounded(const RowMatrix& x) const { return type_ == ScalarType::f16 ? representable<Eigen::half>(x) : x; }
  ConstTensor view(const RowMatrix& x, const HalfMatrix& half, Index first, Index count) const {
    return type_ == ScalarType::f16 ? tensor(half.middleRows(first, count), shape_.kv_heads)
                                    : tensor(x.middleRows(first, count), shape_.kv_heads);
  }

  CacheShape shape_;
  ScalarType type_;
  RowMatrix keys_, values_;
  HalfMatrix half_keys_, half_values_;
};

/// A cache beside its model.
struct Sequence {
  std::optional<AsymKVCache> cache;
  model::Sequence model;
  int family;  ///< forks of one another share working memory
  std::deque<std::string> calls;
};
using Sequences = std::vector<std::unique_ptr<Sequence>>;

model::Format model_format(const Format& format) { return {format.bits, format.group_size}; }

/// The model of an empty cache.
model::Sequence empty_model(const Configuration& c, const AsymKVPolicy& policy) {
  const auto side = [&](Index layer, bool keys) {
    model::SideRules rules;
    rules.keys = keys;
    rules.format = model_format(keys ? policy.layer(layer).keys : policy.layer(layer).values);
    rules.heads = int(c.shape.kv_heads);
    rules.dim = int(keys ? c.shape.key_dim : c.shape.value_dim);
    rules.residual = int(c.residual);
    rules.rollback = int(c.rollback);
    rules.sinks = int(policy.sink_length());
    return model::Side(rules);
  };
  std::vector<model::Layer> layers;
  for (Index i = 0; i < c.shape.layers; ++i) layers.push_back({side(i, true), side(i, false)});
  return {std::move(layers), int(policy.sink_length())};
}

/// Bytes that all sequences have, what forks share counted once.
Index bytes_in_use(const std::vector<const Sequences*>& all) {
  Index total = 0;
  std::set<const void*> shared;
  std::set<int> families;
  for (const Sequences* sequences : all)
    for (const std::unique_ptr<Sequence>& s : *sequences) {
      const CacheBytes bytes = s->cache->bytes();
      total += bytes.total();
      if (!families.insert(s->family).second) total -= bytes.scratch;
      for (Index layer = 0; layer < s->cache->shape().layers; ++layer)
        for (Side side : {Side::keys, Side::values})
          for (const Page& page : s->cache->side(layer, side).pages()) {
            if (page.memory.shared() && !shared.insert(page.data()).second)
              total -= SharedBuffer::header_bytes + page.memory.bytes();
          }
    }
  return total;
}

/// A pool, and between it and the caches an allocator that fails.
struct Memory {
  PagePool pool;
  FailingAllocator failing;

  explicit Memory(const Configuration& c) : pool(*PagePool::create({c.budget, c.reserve})), failing(pool.allocator()) {}
};

/// One run of random calls. Runs on several threads share memory, and prefixes that all fork and none changes.
class Trial {
 public:
  static constexpr std::size_t most_sequences = 64;
  static constexpr Index most_tokens = 640;

  Trial(const Configuration& c, std::uint64_t seed, Memory& memory, const Sequences* prefixes = nullptr)
      : c_(c),
        policy_(*AsymKVPolicy::parse(c.policy, c.shape.layers)),
        source_(c.shape, c.type),
        seed_(seed),
        random_(seed),
        memory_(memory),
        prefixes_(prefixes) {
    for (const char* name : {"k2v2", "k1g64v1", "k3g128v2g64", "k1v1g128", "k4g128v3", "k1g128v16"})
      requantized_.push_back(*AsymKVPolicy::parse(name, c.shape.layers));
    if (!c.own_workspace) return;
    Result<Workspace> workspace = Workspace::create(c.shape, c.threads);
    if (workspace.ok()) workspace_ = std::move(*workspace);
  }

  void run(Index operations) {
    for (operation_ = 0; operation_ < operations && !failed_; ++operation_) {
      operate();
      if (prefixes_ == nullptr && operation_ % 16 == 0) check_memory();
      if (operation_ % 16 == 0 && !sequences_.empty()) check_all(any());
    }
    check();
  }
  /// All of all sequences.
  void check() {
    for (std::size_t i = 0; i < sequences_.size() && !failed_; ++i) check_all(*sequences_[i]);
  }

  const Sequences& sequences() const { return sequences_; }
  /// How often calls had no memory, because a request was made to fail and because the pool was full.
  Index failures() const { return failures_; }
  Index shortages() const { return shortages_; }
  bool failed() const { return failed_; }

 private:
  using Operation = void (Trial::*)(Sequence&);
  struct Weight {
    Operation operation;
    int weight;
  };

  void operate() {
    static constexpr Weight weights[] = {
        {&Trial::append, 36}, {&Trial::attend, 14},    {&Trial::read, 8},  {&Trial::trim, 12},
        {&Trial::fork, 8},    {&Trial::requantize, 8}, {&Trial::seal, 4},  {&Trial::remove_front, 3},
        {&Trial::destroy, 5}, {&Trial::refuse, 2},     {&Trial::clear, 1}, {&Trial::reload, 3},
    };
    if (sequences_.empty() || chance(40)) return begin();
    int total = 0;
    for (const Weight& w : weights) total += w.weight;
    int at = int(pick(total));
    const Weight* chosen = weights;
    while (at >= chosen->weight) at -= (chosen++)->weight;
    (this->*chosen->operation)(any());
  }

  /// A sequence without tokens, or one that goes on from a prefix.
  void begin() {
    if (sequences_.size() >= most_sequences) return destroy(any());
    if (prefixes_ == nullptr || chance(4)) return create();
    fork(*(*prefixes_)[std::size_t(pick(Index(prefixes_->size())))]);
  }

  CacheOptions options() {
    CacheOptions options;
    options.residual_length = c_.residual;
    options.rollback_tokens = c_.rollback;
    options.threads = c_.threads;
    options.reserve_tokens = chance(2) ? 100 : 0;
    options.allocator = memory_.failing.allocator();
    return options;
  }

  // calls, each of which changes the model in the same way

  void create() {
    const CacheOptions options = this->options();
    auto fresh = std::make_unique<Sequence>(Sequence{std::nullopt, empty_model(c_, policy_), ++families, {}});
    note(*fresh, "create");
    if (!succeeds(nullptr, [&] { return take(*fresh, AsymKVCache::create(c_.shape, policy_, options)); })) return;
    sequences_.push_back(std::move(fresh));
  }

  void fork(Sequence& from) {
    if (sequences_.size() >= most_sequences) return destroy(any());
    auto fresh = std::make_unique<Sequence>(Sequence{std::nullopt, from.model, from.family, from.calls});
    note(*fresh, "fork");
    if (!succeeds(&from, [&] { return take(*fresh, from.cache->fork()); })) return;
    sequences_.push_back(std::move(fresh));
    check_some(*sequences_.back());
  }

  /// A step of all layers, or one that breaks off.
  void append(Sequence& s) {
    const Index tokens = std::min(chance(8)   ? 1 + pick(300)
                                  : chance(3) ? 1 + pick(40)
                                              : 1 + pick(4),
                                  most_tokens - longest(s));
    if (tokens <= 0) return trim(s);
    if (s.model.length() != longest(s) && !chance(4)) return trim_to(s, s.model.length());
    const Index layers = chance(12) ? 1 + pick(c_.shape.layers) : c_.shape.layers;
    for (Index layer = 0; layer < layers; ++layer) {
      const Index first = pick(TokenSource::rows - tokens);
      note(s, "append layer %lld, %lld tokens, the first is %lld", number(layer), number(tokens), number(first));
      const ConstTensor keys = source_.keys(first, tokens), values = source_.values(first, tokens);
      if (!succeeds(&s, [&] {
            return workspace_ ? s.cache->append(layer, keys, values, *workspace_)
                              : s.cache->append(layer, keys, values);
          }))
        return;
      s.model.append(int(layer), source_.key_row(first), source_.value_row(first), int(tokens));
    }
    check_some(s);
  }

  void seal(Sequence& s) {
    note(s, "seal");
    if (!succeeds(&s, [&] { return workspace_ ? s.cache->seal(*workspace_) : s.cache->seal(); })) return;
    s.model.seal();
    check_some(s);
  }

  /// Mostly of a few tokens, as rejected drafts are; or to anywhere, among the sinks too.
  void trim(Sequence& s) {
    const Index length = s.model.length();
    Index tokens = std::max<Index>(0, length - pick(chance(2) ? 4 : 2 + c_.rollback));
    if (chance(6)) tokens = pick(length + 1);
    if (chance(40)) tokens = std::min(length, pick(policy_.sink_length() + 2));
    if (chance(10)) tokens = std::min<Index>(length, removed_end(s));
    trim_to(s, tokens);
  }
  void trim_to(Sequence& s, Index tokens) {
    note(s, "trim to %lld", number(tokens));
    const Status status = s.cache->trim(tokens);
    if (status.ok() != s.model.may_trim(int(tokens))) return fail(s, std::string("trim: ") + status.message());
    if (status.ok()) s.model.trim(int(tokens));
    check_some(s);
  }

  /// Up to the end of a page, often.
  void remove_front(Sequence& s) {
    const Index layer = pick(c_.shape.layers);
    const std::vector<model::Page>& pages = s.model.layer(int(layer)).keys.pages();
    Index end = pick(s.model.length(int(layer)) + 1);
    if (!pages.empty() && chance(2)) end = pages[std::size_t(pick(Index(pages.size())))].end;
    note(s, "remove_front layer %lld, %lld", number(layer), number(end));
    const Status status = s.cache->remove_front(layer, end);
    if (!status.ok()) return fail(s, std::string("remove_front: ") + status.message());
    s.model.remove_front(int(layer), int(end));
    check_some(s);
  }

  void requantize(Sequence& s) {
    if (requantize_once(s) == ErrorCode::out_of_memory) ++shortages_;
  }
  /// Of the oldest tokens, mostly. Takes no memory but for pages that forks share.
  ErrorCode requantize_once(Sequence& s) {
    const Index length = s.model.length(), last = chance(2) ? length : pick(length + 1);
    const Index first = chance(4) ? pick(last + 1) : 0;
    const std::size_t to = std::size_t(pick(Index(requantized_.size())));
    const AsymKVPolicy& policy = requantized_[to];
    note(s, "requantize %lld..%lld to %s", number(first), number(last), policy.name().c_str());
    const auto format = [&](int layer, bool keys) {
      return model_format(policy.format(layer, keys ? Side::keys : Side::values));
    };
    const Status status = fail_at_every_request(&s, [&] {
      return workspace_ ? s.cache->requantize(first, last, policy, *workspace_)
                        : s.cache->requantize(first, last, policy);
    });
    const bool may = s.model.may_requantize(int(first), int(last), format);
    if (status.ok() && may)
      s.model.requantize(int(first), int(last), format);
    else if (status.code() != (may ? ErrorCode::out_of_memory : ErrorCode::unsupported))
      fail(s, std::string("requantize: ") + status.message());
    check_some(s);
    return status.code();
  }

  /// Saves the cache and goes on with what is loaded, which is the same bit for bit and shares nothing.
  void reload(Sequence& s) {
    note(s, "reload");
    std::vector<unsigned char> bytes;
    const ByteSink sink{[](void* context, const void* data, Index count) {
                          auto* const to = static_cast<std::vector<unsigned char>*>(context);
                          const auto* const from = static_cast<const unsigned char*>(data);
                          to->insert(to->end(), from, from + count);
                          return true;
                        },
                        &bytes};
    const Status status = s.cache->save(sink);
    if (!status.ok()) return fail(s, std::string("save: ") + status.message());
    if (!succeeds(&s, [&] {
          MemorySource source(bytes.data(), Index(bytes.size()));
          return take(s, AsymKVCache::load(source.source(), c_.shape, policy_, options()));
        }))
      return;
    s.family = ++families;
    check_all(s);
  }

  void clear(Sequence& s) {
    note(s, "clear");
    s.cache->clear();
    s.model.clear();
    check_some(s);
  }

  void destroy(Sequence& s) {
    for (std::unique_ptr<Sequence>& other : sequences_)
      if (other.get() == &s) {
        std::swap(other, sequences_.back());
        sequences_.pop_back();
        return;
      }
  }

  /// What a cache must refuse changes nothing.
  void refuse(Sequence& s) {
    note(s, "refused calls");
    const Index layer = pick(c_.shape.layers), length = s.model.length(int(layer));
    const ConstTensor keys = source_.keys(0, 2), values = source_.values(0, 3);
    expect(s, s.cache->append(layer, keys, values), ErrorCode::invalid_argument);
    expect(s, s.cache->append(c_.shape.layers, keys, keys), ErrorCode::out_of_range);
    expect(s, s.cache->trim(s.model.length() + 1), ErrorCode::out_of_range);
    expect(s, s.cache->remove_front(layer, length + 1), ErrorCode::out_of_range);
    expect(s, s.cache->requantize(0, s.model.length() + 1, requantized_[0]), ErrorCode::out_of_range);
    RowMatrix row(1, c_.shape.key_dim);
    expect(s, s.cache->keys(layer, 0, length, tensor(row)), ErrorCode::out_of_range);
    if (s.model.removed(int(layer), s.model.sinks()))
      expect(s, s.cache->keys(layer, 0, s.model.sinks(), tensor(row)), ErrorCode::out_of_range);
    check_some(s);
  }

  void read(Sequence& s) {
    for (int i = 0; i < 4; ++i) check_some(s);
  }

  /// Few rows, and more than kernels call few.
  void attend(Sequence& s) {
    const Index layer = pick(c_.shape.layers), length = s.model.length(int(layer));
    if (length == 0) return;
    const Index shared = 1 + pick(3), heads = shared * c_.shape.kv_heads;
    Variant variant;
    variant.causal = !chance(4);
    if (chance(4)) variant.position = pick(length + 40) - 20;
    if (chance(3)) variant.softcap = 5.0f;
    if (chance(4)) variant.mask = Mask(pick(4));
    variant.alibi = chance(3);
    variant.sinks = chance(3);
    variant.lse = chance(2);
    const Index most = variant.position ? 40 : length;
    const Index queries = std::min(most, chance(12) ? 1 + pick(40) : 1 + pick(3));
    const Index window = chance(3) ? 1 + pick(length + 10) : 0;
    note(s, "attend layer %lld, %lld queries of %lld heads, window %lld", number(layer), number(queries), number(heads),
         number(window));
    ModelAttention attention(s.model, {int(layer), queries, heads, window, variant}, unsigned(random_()));
    const Status status = attend(*s.cache, layer, attention);
    if (!status.ok()) return fail(s, std::string("attend: ") + status.message());
    const std::string difference = attention.difference();
    if (!difference.empty()) fail(s, "attend: " + difference);
  }
  /// In slices, or at once.
  Status attend(AsymKVCache& cache, Index layer, ModelAttention& attention) {
    const auto backwards = [](Index count, const auto& task) {
      for (Index i = count - 1; i >= 0; --i) task(i);
    };
    const ConstTensor queries = attention.queries();
    const Tensor output = attention.output();
    const AttentionParams params = attention.params();
    if (workspace_) return cache.attend_parallel(layer, queries, output, params, *workspace_, backwards);
    if (chance(2)) return cache.attend_parallel(layer, queries, output, params, backwards);
    return cache.attend(layer, queries, output, params);
  }

  // memory

  static Status take(Sequence& s, Result<AsymKVCache> cache) {
    if (!cache.ok()) return cache.status();
    s.cache.emplace(std::move(*cache));
    return {};
  }

  /// Makes the call, now and then while its first, second, ... request for memory fails, which must change nothing of
  /// `s`, of the bytes in use but page tables.
  template <class Call>
  Status fail_at_every_request(Sequence* s, Call call) {
    const Index fail_until = chance(8) ? 1000 : 0;
    for (Index fail = 0; fail < fail_until && !failed_; ++fail) {
      FailingAllocator::remaining = fail;
      const Status status = unchanged_if_it_fails(s, call);
      const bool all = FailingAllocator::remaining > 0;
      FailingAllocator::remaining = -1;
      if (status.ok() || all) return status;
      ++failures_;
    }
    return unchanged_if_it_fails(s, call);
  }
  template <class Call>
  Status unchanged_if_it_fails(Sequence* s, Call call) {
    const CacheBytes before = s != nullptr ? s->cache->bytes() : CacheBytes();
    const Index in_use = memory_.pool.bytes();
    const Status status = call();
    if (status.code() != ErrorCode::out_of_memory) return status;
    const CacheBytes after = s != nullptr ? s->cache->bytes() : CacheBytes();
    if (prefixes_ == nullptr && memory_.pool.bytes() - in_use != after.tables - before.tables)
      fail_call(s, "a call without memory changes the bytes in use");
    if (after.keys != before.keys || after.values != before.values || after.dense != before.dense ||
        after.scratch != before.scratch)
      if (prefixes_ == nullptr) fail_call(s, "a call without memory changes bytes()");
    if (s != nullptr) chance(8) ? check_all(*s) : check_some(*s);
    return status;
  }
  /// Where there is no memory, others give theirs back, for some tries.
  template <class Call>
  bool succeeds(Sequence* s, Call call) {
    for (int tries = 0; tries < 8 && !failed_; ++tries) {
      const Status status = fail_at_every_request(s, call);
      if (status.ok()) return true;
      if (status.code() != ErrorCode::out_of_memory) fail_call(s, status.message());
      ++shortages_;
      if (!evict(s)) return false;
    }
    return false;
  }
  bool evict(const Sequence* but) {
    if (sequences_.empty()) return false;
    Sequence& s = any();
    if (&s == but) return true;
    switch (pick(4)) {
      case 0:
        clear(s);
        break;
      case 1:
        requantize_once(s);
        break;
      default:
        destroy(s);
    }
    return true;
  }

  // checks

  void check_memory() {
    const Index expected = bytes_in_use({&sequences_}), used = memory_.pool.bytes();
    if (used == expected) return;
    failed_ = true;
    ADD_FAILURE() << where() << "caches have " << expected << " bytes, the pool handed out " << used;
  }

  /// Lengths, and some tokens of one side.
  void check_some(Sequence& s) {
    check_lengths(s);
    const Index layer = pick(c_.shape.layers), head = pick(c_.shape.kv_heads);
    const Index length = s.model.length(int(layer)), first = pick(length + 1);
    check_tokens(s, layer, head, chance(2) ? Side::keys : Side::values, first, std::min<Index>(6, length - first));
  }
  void check_all(Sequence& s) {
    check_lengths(s);
    for (Index layer = 0; layer < c_.shape.layers && !failed_; ++layer) {
      const Index length = s.model.length(int(layer)), sinks = std::min<Index>(s.model.sinks(), length);
      const Index removed = std::max<Index>(s.model.layer(int(layer)).removed, sinks);
      for (Index head = 0; head < c_.shape.kv_heads; ++head)
        for (Side side : {Side::keys, Side::values}) {
          check_tokens(s, layer, head, side, 0, sinks);
          check_tokens(s, layer, head, side, removed, length - removed);
        }
    }
  }

  void check_lengths(Sequence& s) {
    if (s.cache->length() != s.model.length()) return fail(s, "length is " + std::to_string(s.cache->length()));
    for (Index layer = 0; layer < c_.shape.layers; ++layer) {
      const model::Layer& expected = s.model.layer(int(layer));
      const TokenRange removed = s.cache->removed(layer);
      if (s.cache->length(layer) != expected.keys.length())
        return fail(s, "length of a layer is " + std::to_string(s.cache->length(layer)));
      if (removed.end != expected.removed || (removed.end > 0 && removed.begin != s.model.sinks()))
        return fail(s, "removed are " + std::to_string(removed.begin) + ".." + std::to_string(removed.end));
      for (Side side : {Side::keys, Side::values}) check_pages(s, layer, side);
    }
  }
  void check_pages(Sequence& s, Index layer, Side which) {
    const model::Layer& of = s.model.layer(int(layer));
    const model::Side& expected = which == Side::keys ? of.keys : of.values;
    const SideStore& side = s.cache->side(layer, which);
    if (!side.packed()) return;
    if (side.sealed() != expected.sealed())
      return fail(s, "sealed are " + std::to_string(side.sealed()) + ", not " + std::to_string(expected.sealed()));
    if (side.pages().size() != Index(expected.pages().size()))
      return fail(
          s, "pages are " + std::to_string(side.pages().size()) + ", not " + std::to_string(expected.pages().size()));
    for (Index i = 0; i < side.pages().size(); ++i) {
      const model::Page& page = expected.pages()[std::size_t(i)];
      if (side.pages()[i].end() != page.end || !(model_format(side.pages().format(i).layout.format) == page.format))
        return fail(s, "page " + std::to_string(i) + " ends at " + std::to_string(side.pages()[i].end()));
    }
  }

  void check_tokens(Sequence& s, Index layer, Index head, Side which, Index first, Index count) {
    const bool keys = which == Side::keys;
    const model::Layer& of = s.model.layer(int(layer));
    const model::Side& expected = keys ? of.keys : of.values;
    RowMatrix out = RowMatrix::Constant(count, expected.rules().dim, NAN);
    const Tensor to = tensor(out);
    const Status status = !workspace_
                              ? (keys ? s.cache->keys(layer, head, first, to) : s.cache->values(layer, head, first, to))
                              : (keys ? s.cache->keys(layer, head, first, to, *workspace_)
                                      : s.cache->values(layer, head, first, to, *workspace_));
    bool removed = false;
    for (Index t = first; t < first + count; ++t) removed = removed || s.model.removed(int(layer), int(t));
    if (status.ok() == removed) return fail(s, std::string("read: ") + status.message());
    if (removed) return;
    for (Index t = 0; t < count; ++t)
      for (int c = 0; c < expected.rules().dim; ++c) {
        const float number = expected.number(int(first + t), int(head), c);
        if (out(t, c) == number) continue;
        return fail(s, std::string(side_name(which)) + " of layer " + std::to_string(layer) + ", head " +
                           std::to_string(head) + ", token " + std::to_string(first + t) + ", element " +
                           std::to_string(c) + " read " + std::to_string(out(t, c)) + ", not " +
                           std::to_string(number));
      }
  }

  void expect(Sequence& s, const Status& status, ErrorCode code) {
    if (status.code() != code) fail(s, std::string("not refused: ") + status.message());
  }

  // failures

  template <class... Arguments>
  void note(Sequence& s, const char* format, Arguments... arguments) {
    char text[160];
    std::snprintf(text, sizeof text, format, arguments...);
    s.calls.push_back(std::to_string(operation_) + ": " + text);
    if (s.calls.size() > 30) s.calls.pop_front();
  }
  void note(Sequence& s, const char* text) { note(s, "%s", text); }

  std::string where() const {
    return std::string(c_.policy) + ", seed " + std::to_string(seed_) + ", operation " + std::to_string(operation_) +
           ": ";
  }
  void fail(const Sequence& s, const std::string& what) {
    if (failed_) return;
    failed_ = true;
    std::string calls;
    for (const std::string& call : s.calls) calls += "\n  " + call;
    ADD_FAILURE() << where() << what << "; the last calls of the sequence:" << calls;
  }
  void fail_call(const Sequence* s, const std::string& what) {
    if (s != nullptr) return fail(*s, what);
    failed_ = true;
    ADD_FAILURE() << where() << what;
  }

  // random choices

  Index pick(Index n) { return Index(random_() % std::uint64_t(n)); }
  bool chance(Index one_in) { return pick(one_in) == 0; }
  Sequence& any() { return *sequences_[std::size_t(pick(Index(sequences_.size())))]; }

  Index longest(const Sequence& s) const {
    Index longest = 0;
    for (Index layer = 0; layer < c_.shape.layers; ++layer)
      longest = std::max<Index>(longest, s.model.length(int(layer)));
    return longest;
  }
  Index removed_end(const Sequence& s) const {
    Index end = 0;
    for (const model::Layer& layer : s.model.layers()) end = std::max<Index>(end, layer.removed);
    return end;
  }
  static long long number(Index i) { return static_cast<long long>(i); }

  static std::atomic<int> families;

  Configuration c_;
  AsymKVPolicy policy_;
  std::vector<AsymKVPolicy> requantized_;  ///< of what requantize() gives pages
  TokenSource source_;
  std::uint64_t seed_;
  std::mt19937_64 random_;
  Memory& memory_;
  const Sequences* prefixes_;
  std::optional<Workspace> workspace_;
  Sequences sequences_;
  Index operation_ = 0, failures_ = 0, shortages_ = 0;
  bool failed_ = false;
};
std::atomic<int> Trial::families{0};

Index number_from_environment(const char* name, Index otherwise) {
  const char* const text = std::getenv(name);
  return text != nullptr ? Index(std::strtoll(text, nullptr, 10)) : otherwise;
}

/// Half of the calls with each of two seeds, or all with the one that is asked for.
void run(const Configuration& c) {
  const Index operations = number_from_environment("ASYMKV_MODEL_OPERATIONS", c.operations);
  const Index seed = number_from_environment("ASYMKV_MODEL_SEED", 0);
  for (Index i : {1, 2}) {
    Memory memory(c);
    {
      Trial trial(c, std::uint64_t(seed > 0 ? seed : i), memory);
      trial.run(seed > 0 ? operations : operations / 2);
      if (trial.failed()) return;
      EXPECT_GT(trial.failures(), operations / 100) << "calls that were made to fail";
      EXPECT_GT(trial.shortages(), operations / 1000) << "calls for which the pool was too full";
    }
    EXPECT_EQ(memory.pool.bytes(), 0);
    if (seed > 0) return;
  }
}

TEST(Model, TwoBits) {
  Configuration c{"k2v2", {1, 2, 32, 48}};
  c.budget = Index(8) << 20;
  run(c);
}

TEST(Model, SinksAndGroupsOf64) {
  Configuration c{"0:k4g64v4g64+1:k3v8@5", {2, 1, 48, 32}};
  c.residual = 64;
  c.reserve = c.budget / 2;
  run(c);
}

TEST(Model, DraftsAreRolledBack) {
  Configuration c{"k1v2", {1, 1, 32, 32}};
  c.budget = Index(7) << 20;
  c.rollback = 8;
  c.own_workspace = true;
  run(c);
}

TEST(Model, DenseSides) { run({"0:k16v32+1:k32v16@4", {2, 1, 32, 48}}); }

TEST(Model, LongRollbackBehindManySinks) {
  Configuration c{"0:k3v8+1:k16v2@40", {2, 1, 32, 32}};
  c.rollback = 70;
  c.reserve = c.budget;
  run(c);
}

TEST(Model, HalfInputInThreeSlices) {
  Configuration c{"k8v1g128", {1, 1, 48, 48}};
  c.residual = 128;
  c.type = ScalarType::f16;
  c.budget = Index(24) << 20;
  c.threads = 3;
  c.own_workspace = true;
  run(c);
}
/// Each thread has sequences of its own, which begin as forks of the same prefixes, and working memory.
TEST(ModelThreads, ForksOfCommonPrefixes) {
  Configuration c{"0:k2v3+1:k3g64v16@3", {2, 1, 32, 48}};
  c.residual = 64;
  c.rollback = 5;
  c.budget = Index(32) << 20;
  c.reserve = c.budget / 2;
  c.own_workspace = true;
  const Index operations = number_from_environment("ASYMKV_MODEL_OPERATIONS", 8000) / 4;
  const Index seed = std::max<Index>(1, number_from_environment("ASYMKV_MODEL_SEED", 0));
  Memory memory(c);
  {
    Trial prefixes(c, std::uint64_t(seed), memory);
    prefixes.run(200);
    ASSERT_FALSE(prefixes.failed() || prefixes.sequences().empty());
    std::vector<std::unique_ptr<Trial>> trials;
    for (Index i = 0; i < 4; ++i)
      trials.push_back(std::make_unique<Trial>(c, std::uint64_t(seed + 1 + i), memory, &prefixes.sequences()));
    std::vector<std::thread> threads;
    for (const std::unique_ptr<Trial>& trial : trials) threads.emplace_back([&] { trial->run(operations); });
    for (std::thread& thread : threads) thread.join();
    std::vector<const Sequences*> all{&prefixes.sequences()};
    for (const std::unique_ptr<Trial>& trial : trials) all.push_back(&trial->sequences());
    EXPECT_EQ(memory.pool.bytes(), bytes_in_use(all));
    prefixes.check();
  }
  EXPECT_EQ(memory.pool.bytes(), 0);
}

}  // namespace
