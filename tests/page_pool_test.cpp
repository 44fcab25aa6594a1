// PagePool: its blocks against a model that knows only addresses and sizes, its budget against what the caller's
// allocator counts, and caches that share it.
#include <array>
#include <asymkv/cache/page_pool.hpp>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>

#include "support/cache.hpp"
#include "support/guarded.hpp"
#include "support/heap_count.hpp"

namespace {

using namespace asymkv;
using namespace support;

static_assert(!std::is_copy_constructible_v<PagePool> && !std::is_copy_assignable_v<PagePool>);
static_assert(std::is_nothrow_move_constructible_v<PagePool> && std::is_nothrow_move_assignable_v<PagePool>);

PagePool make_pool(Index budget, Index reserve, const Allocator& allocator = {}) {
  Result<PagePool> pool = PagePool::create({budget, reserve, allocator});
  EXPECT_TRUE(pool.ok()) << pool.status().message();
  return std::move(*pool);
}

/// A pool that has room for blocks of `bytes` bytes in all and takes no more memory.
PagePool fixed_pool(Index bytes, const Allocator& allocator = {}) {
  return make_pool(PagePool::reserve_for(bytes), PagePool::reserve_for(bytes), allocator);
}

/// True if one block of `bytes` bytes is to be had.
bool has_room(const PagePool& pool, Index bytes) {
  Buffer block;
  return block.allocate_unset(bytes, pool.allocator());
}

/// A caller's allocator that counts, and can give the end of a block back.
struct ShrinkingAllocator : CountingAllocator {
  Allocator allocator() {
    Allocator a = CountingAllocator::allocator();
    a.shrink = [](void* context, void*, std::size_t now, std::size_t fewer) {
      static_cast<ShrinkingAllocator*>(context)->bytes -= Index(now - fewer);
      return true;
    };
    return a;
  }
};

/// The block's own sequence of bytes, so that one that another block wrote into is seen.
unsigned char pattern(unsigned seed, Index i) { return static_cast<unsigned char>(seed * 89 + i * 7 + i / 256); }
void fill(unsigned char* block, Index bytes, unsigned seed) {
  for (Index i = 0; i < bytes; ++i) block[i] = pattern(seed, i);
}
bool filled(const unsigned char* block, Index bytes, unsigned seed) {
  for (Index i = 0; i < bytes; ++i)
    if (block[i] != pattern(seed, i)) return false;
  return true;
}

/// The blocks of a pool whose reserve has room for `room` bytes, each full of its pattern, by address.
class Model {
 public:
  Model(const PagePool& pool, const CountingAllocator& caller, Index room)
      : pool_(pool), caller_(caller), room_(room), allocator_(pool.allocator()) {
    if (room_ == 0) return;
    reserve_ = static_cast<unsigned char*>(allocator_.allocate(allocator_.context, std::size_t(room_)));
    EXPECT_NE(reserve_, nullptr);
    allocator_.deallocate(allocator_.context, reserve_, std::size_t(room_));
  }

  bool empty() const { return blocks_.empty(); }

  /// A block must be had where a gap of the reserve or the budget has room, and nowhere else.
  void allocate(Index bytes) {
    const bool fits = widest_gap() >= (bytes + 63) / 64 * 64;
    const bool affordable = pool_.budget() == 0 || pool_.taken() + bytes <= pool_.budget();
    auto* const block = static_cast<unsigned char*>(allocator_.allocate(allocator_.context, std::size_t(bytes)));
    ASSERT_EQ(block != nullptr, fits || affordable) << bytes << " bytes, widest gap " << widest_gap();
    if (block == nullptr) return;
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(block) % 64, 0u);
    ASSERT_EQ(in_reserve(block), fits) << "outside, though the reserve has room";
    const auto next = blocks_.lower_bound(block);
    if (next != blocks_.end()) {
      ASSERT_LE(block + bytes, next->first);
    }
    if (next != blocks_.begin()) {
      ASSERT_LE(std::prev(next)->first + std::prev(next)->second.bytes, block);
    }
    const unsigned seed = seeds_++;
    fill(block, bytes, seed);
    blocks_[block] = {bytes, seed};
    expect_counts();
  }

