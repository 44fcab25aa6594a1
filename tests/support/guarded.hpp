// guarded.hpp: memory that begins or ends at a page that must not be touched, so that one byte too far is a fault.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include "support/support.hpp"

namespace support {

enum class Edge { begin, end };

inline std::size_t whole_pages(std::size_t bytes) {
  const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

/// Whole pages for `bytes` bytes between two forbidden pages.
inline unsigned char* map_guarded(std::size_t bytes) {
  const std::size_t guard = whole_pages(1), inside = whole_pages(bytes);
  void* const memory = mmap(nullptr, inside + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  unsigned char* const begin = static_cast<unsigned char*>(memory) + guard;
  if (mprotect(begin, inside, PROT_READ | PROT_WRITE) != 0) std::abort();
  return begin;
}
inline void unmap_guarded(unsigned char* begin, std::size_t bytes) {
  munmap(begin - whole_pages(1), whole_pages(bytes) + 2 * whole_pages(1));
}

/// A row-major matrix of T whose first element follows, or whose last element precedes, a forbidden page.
template <class T>
class Guarded {
 public:
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  Guarded(Index rows, Index columns, Edge edge)
      : bytes_(std::size_t(rows * columns) * sizeof(T)),
        pages_(map_guarded(bytes_)),
        map_(reinterpret_cast<T*>(edge == Edge::begin ? pages_ : pages_ + whole_pages(bytes_) - bytes_), rows,
             columns) {}
  Guarded(const RowMatrix& x, Edge edge) : Guarded(x.rows(), x.cols(), edge) { map_ = x.cast<T>(); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { unmap_guarded(pages_, bytes_); }

  Eigen::Map<Matrix>& matrix() { return map_; }

 private:
  std::size_t bytes_;
  unsigned char* pages_;
  Eigen::Map<Matrix> map_;
};

inline std::size_t aligned_size(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// Blocks that end at a forbidden page, less what the alignment to 64 bytes takes.
inline Allocator guarded_allocator() {
  Allocator allocator;
  allocator.allocate = [](void*, std::size_t bytes) -> void* {
    return map_guarded(bytes) + whole_pages(bytes) - aligned_size(bytes);
  };
  allocator.deallocate = [](void*, void* block, std::size_t bytes) {
    unmap_guarded(static_cast<unsigned char*>(block) + aligned_size(bytes) - whole_pages(bytes), bytes);
  };
  return allocator;
}

}  // namespace support
