// CPU drivers of the rules: loops of rules.hpp and owed.hpp over runs of coefficients.
#pragma once
#include <type_traits>
#include <vector>

#include "cpu_adagrad.hpp"
#include "cpu_fading.hpp"
#include "cpu_uniform.hpp"
#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

template <class T>
Steps<T> steps_of(const Block<T>& b) {
  return {b.rows, b.width,       b.decay,     b.threshold, b.averaged, b.highest_rate,
          b.lead, b.closed_idle, b.averaging, b.factors,   b.series,   b.n_steps,
          b.fading, b.one_rate};
}

template <Extras extras>
using with = std::integral_constant<Extras, extras>;
// Calls visit with the extras of a step, known when compiling.
template <class T, class Visit>
[[gnu::always_inline]] inline void choose_extras(const Common<T>& c, Visit visit) {
  switch (extras(c)) {
    case Extras::none: return visit(with<Extras::none>{});
    case Extras::ridge: return visit(with<Extras::ridge>{});
    case Extras::lasso: return visit(with<Extras::lasso>{});
    default: return visit(with<Extras::any>{});
  }
}

template <class Rule, class T>
struct RuleDriver {
  static constexpr int n_slots = Rule::n_slots;
  // Coefficients that are replayed together, in the nearest cache.
  static constexpr int64_t replayed_together = 64;
  static constexpr int64_t between_looks = 8;  // at whether there is anything left to replay

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

  // Lets the states of n coefficients, of which the run has the units, stand for the same weights in other units.
  static void change_units(const Run<T>& run, const T* units, int64_t n, const Scalars<Rule, T>& k) {
    for_each<states>(run, n, k, [units, c = k.common](T&, T* s, const T* own, int64_t i) SKOPTIM_INLINE {
      Rule::change_unit(s, units[i], c, own);
    });
  }

  // One step of n coefficients with gradient factor * g.
  static void update_run(const Run<T>& run, const T* g, T factor, int64_t n,
                         const Scalars<Rule, T>& k) {
    choose_extras(k.common, [&](auto extras) SKOPTIM_INLINE { update_run<extras()>(run, g, factor, n, k); });
  }