  void free(Index which) {
    const auto block = std::next(blocks_.begin(), which % Index(blocks_.size()));
    ASSERT_TRUE(filled(block->first, block->second.bytes, block->second.seed));
    allocator_.deallocate(allocator_.context, block->first, std::size_t(block->second.bytes));
    blocks_.erase(block);
    expect_counts();
  }

  void shrink(Index which, Index fewer, bool outside_too) {
    const auto block = std::next(blocks_.begin(), which % Index(blocks_.size()));
    Block& of = block->second;
    if (of.bytes < 2) return;
    fewer = 1 + fewer % (of.bytes - 1);
    const bool done = allocator_.shrink(allocator_.context, block->first, std::size_t(of.bytes), std::size_t(fewer));
    ASSERT_EQ(done, outside_too || in_reserve(block->first));
    if (done) of.bytes = fewer;
    ASSERT_TRUE(filled(block->first, of.bytes, of.seed));
    expect_counts();
  }

 private:
  struct Block {
    Index bytes;
    unsigned seed;
  };

  bool in_reserve(const unsigned char* block) const {
    return reserve_ != nullptr && std::less_equal<>()(reserve_, block) && std::less<>()(block, reserve_ + room_);
  }
  Index widest_gap() const {
    Index widest = 0, end = 0;
    for (const auto& [address, block] : blocks_)
      if (in_reserve(address)) {
        widest = std::max(widest, Index(address - reserve_) - end);
        end = Index(address - reserve_) + (block.bytes + 63) / 64 * 64;
      }
    return std::max(widest, room_ - end);
  }
  void expect_counts() const {
    Index bytes = 0;
    for (const auto& block : blocks_) bytes += block.second.bytes;
    ASSERT_EQ(pool_.bytes(), bytes);
    ASSERT_EQ(pool_.taken(), caller_.bytes);
    if (pool_.budget() > 0) {
      ASSERT_LE(caller_.bytes, pool_.budget());
    }
  }

  const PagePool& pool_;
  const CountingAllocator& caller_;
  const Index room_;
  const Allocator allocator_;
  unsigned char* reserve_ = nullptr;
  std::map<unsigned char*, Block> blocks_;
  unsigned seeds_ = 0;
};

/// Sizes as caches ask for them: of tables, of pages that come again and again, and of windows.
Index random_bytes(std::mt19937& random) {
  switch (random() % 4) {
    case 0:
      return 1 + Index(random() % 200);
    case 1:
      return 64 * (32 + Index(random() % 2));
    case 2:
      return 1000 + Index(random() % 3000);
    default:
      return 1 + Index(random() % 40000);
  }
}

void random_blocks(unsigned seed, Index room, Index beyond, bool caller_shrinks) {
  ShrinkingAllocator caller;
  {
    const Index reserve = PagePool::reserve_for(room);
    const Allocator allocator = caller_shrinks ? caller.allocator() : caller.CountingAllocator::allocator();
    const PagePool pool = make_pool(reserve + beyond, room > 0 ? reserve : 0, allocator);
    Model model(pool, caller, room);
    std::mt19937 random(seed);
    for (int step = 0; step < 4000; ++step) {
      const unsigned phase = step / 500 % 2 == 0 ? 5 : 3;  // the pool fills up, and empties
      const unsigned choice = random() % 8;
      if (choice < phase || model.empty())
        ASSERT_NO_FATAL_FAILURE(model.allocate(random_bytes(random))) << "seed " << seed << " step " << step;
      else if (choice == 7)
        ASSERT_NO_FATAL_FAILURE(model.shrink(random(), random(), caller_shrinks))
            << "seed " << seed << " step " << step;
      else
        ASSERT_NO_FATAL_FAILURE(model.free(random())) << "seed " << seed << " step " << step;
    }
    while (!model.empty()) ASSERT_NO_FATAL_FAILURE(model.free(random()));
    EXPECT_EQ(pool.bytes(), 0);
    EXPECT_EQ(pool.taken(), reserve);
    if (room > 0) {
      EXPECT_TRUE(has_room(pool, room)) << "gaps did not merge";
    }
  }
  EXPECT_EQ(caller.bytes, 0);
}

