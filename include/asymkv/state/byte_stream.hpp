// byte_stream.hpp: where saved state goes to and comes from: a file, a socket, memory. Functions of the caller, as
// Allocator's are; MemorySource is one that needs no caller. Used by what writes and reads state.
#pragma once

#include "asymkv/scalar.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Takes bytes. write is called with `context` and `bytes` >= 1 bytes, in the order of the stream; it takes them all,
/// or returns false (a full disk), and is not called again then. It must not throw, nor call the library.
struct ByteSink {
  bool (*write)(void* context, const void* data, Index bytes) = nullptr;
  void* context = nullptr;
};

/// Gives bytes. read is called with `context` and fills all of `bytes` >= 1 bytes with the next of the stream, or
/// returns false (its end, an error), whatever data holds then, and is not called again. It must not throw, nor call
/// the library.
struct ByteSource {
  bool (*read)(void* context, void* data, Index bytes) = nullptr;
  void* context = nullptr;
};

/// Reads from memory, say a mapped file, which stays the caller's and must not change meanwhile.
class MemorySource {
 public:
  /// `bytes` >= 0; data may be null for 0.
  MemorySource(const void* data, Index bytes) noexcept
      : next_(static_cast<const unsigned char*>(data)), remaining_(bytes) {}

  /// Reads on from where reading ended; holds as long as this stays where it is.
  ByteSource source() noexcept {
    return {[](void* self, void* data, Index bytes) { return static_cast<MemorySource*>(self)->read(data, bytes); },
            this};
  }
  /// Bytes not yet read. A read of more than these reads none.
  Index remaining() const noexcept { return remaining_; }

 private:
  bool read(void* data, Index bytes) noexcept {
    if (bytes > remaining_) return false;
    std::memcpy(data, next_, std::size_t(bytes));
    next_ += bytes;
    remaining_ -= bytes;
    return true;
  }

  const unsigned char* next_;
  Index remaining_;
};

ASYMKV_NAMESPACE_END
