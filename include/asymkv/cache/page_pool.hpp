// page_pool.hpp: one byte budget for the caches of many sequences, which get their memory through the pool's allocator.
// Used by engines that serve several sequences, and by those that want all of a cache's memory taken beforehand.
#pragma once

#include <algorithm>
#include <atomic>
#include <mutex>

#include "asymkv/memory.hpp"
#include "asymkv/status.hpp"

ASYMKV_NAMESPACE_BEGIN

/// How much memory a PagePool may take, how much of it at once, and where from.
struct PagePoolOptions {
  /// Most bytes that the pool holds from `allocator` at any time, bookkeeping included; 0 for no limit.
  Index budget = 0;
  /// Bytes taken at creation as one block and kept, 0..2^46. PagePool::reserve_for says how many some blocks need. The
  /// budget itself: no more memory is taken ever. Less: blocks for which the reserve has no room come one by one from
  /// `allocator` while the budget lasts. 0: all do, and the pool is its bookkeeping alone.
  Index reserve = 0;
  /// Must outlive the pool and all that it handed out. Calls come one at a time, from any thread that uses the pool.
  Allocator allocator = {};
};

namespace detail {

constexpr Index pool_granule = 64;  ///< alignment, and unit of size, of the blocks of a pool
constexpr Index pool_limit = Index(1) << 46;

constexpr Index pool_granules(Index bytes) noexcept { return (bytes + pool_granule - 1) / pool_granule; }

/// Memory in blocks of whole granules; a block that comes back merges with free neighbours. Blocks in use have no
/// headers, since their size comes back with them. Free ones have their size in the first and in the last granule, and
/// one bit a granule marks these two: all that merging asks of a neighbour, and it costs 1/512 of the memory.
class PoolArena {
 public:
  static constexpr Index edge_words(Index granules) noexcept { return granules / 64 + 1; }

  /// `edges` has edge_words(granules) words.
  PoolArena(unsigned char* memory, Index granules, std::uint64_t* edges) noexcept
      : memory_(memory), granules_(granules), edges_(edges) {
    std::memset(edges_, 0, std::size_t(edge_words(granules)) * sizeof *edges_);
    if (granules > 0) insert(0, granules);
  }
  PoolArena(const PoolArena&) = delete;
  PoolArena& operator=(const PoolArena&) = delete;

  unsigned char* memory() const noexcept { return memory_; }
  Index granules() const noexcept { return granules_; }
  bool contains(const void* block) const noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(block), first = reinterpret_cast<std::uintptr_t>(memory_);
    return address >= first && address - first < std::uintptr_t(granules_ * pool_granule);
  }

  /// The front of a free block, or null where none has so many granules.
  unsigned char* take(Index granules) noexcept {
    FreeBlock* const block = find(granules);
    if (block == nullptr) return nullptr;
    const Index first = granule_of(block), rest = block->granules - granules;
    remove(block);
    if (rest > 0) insert(first + granules, rest);
    return address(first);
  }

  /// A block that was taken, or the end of one.
  void give(const unsigned char* block, Index granules) noexcept {
    Index first = granule_of(block), end = first + granules;
    if (first > 0 && edge(first - 1)) {
      first -= size_before(first);
      remove(free_block(first));
    }
    if (edge(end)) {
      FreeBlock* const next = free_block(end);
      end += next->granules;
      remove(next);
    }
    insert(first, end - first);
  }

 private:
  struct FreeBlock {
    Index granules;
    FreeBlock* next;
    FreeBlock* previous;
  };

  /// Below 16 granules a class for each size, above 16 between powers of two.
  static int size_class(Index granules) noexcept {
    if (granules < 16) return int(granules);
    const int exponent = 63 - __builtin_clzll(static_cast<unsigned long long>(granules));
    return (exponent - 3) * 16 + int(granules >> (exponent - 4) & 15);
  }