  template <Extras extras>
  static void update_run(const Run<T>& run, const T* g, T factor, int64_t n, const Scalars<Rule, T>& k) {
    Common<T> c = k.common;
    // Known when compiling, for the rules that contain the penalty.
    if constexpr (extras == Extras::none || extras == Extras::ridge) c.l1 = T(0);
    if constexpr (extras == Extras::none || extras == Extras::lasso) c.l2 = T(0);
    for_each<weights | states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) SKOPTIM_INLINE {
      update_with<Rule, extras>(w, factor * g[i], s, c, own);
    });
  }

  // One step without a gradient.
  static void idle_run(const Run<T>& run, int64_t n, const Scalars<Rule, T>& k) {
    switch (extras(k.common)) {
      case Extras::ridge: return idle_run<Extras::ridge>(run, n, k);
      case Extras::lasso: return idle_run<Extras::lasso>(run, n, k);
      default: return idle_run<Extras::any>(run, n, k);
    }
  }

  template <Extras extras>
  static void idle_run(const Run<T>& run, int64_t n, const Scalars<Rule, T>& k) {
    const Common<T> c = k.common;
    for_each<weights | states>(run, n, k, [=](T& w, T* s, const T* own, int64_t) SKOPTIM_INLINE {
      update_with<Rule, extras>(w, T(0), s, c, own);
    });
  }

  // For rules that contain the penalty: a step of the states alone,
  static void advance_run(const Run<T>& run, const T* g, T factor, int64_t n,
                          const Scalars<Rule, T>& k) {
    if constexpr (Rule::contains_penalty) {
      const Common<T> c = k.common;
      if (c.clip_value < T(SKOPTIM_INFINITY))
        for_each<states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) SKOPTIM_INLINE {
          Rule::advance(w, clamp(factor * g[i], -c.clip_value, c.clip_value), s, c, own);
        });
      else
        for_each<states>(run, n, k, [=](T& w, T* s, const T* own, int64_t i) SKOPTIM_INLINE {
          Rule::advance(w, factor * g[i], s, c, own);
        });
    }
  }

  // and the weights that the states stand for.
  static void derive_run(const Run<T>& run, int64_t n, const Scalars<Rule, T>& k) {
    if constexpr (Rule::contains_penalty) {
      const Common<T> c = k.common;
      if (is_boxed(c))
        for_each<weights>(run, n, k, [=](T& w, T* s, const T* own, int64_t) SKOPTIM_INLINE {
          w = clamp(Rule::weight(w, s, c, own), c.lower, c.upper);
        });
      else
        for_each<weights>(run, n, k, [=](T& w, T* s, const T* own, int64_t) SKOPTIM_INLINE {
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
    if (Fading<Rule>::holds && !steps.averaging) {
      const int64_t paid = FadingDebts<Rule, T>::pay(run, n, steps, from, to);
      if (paid == n) return;
      return pay_run_stepwise(run.from(paid), unit, nullptr, n - paid, steps, from, to);
    }
    pay_run_stepwise(run, unit, average, n, steps, from, to);
  }

  static void pay_run_stepwise(const Run<T>& run, T unit, double* average, int64_t n, const Steps<T>& steps,
                               int64_t from, int64_t to) {
    if (n < fills_vectors || steps.averaging) return pay_each<Rule>(run, unit, average, n, steps, from, to);
    if constexpr (std::is_same_v<Rule, Adagrad>)
      if (steps.closed_idle) return pay_in_closed_form(run, n, steps, from, to);
    if constexpr (is_uniform_idle<Rule>)
      if (pays_uniformly<Rule>(steps)) return pay_uniform_run(run, n, steps, from, to);
    replay(run, unit, n, steps, from, to);
  }

  // Adagrad: in closed form. Where that does not hold, some coefficients are replayed, apart, until it does.
  static void pay_in_closed_form(const Run<T>& run, int64_t n, const Steps<T>& steps, int64_t from, int64_t to) {
    const T* const row = steps.row(from);
    const Common<T> c = load_common(row);
    if (rests<Rule>(row)) return;
    T is_left[replayed_together], w[replayed_together], accumulator[replayed_together];
    int64_t place[replayed_together];
    const auto pay = [&](T* weights, const T* slot, int64_t size, int64_t t) {
      const auto owed = AdagradDebt::of(double(to - t), steps.decay[to] - steps.decay[t],
                                        steps.threshold[to] - steps.threshold[t]);
      return steps.one_rate ? pay_adagrad_run<false>(weights, slot, size, c, row[n_common], owed, is_left)
                            : pay_adagrad_run<true>(weights, slot, size, c, row[n_common], owed, is_left);
    };
    for (int64_t i = 0; i < n; i += replayed_together) {
      const Run<T> part = run.from(i);
      const int64_t size = std::min<int64_t>(replayed_together, n - i);
      if (!pay(part.w, part.slots[0], size, from)) continue;
      int64_t left = 0;
      for (int64_t j = 0; j < size; ++j)
        if (is_left[j] != T(0)) w[left] = part.w[j], accumulator[left] = part.slots[0][j], place[left++] = j;
      for (int64_t t = from; left > 0;) {
        for (int64_t stop = std::min<int64_t>(to, t + between_looks); t < stop; ++t)
          idle_run({w, {accumulator, nullptr, nullptr}, nullptr}, left, Scalars<Rule, T>(steps.row(t)));
        pay(w, accumulator, left, t);
        int64_t still_left = 0;
        for (int64_t j = 0; j < left; ++j) {
          part.w[place[j]] = w[j];
          if (is_left[j] == T(0)) continue;
          w[still_left] = w[j], accumulator[still_left] = accumulator[j], place[still_left++] = place[j];
        }
        left = still_left;
      }
    }
  }

  // SGD: one debt for all.
  static void pay_uniform_run(const Run<T>& run, int64_t n, const Steps<T>& steps, int64_t from, int64_t to) {
    const T* const row = steps.row(from);
    const double fade = math::pow(double(Rule::memory(row + n_common)), double(to - from));
    const UniformDebt debt = UniformDebt::of(steps, from, to, fade);
    T left[replayed_together];
    for (int64_t i = 0; i < n; i += replayed_together) {
      const Run<T> part = run.from(i);
      const int64_t size = std::min<int64_t>(replayed_together, n - i);
      if (!pay_uniform_columns<Rule>(part, size, row, [=](int64_t) { return debt; }, left)) continue;
      for (int64_t j = 0; j < size; ++j)
        if (left[j] != T(0)) pay_each<Rule>(part.from(j), T(1), nullptr, 1, steps, from, to);
    }
  }

  // Step by step, until none of some coefficients moves any more.
  static void replay(const Run<T>& run, T unit, int64_t n, const Steps<T>& steps, int64_t from, int64_t to) {
    T before[replayed_together];
    for (int64_t i = 0; i < n; i += replayed_together) {
      const Run<T> part = run.from(i);
      const int64_t size = std::min<int64_t>(replayed_together, n - i);
      for (int64_t t = from; t < to; ++t) {
        const Scalars<Rule, T> k = Scalars<Rule, T>(steps.row(t)).with_unit(unit);
        const bool looks = (t - from) % between_looks == 0;
        if (looks && is_still(part, size, k, steps, t)) {
          pay_each<Rule>(part, unit, nullptr, size, steps, t, to);
          break;
        }
        if (looks) std::copy_n(part.w, size, before);
        idle_run(part, size, k);
        if (looks && std::equal(before, before + size, part.w) && may_rest(part.w, size, k, steps, t)) {
          // Each finds for itself that it is at rest, which one step tells.
          if (t + 1 < to) pay_each<Rule>(part, unit, nullptr, size, steps, t + 1, to);
          break;
        }
      }
    }
  }

  // Whether all of the rest has a closed form.
  static bool is_still(const Run<T>& run, int64_t n, const Scalars<Rule, T>& k, const Steps<T>& steps, int64_t t) {
    if constexpr (Idle<Rule>::closed) {
      if (!steps.closed_idle) return false;
      for (int64_t i = 0; i < n; ++i) {
        T s[slot_storage<Rule>] = {};
        for (int j = 0; j < n_slots; ++j) s[j] = run.slots[j][i];
        if (!Idle<Rule>::still(run.w[i], s, steps.highest_rate[t], k.own)) return false;
      }
      return true;
    }
    return false;
  }

  // Whether weights that did not move in step t may be at rest for good, see `pay`.
  static bool may_rest(const T* w, int64_t n, const Scalars<Rule, T>& k, const Steps<T>& steps, int64_t t) {
    const Common<T>& c = k.common;
    const bool free = c.l1 == T(0) && c.l2 == T(0) && c.coupled_l2 == T(0) && c.shrink == T(1);
    return (free || all_zero(w, n)) && double(c.learning_rate) >= 0.5 * steps.highest_rate[t] &&
           Rule::contracts(k.own);
  }

  // The coefficients of a column under a group penalty move together: replay them step by step.
  static void pay_group(const Run<T>& run, double* average, int64_t n, const Steps<T>& steps,
                        int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const Scalars<Rule, T> k(steps.row(t));
      const bool was_zero = all_zero(run.w, n);
      idle_run(run, n, k);
      const bool lasts = double(k.common.learning_rate) >= 0.5 * steps.highest_rate[t];
      if (was_zero && lasts && all_zero(run.w, n)) {
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
        update_run(run.from(i), g + i, T(1), width, k.with_unit(p.unit[(begin + i) / width]));
    else
      update_run(run, g, T(1), n, k);
    if (k.common.group_l1 > T(0) && width > 0)
      for (int64_t i = 0; i < n; i += width) shrink_group(run.w + i, width, k);
    if (p.average && k.common.average != T(0))
      add_to_average(p.average + begin, run.w, n, k.common);
  }

  static void pay_columns(const Parameters<T>& p, int64_t begin, int64_t end, int64_t width, const Block<T>& b,
                          int32_t* paid, int64_t to) {
    const Steps<T> steps = steps_of(b);
    for (int64_t column = begin; column < end; ++column) {
      const int64_t from = paid[column], first = column * width;
      paid[column] = int32_t(to);
      if (from < to)
        pay_run(run_at(p, first), p.unit ? p.unit[column] : T(1),
                p.average ? p.average + first : nullptr, width, steps, from, to);
    }
  }
};

SKOPTIM_END
