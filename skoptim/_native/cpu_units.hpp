// Units of columns: 1 / the largest |x| of each, by which `NormalizedFTRL` measures.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu_csr.hpp"
#include "cpu_memory.hpp"
#include "kernels.hpp"

SKOPTIM_BEGIN

// What 1 / |value| must be below to be the new unit of a column; any but that of a value too small, before the first.
template <class T>
T below_which_it_shrinks(T unit) { return unit == T(0) ? T(1e30) : unit; }

// Lets the unit of a column, 1 / its largest |x|, know a value; 0 before the first, and where values
// are too small to divide by.
template <class T>
void shrink_unit(T& unit, T value) {
  const T own = T(1) / absolute(value);
  if (own < below_which_it_shrinks(unit)) unit = own;
}

// A column that has had no value yet has the unit 1.
template <class T>
T effective(T unit) { return unit + T(unit == T(0)); }
// The one at a place of a record.
template <class T>
SKOPTIM_HD T unit_at(const T* place) { return effective(*place); }

// Calls visit(column, value) for what is stored of a row.
template <class T, class Visit>
[[gnu::always_inline]] inline void visit_row(const Matrix<T>& x, int64_t row, Visit visit) {
  if (x.indices) return visit_entries(x, nullptr, row, 1, [=](int64_t, int64_t column, T value) { visit(column, value); });
  for (int64_t f = 0; f < x.n_columns; ++f) visit(f, x.data[row * x.n_columns + f]);
}

// The mean squared norm, in units of the columns, of some hundred of the rows.
template <class T>
double mean_squared_norm(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, const T* units) {
  constexpr int64_t sampled = 256;
  double total = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += (n + sampled - 1) / sampled, ++count)
    visit_row(x, rows ? rows[i] : first + i, [&](int64_t column, T value) {
      const double scaled = double(value) * units[column];
      total += scaled * scaled;
    });
  return count ? total / count : 0.0;
}

// Lets the units of columns know the entries of the given rows; returns their mean squared norm.
template <class T>
double observe(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, T* unit) {
  std::vector<T> largest(x.n_columns);
  T* const seen = largest.data();
  if (x.indices) {
    visit_entries(x, rows, first, n, [=](int64_t, int64_t column, T value) SKOPTIM_INLINE {
      seen[column] = larger(seen[column], absolute(value));
    });
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const T* const values = x.data + (rows ? rows[i] : first + i) * x.n_columns;
#pragma GCC ivdep
      for (int64_t f = 0; f < x.n_columns; ++f) seen[f] = larger(seen[f], absolute(values[f]));
    }
  }
  for (int64_t f = 0; f < x.n_columns; ++f) shrink_unit(unit[f], seen[f]);
  return mean_squared_norm(x, rows, first, n, unit);
}

// The units of all columns of a table once more, side by side: blocks of a stream are compared with these alone.
template <class T>
class ColumnUnits {
 public:
  bool is_empty() const { return units_.size() == 0; }
  T* data() { return units_.data(); }
  void resize(int64_t n_columns) {
    units_ = Memory<T>(n_columns);
    is_changed_.assign((n_columns + 63) / 64, 0);
    n_changed_ = 0;
  }
  void forget() { units_ = Memory<T>(); }

  // Lets the units know CSR rows.
  void observe(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n) {
    for (int64_t j = 0; j < n_changed_; ++j) is_changed_[changed_[j] / 64] = 0;
    n_changed_ = 0;
    x.wide ? observe<int64_t>(x, rows, first, n) : observe<int32_t>(x, rows, first, n);
  }
  // The columns whose units became others then, each once.
  const int64_t* changed() const { return changed_.data(); }
  int64_t n_changed() const { return n_changed_; }

 private:
  template <class Index>
  void observe(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n) {
    const Index* const indptr = static_cast<const Index*>(x.indptr);
    T* const units = units_.data();
    for (int64_t i = 0; i < n; ++i) {
      const auto row_of = [=](int64_t j) { return rows ? rows[j] : first + j; };
      if (i + 1 < n) visit_row(x, row_of(i + 1), [=](int64_t column, T) { __builtin_prefetch(units + column); });
      const int64_t begin = int64_t(indptr[row_of(i)]), size = int64_t(indptr[row_of(i) + 1]) - begin;
      const Index* const columns = static_cast<const Index*>(x.indices) + begin;
      const T* const values = x.data + begin;
      if (int64_t(flagged_.size()) < size) {
        flags_.resize(size);
        flagged_.resize(size);
      }
      // Few values shrink a unit, and vectors find them; which values do, nobody can foresee. (The columns of a row are
      // all different.)
      int32_t* const flags = flags_.data();
      int32_t count = 0;
      for (int64_t e = 0; e < size; ++e) {
        const T own = T(1) / absolute(values[e]);
        flags[e] = own < below_which_it_shrinks(units[int64_t(columns[e])]) ? 1 : 0;
        count += flags[e];
      }
      if (count == 0) continue;
      int64_t* const flagged = flagged_.data();
      int64_t n_flagged = 0;
      for (int64_t e = 0; e < size; ++e) {
        flagged[n_flagged] = e;
        n_flagged += flags[e];
      }
      // (Nor which of them have changed before: all are noted, and count if they have not.)
      if (int64_t(changed_.size()) < n_changed_ + n_flagged) changed_.resize(2 * (n_changed_ + n_flagged));
      uint64_t* const is_changed = is_changed_.data();
      for (int64_t k = 0; k < n_flagged; ++k) {
        const auto column = uint64_t(columns[flagged[k]]);
        units[column] = T(1) / absolute(values[flagged[k]]);
        const uint64_t word = is_changed[column / 64];
        changed_[n_changed_] = int64_t(column);
        n_changed_ += ((word >> (column % 64)) & 1) ^ 1;
        is_changed[column / 64] = word | uint64_t(1) << (column % 64);
      }
    }
  }

  Memory<T> units_;
  std::vector<uint64_t> is_changed_;  // a bit for each column
  std::vector<int64_t> changed_, flagged_;
  int64_t n_changed_ = 0;
  std::vector<int32_t> flags_;
};

SKOPTIM_END
