// Threads that share a call: a team that lasts as long as the call, and helpers that stand by for short ones.
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

#include <unistd.h>

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

// Threads that wait for short calls, which would be over before a new thread had started. Each begins with a range
// of parts that is its own, call after call, because the cache of its processor has that memory; then it helps
// with what is left of the others'. Nobody waits for a helper that has not come: threads of other libraries may
// hold its processor.
class Helpers {
 public:
  // Calls visit(part) for `n_parts` parts, by `n_members` threads at most; by the calling one alone where another
  // thread has the helpers. What a part throws while it is shared ends the program: kernels throw nothing.
  template <class Visit>
  static void share(int64_t n_members, int64_t n_parts, Visit&& visit) {
    std::unique_lock<std::mutex> taken(taken_, std::try_to_lock);
    if (n_members > 1 && n_parts > 1 && taken) {
      of_process(n_members).run(n_members, n_parts, std::ref(visit));
    } else {
      for (int64_t i = 0; i < n_parts; ++i) visit(Part{i, n_parts});
    }
  }

 private:
  using Work = std::function<void(Part)>;
  struct Call {
    const Work* work = nullptr;
    int64_t n_members = 0, n_parts = 0;
  };
  // The next part of a member's range; on a cache line of its own.
  struct alignas(64) Next {
    std::atomic<int64_t> part{0};
  };

  explicit Helpers(int64_t n_members) : next_(n_members) {
    for (int64_t member = 1; member < n_members; ++member) {
      try {
        std::thread([this, member] { serve(member); }).detach();
      } catch (const std::system_error&) {
        break;  // There are no more threads to be had; the others do their parts.
      }
    }
  }

  // A forked process has none of the threads, and makes its own; so does who needs more. Those that are no longer
  // called sleep to the end.
  static Helpers& of_process(int64_t n_members) {
    static Helpers* helpers = nullptr;
    static pid_t process = 0;
    if (process != getpid() || n_members > int64_t(helpers->next_.size())) {
      helpers = new Helpers(n_members);
      process = getpid();
    }
    return *helpers;
  }

  void run(int64_t n_members, int64_t n_parts, const Work& work) {
    const Call call{&work, n_members, n_parts};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      call_ = call;
      for (int64_t m = 0; m < n_members; ++m) next_[m].part.store(Part{m, n_members}.first(n_parts), std::memory_order_relaxed);
      calls_.fetch_add(1, std::memory_order_release);
    }
    changed_.notify_all();
    take_parts(call, 0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      call_ = {};  // Who has not come by now need not.
    }
    for (Waiting waiting; inside_.load(std::memory_order_acquire) > 0;) waiting.looked_again();
  }

  void take_parts(const Call& call, int64_t member) noexcept {
    for (int64_t turn = 0; turn < call.n_members; ++turn) {
      const Part range{(member + turn) % call.n_members, call.n_members};
      std::atomic<int64_t>& next = next_[range.index].part;
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < range.last(call.n_parts);)
        (*call.work)(Part{i, call.n_parts});
    }
  }

  void serve(int64_t member) {
    const Flushing flushing;
    for (int64_t seen = 0;;) {
      for (Waiting waiting; calls_.load(std::memory_order_acquire) == seen && !waiting.looked_again();) {
      }
      Call call;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return calls_.load(std::memory_order_relaxed) != seen; });
        seen = calls_.load(std::memory_order_relaxed);
        if (member >= call_.n_members) continue;
        call = call_;
        inside_.fetch_add(1, std::memory_order_relaxed);
      }
      take_parts(call, member);
      inside_.fetch_sub(1, std::memory_order_release);
    }
  }

  inline static std::mutex taken_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<int64_t> calls_{0}, inside_{0};
  Call call_;
  std::vector<Next> next_;
};

}  // namespace skoptim
