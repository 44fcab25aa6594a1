// memory.hpp: memory of a cache. Everything comes from the caller's Allocator; Buffer and Array own it, report their
// exact bytes, and say by false, not by a throw, that there was none.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "asymkv/scalar.hpp"

ASYMKV_NAMESPACE_BEGIN

namespace detail {

constexpr std::size_t huge_page = std::size_t(1) << 21;

/// Blocks of 2 MiB and more begin at a multiple of that, and Linux is asked to back its whole multiples with huge
/// pages: reading such a block takes fewer translations of addresses.
inline void* allocate_aligned(std::size_t bytes) noexcept {
  void* memory = nullptr;
  if (posix_memalign(&memory, bytes < huge_page ? 64 : huge_page, bytes) != 0) return nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= huge_page) madvise(memory, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace detail

/// Where a cache gets its memory. allocate returns `bytes` bytes aligned to 64, or null; deallocate gets the same
/// pointer and size back. shrink, which may be null, gives the end of a block back, which has `fewer` bytes from then
/// on, 0 < fewer < bytes, at the same place; false, and nothing changed, where that cannot be done. All are called with
/// `context`, from the thread that calls the cache; where forks of a cache live on several threads, from any of them,
/// and until the last of them is gone. The default is posix_memalign and free; from 2 MiB on it aligns to 2 MiB and
/// advises Linux to use huge pages, advice that addresses keep when they go back to the heap.
struct Allocator {
  void* (*allocate)(void* context, std::size_t bytes) = [](void*, std::size_t bytes) -> void* {
    return detail::allocate_aligned(bytes);
  };
  void (*deallocate)(void* context, void* memory, std::size_t bytes) = [](void*, void* memory, std::size_t) {
    std::free(memory);
  };
  void* context = nullptr;
  bool (*shrink)(void* context, void* memory, std::size_t bytes, std::size_t fewer) = nullptr;
};

/// Block of bytes, 64-byte aligned; moves, does not copy.
class Buffer {
 public:
  Buffer() noexcept = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) allocator_.deallocate(allocator_.context, data_, std::size_t(bytes_));
  }

  /// Replaces the block by one of `bytes` zeros; false, and nothing changed, if there is no memory. 0 frees.
  [[nodiscard]] bool allocate(Index bytes, const Allocator& allocator) noexcept {
    if (!allocate_unset(bytes, allocator)) return false;
    if (bytes > 0) std::memset(data_, 0, std::size_t(bytes));
    return true;
  }
  /// The same of bytes of any value.
  [[nodiscard]] bool allocate_unset(Index bytes, const Allocator& allocator) noexcept {
    Buffer fresh;
    fresh.allocator_ = allocator;
    if (bytes > 0) {
      fresh.data_ = static_cast<unsigned char*>(allocator.allocate(allocator.context, std::size_t(bytes)));
      if (fresh.data_ == nullptr) return false;
      fresh.bytes_ = bytes;
    }
    swap(fresh);
    return true;
  }

  unsigned char* data() noexcept { return data_; }
  const unsigned char* data() const noexcept { return data_; }
  Index bytes() const noexcept { return bytes_; }
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(allocator_, other.allocator_);
  }

 private:
  unsigned char* data_ = nullptr;
  Index bytes_ = 0;
  Allocator allocator_{};
};

/// Growable array of T over a Buffer.
template <class T>
class Array {
 public:
  Array() noexcept = default;
  Array(Array&& other) noexcept { swap(other); }
  Array& operator=(Array&& other) noexcept {
    Array taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Array() { shrink(0); }

  /// Makes room for `count` elements in all; false, and nothing changed, if there is no memory.
  [[nodiscard]] bool reserve(Index count, const Allocator& allocator) noexcept {
    if (count <= capacity()) return true;
    Buffer fresh;
    if (!fresh.allocate(count * Index(sizeof(T)), allocator)) return false;
    T* to = reinterpret_cast<T*>(fresh.data());
    for (Index i = 0; i < size_; ++i) {
      new (to + i) T(std::move((*this)[i]));
      (*this)[i].~T();
    }
    memory_.swap(fresh);
    return true;
  }
  /// Appends; requires size() < capacity().
  void push(T&& value) noexcept { new (begin() + size_++) T(std::move(value)); }
  /// Destroys the elements from `count` on.
  void shrink(Index count) noexcept {
    while (size_ > count) (*this)[--size_].~T();
  }
  /// Destroys the first `count` elements; the others move to the front.
  void erase_front(Index count) noexcept {
    if (count == 0) return;
    for (Index i = count; i < size_; ++i) (*this)[i - count] = std::move((*this)[i]);
    shrink(size_ - count);
  }
  /// Destroys all elements and gives the memory back.
  void reset() noexcept {
    shrink(0);
    memory_ = Buffer();
  }

  Index size() const noexcept { return size_; }
  Index capacity() const noexcept { return memory_.bytes() / Index(sizeof(T)); }
  Index bytes() const noexcept { return memory_.bytes(); }
  T* begin() noexcept { return reinterpret_cast<T*>(memory_.data()); }
  T* end() noexcept { return begin() + size_; }
  const T* begin() const noexcept { return reinterpret_cast<const T*>(memory_.data()); }
  const T* end() const noexcept { return begin() + size_; }
  T& operator[](Index i) noexcept { return begin()[i]; }
  const T& operator[](Index i) const noexcept { return begin()[i]; }
  T& back() noexcept { return begin()[size_ - 1]; }
  const T& back() const noexcept { return begin()[size_ - 1]; }

 private:
  void swap(Array& other) noexcept {
    memory_.swap(other.memory_);
    std::swap(size_, other.size_);
  }
  Buffer memory_;
  Index size_ = 0;
};

ASYMKV_NAMESPACE_END
