// Mini-batches of CSR rows: their columns are numbered in the order in which they are met, and what belongs to these is
// computed on in small arrays that stay in the cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu_csr.hpp"

SKOPTIM_BEGIN

// Numbers the columns of some rows (see `visit_rows`); returns how many there are. `before(i, values, n)` is called
// with the values of each row before its columns are read.
template <class T, class Before>
int64_t number_columns(const Matrix<T>& x, const int64_t* rows, int64_t first_row, int64_t n_rows, Numbering& numbering,
                       Before before) {
  std::vector<int32_t>& positions = numbering.position;
  if (int64_t(positions.size()) != x.n_columns ||
      numbering.first > std::numeric_limits<int32_t>::max() - int64_t(numbering.columns.size())) {
    positions.assign(x.n_columns, -1);
    numbering.first = 0;
  }
  const int32_t first = numbering.first;
  int32_t next = first;
  int32_t *const position = positions.data(), *place = numbering.places.data();
  int64_t* const met = numbering.columns.data();
  const auto number = [&](int64_t i, const auto* columns, const T* values, int64_t n) SKOPTIM_INLINE {
    before(i, values, n);
    for (int64_t e = 0; e < n; ++e) {
      const int64_t column = int64_t(columns[e]);
      // Whether a column is new cannot be foreseen, so nothing branches on it: it is noted in any case.
      const int32_t known = position[column];
      const int32_t is_new = -int32_t(known < first);
      const int32_t here = known ^ ((known ^ next) & is_new);
      met[next - first] = column;
      next -= is_new;
      position[column] = here;
      *place++ = here - first;
    }
  };
  visit_rows(x, rows, first_row, n_rows, number);
  numbering.first = next;
  return next - first;
}

// Makes room for rows of so many entries.
template <class T>
void reserve(Numbering& numbering, const Matrix<T>& x, int64_t n_entries) {
  numbering.places.resize(std::max(int64_t(numbering.places.size()), n_entries));
  const int64_t n_columns = std::min(x.n_columns, n_entries) + 1;
  numbering.columns.resize(std::max(int64_t(numbering.columns.size()), n_columns));
}

// The rows of a batch as a matrix whose columns are the numbered ones.
template <class T>
class NumberedBatch {
 public:
  void reserve(const Matrix<T>& x, int64_t n_rows, int64_t n_entries) {
    rows_.resize(std::max(int64_t(rows_.size()), n_rows));
    SKOPTIM_ARCH::reserve(numbering_, x, n_entries);
  }

  // Reads n samples; returns how many columns they touch. Of these the records, of `size` numbers, are fetched a row
  // ahead, if they are given.
  int64_t read(const Task<T>& task, int64_t begin, int64_t n, const T* records, int64_t size) {
    const int64_t* const order = task.order + begin;
    n_rows_ = n;
    const auto before = [&](int64_t i, const T* values, int64_t n_entries) SKOPTIM_INLINE {
      rows_[i] = {values, n_entries};
      if (i + rows_ahead >= n) prefetch(task, begin + i);  // of the next batch
      if (!records || begin + i + 1 == task.n_samples) return;
      const int32_t* const position = numbering_.position.data();
      visit_entries(task.x, order + i + 1, 0, 1, [=](int64_t, int64_t column, T) SKOPTIM_INLINE {
        __builtin_prefetch(position + column, 1);
        __builtin_prefetch(records + column * size, 1, 2);
      });
    };
    return number_columns(task.x, order, 0, n, numbering_, before);
  }

  const int64_t* columns() const { return numbering_.columns.data(); }

  // out (n_rows, width) = batch * w, where w (n_columns, width) has a row for each numbered column.
  void multiply(const T* w, int64_t width, T* out) const {
    with_width(width, [=](auto m) SKOPTIM_INLINE {
      each_row([=](int64_t i, const int32_t* places, const T* values, int64_t n) SKOPTIM_INLINE {
        multiply_row(places, values, n, w, m, out + i * m);
      });
    });
  }

  // g (n_columns, width) = batch' * delta.
  void gradient(const T* delta, int64_t width, int64_t n_columns, T* g) const {
    std::fill_n(g, n_columns * width, T(0));
    with_width(width, [=](auto m) SKOPTIM_INLINE {
      each_row([=](int64_t i, const int32_t* places, const T* values, int64_t n) SKOPTIM_INLINE {
        add_outer_product(places, values, n, delta + i * m, m, g);
      });
    });
  }

 private:
  struct Row {
    const T* values;
    int64_t n;
  };

  // Calls visit(i, places, values, n) for each row.
  template <class Visit>
  [[gnu::always_inline]] inline void each_row(Visit visit) const {
    const int32_t* place = numbering_.places.data();
    for (int64_t i = 0; i < n_rows_; ++i) {
      const auto [values, n] = rows_[i];
      visit(i, place, values, n);
      place += n;
    }
  }

  int64_t n_rows_ = 0;
  std::vector<Row> rows_;
  Numbering numbering_;
};

SKOPTIM_END
