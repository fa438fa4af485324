// Paying the owed steps of SGD, with a momentum or without, to many coefficients at once, in a loop that vectorises;
// see owed.hpp.
#pragma once
#include <type_traits>

#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

template <class Rule>
constexpr bool is_uniform_idle = std::is_base_of_v<UniformIdle<Rule>, Idle<Rule>>;

// Whether the idle steps of a record are paid so.
template <class Rule, class T>
bool pays_uniformly(const Steps<T>& steps) {
  return is_uniform_idle<Rule> && steps.closed_idle && !is_boxed(load_common(steps.rows)) &&
         steps.lead[0] < SKOPTIM_INFINITY;
}

// `debt(i)` returns that of the i-th coefficient; left[i] is 1, not 0, where the closed form does not hold and
// all is still to be paid. Returns whether there is any such.
template <class Rule, bool lasso, class T, class Debt>
[[gnu::always_inline]] inline bool pay_uniform_as(const Run<T>& run, int64_t n, T held, Debt debt, T* left) {
  constexpr bool has_moment = UniformIdle<Rule>::has_moment;
  T* const w = run.w;
  T* const moment = run.slots[0];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const UniformDebt owed = debt(i);
    const T before = w[i], m = has_moment ? moment[i] : T(0);
    T stays = T(1);
    const T after = owed.paid<lasso>(before, m, held, &stays);
    w[i] = stays > T(0) ? after : before;
    if constexpr (has_moment) moment[i] = stays > T(0) ? T(owed.fade) * m : m;
    if constexpr (lasso) left[i] = T(1) - stays;
  }
  T total = T(0);
  if (lasso)
    for (int64_t i = 0; i < n; ++i) total += left[i];
  return total > T(0);
}
template <class Rule, class T, class Debt>
[[gnu::always_inline]] inline bool pay_uniform_columns(const Run<T>& run, int64_t n, const T* row, Debt debt,
                                                       T* left) {
  const Common<T> c = load_common(row);
  if (!(c.l1 > T(0))) return pay_uniform_as<Rule, false>(run, n, T(0), debt, left);
  return pay_uniform_as<Rule, true>(run, n, Idle<Rule>::held(c, row + n_common), debt, left);
}

SKOPTIM_END