  /// A block of the same class first, since caches ask for the same sizes again, but not behind many that are too
  /// small; any block of a greater class fits.
  FreeBlock* find(Index granules) const noexcept {
    const int own = size_class(granules);
    if (FreeBlock* block = find_in(own, granules, 16)) return block;
    if (FreeBlock* block = first_above(own)) return block;
    return find_in(own, granules, granules_);
  }
  FreeBlock* find_in(int size_class, Index granules, Index tries) const noexcept {
    FreeBlock* block = lists_[size_class];
    while (block != nullptr && block->granules < granules) block = --tries > 0 ? block->next : nullptr;
    return block;
  }
  FreeBlock* first_above(int size_class) const noexcept {
    const int from = size_class + 1;
    std::uint64_t word = filled_[from / 64] >> from % 64 << from % 64;
    for (int i = from / 64;; word = filled_[i]) {
      if (word != 0) return lists_[i * 64 + __builtin_ctzll(word)];
      if (++i == class_words) return nullptr;
    }
  }

  void insert(Index first, Index granules) noexcept {
    const int at = size_class(granules);
    FreeBlock* const block = new (address(first)) FreeBlock{granules, lists_[at], nullptr};
    if (block->next != nullptr) block->next->previous = block;
    lists_[at] = block;
    filled_[at / 64] |= std::uint64_t(1) << at % 64;
    std::memcpy(address(first + granules) - sizeof granules, &granules, sizeof granules);
    set_edge(first);
    set_edge(first + granules - 1);
  }
  void remove(FreeBlock* block) noexcept {
    const int at = size_class(block->granules);
    (block->previous != nullptr ? block->previous->next : lists_[at]) = block->next;
    if (block->next != nullptr) block->next->previous = block->previous;
    if (lists_[at] == nullptr) filled_[at / 64] &= ~(std::uint64_t(1) << at % 64);
    clear_edge(granule_of(block));
    clear_edge(granule_of(block) + block->granules - 1);
  }

  unsigned char* address(Index granule) const noexcept { return memory_ + granule * pool_granule; }
  Index granule_of(const void* block) const noexcept {
    return (static_cast<const unsigned char*>(block) - memory_) / pool_granule;
  }
  FreeBlock* free_block(Index granule) const noexcept { return reinterpret_cast<FreeBlock*>(address(granule)); }
  Index size_before(Index granule) const noexcept {
    Index granules;
    std::memcpy(&granules, address(granule) - sizeof granules, sizeof granules);
    return granules;
  }
  bool edge(Index granule) const noexcept { return edges_[granule / 64] >> granule % 64 & 1; }
  void set_edge(Index granule) noexcept { edges_[granule / 64] |= std::uint64_t(1) << granule % 64; }
  void clear_edge(Index granule) noexcept { edges_[granule / 64] &= ~(std::uint64_t(1) << granule % 64); }

  static constexpr int class_words = 10;  ///< 608 classes reach pool_limit

  unsigned char* const memory_;
  const Index granules_;
  std::uint64_t* const edges_;
  std::uint64_t filled_[class_words] = {};  ///< a bit for each class that has blocks
  FreeBlock* lists_[class_words * 64] = {};
};

/// What the blocks of a pool share. It lies behind the arena in the pool's first block, and lives until the pool and
/// all blocks are gone.
class PoolState {
 public:
  /// Bytes of bookkeeping in a first block of so many.
  static constexpr Index bookkeeping(Index reserve) noexcept {
    const Index edges = PoolArena::edge_words(reserve / pool_granule) * Index(sizeof(std::uint64_t));
    return state_bytes() + pool_granules(edges) * pool_granule;
  }

  /// Null where there is no memory. `reserve` is at least its bookkeeping.
  static PoolState* create(Index budget, Index reserve, const Allocator& allocator) noexcept {
    void* const memory = allocator.allocate(allocator.context, std::size_t(reserve));
    if (memory == nullptr) return nullptr;
    const Index granules = (reserve - bookkeeping(reserve)) / pool_granule;
    unsigned char* const first = static_cast<unsigned char*>(memory);
    return new (first + granules * pool_granule) PoolState(first, granules, budget, reserve, allocator);
  }
  PoolState(const PoolState&) = delete;
  PoolState& operator=(const PoolState&) = delete;