TEST(PagePool, RandomBlocksKeepTheirBytesAndMerge) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    random_blocks(seed, 300032, 0, false);
    random_blocks(seed, 150016, 200000, false);
    random_blocks(seed, 64, 200000, true);
    random_blocks(seed, 0, 200000, true);
  }
}

TEST(PagePool, AGapBehindManyThatAreTooSmallIsFound) {
  constexpr Index small = 32 * 64, large = 33 * 64, count = 40;
  const PagePool pool = fixed_pool(large + count * small + (count + 1) * 64);
  std::vector<Buffer> gaps(count + 1), between(count + 1);
  for (Index i = 0; i <= count; ++i) {
    ASSERT_TRUE(gaps[i].allocate(i == 0 ? large : small, pool.allocator()));
    ASSERT_TRUE(between[i].allocate(64, pool.allocator()));
  }
  gaps.clear();  // whichever order that is, one end of the list is the large one
  EXPECT_TRUE(has_room(pool, large));
  EXPECT_FALSE(has_room(pool, large + 1));
  between.clear();
  EXPECT_TRUE(has_room(pool, large + count * small + (count + 1) * 64));
}

TEST(PagePool, AGapIsTakenBeforeAWiderOneIsCut) {
  const PagePool pool = fixed_pool(64 * 200);
  Buffer block, between;
  ASSERT_TRUE(block.allocate(64 * 33, pool.allocator()));  // of the sizes that share a class, not the least
  ASSERT_TRUE(between.allocate(64, pool.allocator()));
  const unsigned char* const data = block.data();
  block = Buffer();
  ASSERT_TRUE(block.allocate(64 * 33, pool.allocator()));
  EXPECT_EQ(block.data(), data);
}

TEST(PagePool, ReserveForIsTheLeastThatHasRoom) {
  for (Index blocks : {1, 64, 65, 4096, 30000, 32768, 100000, 1 << 20, (1 << 22) + 1}) {
    const Index reserve = PagePool::reserve_for(blocks);
    const PagePool pool = make_pool(reserve, reserve, guarded_allocator());
    EXPECT_TRUE(has_room(pool, blocks)) << blocks;
    EXPECT_FALSE(has_room(pool, PagePool::block_bytes(blocks) + 1)) << blocks;
    EXPECT_FALSE(has_room(make_pool(reserve - 1, reserve - 1), blocks)) << blocks;
    EXPECT_LE(reserve, PagePool::reserve_for(0) + PagePool::block_bytes(blocks) * 513 / 512 + 128);
  }
  EXPECT_EQ(PagePool::block_bytes(1), 64);
  EXPECT_EQ(PagePool::block_bytes(64), 64);
  EXPECT_EQ(PagePool::block_bytes(65), 128);
}

TEST(PagePool, LargeReservesBeginAtAHugePage) {
  const Index bytes = Index(3) << 21;
  Buffer block;
  ASSERT_TRUE(block.allocate_unset(bytes, fixed_pool(bytes).allocator()));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.data()) % (std::size_t(1) << 21), 0u);
}

TEST(PagePool, TheBudgetIsWhatTheCallersAllocatorGives) {
  CountingAllocator caller;
  const Index bookkeeping = PagePool::reserve_for(0);
  const PagePool pool = make_pool(bookkeeping + 1000, 0, caller.allocator());
  EXPECT_EQ(pool.budget(), bookkeeping + 1000);
  EXPECT_EQ(pool.taken(), bookkeeping);
  EXPECT_EQ(caller.bytes, bookkeeping);
  EXPECT_FALSE(has_room(pool, 1001));
  Buffer block;
  ASSERT_TRUE(block.allocate(1000, pool.allocator()));
  EXPECT_EQ(pool.bytes(), 1000);
  EXPECT_EQ(pool.taken(), bookkeeping + 1000);
  EXPECT_FALSE(has_room(pool, 1));
  block = Buffer();
  EXPECT_EQ(pool.taken(), bookkeeping);
  EXPECT_TRUE(has_room(pool, 1000));
}

