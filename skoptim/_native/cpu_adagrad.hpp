// Paying Adagrad's owed steps to many coefficients at once, in vectors; see owed.hpp.
#pragma once
#include <algorithm>

#include "cpu_vectors.hpp"
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

// A vector of them: debt(i) returns that of the i-th. left[i] becomes 1, not 0, where the closed form does not hold and
// the weight is still to be paid; returns whether there is any such. The penalty, and whether rates vary, are known
// when compiling: roots, quotients, logarithms and exponentials take most of the time.
template <bool has_l1, bool has_l2, bool varies, class T, class Debt>
[[gnu::always_inline]] inline bool pay_adagrad_vector(T* weights, const T* accumulator, const Common<T>& c, T epsilon,
                                                      Debt debt, T* left) {
  using V = Vector<T>;
  T count[lanes<T>], rate[lanes<T>], variance[lanes<T>];
  each_lane<lanes<T>>([&](int i) SKOPTIM_INLINE {
    const AdagradDebt owed = debt(i);
    count[i] = T(owed.steps), rate[i] = T(owed.mean), variance[i] = T(owed.variance);
  });
  const V zero{}, w = load<V>(weights), steps = load<V>(count), mean = load<V>(rate), magnitude = w < zero ? -w : w;
  const V root = map(load<V>(accumulator), [](T x) SKOPTIM_INLINE { return math::sqrt(x); });
  const V denominator = root + epsilon, inverse = T(1) / denominator;
  V rest = magnitude;
  auto holds = (c.l1 + c.l2 * magnitude <= T(2) * denominator) & (w >= c.lower) & (w <= c.upper);
  if constexpr (has_l2) {
    const V ratio = c.l2 * inverse * mean;
    holds &= ratio < T(1);
    V log_factor = map(ratio, [](T x) SKOPTIM_INLINE { return math::log1p_small(x); });
    const auto is_large = ratio >= math::Small<T>::below;
    if (any(is_large)) {
      const V otherwise = map(ratio, [](T x) SKOPTIM_INLINE { return math::log1p_fraction(x); });
      log_factor = is_large ? otherwise : log_factor;
    }
    if constexpr (varies) {
      const V x = c.l2 * inverse, spread = x * x * load<V>(variance), ridge = T(1) + ratio;
      holds &= spread < T(1e-10);
      log_factor -= T(0.5) * spread / (ridge * ridge);
    }
    const V exponent = -steps * log_factor;
    if constexpr (has_l1)
      rest += (magnitude + c.l1 / c.l2) * map(exponent, [](T x) SKOPTIM_INLINE { return math::expm1(x); });
    else
      rest *= map(exponent, [](T x) SKOPTIM_INLINE { return math::exp(x); });
  } else {
    rest -= c.l1 * inverse * (steps * mean);
  }
  const V paid = rest <= zero ? zero : (w < zero ? -rest : rest);
  const auto moves = ((w != zero) | (w < c.lower) | (w > c.upper)) & (steps != zero);
  store(moves & holds ? paid : w, weights);
  store(moves & ~holds ? zero + T(1) : zero, left);
  return any(moves & ~holds);
}
template <bool varies, class T, class Debt>
[[gnu::always_inline]] inline bool pay_adagrad_vector(T* w, const T* accumulator, const Common<T>& c, T epsilon,
                                                      Debt debt, T* left) {
  if (!(c.l2 > T(0))) return pay_adagrad_vector<true, false, false>(w, accumulator, c, epsilon, debt, left);
  if (c.l1 > T(0)) return pay_adagrad_vector<true, true, varies>(w, accumulator, c, epsilon, debt, left);
  return pay_adagrad_vector<false, true, varies>(w, accumulator, c, epsilon, debt, left);
}

// The same for n of them.
template <bool varies, class T, class Debt>
[[gnu::always_inline]] inline bool pay_adagrad_columns(T* w, const T* accumulator, int64_t n, const Common<T>& c,
                                                       T epsilon, Debt debt, T* left) {
  const int64_t whole = n / lanes<T> * lanes<T>;
  bool any_left = false;
  for (int64_t i = 0; i < whole; i += lanes<T>)
    any_left |= pay_adagrad_vector<varies>(
        w + i, accumulator + i, c, epsilon, [=](int j) SKOPTIM_INLINE { return debt(i + j); }, left + i);
  if (whole == n) return any_left;
  T last_w[lanes<T>] = {}, last_accumulator[lanes<T>] = {}, last_left[lanes<T>];
  std::copy(w + whole, w + n, last_w);
  std::copy(accumulator + whole, accumulator + n, last_accumulator);
  any_left |= pay_adagrad_vector<varies>(
      last_w, last_accumulator, c, epsilon,
      [=](int j) SKOPTIM_INLINE { return debt(std::min(whole + j, n - 1)); }, last_left);
  std::copy_n(last_w, n - whole, w + whole);
  std::copy_n(last_left, n - whole, left + whole);
  return any_left;
}

SKOPTIM_END
