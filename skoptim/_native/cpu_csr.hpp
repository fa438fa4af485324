// Rows of CSR matrices: reading them, and products with them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu_runs.hpp"
#include "kernels.hpp"

SKOPTIM_BEGIN

// Rows are visited in a random order, so the processor cannot guess the next one: it is told, and first of all where
// the row begins. The further ones of many lines it guesses, and what is fetched too early drives out what is needed
// before.
// (Inlined by force: a call to a function that only prefetches may be removed as having no effect.)
constexpr int64_t rows_ahead = 4, starts_ahead = 12;

template <class Index, class T>
[[gnu::always_inline]] inline void prefetch_start(const Matrix<T>& x, int64_t row) {
  __builtin_prefetch(static_cast<const Index*>(x.indptr) + row);
}

template <class Index, class T>
[[gnu::always_inline]] inline void prefetch_row(const Matrix<T>& x, int64_t row) {
  constexpr int64_t line = 64, lines_ahead = 8;
  const Index* const indptr = static_cast<const Index*>(x.indptr);
  const int64_t begin = int64_t(indptr[row]), end = int64_t(indptr[row + 1]);
  const auto fetch = [=](const auto* entries) SKOPTIM_INLINE {
    constexpr int64_t of_a_line = line / int64_t(sizeof(*entries));
    for (int64_t e = begin; e < std::min(end, begin + lines_ahead * of_a_line); e += of_a_line)
      __builtin_prefetch(entries + e);
  };
  fetch(static_cast<const Index*>(x.indices));
  fetch(x.data);
}

// The rows of a task, of which every `stride`th is visited.
template <class Index, class T>
[[gnu::always_inline]] inline void prefetch(const Task<T>& task, int64_t place, int64_t stride) {
  if (place + starts_ahead * stride < task.n_samples)
    prefetch_start<Index>(task.x, task.order[place + starts_ahead * stride]);
  if (place + rows_ahead * stride >= task.n_samples) return;
  const int64_t row = task.order[place + rows_ahead * stride];
  prefetch_row<Index>(task.x, row);
  if (task.targets.labels)
    __builtin_prefetch(task.targets.labels + row);
  else
    __builtin_prefetch(task.targets.values + row * task.n_outputs);
  if (task.weights) __builtin_prefetch(task.weights + row);
}

template <class T>
[[gnu::always_inline]] inline void prefetch(const Task<T>& task, int64_t place, int64_t stride = 1) {
  task.x.wide ? prefetch<int64_t>(task, place, stride) : prefetch<int32_t>(task, place, stride);
}

// Calls visit(i, columns, values, n) with the n entries of the i-th row: of rows[i], or first + i if there are no
// `rows`.
template <class Index, class T, class Visit>
[[gnu::always_inline]] inline void visit_rows(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n_rows,
                                              Visit visit) {
  const Index* const indices = static_cast<const Index*>(x.indices);
  const Index* const indptr = static_cast<const Index*>(x.indptr);
  for (int64_t i = 0; i < n_rows; ++i) {
    if (rows && i + starts_ahead < n_rows) prefetch_start<Index>(x, rows[i + starts_ahead]);
    if (rows && i + rows_ahead < n_rows) prefetch_row<Index>(x, rows[i + rows_ahead]);
    const int64_t row = rows ? rows[i] : first + i, begin = int64_t(indptr[row]);
    visit(i, indices + begin, x.data + begin, int64_t(indptr[row + 1]) - begin);
  }
}

template <class T, class Visit>
[[gnu::always_inline]] inline void visit_rows(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n_rows,
                                              Visit visit) {
  if (x.wide)
    visit_rows<int64_t>(x, rows, first, n_rows, visit);
  else
    visit_rows<int32_t>(x, rows, first, n_rows, visit);
}

