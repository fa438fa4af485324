// Short runs of numbers, one for each column of a table: all outputs of it. Loops over runs of a few are unrolled.
#pragma once
#include <cstdint>
#include <type_traits>

#include "platform.hpp"

SKOPTIM_BEGIN

// Calls visit with the width, known when compiling if it is small. (Two classes take one output: there are no two.)
template <class Visit>
[[gnu::always_inline]] inline void with_width(int64_t width, Visit visit) {
  switch (width) {
    case 1: return visit(std::integral_constant<int64_t, 1>{});
    case 3: return visit(std::integral_constant<int64_t, 3>{});
    case 4: return visit(std::integral_constant<int64_t, 4>{});
    case 5: return visit(std::integral_constant<int64_t, 5>{});
    case 6: return visit(std::integral_constant<int64_t, 6>{});
    case 7: return visit(std::integral_constant<int64_t, 7>{});
    default: return visit(width);
  }
}

template <class T, class Width>
SKOPTIM_HD void copy_run(const T* __restrict from, T* __restrict to, Width width) {
  for (int64_t k = 0; k < width; ++k) to[k] = from[k];
}

// Copies the runs that the records of n columns begin with, records being of `size` numbers: runs[j] (n, width) becomes
// the j-th of each.
template <int n_runs, class T>
void copy_out(const T* records, int64_t size, const int64_t* number, int64_t n, int64_t width, T* const* runs) {
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < n; ++e) {
      const T* const record = records + number[e] * size;
      for (int j = 0; j < n_runs; ++j) copy_run(record + j * w, runs[j] + e * w, w);
    }
  });
}

// The other way.
template <int n_runs, class T>
void copy_back(T* const* runs, int64_t n, int64_t width, T* records, int64_t size, const int64_t* number) {
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < n; ++e) {
      T* const record = records + number[e] * size;
      for (int j = 0; j < n_runs; ++j) copy_run(runs[j] + e * w, record + j * w, w);
    }
  });
}

// out (n, width) = what `of_column` returns for each of n columns.
template <class T, class Value>
[[gnu::always_inline]] inline void spread(int64_t n, int64_t width, T* out, Value of_column) {
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < n; ++e) {
      const T value = of_column(e);
      for (int64_t k = 0; k < w; ++k) out[e * w + k] = value;
    }
  });
}

// out (n, width) = x (n) times d (width).
template <class T>
void outer_product(const T* x, const T* d, int64_t n, int64_t width, T* out) {
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < n; ++e)
      for (int64_t k = 0; k < w; ++k) out[e * w + k] = x[e] * d[k];
  });
}

// out (width) = x (n) times runs (n, width).
template <class T>
void weighted_sum(const T* x, const T* runs, int64_t n, int64_t width, T* __restrict out) {
  with_width(width, [=](auto w) {
    if constexpr (std::is_same_v<decltype(w), int64_t>) {
      for (int64_t k = 0; k < w; ++k) out[k] = T(0);
      for (int64_t e = 0; e < n; ++e)
        for (int64_t k = 0; k < w; ++k) out[k] += x[e] * runs[e * w + k];
    } else {
      T sums[w] = {};
      for (int64_t e = 0; e < n; ++e)
        for (int64_t k = 0; k < w; ++k) sums[k] += x[e] * runs[e * w + k];
      for (int64_t k = 0; k < w; ++k) out[k] = sums[k];
    }
  });
}

SKOPTIM_END
