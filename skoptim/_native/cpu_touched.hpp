// The first layer of a network on CSR data: a batch sorted by columns, so that the weights and the state
// of a column are visited twice a step, once to pay and multiply and once to step, however many entries it has.
#pragma once
#include "cpu_batch.hpp"
#include "cpu_network.hpp"
#include "cpu_rules.hpp"

SKOPTIM_BEGIN

// Sorts the entries of a batch by columns, these in the order in which they are met.
template <class T>
void sort_by_column(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n_rows, Touched<T>& touched) {
  int64_t n_entries = 0;
  visit_rows(x, rows, first, n_rows, [&](int64_t, const auto*, const T*, int64_t n) { n_entries += n; });
  reserve(touched.numbering, x, n_entries);
  const auto before = [](int64_t, const T*, int64_t) {};
  const int64_t n_touched = number_columns(x, rows, first, n_rows, touched.numbering, before);
  touched.columns.assign(touched.numbering.columns.begin(), touched.numbering.columns.begin() + n_touched);
  const int32_t* place = touched.numbering.places.data();
  // Filling moves each start to the next one, so each lies one place on before.
  touched.starts.assign(n_touched + 2, 0);
  int64_t* const starts = touched.starts.data() + 1;
  for (int64_t e = 0; e < n_entries; ++e) ++starts[place[e] + 1];
  for (int64_t j = 0; j < n_touched; ++j) starts[j + 1] += starts[j];
  touched.rows.resize(std::max(int64_t(touched.rows.size()), n_entries));
  touched.values.resize(touched.rows.size());
  visit_rows(x, rows, first, n_rows, [&](int64_t i, const auto*, const T* values, int64_t n) {
    for (int64_t e = 0; e < n; ++e) {
      const int64_t to = starts[*place++]++;
      touched.rows[to] = int32_t(i);
      touched.values[to] = values[e];
    }
  });
  touched.starts.pop_back();
  touched.n_columns = x.n_columns;
  touched.n_rows = n_rows;
}

// The units begin..end of the gradient X' delta of a touched column.
template <class T>
void gradient_of_column(const Touched<T>& touched, size_t j, const Layer& layer, const T* delta, T* g) {
  const int64_t n = layer.end - layer.begin;
  std::fill_n(g, n, T(0));
  for (int64_t e = touched.starts[j]; e < touched.starts[j + 1]; ++e)
    add_scaled(g, delta + touched.rows[e] * layer.width + layer.begin, touched.values[e], n);
}

// Passes over the touched columns, for some of the units of the layer: each thread has its own.
template <class Rule, class T>
struct TouchedDriver {
  using Driver = RuleDriver<Rule, T>;

  // To the second level of the cache: what is fetched ahead would fill the first.
  [[gnu::always_inline]] static void prefetch(const Parameters<T>& p, const Touched<T>& touched, size_t j,
                                              const Layer& layer) {
    constexpr int64_t columns_ahead = 4, line = 64 / int64_t(sizeof(T));
    if (j + columns_ahead >= touched.columns.size()) return;
    const int64_t column = touched.columns[j + columns_ahead] * layer.width;
    for (int64_t i = column + layer.begin; i < column + layer.end; i += line) {
      __builtin_prefetch(p.w + i, 1, 2);
      for (int s = 0; s < Rule::n_slots; ++s) __builtin_prefetch(p.slots[s] + i, 1, 2);
    }
  }

  // Pays the touched columns the steps paid[column]..to, and writes X W to z (n_rows, width).
  static void multiply(const Parameters<T>& p, const Touched<T>& touched, const Layer& layer, const Block<T>& b,
                       const int32_t* paid, int64_t to, T* z) {
    const Steps<T> steps = steps_of(b);
    const int64_t width = layer.width, n = layer.end - layer.begin;
    for (int64_t i = 0; i < touched.n_rows; ++i) std::fill_n(z + i * width + layer.begin, n, T(0));
    for (size_t j = 0; j < touched.columns.size(); ++j) {
      const int64_t column = touched.columns[j], first = column * width + layer.begin, from = paid[column];
      prefetch(p, touched, j, layer);
      if (from < to)
        Driver::pay_run(Driver::run_at(p, first), p.unit ? p.unit[column] : T(1),
                        p.average ? p.average + first : nullptr, n, steps, from, to);
      for (int64_t e = touched.starts[j]; e < touched.starts[j + 1]; ++e)
        add_scaled(z + touched.rows[e] * width + layer.begin, p.w + first, touched.values[e], n);
    }
  }

  // One step of the touched columns with gradient factor * X' delta; `g` has room for a column.
  static void apply(const Parameters<T>& p, const Touched<T>& touched, const Layer& layer, const T* delta,
                    T factor, const T* row, T* g) {
    const Scalars<Rule, T> k(row);
    const int64_t n = layer.end - layer.begin;
    for (size_t j = 0; j < touched.columns.size(); ++j) {
      const int64_t column = touched.columns[j], first = column * layer.width + layer.begin;
      prefetch(p, touched, j, layer);
      gradient_of_column(touched, j, layer, delta, g);
      const Run<T> run = Driver::run_at(p, first);
      Driver::update_run(run, g, factor, n, p.unit ? k.with_unit(p.unit[column]) : k);
      if (k.common.group_l1 > T(0)) Driver::shrink_group(run.w, n, k);
      if (p.average) Driver::add_to_average(p.average + first, run.w, n, k.common);
    }
  }
};

// The squared norm of X' delta.
template <class T>
double touched_squared_norm(const Touched<T>& touched, int64_t width, const T* delta, T* g) {
  double total = 0;
  for (size_t j = 0; j < touched.columns.size(); ++j) {
    gradient_of_column(touched, j, {width, 0, width}, delta, g);
    total += dot(g, g, width);
  }
  return total;
}

SKOPTIM_END
