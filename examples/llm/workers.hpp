// workers.hpp: the threads of the example: asymkv::ThreadPool, with exceptions. Generation splits each matrix product
// and the attention over them, evaluation gives each of them windows of the text.
#pragma once

#include <asymkv/thread_pool.hpp>
#include <exception>
#include <mutex>

namespace llm {

class Workers {
 public:
  /// `count` threads, the caller's included; 1 starts none. Throws std::runtime_error if they cannot be started.
  explicit Workers(int count);

  int count() const { return int(pool_.threads()); }
  /// Calls part(0) .. part(count()-1) at once and waits for all; rethrows an exception of any. Not reentrant.
  template <class Part>
  void run(const Part& part) const {
    std::exception_ptr error;
    std::mutex mutex;
    pool_(count(), [&](asymkv::Index i) {
      try {
        part(int(i));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  }
  /// For work that throws nothing.
  const asymkv::ThreadPool& pool() const { return pool_; }

 private:
  asymkv::ThreadPool pool_;
};

}  // namespace llm