TEST(PagePool, WithoutALimitBlocksComeAsLongAsTheCallerHasThem) {
  CountingAllocator caller;
  {
    const PagePool pool = make_pool(0, 0, caller.allocator());
    Buffer block, more;
    EXPECT_TRUE(block.allocate_unset(Index(1) << 24, pool.allocator()));
    caller.fail_at = caller.calls;
    EXPECT_FALSE(more.allocate_unset(1, pool.allocator()));
    EXPECT_EQ(pool.bytes(), Index(1) << 24);
    EXPECT_EQ(pool.taken(), caller.bytes);
  }
  EXPECT_EQ(caller.bytes, 0);
}

TEST(PagePool, RequestsThatMakeNoSenseAreNotMet) {
  for (const PagePool& pool : {fixed_pool(1000), make_pool(0, 0)}) {
    const Allocator allocator = pool.allocator();
    for (std::size_t bytes : {std::size_t(0), (std::size_t(1) << 46) + 1, std::numeric_limits<std::size_t>::max(),
                              std::numeric_limits<std::size_t>::max() / 2, std::size_t(1) << 63})
      EXPECT_EQ(allocator.allocate(allocator.context, bytes), nullptr) << bytes;
    EXPECT_EQ(pool.bytes(), 0);
  }
}

TEST(PagePool, OptionsThatMakeNoSenseAreNamed) {
  constexpr Index greatest = std::numeric_limits<Index>::max(), least = std::numeric_limits<Index>::min();
  const Index bookkeeping = PagePool::reserve_for(0);
  const auto error = [](Index budget, Index reserve) { return PagePool::create({budget, reserve, {}}).status(); };
  for (Index budget : {Index(-1), least, Index(1), bookkeeping - 1})
    expect_error(error(budget, 0), ErrorCode::invalid_argument, "options: budget is ");
  for (Index reserve : {Index(-1), least, Index(1), bookkeeping - 1, (Index(1) << 46) + 1, greatest})
    for (Index budget : {Index(0), greatest})
      expect_error(error(budget, reserve), ErrorCode::invalid_argument, "options: reserve is ");
  EXPECT_STREQ(error(100000, 100001).message(), "options: reserve is 100001; use at most the budget, 100000");
  const std::string number = std::to_string(bookkeeping);
  EXPECT_EQ(error(7, 0).message(),
            "options: budget is 7; use 0 for no limit, or at least " + number + ", which bookkeeping takes");
  EXPECT_EQ(error(0, 7).message(),
            "options: reserve is 7; use 0 for none, or " + number + ", which bookkeeping takes, to 2^46");
  Allocator null;
  null.allocate = nullptr;
  EXPECT_STREQ(PagePool::create({0, 0, null}).status().message(), "options: allocator has a null function");
  null = {};
  null.deallocate = nullptr;
  EXPECT_STREQ(PagePool::create({0, 0, null}).status().message(), "options: allocator has a null function");
}

TEST(PagePool, NoMemoryForTheReserveIsAnError) {
  CountingAllocator caller;
  caller.fail_at = 0;
  const Result<PagePool> pool = PagePool::create({0, 100000, caller.allocator()});
  ASSERT_FALSE(pool.ok());
  EXPECT_EQ(pool.status().code(), ErrorCode::out_of_memory);
  EXPECT_STREQ(pool.status().message(), "create: no memory for a reserve of 100000 bytes");
}

