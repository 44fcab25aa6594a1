// thread_pool.hpp: threads for KVCache::attend_parallel, for engines that have none of their own. Not part of
// asymkv.hpp: the library itself starts no threads.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "asymkv/status.hpp"
#include "asymkv/tensor.hpp"

ASYMKV_NAMESPACE_BEGIN

/// A fixed set of threads that do tasks together. They wait for the next tasks by yielding for a while, since those of
/// a decode step come some tenths of a millisecond apart and a sleep and a wake-up would cost as much; then they sleep.
/// One call at a time. POSIX threads, since std::thread says by an exception that there are no more; systems whose C
/// library keeps them apart need -pthread.
class ThreadPool {
 public:
  /// `threads` in 1..1024, the caller's included: 1 starts none. Errors: invalid_argument, out_of_memory (also where
  /// the system starts no more threads).
  static Result<ThreadPool> create(Index threads) noexcept {
    if (threads < 1 || threads > 1024)
      return Status::error(ErrorCode::invalid_argument, "threads: is %lld; use 1..1024",
                           static_cast<long long>(threads));
    ThreadPool pool(new (std::nothrow) Shared(threads));
    if (pool.shared_ == nullptr || !pool.shared_->start())
      return Status::error(ErrorCode::out_of_memory, "threads: %lld could not be started",
                           static_cast<long long>(threads));
    return pool;
  }

  Index threads() const noexcept { return shared_->threads; }

  /// Calls task(i) once for each i in [0, count), task i on thread i % threads(), thread 0 being the caller's, and
  /// returns when all calls have. A task must not throw, nor call the pool.
  template <class Task>
  void operator()(Index count, const Task& task) const noexcept {
    shared_->run({count, &task, [](const void* erased, Index i) { (*static_cast<const Task*>(erased))(i); }});
  }

 private:
  struct Tasks {
    Index count = 0;
    const void* task = nullptr;
    void (*call)(const void* task, Index i) = nullptr;  ///< null tells the threads to end
  };

  struct Shared {
    explicit Shared(Index count) noexcept : threads(count) {}
    ~Shared() {
      announce({});
      for (Index i = 1; i < started; ++i) pthread_join(ids[i], nullptr);
    }

    bool start() noexcept {
      ids.reset(new (std::nothrow) pthread_t[std::size_t(threads)]);
      if (ids == nullptr) return false;
      for (; started < threads; ++started)
        if (pthread_create(&ids[started], nullptr, serve, this) != 0) return false;
      return true;
    }

    void run(const Tasks& tasks) noexcept {
      running.store(threads - 1);
      announce(tasks);
      do_tasks(tasks, 0);
      for (int i = 0; i < yields_before_sleep && running.load() > 0; ++i) std::this_thread::yield();
      std::unique_lock<std::mutex> lock(mutex);
      done.wait(lock, [&] { return running.load() == 0; });
    }

    void announce(const Tasks& tasks) noexcept {
      {
        const std::lock_guard<std::mutex> lock(mutex);
        current = tasks;
        ++round;
      }
      wake.notify_all();
    }

    void do_tasks(const Tasks& tasks, Index thread) noexcept {
      for (Index i = thread; i < tasks.count; i += threads) tasks.call(tasks.task, i);
    }

    static void* serve(void* self) noexcept {
      Shared& shared = *static_cast<Shared*>(self);
      const Index thread = ++shared.numbered;
      for (unsigned seen = 0;; ++seen) {
        const Tasks tasks = shared.wait_for(seen);
        if (tasks.call == nullptr) return nullptr;
        shared.do_tasks(tasks, thread);
        if (--shared.running > 0) continue;
        const std::lock_guard<std::mutex> lock(shared.mutex);  // the caller is before or in its wait, not between
        shared.done.notify_one();
      }
    }

    /// The tasks of the round after `seen`.
    Tasks wait_for(unsigned seen) noexcept {
      for (int i = 0; i < yields_before_sleep && round.load() == seen; ++i) std::this_thread::yield();
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return round.load() != seen; });
      return current;
    }

    static constexpr int yields_before_sleep = 2000;

    const Index threads;
    Index started = 1;
    std::unique_ptr<pthread_t[]> ids;
    std::mutex mutex;
    std::condition_variable wake, done;
    std::atomic<unsigned> round{0};
    std::atomic<Index> running{0}, numbered{0};
    Tasks current;
  };

  explicit ThreadPool(Shared* shared) noexcept : shared_(shared) {}

  std::unique_ptr<Shared> shared_;
};

ASYMKV_NAMESPACE_END
