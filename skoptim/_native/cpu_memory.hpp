// A block of zeroed memory that asks the system for large pages, which random access needs.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "platform.hpp"

SKOPTIM_BEGIN

template <class T>
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t size) : size_(size) {
    if (size == 0) return;
    const size_t bytes = size_t(size) * sizeof(T);
#ifdef __linux__
    if (bytes >= page) {
      // Whole large pages, as they lie in memory; what is reserved beside them to find them goes back.
      const size_t whole = (bytes + page - 1) / page * page;
      void* const reserved =
          mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (reserved == MAP_FAILED) throw std::bad_alloc();
      char* const first = static_cast<char*>(reserved);
      const size_t before = (page - reinterpret_cast<uintptr_t>(first) % page) % page;
      if (before > 0) munmap(first, before);
      munmap(first + before + whole, page - before);
      data_ = reinterpret_cast<T*>(first + before);
      mapped_ = whole;
      madvise(data_, whole, MADV_HUGEPAGE);  // Refused where it is switched off, which does no harm.
      return;
    }
#endif
    data_ = static_cast<T*>(std::calloc(size_t(size), sizeof(T)));
    if (!data_) throw std::bad_alloc();
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory() {
    if (borrowed_) return;
#ifdef __linux__
    if (mapped_) {
      munmap(data_, mapped_);
      return;
    }
#endif
    std::free(data_);
  }
  // Gives the memory of the first n numbers back to the system, in whole pages; they are lost.
  void discard([[maybe_unused]] int64_t n) {
#ifdef __linux__
    const size_t end = size_t(n) * sizeof(T) / page * page;
    if (mapped_ && end > discarded_)
      madvise(reinterpret_cast<char*>(data_) + discarded_, end - discarded_, MADV_DONTNEED);
    discarded_ = std::max(discarded_, end);
#endif
  }
  // The same memory, which must be there as long as what is returned.
  Memory borrow() {
    Memory borrowed(0);
    borrowed.data_ = data_;
    borrowed.size_ = size_;
    borrowed.borrowed_ = true;
    return borrowed;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  static constexpr size_t page = size_t(2) << 20;
  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(borrowed_, other.borrowed_);
    std::swap(discarded_, other.discarded_);
  }
  T* data_ = nullptr;
  int64_t size_ = 0;
  bool borrowed_ = false;
  size_t mapped_ = 0, discarded_ = 0;  // bytes
};

SKOPTIM_END
