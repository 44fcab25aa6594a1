// workers.cpp: threads wait for a round by yielding for a while, because decoding one token is some hundred rounds of
// a tenth of a millisecond each, in which a sleep and a wake-up would cost as much as the work; then they sleep.
#include "workers.hpp"

namespace llm {
namespace {

constexpr int yields_before_sleep = 2000;

}  // namespace

Workers::Workers(int count) {
  for (int i = 1; i < count; ++i) threads_.emplace_back([this, i] { serve(i); });
}

Workers::~Workers() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    part_ = nullptr;
    ++round_;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Workers::run(const std::function<void(int)>& part) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    part_ = &part;
    error_ = nullptr;
    running_ = count();
    ++round_;
  }
  wake_.notify_all();
  run_part(0);
  for (int i = 0; i < yields_before_sleep && running_ > 0; ++i) std::this_thread::yield();
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return running_ == 0; });
  if (error_) std::rethrow_exception(error_);
}

void Workers::serve(int index) {
  for (unsigned seen = 0;; ++seen) {
    for (int i = 0; i < yields_before_sleep && round_ == seen; ++i) std::this_thread::yield();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_ != seen; });
      if (part_ == nullptr) return;
    }
    run_part(index);
  }
}

void Workers::run_part(int index) {
  try {
    (*part_)(index);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    error_ = std::current_exception();
  }
  if (--running_ > 0) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  done_.notify_one();
}

}  // namespace llm
