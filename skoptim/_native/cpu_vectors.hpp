// Vectors filled with numbers that lie apart in memory, and emptied into such places.
//
// Loops over numbers side by side are left to the compiler. It does not see, however, that two numbers side by side in
// each of some records, and the records anywhere, are a transposition.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "platform.hpp"

SKOPTIM_BEGIN

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T, int bytes = vector_bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int lanes = vector_bytes / int(sizeof(T));
// {value(0), value(1), ...}
template <class T, class Value>
SKOPTIM_HD Vector<T> vector_of(Value value) {
  Vector<T> v;
#pragma GCC unroll 16
  for (int i = 0; i < lanes<T>; ++i) v[i] = value(i);
  return v;
}

template <class V, class T>
SKOPTIM_HD V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}
template <class V, class T>
SKOPTIM_HD void store(V v, T* to) { std::memcpy(to, &v, sizeof(V)); }

// Calls visit(i) for each of n lanes. (Unrolled, the loop would not vectorise.)
template <int n, class Visit>
SKOPTIM_HD void each_lane(Visit visit) {
#pragma GCC unroll 1
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) visit(i);
}

// The same one after the other, without a loop.
template <int n, class Visit>
SKOPTIM_HD void unrolled(Visit visit) {
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) visit(i);
}

// {f(v[0]), f(v[1]), ...} for a function without branches.
template <class V, class Function>
SKOPTIM_HD V map(V v, Function f) {
  std::remove_const_t<std::remove_reference_t<decltype(v[0])>> number[sizeof(V) / sizeof(v[0])];
  store(v, number);
  each_lane<int(sizeof(V) / sizeof(v[0]))>([&](int i) SKOPTIM_INLINE { number[i] = f(number[i]); });
  return load<V>(number);
}

// Whether a comparison of vectors holds anywhere.
template <class Mask>
SKOPTIM_HD bool any(Mask mask) {
#if defined(__AVX512F__)
  // (Words of a vector that long are taken out one by one, in two dozen instructions.)
  if constexpr (sizeof(Mask) == 64) return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#endif
  int64_t words[sizeof(Mask) / 8], found = 0;
  std::memcpy(words, &mask, sizeof(Mask));
  for (const int64_t word : words) found |= word;
  return found != 0;
}

#if __has_builtin(__builtin_shufflevector)
// Vectors are transposed within chunks of sixteen bytes, which no instruction set has to cross. Of the records that
// make a chunk of numbers the first half goes to one vector, the second half to another.
using Chunk = typename VectorOf<double, 16>::type;
template <class T>
constexpr int of_a_chunk = 16 / int(sizeof(T));
constexpr int n_chunks = vector_bytes / 16;

template <int n, class V, int... i>
SKOPTIM_HD auto joined(V a, V b, std::integer_sequence<int, i...>) { return __builtin_shufflevector(a, b, i...); }
// n chunks side by side.
template <int n>
SKOPTIM_HD auto joined(const Chunk* chunks) {
  if constexpr (n == 1)
    return chunks[0];
  else
    return joined<n>(joined<n / 2>(chunks), joined<n / 2>(chunks + n / 2), std::make_integer_sequence<int, 2 * n>{});
}
template <int i>
SKOPTIM_HD Chunk chunk_of(Vector<double> v) { return __builtin_shufflevector(v, v, 2 * i, 2 * i + 1); }

template <class T>
SKOPTIM_HD Chunk load_pairs(const T* a, const T* b) {
  Chunk chunk;
  if constexpr (sizeof(T) == 8) {
    std::memcpy(&chunk, a, 16);
  } else {
    double pair[2];
    std::memcpy(&pair[0], a, 8);
    std::memcpy(&pair[1], b, 8);
    chunk = Chunk{pair[0], pair[1]};
  }
  return chunk;
}
template <class T>
SKOPTIM_HD void store_pairs(Chunk chunk, T* a, T* b) {
  if constexpr (sizeof(T) == 8) {
    std::memcpy(a, &chunk, 16);
  } else {
    const double pair[] = {chunk[0], chunk[1]};
    std::memcpy(a, &pair[0], 8);
    std::memcpy(b, &pair[1], 8);
  }
}

// Lane i of the first (or second, j = 1) numbers of pairs, in two vectors of pairs one after the other,
template <class T>
constexpr int lane_of_number(int i, int j) {
  constexpr int group = of_a_chunk<T>, half = group / 2;
  const int within = i % group;
  return i - within + within % half * 2 + j + (within >= half ? lanes<T> : 0);
}
// and the other way: lane i of the first or second vector of pairs.
template <class T>
constexpr int lane_of_pair(int i, int j) {
  constexpr int group = of_a_chunk<T>, half = group / 2;
  const int within = i % group;
  return i - within + within / 2 + j * half + (within % 2) * lanes<T>;
}
template <class T, int j, int... i>
SKOPTIM_HD Vector<T> numbers_of(Vector<T> a, Vector<T> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, lane_of_number<T>(i, j)...);
}
template <class T, int j, int... i>
SKOPTIM_HD Vector<T> pairs_of(Vector<T> a, Vector<T> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, lane_of_pair<T>(i, j)...);
}

// The two numbers at each place of a vector: at(i) is where those of lane i lie.
template <class T, class At>
SKOPTIM_HD void load_two(At at, T* first, T* second) {
  constexpr int group = of_a_chunk<T>, half = group / 2;
  constexpr auto all = std::make_integer_sequence<int, lanes<T>>{};
  Chunk a[n_chunks], b[n_chunks];
#pragma GCC unroll 4
  for (int c = 0; c < n_chunks; ++c) {
    const int i = c * group;
    a[c] = load_pairs<T>(at(i), at(i + half - 1));
    b[c] = load_pairs<T>(at(i + half), at(i + group - 1));
  }
  const auto p = (Vector<T>)joined<n_chunks>(a), q = (Vector<T>)joined<n_chunks>(b);
  store(numbers_of<T, 0>(p, q, all), first);
  store(numbers_of<T, 1>(p, q, all), second);
}
template <class T, class At, int... c>
SKOPTIM_HD void store_chunks(Vector<double> p, Vector<double> q, At at, std::integer_sequence<int, c...>) {
  constexpr int group = of_a_chunk<T>, half = group / 2;
  (store_pairs<T>(chunk_of<c>(p), at(c * group), at(c * group + half - 1)), ...);
  (store_pairs<T>(chunk_of<c>(q), at(c * group + half), at(c * group + group - 1)), ...);
}
template <class T, class At>
SKOPTIM_HD void store_two(const T* first, const T* second, At at) {
  constexpr auto all = std::make_integer_sequence<int, lanes<T>>{};
  Vector<T> x, y;
  std::memcpy(&x, first, vector_bytes);
  std::memcpy(&y, second, vector_bytes);
  store_chunks<T>((Vector<double>)pairs_of<T, 0>(x, y, all), (Vector<double>)pairs_of<T, 1>(x, y, all), at,
                  std::make_integer_sequence<int, n_chunks>{});
}
#else
template <class T, class At>
SKOPTIM_HD void load_two(At at, T* first, T* second) {
  store(vector_of<T>([=](int i) SKOPTIM_INLINE { return at(i)[0]; }), first);
  store(vector_of<T>([=](int i) SKOPTIM_INLINE { return at(i)[1]; }), second);
}
template <class T, class At>
SKOPTIM_HD void store_two(const T* first, const T* second, At at) {
  for (int i = 0; i < lanes<T>; ++i) at(i)[0] = first[i], at(i)[1] = second[i];
}
#endif

SKOPTIM_END
