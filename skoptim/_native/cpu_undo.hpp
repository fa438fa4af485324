// The records of a table that a block of steps changes, copied before their first change, to be put back should the
// block fail: column by column, or all at once where that is less work.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu_memory.hpp"
#include "platform.hpp"

SKOPTIM_BEGIN

template <class T>
class KeptRecords {
  // Looking whether the column of an entry has been copied takes about as long as copying so many bytes of the table.
  static constexpr int64_t copied_per_entry = 16;
  // A copy of a table up to this keeps its memory for the next one.
  static constexpr int64_t spare_bytes = 16 << 20;

 public:
  // Numbers of a record that are copied together; behind the last record of a table there is room for so many.
  static constexpr int64_t at_once = 4;

  // Keeps records of `size` numbers from here on, until `end`.
  void begin(int64_t n_columns, int64_t size) {
    is_kept_.resize((n_columns + 63) / 64);
    if (size != size_) {
      columns_.clear();  // There may be no room for as many longer records.
      records_.clear();
    }
    n_columns_ = n_columns;
    size_ = size;
    is_keeping_ = true;
  }
  // Forgets what is kept; its memory is used again.
  void end() {
    for (int64_t j = 0; j < n_; ++j) is_kept_[columns_[j] / 64] = 0;
    n_ = 0;
    if (table_.size() * int64_t(sizeof(T)) > spare_bytes) table_ = Memory<T>();
    is_keeping_ = is_all_ = false;
  }
  bool is_keeping() const { return is_keeping_; }

  // Whether a block of so many entries has cheaper all copied than what it touches.
  static bool prefers_all(int64_t n_entries, const Memory<T>& table) {
    return n_entries * copied_per_entry > table.size() * int64_t(sizeof(T));
  }

  // Copies the records of n columns, all different, that have not been copied.
  template <class Index>
  void keep(const Index* columns, int64_t n, const T* table) {
    if (is_keeping_ && !is_all_) copy(columns, n, table);
  }

  void keep_all(const Memory<T>& table) {
    if (!is_keeping_ || is_all_) return;
    if (table_.size() != table.size()) table_ = Memory<T>(table.size());
    std::copy_n(table.data(), table.size(), table_.data());
    put_back_columns(table_);
    is_all_ = true;
  }

  void put_back(Memory<T>& table) {
    is_all_ ? std::swap(table, table_) : put_back_columns(table);
  }

  // Calls visit(record) with each record, as it is now, that has been copied; returns false, without a visit, if all
  // have been, or none is kept.
  template <class Visit>
  bool visit_changed(const T* table, Visit visit) const {
    if (!is_keeping_ || is_all_) return false;
    constexpr int64_t ahead = 16;
    for (int64_t j = 0; j < n_; ++j) {
      if (j + ahead < n_) {
        const T* const record = table + columns_[j + ahead] * size_;
        __builtin_prefetch(record);
        __builtin_prefetch(record + size_ - 1);
      }
      visit(table + columns_[j] * size_);
    }
    return true;
  }

 private:
  // (A call: most trainings copy nothing, and many functions ask.)
  template <class Index>
  [[gnu::noinline]] void copy(const Index* columns, int64_t n, const T* table) {
    const int64_t first = n_;
    if (int64_t(columns_.size()) < first + n) {
      const int64_t room = std::min(2 * (first + n), n_columns_ + n);
      columns_.resize(room);
      records_.resize(room * size_ + at_once);
    }
    // Whether a column is new cannot be foreseen: it is noted in any case, and counts if it is. (Bits are read of all
    // columns before any is written: a word that was just written is slow to read.)
    int64_t* const noted = columns_.data();
    uint64_t* const is_kept = is_kept_.data();
    int64_t n_noted = first;
    for (int64_t e = 0; e < n; ++e) {
      const auto column = uint64_t(columns[e]);
      noted[n_noted] = int64_t(column);
      n_noted += ((is_kept[column / 64] >> (column % 64)) & 1) ^ 1;
    }
    for (int64_t j = first; j < n_noted; ++j) {
      is_kept[noted[j] / 64] |= uint64_t(1) << (noted[j] % 64);
      const T* const from = table + noted[j] * size_;
      T* const to = records_.data() + j * size_;
      // What is copied beyond a record, the next one overwrites.
      for (int64_t k = 0; k < size_; k += at_once) std::memcpy(to + k, from + k, at_once * sizeof(T));
    }
    n_ = n_noted;
  }

  void put_back_columns(Memory<T>& table) const {
    for (int64_t j = 0; j < n_; ++j) std::copy_n(&records_[j * size_], size_, table.data() + columns_[j] * size_);
  }

  bool is_keeping_ = false, is_all_ = false;
  int64_t n_columns_ = 0, size_ = 0, n_ = 0;
  std::vector<uint64_t> is_kept_;  // a bit for each column
  std::vector<int64_t> columns_;   // n of them
  std::vector<T> records_;
  Memory<T> table_;
};

SKOPTIM_END
