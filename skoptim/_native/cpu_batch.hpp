// The rows of a mini-batch, with their columns numbered in the order in which they are met: what belongs to them is
// computed on in small arrays that stay in the cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu_network.hpp"
#include "cpu_runs.hpp"

SKOPTIM_BEGIN

template <class T>
class NumberedBatch {
 public:
  void reserve(int64_t n_columns, int64_t n_rows, int64_t n_entries) {
    rows_.resize(std::max(int64_t(rows_.size()), n_rows));
    places_.resize(std::max(int64_t(places_.size()), n_entries));
    if (int64_t(position_.size()) != n_columns) forget_columns(n_columns);
  }

  // Reads n samples; writes the columns that they touch to `columns`, which has room for one more, and returns their
  // number. If the columns outgrow the cache, fetch(column) is called for what the next row touches.
  template <class Fetch>
  int64_t read(const Task<T>& task, int64_t begin, int64_t n, int64_t* columns, bool outgrow_cache, Fetch fetch) {
    return task.x.wide ? read<int64_t>(task, begin, n, columns, outgrow_cache, fetch)
                       : read<int32_t>(task, begin, n, columns, outgrow_cache, fetch);
  }

  // out (n_rows, width) = batch * w, where w (n_columns, width) has a row for each numbered column.
  void multiply(const T* w, int64_t width, T* out) const {
    with_width(width, [=](auto m) SKOPTIM_INLINE {
      each_row([=](int64_t i, const int32_t* place, const T* x, int64_t n) SKOPTIM_INLINE {
        T* const sums = out + i * m;
        if constexpr (std::is_same_v<decltype(m), int64_t>) {
          std::fill_n(sums, m, T(0));
          for (int64_t e = 0; e < n; ++e) add_scaled(sums, w + place[e] * m, x[e], m);
        } else if constexpr (m == 1) {
          *sums = sparse_dot(place, x, n, w);
        } else {
          T few[m] = {};
          for (int64_t e = 0; e < n; ++e)
            for (int64_t k = 0; k < m; ++k) few[k] += x[e] * w[place[e] * m + k];
          std::copy_n(few, m(), sums);
        }
      });
    });
  }

  // g (n_columns, width) = batch' * delta.
  void gradient(const T* delta, int64_t width, int64_t n_columns, T* g) const {
    std::fill_n(g, n_columns * width, T(0));
    with_width(width, [=](auto m) SKOPTIM_INLINE {
      each_row([=](int64_t i, const int32_t* place, const T* x, int64_t n) SKOPTIM_INLINE {
        const T* const d = delta + i * m;
        if constexpr (std::is_same_v<decltype(m), int64_t>) {
          for (int64_t e = 0; e < n; ++e) add_scaled(g + place[e] * m, d, x[e], m);
        } else {
          T few[m];
          std::copy_n(d, m(), few);
          for (int64_t e = 0; e < n; ++e)
            for (int64_t k = 0; k < m; ++k) g[place[e] * m + k] += x[e] * few[k];
        }
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
    const int32_t* place = places_.data();
    for (int64_t i = 0; i < n_rows_; ++i) {
      const auto [values, n] = rows_[i];
      visit(i, place, values, n);
      place += n;
    }
  }

  void forget_columns(int64_t n_columns) {
    position_.assign(n_columns, -1);
    first_ = 0;
  }

  template <class Index, class Fetch>
  int64_t read(const Task<T>& task, int64_t begin, int64_t n, int64_t* columns, bool outgrow_cache, Fetch fetch) {
    const Index* const indices = static_cast<const Index*>(task.x.indices);
    const Index* const indptr = static_cast<const Index*>(task.x.indptr);
    if (first_ > std::numeric_limits<int32_t>::max() - int64_t(position_.size()) - 1)
      forget_columns(position_.size());
    const int32_t first = first_;
    int32_t next = first;
    int32_t* const position = position_.data();
    int32_t* place = places_.data();
    for (int64_t i = 0; i < n; ++i) {
      prefetch(task, begin + i);
      const int64_t row = task.order[begin + i], from = int64_t(indptr[row]), to = int64_t(indptr[row + 1]);
      rows_[i] = {task.x.data + from, to - from};
      if (outgrow_cache && begin + i + 1 < task.n_samples) {
        const int64_t later = task.order[begin + i + 1];
        for (int64_t e = int64_t(indptr[later]); e < int64_t(indptr[later + 1]); ++e) {
          __builtin_prefetch(position + indices[e], 1);
          fetch(int64_t(indices[e]));
        }
      }
      for (int64_t e = from; e < to; ++e) {
        const int64_t column = int64_t(indices[e]);
        // Whether a column is new cannot be foreseen, so nothing branches on it: it is noted in any case.
        const int32_t known = position[column];
        const int32_t is_new = -int32_t(known < first);
        const int32_t here = known ^ ((known ^ next) & is_new);
        columns[next - first] = column;
        next -= is_new;
        position[column] = here;
        *place++ = here - first;
      }
    }
    n_rows_ = n;
    first_ = next;
    return next - first;
  }

  int64_t n_rows_ = 0;
  std::vector<Row> rows_;
  std::vector<int32_t> places_;    // of the entries' columns, among those of the batch
  std::vector<int32_t> position_;  // of each column: its place + first_, if it is of this batch; less otherwise
  int32_t first_ = 0;
};

SKOPTIM_END
