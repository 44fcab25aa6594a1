// workers.hpp: a fixed set of threads that run the parts of one job together. Generation splits each matrix product
// over them, evaluation gives each of them windows of the text.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace llm {

class Workers {
 public:
  /// `count` threads, the caller's included; 1 starts none.
  explicit Workers(int count);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int count() const { return int(threads_.size()) + 1; }
  /// Calls part(0) .. part(count()-1) at once and waits for all; rethrows an exception of any. Not reentrant.
  void run(const std::function<void(int)>& part);

 private:
  void serve(int index);
  void run_part(int index);

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> running_{0};
  const std::function<void(int)>* part_ = nullptr;  // null tells the threads to end
  std::exception_ptr error_;
};

}  // namespace llm
