// A row of one output, vector by vector: what the records of a vector's columns hold is loaded, made weights of and
// multiplied at once; and stepped and stored at once, when the derivative of the loss is known.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu_owing.hpp"
#include "cpu_vectors.hpp"

SKOPTIM_BEGIN

// The entries of a row. Its last vector goes on with what is stored behind the row.
template <class Index, class T>
class RowInVectors {
 public:
  RowInVectors(const Matrix<T>& x, int64_t row) {
    const Index* const indptr = static_cast<const Index*>(x.indptr);
    const int64_t begin = int64_t(indptr[row]);
    n_ = int64_t(indptr[row + 1]) - begin;
    columns_ = static_cast<const Index*>(x.indices) + begin;
    values_ = x.data + begin;
    const int64_t last = n_ / lanes<T> * lanes<T>;
    is_at_end_ = begin + last + lanes<T> > x.n_stored();
    if (!is_at_end_ || last == n_) return;
    for (int i = 0; i < lanes<T>; ++i) {
      const int64_t e = std::min(last + i, n_ - 1);
      last_columns_[i] = columns_[e];
      last_values_[i] = values_[e];
    }
  }

  int64_t size() const { return n_; }
  const Index* columns() const { return columns_; }

  // Calls visit(columns, values, n) for each vector, of which n entries are the row's.
  template <class Visit>
  [[gnu::always_inline]] inline void each_vector(Visit visit) const {
    for (int64_t e = 0; e < n_; e += lanes<T>) {
      const int64_t n = n_ - e;
      const bool is_there = n >= lanes<T> || !is_at_end_;
      const auto x = load<Vector<T>>(is_there ? values_ + e : last_values_);
      visit(is_there ? columns_ + e : last_columns_, x, std::min<int64_t>(n, lanes<T>));
    }
  }

 private:
  const Index* columns_;
  const T* values_;
  int64_t n_;
  bool is_at_end_;  // of all that is stored: then the last vector is a copy
  Index last_columns_[lanes<T>];
  T last_values_[lanes<T>];
};

// The first n numbers, and zeros.
template <class T>
SKOPTIM_HD Vector<T> first_of(Vector<T> x, int64_t n) {
  Vector<T> number;
  for (int i = 0; i < lanes<T>; ++i) number[i] = T(i);
  const auto mask = number < Vector<T>{} + T(n);
  return (Vector<T>)((std::remove_const_t<decltype(mask)>)x & mask);
}

// What the records of a vector of columns hold, and their weights.
template <class Rule, class T>
struct alignas(vector_bytes) ColumnsOfVector {
  T w[lanes<T>], slots[std::max(Rule::n_slots, 1)][lanes<T>], unit[lanes<T>];

  Run<T> run() {
    Run<T> run{w, {}, nullptr};
    for (int j = 0; j < Rule::n_slots; ++j) run.slots[j] = slots[j];
    return run;
  }
};

// How columns of one output are trained.
template <class Rule, class T, Owing owing, bool has_units>
struct NarrowColumns {
  static_assert(!(has_units && has_marks(owing)), "both would lie behind the slots");
  using Columns = ColumnsOfVector<Rule, T>;
  static constexpr int64_t of_a_mark = sizeof(double) / sizeof(T);
  static constexpr int n_numbers = stores_weights(owing) + Rule::n_slots;
  static constexpr int64_t at_unit = n_numbers, at_mark = at_unit + has_units;
  static constexpr int64_t record_size = at_mark + (has_marks(owing) ? of_a_mark : 0);

