// shared_buffer.hpp: a block of bytes with several owners: sealed pages that forks share, working memory that they use
// in turns. Used by PageTable and Workspace.
#pragma once

#include <atomic>

#include "asymkv/memory.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Block of bytes, 64-byte aligned, that goes back to its allocator with its last owner. A copy is one more owner.
/// Owners may live on several threads, each of which has its own object; who writes must be the only owner.
class SharedBuffer {
 public:
  SharedBuffer() noexcept = default;
  SharedBuffer(const SharedBuffer& other) noexcept : block_(other.block_) {
    if (block_ != nullptr) block_->owners.fetch_add(1, std::memory_order_relaxed);
  }
  SharedBuffer(SharedBuffer&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  SharedBuffer& operator=(SharedBuffer other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~SharedBuffer() {
    if (block_ != nullptr && block_->owners.fetch_sub(1, std::memory_order_acq_rel) == 1) release();
  }

  /// Bytes that the allocator is asked for beside those of the block: number of owners, size and allocator.
  static constexpr Index header_bytes = 64;

  /// Becomes the only owner of a new block of `bytes` > 0 zeros; false, and nothing changed, if there is no memory.
  [[nodiscard]] bool allocate(Index bytes, const Allocator& allocator) noexcept {
    void* const memory = allocator.allocate(allocator.context, std::size_t(header_bytes + bytes));
    if (memory == nullptr) return false;
    *this = SharedBuffer(new (memory) Block(bytes, allocator));
    std::memset(data(), 0, std::size_t(bytes));
    return true;
  }

  /// Gives the end of the block back, which has `bytes` from then on; false, and nothing changed, where the allocator
  /// cannot. Requires the only owner.
  [[nodiscard]] bool shrink(Index bytes) noexcept {
    const Allocator& allocator = block_->allocator;
    if (allocator.shrink == nullptr ||
        !allocator.shrink(allocator.context, block_, std::size_t(header_bytes + this->bytes()),
                          std::size_t(header_bytes + bytes)))
      return false;
    block_->bytes = bytes;
    return true;
  }

  unsigned char* data() const noexcept { return reinterpret_cast<unsigned char*>(block_) + header_bytes; }
  /// Without the header; 0 where there is no block.
  Index bytes() const noexcept { return block_ == nullptr ? 0 : block_->bytes; }
  /// Whether others own the block too. Where not, none can become an owner but through this object.
  bool shared() const noexcept { return block_ != nullptr && block_->owners.load(std::memory_order_acquire) > 1; }

 private:
  struct Block {
    Block(Index size, const Allocator& from) noexcept : bytes(size), allocator(from) {}
    std::atomic<Index> owners{1};
    Index bytes;
    Allocator allocator;
  };
  static_assert(sizeof(Block) <= header_bytes, "the data begins behind the header");

  explicit SharedBuffer(Block* block) noexcept : block_(block) {}
  void release() noexcept {
    const Allocator allocator = block_->allocator;
    const Index size = header_bytes + block_->bytes;
    block_->~Block();
    allocator.deallocate(allocator.context, block_, std::size_t(size));
  }

  Block* block_ = nullptr;
};

ASYMKV_NAMESPACE_END