  void* allocate(std::size_t bytes) noexcept {
    if (bytes == 0 || bytes > std::size_t(pool_limit)) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    void* block = arena_.take(pool_granules(Index(bytes)));
    if (block == nullptr) block = allocate_outside(bytes);
    if (block == nullptr) return nullptr;
    bytes_ += Index(bytes);
    references_.fetch_add(1, std::memory_order_relaxed);
    return block;
  }

  void deallocate(void* block, std::size_t bytes) noexcept {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      bytes_ -= Index(bytes);
      if (arena_.contains(block)) {
        arena_.give(static_cast<unsigned char*>(block), pool_granules(Index(bytes)));
      } else {
        taken_ -= Index(bytes);
        allocator_.deallocate(allocator_.context, block, bytes);
      }
    }
    release();
  }

  bool shrink(void* block, std::size_t bytes, std::size_t fewer) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (arena_.contains(block)) {
      const Index granules = pool_granules(Index(bytes)), kept = pool_granules(Index(fewer));
      if (kept < granules) arena_.give(static_cast<unsigned char*>(block) + kept * pool_granule, granules - kept);
    } else {
      if (allocator_.shrink == nullptr || !allocator_.shrink(allocator_.context, block, bytes, fewer)) return false;
      taken_ -= Index(bytes - fewer);
    }
    bytes_ -= Index(bytes - fewer);
    return true;
  }

  /// Whether there are blocks that shrink.
  bool can_shrink() const noexcept { return arena_.granules() > 0 || allocator_.shrink != nullptr; }

  /// The pool, or a block, is gone. Not under the lock, which goes with the last of them.
  void release() noexcept {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    const Allocator allocator = allocator_;
    void* const memory = arena_.memory();
    const std::size_t reserve = std::size_t(reserve_);
    this->~PoolState();
    allocator.deallocate(allocator.context, memory, reserve);
  }

  Index budget() const noexcept { return budget_; }
  Index taken() const noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    return taken_;
  }
  Index bytes() const noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  static constexpr Index state_bytes() noexcept { return pool_granules(sizeof(PoolState)) * pool_granule; }

  PoolState(unsigned char* memory, Index granules, Index budget, Index reserve, const Allocator& allocator) noexcept
      : budget_(budget),
        reserve_(reserve),
        allocator_(allocator),
        taken_(reserve),
        arena_(memory, granules, reinterpret_cast<std::uint64_t*>(memory + granules * pool_granule + state_bytes())) {}
  ~PoolState() = default;

  void* allocate_outside(std::size_t bytes) noexcept {
    if (budget_ > 0 && Index(bytes) > budget_ - taken_) return nullptr;
    void* const block = allocator_.allocate(allocator_.context, bytes);
    if (block != nullptr) taken_ += Index(bytes);
    return block;
  }

  const Index budget_;
  const Index reserve_;
  const Allocator allocator_;
  std::atomic<Index> references_{1};  ///< the pool, and each block
  mutable std::mutex mutex_;          ///< of what follows, and of calls of allocator_
  Index taken_;
  Index bytes_ = 0;
  PoolArena arena_;
};

}  // namespace detail

/// Memory of many sequences' caches: `CacheOptions::allocator = pool.allocator()`. A block that the pool has no room
/// for is not handed out: the cache answers out_of_memory and stays as it was, until another is cleared or trimmed. Out
/// of the reserve blocks come in constant time, or nearly, and merge when they come back; one that fits between those
/// in use is found. Caches on different threads may share a pool; they may outlive it, since its memory goes back with
/// the last of its blocks. Moves, does not copy; a pool that was moved from has no memory.
class PagePool {
 public:
  /// Errors: invalid_argument (options), out_of_memory.
  static Result<PagePool> create(const PagePoolOptions& options) noexcept {
    if (Status status = check(options); !status.ok()) return status;
    const Index reserve = std::max(options.reserve, reserve_for(0));
    detail::PoolState* const state = detail::PoolState::create(options.budget, reserve, options.allocator);
    if (state == nullptr)
      return Status::error(ErrorCode::out_of_memory, "create: no memory for a reserve of %lld bytes", number(reserve));
    return PagePool(state);
  }