TEST(PagePool, AMovedPoolLeavesNoMemory) {
  CountingAllocator caller, other;
  PagePool pool = fixed_pool(1000, caller.allocator());
  PagePool to = std::move(pool);
  EXPECT_EQ(to.taken(), caller.bytes);
  EXPECT_EQ(pool.taken(), 0);
  EXPECT_EQ(pool.bytes(), 0);
  EXPECT_EQ(pool.budget(), 0);
  EXPECT_FALSE(has_room(pool, 1));
  EXPECT_TRUE(has_room(to, 1000));
  to = fixed_pool(2000, other.allocator());
  EXPECT_EQ(caller.bytes, 0);
  EXPECT_TRUE(has_room(to, 2000));
  pool = std::move(to);
  EXPECT_TRUE(has_room(pool, 2000));
  PagePool& itself = pool;
  pool = std::move(itself);
  EXPECT_TRUE(has_room(pool, 2000));
}

TEST(PagePool, AShrunkBlockKeepsItsBytesAndLeavesRoom) {
  constexpr Index header = SharedBuffer::header_bytes;
  const PagePool pool = fixed_pool(64 * 10);
  SharedBuffer block;
  ASSERT_TRUE(block.allocate(64 * 10 - header, pool.allocator()));
  fill(block.data(), 64 * 10 - header, 3);
  unsigned char* const data = block.data();
  EXPECT_FALSE(has_room(pool, 1));
  EXPECT_TRUE(block.shrink(64 * 9 + 1 - header));  // of the last 64 one is left
  EXPECT_FALSE(has_room(pool, 1));
  EXPECT_TRUE(block.shrink(64 * 3 - header));
  EXPECT_EQ(block.bytes(), 64 * 3 - header);
  EXPECT_EQ(pool.bytes(), 64 * 3);
  EXPECT_EQ(block.data(), data);
  EXPECT_TRUE(filled(block.data(), 64 * 3 - header, 3));
  EXPECT_TRUE(has_room(pool, 64 * 7));
  block = SharedBuffer();
  EXPECT_EQ(pool.bytes(), 0);
  EXPECT_TRUE(has_room(pool, 64 * 10));
}

TEST(PagePool, ABlockOfAnAllocatorThatCannotShrinkStaysAsItIs) {
  CountingAllocator caller;
  const PagePool outside = make_pool(0, 0, caller.allocator());
  for (const Allocator& allocator : {Allocator(), caller.allocator(), outside.allocator()}) {
    SharedBuffer block;
    ASSERT_TRUE(block.allocate(100, allocator));
    fill(block.data(), 100, 1);
    EXPECT_FALSE(block.shrink(50));
    EXPECT_EQ(block.bytes(), 100);
    EXPECT_TRUE(filled(block.data(), 100, 1));
  }
  EXPECT_EQ(outside.taken(), caller.bytes);
}

CacheOptions options_of(const PagePool& pool) {
  CacheOptions options;
  options.allocator = pool.allocator();
  return options;
}

TEST(PagePool, AFixedPoolAsksForMemoryOnce) {
  CountingAllocator caller;
  const Tokens tokens(900, 1);
  const AsymKVPolicy policy = *AsymKVPolicy::parse("k2v1", 1);
  const long before = heap_requests();
  {
    const PagePool pool = fixed_pool(1200000, caller.allocator());
    Result<AsymKVCache> first = AsymKVCache::create(kShape, policy, options_of(pool));
    Result<AsymKVCache> second = AsymKVCache::create(kShape, policy, options_of(pool));
    ASSERT_TRUE(first.ok() && second.ok());
    for (AsymKVCache* cache : {&*first, &*second, &*first}) {
      append_in_chunks(*cache, tokens, 0, 900, 70);
      EXPECT_EQ(pool.bytes(), first->bytes().total() + second->bytes().total());
      if (cache == &*second) first->clear();
    }
    EXPECT_FALSE(has_room(pool, 1200000));
    EXPECT_EQ(pool.taken(), pool.budget());
  }
  EXPECT_EQ(caller.calls, 1);
  EXPECT_EQ(caller.bytes, 0);
  EXPECT_LE(heap_requests() - before, 1);  // that of `caller`
}