// Calls visit(i, column, value) for every entry of them.
template <class T, class Visit>
[[gnu::always_inline]] inline void visit_entries(const Matrix<T>& x, const int64_t* rows, int64_t first,
                                                 int64_t n_rows, Visit visit) {
  visit_rows(x, rows, first, n_rows, [=](int64_t i, const auto* columns, const T* values, int64_t n) SKOPTIM_INLINE {
    for (int64_t e = 0; e < n; ++e) visit(i, int64_t(columns[e]), values[e]);
  });
}

// Reads a row: the numbers of its columns are copied, its values pointed at; returns their number.
template <class T>
int64_t read_row(const Matrix<T>& x, int64_t row, int64_t* columns, const T** values) {
  int64_t size = 0;
  visit_rows(x, nullptr, row, 1, [=, &size](int64_t, const auto* from, const T* there, int64_t n) SKOPTIM_INLINE {
    for (int64_t e = 0; e < n; ++e) columns[e] = int64_t(from[e]);
    *values = there;
    size = n;
  });
  return size;
}

// The sum of values times the weights of their columns, in four lanes, whose order does not depend on the instruction
// set.
template <class Index, class T>
T sparse_dot(const Index* columns, const T* values, int64_t n, const T* w) {
  T sums[4] = {};
  int64_t e = 0;
  for (; e + 4 <= n; e += 4)
    for (int j = 0; j < 4; ++j) sums[j] += values[e + j] * w[columns[e + j]];
  for (int j = 0; e < n; ++e, ++j) sums[j] += values[e] * w[columns[e]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// out (width) = the sum of values times their columns' rows of w. `Width` is int64_t, or a constant that is small.
template <class Index, class T, class Width>
void multiply_row(const Index* columns, const T* values, int64_t n, const T* w, Width width, T* out) {
  if constexpr (std::is_same_v<Width, int64_t>) {
    std::fill_n(out, width, T(0));
    for (int64_t e = 0; e < n; ++e) add_scaled(out, w + columns[e] * width, values[e], width);
  } else if constexpr (width == 1) {
    *out = sparse_dot(columns, values, n, w);
  } else {
    T sums[width] = {};
    for (int64_t e = 0; e < n; ++e)
      for (int64_t k = 0; k < width; ++k) sums[k] += values[e] * w[columns[e] * width + k];
    std::copy_n(sums, width(), out);
  }
}

// Adds values times delta (width) to their columns' rows of g.
template <class Index, class T, class Width>
void add_outer_product(const Index* columns, const T* values, int64_t n, const T* delta, Width width, T* g) {
  if constexpr (std::is_same_v<Width, int64_t>) {
    for (int64_t e = 0; e < n; ++e) add_scaled(g + columns[e] * width, delta, values[e], width);
  } else {
    T d[width];
    std::copy_n(delta, width(), d);
    for (int64_t e = 0; e < n; ++e)
      for (int64_t k = 0; k < width; ++k) g[columns[e] * width + k] += values[e] * d[k];
  }
}

template <class T>
void csr_matmul(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n_rows, const T* w, int64_t width,
                T* out) {
  with_width(width, [=, &x](auto m) SKOPTIM_INLINE {
    visit_rows(x, rows, first, n_rows, [=](int64_t i, const auto* columns, const T* values, int64_t n) SKOPTIM_INLINE {
      multiply_row(columns, values, n, w, m, out + i * m);
    });
  });
}

template <class T>
void csr_gradient(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n_rows, const T* delta, int64_t width,
                  T* g) {
  with_width(width, [=, &x](auto m) SKOPTIM_INLINE {
    visit_rows(x, rows, first, n_rows, [=](int64_t i, const auto* columns, const T* values, int64_t n) SKOPTIM_INLINE {
      add_outer_product(columns, values, n, delta + i * m, m, g);
    });
  });
}

template <class T>
void csr_clear(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, int64_t width, T* g) {
  visit_entries(x, rows, first, n, [=](int64_t, int64_t column, T) {
    for (int64_t k = 0; k < width; ++k) g[column * width + k] = T(0);
  });
}

SKOPTIM_END
