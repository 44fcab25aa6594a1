// heap_count.cpp: counts every request to the heap by standing in front of malloc and its relatives; operator new,
// Eigen and std::aligned_alloc all end there. Where a sanitizer stands there already, it counts for us.
#include "support/heap_count.hpp"

#include <dlfcn.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ASYMKV_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ASYMKV_SANITIZED 1
#endif
#endif

namespace {

std::atomic<long> requests{0};

}  // namespace

long support::heap_requests() { return requests.load(); }

#if defined(ASYMKV_SANITIZED)

// of sanitizer/allocator_interface.h, which GCC does not install
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, std::size_t),
                                                         void (*on_free)(const volatile void*));

namespace {

[[maybe_unused]] const int installed = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t) { ++requests; }, [](const volatile void*) {});

}  // namespace

#else

namespace {

/// The C library's own function.
template <class Function>
Function* behind(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

void* malloc(std::size_t bytes) noexcept {
  static auto* const next = behind<void*(std::size_t)>("malloc");
  ++requests;
  return next(bytes);
}

void* calloc(std::size_t count, std::size_t bytes) noexcept {
  static auto* const next = behind<void*(std::size_t, std::size_t)>("calloc");
  ++requests;
  return next(count, bytes);
}

void* realloc(void* memory, std::size_t bytes) noexcept {
  static auto* const next = behind<void*(void*, std::size_t)>("realloc");
  ++requests;
  return next(memory, bytes);
}

void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  static auto* const next = behind<void*(std::size_t, std::size_t)>("aligned_alloc");
  ++requests;
  return next(alignment, bytes);
}

int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
  static auto* const next = behind<int(void**, std::size_t, std::size_t)>("posix_memalign");
  ++requests;
  return next(memory, alignment, bytes);
}

}  // extern "C"

#endif
