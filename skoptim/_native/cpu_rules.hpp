// CPU drivers of the rules: loops of rules.hpp and owed.hpp over runs of coefficients.
#pragma once
#include <vector>

#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

// A rule without slots still needs an array of length one.
template <class Rule>
constexpr int slot_storage = Rule::n_slots > 0 ? Rule::n_slots : 1;

// Where the weights of a run of coefficients lie, their slots, and the units of their columns (null:
// those in the scalars).
template <class T>
struct Run {
  T* w;
  T* slots[max_slots];
  const T* unit;
  Run from(int64_t i) const {
    Run rest = *this;
    rest.w += i;
    for (T*& slot : rest.slots)
      if (slot) slot += i;
    if (unit) rest.unit += i;
    return rest;
  }
};

// Writes out one row of scalars after the other; a row stays as it is until the next but one.
template <class T>
class RowReader {
 public:
  explicit RowReader(const ScalarBlock<T>& block) : block_(block) {
    for (auto& row : rows_) row.assign(block.row, block.row + block.width);
  }
  const T* operator()(int64_t step) {
    T* const row = rows_[step % 2].data();
    for (int64_t j = 0; j < block_.n_varying; ++j)
      row[block_.varying[j]] = block_.values[step * block_.n_varying + j];
    return row;
  }

 private:
  const ScalarBlock<T> block_;
  std::vector<T> rows_[2];
};

template <class Rule, class T>
struct RuleDriver {
  static constexpr int n_slots = Rule::n_slots;

  // What a loop over coefficients changes, and whose units it uses.
  enum Changes { weights = 1, states = 2 };
  enum class Units { none, shared, own };

  // Calls visit(w, slots, own scalars, i) for each coefficient, in a loop that vectorises.
  template <int changes, class Visit>
  [[gnu::always_inline]] static void for_each(const Run<T>& run, int64_t n, const Scalars<Rule, T>& k,
                                              Visit visit) {
    if constexpr (Rule::contains_penalty && changes != (weights | states)) {
      if (run.unit)
        loop<changes, Units::own>(run, n, k, visit);
      else if (k.own[Rule::unit] == T(1))
        loop<changes, Units::none>(run, n, k, visit);
      else
        loop<changes, Units::shared>(run, n, k, visit);
    } else if (Rule::contains_penalty && run.unit) {
      loop<changes, Units::own>(run, n, k, visit);
    } else {
      loop<changes, Units::shared>(run, n, k, visit);
    }
  }