  // Fills vectors, and returns the sum of weights times values. `pay(c, mark, n)` pays what n columns owe, if `owes`.
  template <class Row, class Pay>
  [[gnu::always_inline]] static T weigh(const Row& row, const T* records, Scalars<Rule, T> k, Columns* vectors,
                                        bool owes, Pay pay) {
    // The sum is made in as many lanes on every instruction set.
    constexpr int n_lanes = 64 / sizeof(T), n_sums = n_lanes / lanes<T>;
    Vector<T> sums[n_sums] = {};
    if constexpr (owing == Owing::derived && !has_units) k.own[Rule::unit] = T(1);
    row.each_vector([=, &sums, which = 0](const auto* columns, Vector<T> x, int64_t n) mutable SKOPTIM_INLINE {
      Columns& c = *vectors++;
      const auto at = [=](int i) SKOPTIM_INLINE { return records + int64_t(columns[i]) * record_size; };
      if constexpr (n_numbers == 2)
        load_two<T>(at, number(c, 0), number(c, 1));
      else
        for (int j = 0; j < n_numbers; ++j)
          store(vector_of<T>([=](int i) SKOPTIM_INLINE { return at(i)[j]; }), number(c, j));
      if constexpr (owing == Owing::derived) {
        if constexpr (has_units) store(vector_of<T>([=](int i) SKOPTIM_INLINE { return at(i)[at_unit]; }), c.unit);
        each_lane<lanes<T>>([&](int i) SKOPTIM_INLINE {
          const T s[] = {c.slots[0][i], c.slots[1][i]};
          if constexpr (has_units) k.own[Rule::unit] = c.unit[i] = effective(c.unit[i]);
          c.w[i] = Rule::weight(T(0), s, k.common, k.own);
        });
      }
      if (has_marks(owing) && owes) {
        // In whole vectors: they are read so again at once.
        double mark[lanes<T>];
        for (int j = 0; j < lanes<T>; j += lanes<double>)
          store(vector_of<double>([=](int i) SKOPTIM_INLINE { return load<double>(at(j + i) + at_mark); }), mark + j);
        pay(c, mark, n);
      }
      const auto product = load<Vector<T>>(c.w) * x;
      sums[which] += n < lanes<T> ? first_of<T>(product, n) : product;
      which = (which + 1) % n_sums;
    });
    T sum[n_lanes];
    std::memcpy(sum, sums, sizeof(sum));
    for (int half = n_lanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
  }

  // A step of these vectors, with gradient factor * x; columns get the mark.
  template <Extras extras, class Row>
  [[gnu::always_inline]] static void step(const Row& row, T* records, Scalars<Rule, T> k, T factor, double mark,
                                          bool is_worker, Columns* vectors) {
    if constexpr (owing == Owing::derived && !has_units) k.own[Rule::unit] = T(1);
    row.each_vector([=](const auto* columns, Vector<T> x, int64_t n) mutable SKOPTIM_INLINE {
      Columns& c = *vectors++;
      const auto at = [=](int i) SKOPTIM_INLINE { return records + int64_t(columns[i]) * record_size; };
      T g[lanes<T>];
      store(factor * x, g);
      each_lane<lanes<T>>([&](int i) SKOPTIM_INLINE {
        T s[slot_storage<Rule>] = {};
        for (int j = 0; j < Rule::n_slots; ++j) s[j] = c.slots[j][i];
        if constexpr (has_units) k.own[Rule::unit] = c.unit[i];
        if constexpr (owing == Owing::derived)
          Rule::advance(c.w[i], g[i], s, k.common, k.own);
        else
          update_with<Rule, extras>(c.w[i], g[i], s, k.common, k.own);
        for (int j = 0; j < Rule::n_slots; ++j) c.slots[j][i] = s[j];
      });
      const auto put = [=, &c](int i) SKOPTIM_INLINE {
        for (int j = 0; j < n_numbers; ++j) at(i)[j] = number(c, j)[i];
      };
      const auto put_mark = [=](int i) SKOPTIM_INLINE {
        if constexpr (has_marks(owing)) set_mark(at(i) + at_mark, mark, is_worker);
      };
      if (n < lanes<T>) {
        for (int i = 0; i < n; ++i) put(i), put_mark(i);
        return;
      }
      if constexpr (n_numbers == 2)
        store_two<T>(number(c, 0), number(c, 1), at);
      else
        unrolled<lanes<T>>(put);
      unrolled<lanes<T>>(put_mark);
    });
  }

 private:
  // The j-th numbers of the records.
  static T* number(Columns& c, int j) {
    return stores_weights(owing) ? (j == 0 ? c.w : c.slots[j - 1]) : c.slots[j];
  }
};

SKOPTIM_END