  PagePool(PagePool&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  PagePool& operator=(PagePool&& other) noexcept {
    PagePool moved(std::move(other));
    std::swap(state_, moved.state_);
    return *this;
  }
  ~PagePool() {
    if (state_ != nullptr) state_->release();
  }

  /// Bytes of the reserve that a block of `bytes` bytes, 1..2^46, takes: whole multiples of 64, nothing else.
  static constexpr Index block_bytes(Index bytes) noexcept {
    return detail::pool_granules(bytes) * detail::pool_granule;
  }
  /// The least reserve with room for blocks of `bytes` bytes in all, 0..2^45, as block_bytes counts them. Blocks of
  /// several sizes that come and go leave gaps between them, which need more.
  static constexpr Index reserve_for(Index bytes) noexcept {
    Index reserve = block_bytes(bytes);
    for (;;) {
      const Index next = block_bytes(bytes) + detail::PoolState::bookkeeping(reserve);
      if (next == reserve) return reserve;
      reserve = next;
    }
  }

  /// Valid as long as the pool, or a block that came from it; a cache has blocks as long as it lives. Null blocks alone
  /// of a pool that was moved from. shrink succeeds in the reserve; outside it does what the caller's allocator does.
  Allocator allocator() const noexcept {
    Allocator allocator;
    allocator.context = state_;
    allocator.allocate = [](void* state, std::size_t bytes) -> void* {
      return state != nullptr ? static_cast<detail::PoolState*>(state)->allocate(bytes) : nullptr;
    };
    allocator.deallocate = [](void* state, void* block, std::size_t bytes) {
      static_cast<detail::PoolState*>(state)->deallocate(block, bytes);
    };
    if (state_ != nullptr && state_->can_shrink())
      allocator.shrink = [](void* state, void* block, std::size_t bytes, std::size_t fewer) {
        return static_cast<detail::PoolState*>(state)->shrink(block, bytes, fewer);
      };
    return allocator;
  }

  /// Bytes in use, as asked for: the sum of bytes().total() of caches without forks.
  Index bytes() const noexcept { return state_ != nullptr ? state_->bytes() : 0; }
  /// Bytes held from the caller's allocator: the reserve, and blocks outside of it. Never more than the budget.
  Index taken() const noexcept { return state_ != nullptr ? state_->taken() : 0; }
  /// As given to create(); 0 for no limit.
  Index budget() const noexcept { return state_ != nullptr ? state_->budget() : 0; }

 private:
  explicit PagePool(detail::PoolState* state) noexcept : state_(state) {}

  static long long number(Index i) noexcept { return static_cast<long long>(i); }

  static Status check(const PagePoolOptions& options) noexcept {
    const Index least = reserve_for(0);
    if (options.allocator.allocate == nullptr || options.allocator.deallocate == nullptr)
      return Status::error(ErrorCode::invalid_argument, "options: allocator has a null function");
    if (options.budget < 0 || (options.budget > 0 && options.budget < least))
      return Status::error(ErrorCode::invalid_argument,
                           "options: budget is %lld; use 0 for no limit, or at least %lld, which bookkeeping takes",
                           number(options.budget), number(least));
    if (options.reserve < 0 || options.reserve > detail::pool_limit || (options.reserve > 0 && options.reserve < least))
      return Status::error(ErrorCode::invalid_argument,
                           "options: reserve is %lld; use 0 for none, or %lld, which bookkeeping takes, to 2^46",
                           number(options.reserve), number(least));
    if (options.budget > 0 && options.reserve > options.budget)
      return Status::error(ErrorCode::invalid_argument, "options: reserve is %lld; use at most the budget, %lld",
                           number(options.reserve), number(options.budget));
    return {};
  }

  detail::PoolState* state_;
};

ASYMKV_NAMESPACE_END
