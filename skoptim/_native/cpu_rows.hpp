// A row of one output, vector by vector: what the records of a vector's columns hold is loaded, made weights of and
// multiplied at once; and stepped and stored at once, when the derivative of the loss is known.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu_owing.hpp"
#include "cpu_units.hpp"
#include "cpu_vectors.hpp"

SKOPTIM_BEGIN

// The entries of a row. Its last vector is filled with the last entry over and over: that a column is stepped several
// times, each from what it was before, does no harm.
template <class Index, class T>
class RowInVectors {
 public:
  RowInVectors(const Matrix<T>& x, int64_t row) {
    const Index* const indptr = static_cast<const Index*>(x.indptr);
    const int64_t begin = int64_t(indptr[row]);
    n_ = int64_t(indptr[row + 1]) - begin;
    columns_ = static_cast<const Index*>(x.indices) + begin;
    values_ = x.data + begin;
    if (n_ == 0) return;
    n_before_last_ = (n_ - 1) / lanes<T> * lanes<T>;
    const Index* const columns = columns_ + n_before_last_;
    const T* const values = values_ + n_before_last_;
    const int64_t left = n_ - n_before_last_;
    const Index column = columns[left - 1];
    const T value = values[left - 1];
    if (begin + n_before_last_ + lanes<T> <= x.n_stored()) {
      // In vectors: what is stored behind the row is read, too.
#pragma GCC ivdep
      for (int i = 0; i < lanes<T>; ++i) {
        last_columns_[i] = i < left ? columns[i] : column;
        last_values_[i] = i < left ? values[i] : value;
        last_values_once_[i] = i < left ? values[i] : T(0);
      }
    } else {
      for (int i = 0; i < lanes<T>; ++i) {
        last_columns_[i] = columns[std::min<int64_t>(i, left - 1)];
        last_values_[i] = values[std::min<int64_t>(i, left - 1)];
        last_values_once_[i] = i < left ? last_values_[i] : T(0);
      }
    }
  }

  int64_t size() const { return n_; }
  const Index* columns() const { return columns_; }

  // To step: calls visit(columns, values) for each vector.
  template <class Visit>
  [[gnu::always_inline]] inline void each_vector(Visit visit) const {
    each_vector(visit, last_values_);
  }
  // To sum: the same with the value zero where an entry comes again.
  template <class Visit>
  [[gnu::always_inline]] inline void each_vector_once(Visit visit) const {
    each_vector(visit, last_values_once_);
  }

 private:
  template <class Visit>
  [[gnu::always_inline]] inline void each_vector(Visit visit, const T* last_values) const {
    if (n_ == 0) return;
    for (int64_t e = 0; e < n_before_last_; e += lanes<T>) visit(columns_ + e, load<Vector<T>>(values_ + e));
    visit(last_columns_, load<Vector<T>>(last_values));
  }

  const Index* columns_;
  const T* values_;
  int64_t n_, n_before_last_ = 0;
  Index last_columns_[lanes<T>];
  T last_values_[lanes<T>], last_values_once_[lanes<T>];
};

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

  // Fills vectors, and returns the sum of weights times values. `pay(c, mark)` pays what columns owe, if `owes`
  // (in these copies: an entry that comes again is paid again).
  template <class Row, class Pay>
  [[gnu::always_inline]] static T weigh(const Row& row, const T* records, Scalars<Rule, T> k, Columns* vectors,
                                        bool owes, Pay pay) {
    // The sum is made in as many lanes on every instruction set.
    constexpr int n_lanes = 64 / sizeof(T), n_sums = n_lanes / lanes<T>;
    Vector<T> sums[n_sums] = {};
    if constexpr (owing == Owing::derived && !has_units) k.own[Rule::unit] = T(1);
    row.each_vector_once([=, &sums, which = 0](const auto* columns, Vector<T> x) mutable SKOPTIM_INLINE {
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
          store(vector_of<double>([=](int i) SKOPTIM_INLINE { return mark_at(at(j + i) + at_mark); }), mark + j);
        pay(c, mark);
      }
      sums[which] += load<Vector<T>>(c.w) * x;
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
    row.each_vector([=](const auto* columns, Vector<T> x) mutable SKOPTIM_INLINE {
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