TEST(PagePool, ACacheThatFindsThePoolFullStaysAsItWas) {
  for (const char* policy : {"k2v1", "KIVI-2@1", "k4v16"}) {
    const PagePool pool = fixed_pool(1100000);
    const Tokens tokens(4000, 1);
    AsymKVCache first = make_cache(policy, options_of(pool)), second = make_cache(policy, options_of(pool));
    append_in_chunks(first, tokens, 0, 600, 100);
    Index length = 0;
    std::vector<std::uint32_t> seen;
    std::vector<unsigned char> sealed;
    CacheBytes bytes;
    Status status;
    for (; length < 4000; length += 100) {
      status = try_append(second, tokens, length, 100);
      if (!status.ok()) break;
      seen = everything_seen(second), sealed = sealed_bytes(second), bytes = second.bytes();
    }
    expect_error(status, ErrorCode::out_of_memory, "append: no memory for 100 more tokens of layer 0");
    ASSERT_GE(length, 200) << policy;
    EXPECT_EQ(everything_seen(second), seen) << policy;
    EXPECT_EQ(sealed_bytes(second), sealed) << policy;
    EXPECT_EQ(second.bytes().total() - second.bytes().tables, bytes.total() - bytes.tables) << policy;
    EXPECT_EQ(pool.bytes(), first.bytes().total() + second.bytes().total()) << policy;
    first.clear();
    append(second, tokens, length, 100);
    AsymKVCache plain = make_cache(policy);
    append_in_chunks(plain, tokens, 0, length + 100, 100);
    EXPECT_EQ(everything_seen(second), everything_seen(plain)) << policy;
    EXPECT_EQ(sealed_bytes(second), sealed_bytes(plain)) << policy;
  }
}

TEST(PagePool, ACacheFindsNoRoomInAPoolThatIsTooSmall) {
  const PagePool pool = fixed_pool(64);
  const Result<AsymKVCache> cache = AsymKVCache::create(kShape, *AsymKVPolicy::parse("k2v1", 1), options_of(pool));
  EXPECT_EQ(cache.status().code(), ErrorCode::out_of_memory);
  EXPECT_EQ(pool.bytes(), 0);
}

TEST(PagePool, CachesMayOutliveThePool) {
  const Tokens tokens(800, 1);
  AsymKVCache plain = make_cache("k2v1");
  append_in_chunks(plain, tokens, 0, 800, 100);
  for (Index reserve : {PagePool::reserve_for(1200000), Index(0)}) {
    CountingAllocator caller;
    {
      std::optional<PagePool> pool(make_pool(0, reserve, caller.allocator()));
      AsymKVCache first = make_cache("k2v1", options_of(*pool));
      std::optional<AsymKVCache> second(make_cache("k2v1", options_of(*pool)));
      append_in_chunks(first, tokens, 0, 400, 100);
      append_in_chunks(*second, tokens, 0, 400, 100);
      const Index taken = pool->taken();
      pool.reset();
      EXPECT_EQ(caller.bytes, taken);
      second.reset();
      append_in_chunks(first, tokens, 400, 800, 100);
      EXPECT_EQ(everything_seen(first), everything_seen(plain));
      EXPECT_GT(caller.bytes, 0);
    }
    EXPECT_EQ(caller.bytes, 0);
  }
}

TEST(PagePool, APoolThatHandedOutNothingGivesItsMemoryBack) {
  CountingAllocator caller;
  for (Index reserve : {Index(0), Index(100000)}) {
    EXPECT_GT(make_pool(0, reserve, caller.allocator()).taken(), 0);
    EXPECT_EQ(caller.bytes, 0);
  }
  EXPECT_EQ(caller.calls, 2);
}

/// A block that threads pass on to each other.
struct Slot {
  std::mutex mutex;
  SharedBuffer block;
  unsigned seed = 0;
};

