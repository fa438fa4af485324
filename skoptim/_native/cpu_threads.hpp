// Threads that last as long as a native call, so that nothing is left over in a forked process.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace skoptim {

// Lets numbers too small to be normal count as zero while it lives: state of the optimizers fades away by
// itself, and arithmetic on such numbers is far slower.
class Flushing {
 public:
#if defined(__SSE2__)
  Flushing() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~Flushing() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  Flushing() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t(1) << 24)));
  }
  ~Flushing() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
  Flushing() = default;
#endif
  Flushing(const Flushing&) = delete;

 private:
#if defined(__SSE2__)
  const unsigned before_;
#elif defined(__aarch64__)
  uint64_t before_;
#endif
};

// Part `index` of `count` about equal parts.
struct Part {
  int64_t index, count;
  bool is_last() const { return index + 1 == count; }
  int64_t first(int64_t n) const { return n * index / count; }
  int64_t last(int64_t n) const { return n * (index + 1) / count; }
};

// Members wait for each other at the processor for some microseconds, then let others have it, then sleep.
class Waiting {
 public:
  // Whether it is time to sleep.
  bool looked_again() {
    if (looks_ < patient)
      pause();
    else
      std::this_thread::yield();
    return ++looks_ > longest;
  }

 private:
  static constexpr int patient = 2000, longest = 4000;
  static void pause() {
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  int looks_ = 0;
};

class Team {
 public:
  // The calling thread is one of the members.
  explicit Team(int64_t n_members) {
    threads_.reserve(std::max<int64_t>(n_members - 1, 0));
    for (int64_t i = 1; i < n_members; ++i) {
      try {
        threads_.emplace_back([this, i] { serve(i); });
      } catch (const std::system_error&) {
        break;  // There are no more threads to be had.
      }
    }
  }
  ~Team() {
    announce(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }
  Team(const Team&) = delete;

  // Calls visit(part) in each member, with parts that together are everything. What one of them throws is
  // thrown when all have ended.
  template <class Visit>
  void run(Visit&& visit) {
    if (threads_.empty()) return visit(Part{0, 1});
    const std::function<void(Part)> work = std::ref(visit);
    working_.store(int64_t(threads_.size()));
    announce(&work);
    attempt(work, 0);
    for (Waiting waiting; working_.load(std::memory_order_acquire) > 0;) waiting.looked_again();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  int64_t n_members() const { return int64_t(threads_.size()) + 1; }

 private:
  // No work: the end.
  void announce(const std::function<void(Part)>* work) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = work;
      calls_.fetch_add(1, std::memory_order_release);
    }
    changed_.notify_all();
  }

  void attempt(const std::function<void(Part)>& work, int64_t index) {
    try {
      work({index, n_members()});
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      failure_ = std::current_exception();
    }
  }

  void serve(int64_t index) {
    const Flushing flushing;
    for (int64_t call = 1;; ++call) {
      for (Waiting waiting; calls_.load(std::memory_order_acquire) < call && !waiting.looked_again();) {
      }
      const std::function<void(Part)>* work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return calls_.load(std::memory_order_relaxed) >= call; });
        work = work_;
      }
      if (!work) return;
      attempt(*work, index);
      working_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<int64_t> calls_{0}, working_{0};
  const std::function<void(Part)>* work_ = nullptr;
  std::exception_ptr failure_;
};

}  // namespace skoptim
