// Paying Adagrad's owed steps to many coefficients at once, in a loop that vectorises; see owed.hpp.
#pragma once
#include <algorithm>

#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

// Adagrad's owed steps in closed form, see Idle<Adagrad>, for many coefficients, each with a debt of its own: the
// number of its steps, the mean of their rates, and the variance of these.
struct AdagradDebt {
  double steps, mean, variance;
  // From the sums of rates and of their squares.
  static AdagradDebt of(double steps, double rates, double squares) {
    const double count = larger(steps, 1.0), mean = rates / count;
    return {steps, mean, larger(squares / count - mean * mean, 0.0)};
  }
};

// debt(i) returns that of the i-th coefficient; left[i] is 1, not 0, where the closed form does not hold and
// the weight is still to be paid. Returns whether there is any such. The penalty, and whether rates vary, are known when
// compiling: logarithms, exponentials and quotients take most of the time.
template <bool has_l1, bool has_l2, bool varies, class T, class Debt>
bool pay_adagrad_as(T* w, const T* accumulator, int64_t n, const Common<T>& c, T epsilon, Debt debt, T* left) {
  const T l1 = c.l1, l2 = c.l2, lower = c.lower, upper = c.upper;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const AdagradDebt owed = debt(i);
    const T before = w[i], magnitude = absolute(before), steps = T(owed.steps), mean = T(owed.mean);
    const T denominator = math::sqrt(accumulator[i]) + epsilon, inverse = T(1) / denominator;
    // Numbers, not truth values, which would keep the loop from vectors.
    const T outside = before == clamp(before, lower, upper) ? T(0) : T(1);
    T fails = l1 + l2 * magnitude <= T(2) * denominator ? outside : T(1), rest;
    if constexpr (has_l2) {
      const T ratio = l2 * inverse * mean;
      fails = ratio < T(1) ? fails : T(1);
      T log_factor = math::log1p_fraction(ratio);
      if constexpr (varies) {
        const T x = l2 * inverse, spread = x * x * T(owed.variance), ridge = T(1) + ratio;
        fails = spread < T(1e-10) ? fails : T(1);
        log_factor -= T(0.5) * spread / (ridge * ridge);
      }
      if constexpr (has_l1)
        rest = magnitude + (magnitude + l1 / l2) * math::expm1(-steps * log_factor);
      else
        rest = magnitude * math::exp(-steps * log_factor);
    } else {
      rest = magnitude - l1 * inverse * (steps * mean);
    }
    const T paid = rest <= T(0) ? T(0) : math::copysign(rest, before);
    const T moves = (before == T(0) ? outside : T(1)) * (steps == T(0) ? T(0) : T(1));
    left[i] = moves * fails;
    w[i] = moves * (T(1) - fails) > T(0) ? paid : before;
  }
  T total = T(0);
  for (int64_t i = 0; i < n; ++i) total += left[i];
  return total > T(0);
}
template <bool varies, class T, class Debt>
bool pay_adagrad(T* w, const T* accumulator, int64_t n, const Common<T>& c, T epsilon, Debt debt, T* left) {
  const auto pay = !(c.l2 > T(0))  ? pay_adagrad_as<true, false, false, T, Debt>
                   : c.l1 > T(0) ? pay_adagrad_as<true, true, varies, T, Debt>
                                 : pay_adagrad_as<false, true, varies, T, Debt>;
  return pay(w, accumulator, n, c, epsilon, debt, left);
}

SKOPTIM_END
