// Some columns of a CSR matrix as a matrix of its own: what a training over few columns reads again and again.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu_threads.hpp"
#include "kernels.hpp"

namespace skoptim {

template <class T, class Index, class Visit>
void each_row(const Matrix<T>& x, int64_t n_threads, Visit&& visit) {
  constexpr int64_t worth_a_thread = 1 << 16;
  const Index* const indices = static_cast<const Index*>(x.indices);
  const Index* const indptr = static_cast<const Index*>(x.indptr);
  Team team(std::min(n_threads, 1 + x.n_stored() / worth_a_thread));
  team.run([&](Part part) {
    for (int64_t i = part.first(x.n_rows); i < part.last(x.n_rows); ++i)
      visit(i, indices + indptr[i], x.data + indptr[i], int64_t(indptr[i + 1] - indptr[i]));
  });
}

// visit(row, columns, values, n) for each row, on several threads.
template <class T, class Visit>
void visit_rows(const Matrix<T>& x, int64_t n_threads, Visit&& visit) {
  x.wide ? each_row<T, int64_t>(x, n_threads, visit) : each_row<T, int32_t>(x, n_threads, visit);
}

// Writes how many entries each row keeps. `places` holds the new number of each column, or -1 for those left out.
template <class T>
void count_chosen(const Matrix<T>& x, const int32_t* places, int64_t n_threads, int32_t* counts) {
  visit_rows(x, n_threads, [=](int64_t row, const auto* columns, const T*, int64_t n) {
    int32_t kept = 0;
    for (int64_t e = 0; e < n; ++e) kept += places[columns[e]] >= 0;
    counts[row] = kept;
  });
}

// Copies the entries that row i keeps to starts[i]..starts[i + 1].
template <class T>
void copy_chosen(const Matrix<T>& x, const int32_t* places, int64_t n_threads, const int32_t* starts, T* data,
                 int32_t* numbers) {
  visit_rows(x, n_threads, [=](int64_t row, const auto* columns, const T* values, int64_t n) {
    int64_t to = starts[row];
    const int64_t stop = starts[row + 1];
    // What is left out is written, too, and then written over: no processor could foretell which entries stay.
    for (int64_t e = 0; e < n && to < stop; ++e) {
      const int32_t place = places[columns[e]];
      data[to] = values[e];
      numbers[to] = place;
      to += place >= 0;
    }
  });
}

}  // namespace skoptim
