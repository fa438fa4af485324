// Short runs of numbers, one for each column of a table: all outputs of it. Loops over runs of a few are unrolled.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cpu_vectors.hpp"

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

template <class T>
void add_scaled(T* out, const T* in, T factor, int64_t n) {
#pragma GCC ivdep
  for (int64_t k = 0; k < n; ++k) out[k] += factor * in[k];
}

// Calls visit(j, how many) for runs j, j + 1 of n, two at a time, and for one that is left over.
template <int n, int j = 0, class Visit>
SKOPTIM_HD void each_run(Visit visit) {
  if constexpr (j < n) {
    constexpr int how_many = j + 1 < n ? 2 : 1;
    visit(std::integral_constant<int, j>{}, std::integral_constant<int, how_many>{});
    each_run<n, j + how_many>(visit);
  }
}

// How many of n columns fill vectors, if they have one output.
template <class T>
SKOPTIM_HD int64_t in_vectors(int64_t n, int64_t width) { return width == 1 ? n / lanes<T> * lanes<T> : 0; }

// Copies the runs that the records of n columns begin with, records being of `size` numbers: runs[j] (n, width) becomes
// the j-th of each. (Not inlined, like what follows: one copy serves all rules.)
template <int n_runs, class T>
[[gnu::noinline]] void copy_out(const T* records, int64_t size, const int64_t* number, int64_t n, int64_t width,
                                T* const* runs) {
  const int64_t filled = in_vectors<T>(n, width);
  for (int64_t e = 0; e < filled; e += lanes<T>)
    each_run<n_runs>([=](auto j, auto how_many) SKOPTIM_INLINE {
      const auto at = [=](int i) SKOPTIM_INLINE { return records + number[e + i] * size + j; };
      if constexpr (how_many == 2)
        load_two<T>(at, runs[j] + e, runs[j + 1] + e);
      else
        store(vector_of<T>([=](int i) SKOPTIM_INLINE { return *at(i); }), runs[j] + e);
    });
  with_width(width, [=](auto w) {
    for (int64_t e = filled; e < n; ++e) {
      const T* const record = records + number[e] * size;
      for (int j = 0; j < n_runs; ++j) copy_run(record + j * w, runs[j] + e * w, w);
    }
  });
}

// The other way.
template <int n_runs, class T>
[[gnu::noinline]] void copy_back(T* const* runs, int64_t n, int64_t width, T* records, int64_t size,
                                 const int64_t* number) {
  const int64_t filled = in_vectors<T>(n, width);
  for (int64_t e = 0; e < filled; e += lanes<T>)
    each_run<n_runs>([=](auto j, auto how_many) SKOPTIM_INLINE {
      const auto at = [=](int i) SKOPTIM_INLINE { return records + number[e + i] * size + j; };
      if constexpr (how_many == 2)
        store_two<T>(runs[j] + e, runs[j + 1] + e, at);
      else
        for (int i = 0; i < lanes<T>; ++i) *at(i) = runs[j][e + i];
    });
  with_width(width, [=](auto w) {
    for (int64_t e = filled; e < n; ++e) {
      T* const record = records + number[e] * size;
      for (int j = 0; j < n_runs; ++j) copy_run(runs[j] + e * w, record + j * w, w);
    }
  });
}

// out (n, width) = what `read` finds at some place of the records of n columns; in the first record, that is `place`.
template <auto read, class T, class Out>
[[gnu::noinline]] void spread(const T* place, int64_t size, const int64_t* number, int64_t n, int64_t width,
                              Out* out) {
  const auto of_column = [=](int64_t e) SKOPTIM_INLINE { return read(place + number[e] * size); };
  const int64_t filled = in_vectors<Out>(n, width);
  for (int64_t e = 0; e < filled; e += lanes<Out>)
    store(vector_of<Out>([=](int i) SKOPTIM_INLINE { return of_column(e + i); }), out + e);
  with_width(width, [=](auto w) {
    for (int64_t e = filled; e < n; ++e) {
      const Out value = of_column(e);
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