  template <int changes, Units units, class Visit>
  [[gnu::always_inline]] static void loop(const Run<T>& run, int64_t n, Scalars<Rule, T> k, Visit visit) {
    // Known when compiling, so that no factor 1 is multiplied by.
    if constexpr (units == Units::none) k.own[Rule::unit] = T(1);
    T* const w = run.w;
    T* const s0 = run.slots[0];
    T* const s1 = run.slots[1];
    T* const s2 = run.slots[2];
    const T* const unit = run.unit;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      T wi = w[i], s[3] = {};
      if constexpr (n_slots > 0) s[0] = s0[i];
      if constexpr (n_slots > 1) s[1] = s1[i];
      if constexpr (n_slots > 2) s[2] = s2[i];
      if constexpr (units == Units::own && Rule::contains_penalty) k.own[Rule::unit] = unit[i];
      visit(wi, s, k.own, i);
      if constexpr (changes & weights) w[i] = wi;
      if constexpr (!(changes & states)) continue;
      if constexpr (n_slots > 0) s0[i] = s[0];
      if constexpr (n_slots > 1) s1[i] = s[1];
      if constexpr (n_slots > 2) s2[i] = s[2];
    }
  }

  // One step of n coefficients with gradient factor * g.
  static void update_run(const Run<T>& run, const T* g, T factor, int64_t n,
                         const Scalars<Rule, T>& k) {
    Common<T> c = k.common;
    if (is_smooth(c)) {
      c.l1 = T(0);  // Known when compiling, for the bounds of the rules.
      if (c.l2 > T(0))
        for_each<weights | states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) {
          update<Rule, true>(w, factor * g[i], s, c, own);
        });
      else
        for_each<weights | states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) {
          Rule::step(w, factor * g[i], s, c, own);
        });
      return;
    }
    for_each<weights | states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) {
      update<Rule>(w, factor * g[i], s, c, own);
    });
  }

  // One step without a gradient.
  static void idle_run(const Run<T>& run, int64_t n, const Scalars<Rule, T>& k) {
    const Common<T> c = k.common;
    for_each<weights | states>(run, n, k, [=](T& w, T* s, const T* own, int64_t) {
      update<Rule>(w, T(0), s, c, own);
    });
  }

  // For rules that contain the penalty: a step of the states alone,
  static void advance_run(const Run<T>& run, const T* g, T factor, int64_t n,
                          const Scalars<Rule, T>& k) {
    if constexpr (Rule::contains_penalty) {
      const Common<T> c = k.common;
      if (c.clip_value < T(SKOPTIM_INFINITY))
        for_each<states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) {
          Rule::advance(w, clamp(factor * g[i], -c.clip_value, c.clip_value), s, c, own);
        });
      else
        for_each<states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) {
          Rule::advance(w, factor * g[i], s, c, own);
        });
    }
  }

  // and the weights that the states stand for.
  static void derive_run(const Run<T>& run, int64_t n, const Scalars<Rule, T>& k) {
    if constexpr (Rule::contains_penalty) {
      const Common<T> c = k.common;
      if (c.lower > -T(SKOPTIM_INFINITY) || c.upper < T(SKOPTIM_INFINITY))
        for_each<weights>(run, n, k, [=](T& w, T* s, const T* own, int64_t) {
          w = clamp(Rule::weight(w, s, c, own), c.lower, c.upper);
        });
      else
        for_each<weights>(run, n, k, [=](T& w, T* s, const T* own, int64_t) {
          w = Rule::weight(w, s, c, own);
        });
    }
  }

  // Only rules with one step size for all coefficients meet a group penalty.
  static void shrink_group(T* w, int64_t width, const Scalars<Rule, T>& k) {
    if constexpr (Rule::uniform) {
      T ignored = T(0), s[slot_storage<Rule>] = {};
      const T step_size = Rule::step(ignored, T(0), s, k.common, k.own);
      T squared_norm = T(0);
      for (int64_t i = 0; i < width; ++i) squared_norm += w[i] * w[i];
      const T factor = group_shrinkage(squared_norm, step_size * k.common.group_l1);
      for (int64_t i = 0; i < width; ++i) w[i] *= factor;
    }
  }

  static void add_to_average(double* average, const T* w, int64_t n, const Common<T>& c) {
    for (int64_t i = 0; i < n; ++i) average[i] += double(c.average) * w[i];
  }

  // Pays n coefficients of one column the steps from..to; `average` may be null.
  static void pay_run(const Run<T>& run, T unit, double* average, int64_t n, const Steps<T>& steps,
                      int64_t from, int64_t to) {
    if (load_common(steps.rows).group_l1 > T(0)) return pay_group(run, average, n, steps, from, to);
    if (Rule::contains_penalty && steps.closed_idle)
      return derive_run(run, n, Scalars<Rule, T>(steps.row(to - 1)).with_unit(unit));
    for (int64_t i = 0; i < n; ++i) {
      T s[slot_storage<Rule>] = {};
      for (int j = 0; j < n_slots; ++j) s[j] = run.slots[j][i];
      pay<Rule>(run.w[i], s, average ? average + i : nullptr, unit, steps, from, to);
      for (int j = 0; j < n_slots; ++j) run.slots[j][i] = s[j];
    }
  }

  // The coefficients of a column under a group penalty move together: replay them step by step.
  static void pay_group(const Run<T>& run, double* average, int64_t n, const Steps<T>& steps,
                        int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const Scalars<Rule, T> k(steps.row(t));
      const bool was_zero = all_zero(run.w, n);
      idle_run(run, n, k);
      if (was_zero && all_zero(run.w, n)) {
        for (int64_t i = 0; i < n; ++i) {
          T s[slot_storage<Rule>] = {};
          for (int j = 0; j < n_slots; ++j) s[j] = run.slots[j][i];
          Rule::coast(s, k.own, T(to - t - 1));
          for (int j = 0; j < n_slots; ++j) run.slots[j][i] = s[j];
        }
        return;
      }
      shrink_group(run.w, n, k);
      if (average) add_to_average(average, run.w, n, k.common);
    }
  }

  static bool all_zero(const T* w, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      if (w[i] != T(0)) return false;
    return true;
  }

  // The flat parameters.

  static Run<T> run_at(const Parameters<T>& p, int64_t i) {
    return Run<T>{p.w, {p.slots[0], p.slots[1], p.slots[2]}, nullptr}.from(i);
  }

  static void apply(const Parameters<T>& p, const T* g, int64_t begin, int64_t end, const T* row,
                    bool penalised, int64_t width) {
    Scalars<Rule, T> k(row);
    if (!penalised) k.common = unpenalised(k.common);
    Run<T> run = run_at(p, begin);
    const int64_t n = end - begin;
    if (width == 1 && p.unit) run.unit = p.unit + begin;
    if (width > 1 && p.unit)
      for (int64_t i = 0; i < n; i += width)
        update_run(run.from(i), g + i, T(1), width, k.with_unit(p.unit[i / width]));
    else
      update_run(run, g, T(1), n, k);
    if (k.common.group_l1 > T(0) && width > 0)
      for (int64_t i = 0; i < n; i += width) shrink_group(run.w + i, width, k);
    if (p.average && k.common.average != T(0))
      add_to_average(p.average + begin, run.w, n, k.common);
  }

  static void apply_columns(const Parameters<T>& p, const int64_t* columns, int64_t n,
                            int64_t width, const T* g, const T* row) {
    const Scalars<Rule, T> k(row);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t begin = columns[j] * width;
      const Run<T> run = run_at(p, begin);
      update_run(run, g + j * width, T(1), width, p.unit ? k.with_unit(p.unit[columns[j]]) : k);
      if (k.common.group_l1 > T(0)) shrink_group(run.w, width, k);
      if (p.average) add_to_average(p.average + begin, run.w, width, k.common);
    }
  }

  static void pay_columns(const Parameters<T>& p, const int64_t* columns, int64_t n, int64_t width,
                          const Block<T>& b, int32_t* paid, int64_t to) {
    const Steps<T> steps{b.rows,     b.width,        b.decay,       b.threshold,
                         b.averaged, b.highest_rate, b.closed_idle, b.averaging};
    for (int64_t j = 0; j < n; ++j) {
      const int64_t column = columns ? columns[j] : j;
      const int64_t from = paid[column], begin = column * width;
      paid[column] = int32_t(to);
      if (from < to)
        pay_run(run_at(p, begin), p.unit ? p.unit[column] : T(1),
                p.average ? p.average + begin : nullptr, width, steps, from, to);
    }
  }
};

SKOPTIM_END