/// Puts blocks into slots, shrinks them, and takes them out; counts bytes that were not as they were left.
Index use_slots(std::array<Slot, 24>& slots, const Allocator& allocator, unsigned seed) {
  std::mt19937 random(seed);
  Index spoilt = 0;
  for (int step = 0; step < 4000; ++step) {
    Slot& slot = slots[random() % slots.size()];
    const std::lock_guard<std::mutex> lock(slot.mutex);
    if (slot.block.bytes() == 0) {
      slot.seed = unsigned(random());
      if (slot.block.allocate(random_bytes(random), allocator)) fill(slot.block.data(), slot.block.bytes(), slot.seed);
      continue;
    }
    spoilt += !filled(slot.block.data(), slot.block.bytes(), slot.seed);
    if (random() % 3 > 0 || slot.block.bytes() < 2)
      slot.block = SharedBuffer();
    else
      static_cast<void>(slot.block.shrink(slot.block.bytes() / 2));
  }
  return spoilt;
}

TEST(PagePool, ThreadsShareIt) {
  constexpr Index room = 60032;
  ShrinkingAllocator caller;  // neither locks nor counts atomically
  std::array<Slot, 24> slots;
  std::optional<PagePool> pool(
      make_pool(PagePool::reserve_for(room) + 100000, PagePool::reserve_for(room), caller.allocator()));
  std::array<Index, 4> spoilt{};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < spoilt.size(); ++i)
    threads.emplace_back([&, i] { spoilt[i] = use_slots(slots, pool->allocator(), i); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(spoilt, (std::array<Index, 4>{}));
  Index bytes = 0;
  for (const Slot& slot : slots)
    if (slot.block.bytes() > 0) bytes += SharedBuffer::header_bytes + slot.block.bytes();
  EXPECT_GT(bytes, 0);
  EXPECT_EQ(pool->bytes(), bytes);
  EXPECT_EQ(pool->taken(), caller.bytes);
  for (Slot& slot : slots) slot.block = SharedBuffer();
  EXPECT_EQ(pool->taken(), PagePool::reserve_for(room));
  EXPECT_TRUE(has_room(*pool, room));
  pool.reset();
  EXPECT_EQ(caller.bytes, 0);
}

TEST(PagePool, TheLastOfSeveralThreadsFreesIt) {
  for (int round = 0; round < 50; ++round) {
    CountingAllocator caller;
    std::array<Buffer, 3> blocks;
    std::optional<PagePool> pool(fixed_pool(1000, caller.allocator()));
    for (Buffer& block : blocks) ASSERT_TRUE(block.allocate(300, pool->allocator()));
    std::vector<std::thread> threads;
    for (Buffer& block : blocks) threads.emplace_back([&block] { block = Buffer(); });
    pool.reset();
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(caller.bytes, 0);
  }
}

TEST(PagePool, CachesOnSeveralThreadsSeeWhatOneAloneSees) {
  const Tokens tokens(700, 1);
  AsymKVCache plain = make_cache("k2v1");
  append_in_chunks(plain, tokens, 0, 700, 50);
  const std::vector<std::uint32_t> expected = everything_seen(plain);
  CountingAllocator caller;
  {
    const PagePool pool = make_pool(4000000, 200000, caller.allocator());
    std::array<std::vector<std::uint32_t>, 3> seen;
    std::vector<std::thread> threads;
    for (std::vector<std::uint32_t>& of : seen)
      threads.emplace_back([&] {
        AsymKVCache cache = make_cache("k2v1", options_of(pool));
        for (int round = 0; round < 3; ++round) {
          cache.clear();
          append_in_chunks(cache, tokens, 0, 700, 50);
        }
        of = everything_seen(cache);
      });
    for (std::thread& thread : threads) thread.join();
    for (const std::vector<std::uint32_t>& of : seen) EXPECT_EQ(of, expected);
    EXPECT_EQ(pool.bytes(), 0);
  }
  EXPECT_EQ(caller.bytes, 0);
}

}  // namespace
