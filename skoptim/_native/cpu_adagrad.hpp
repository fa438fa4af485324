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

// A vector of them.
template <class T>
struct AdagradDebts {
  Vector<T> steps, mean, variance;
  // That of the i-th is debt(i).
  template <class Debt>
  [[gnu::always_inline]] static AdagradDebts of(Debt debt) {
    T steps[lanes<T>], mean[lanes<T>], variance[lanes<T>];
    each_lane<lanes<T>>([&](int i) SKOPTIM_INLINE {
      const AdagradDebt owed = debt(i);
      steps[i] = T(owed.steps), mean[i] = T(owed.mean), variance[i] = T(owed.variance);
    });
    return {load<Vector<T>>(steps), load<Vector<T>>(mean), load<Vector<T>>(variance)};
  }
  static AdagradDebts same(const AdagradDebt& debt) {
    const Vector<T> zero{};
    return {zero + T(debt.steps), zero + T(debt.mean), zero + T(debt.variance)};
  }
};

// Weights that were paid, but for those marked with 1, and not 0, in `left`: there the closed form does not hold.
template <class T>
struct PaidByAdagrad {
  Vector<T> weights, left;
  bool any_left;
  [[gnu::always_inline]] bool store_to(T* w, T* left_over) const {
    store(weights, w);
    store(left, left_over);
    return any_left;
  }
};

// The penalty, and whether rates vary, are known when compiling: roots, quotients, logarithms and exponentials take
// most of the time.
template <bool has_l1, bool has_l2, bool varies, class T>
[[gnu::always_inline]] inline PaidByAdagrad<T> pay_adagrad_vector(Vector<T> w, Vector<T> accumulator,
                                                                  const Common<T>& c, T epsilon,
                                                                  const AdagradDebts<T>& owed) {
  using V = Vector<T>;
  const V zero{}, magnitude = w < zero ? -w : w;
  const V root = map(accumulator, [](T x) SKOPTIM_INLINE { return math::sqrt(x); });
  const V denominator = root + epsilon, inverse = T(1) / denominator;
  V rest = magnitude;
  auto holds = (c.l1 + c.l2 * magnitude <= T(2) * denominator) & (w >= c.lower) & (w <= c.upper);
  if constexpr (has_l2) {
    const V ratio = c.l2 * inverse * owed.mean;
    holds &= ratio < T(1);
    V log_factor = map(ratio, [](T x) SKOPTIM_INLINE { return math::log1p_small(x); });
    const auto is_large = ratio >= math::Small<T>::below;
    if (any(is_large)) {
      const V otherwise = map(ratio, [](T x) SKOPTIM_INLINE { return math::log1p_fraction(x); });
      log_factor = is_large ? otherwise : log_factor;
    }
    if constexpr (varies) {
      const V x = c.l2 * inverse, spread = x * x * owed.variance, ridge = T(1) + ratio;
      holds &= spread < T(1e-10);
      log_factor -= T(0.5) * spread / (ridge * ridge);
    }
    const V exponent = -owed.steps * log_factor;
    if constexpr (has_l1)
      rest += (magnitude + c.l1 / c.l2) * map(exponent, [](T x) SKOPTIM_INLINE { return math::expm1(x); });
    else
      rest *= map(exponent, [](T x) SKOPTIM_INLINE { return math::exp(x); });
  } else {
    rest -= c.l1 * inverse * (owed.steps * owed.mean);
  }
  const V paid = rest <= zero ? zero : (w < zero ? -rest : rest);
  const auto moves = ((w != zero) | (w < c.lower) | (w > c.upper)) & (owed.steps != zero);
  return {moves & holds ? paid : w, moves & ~holds ? zero + T(1) : zero, any(moves & ~holds)};
}
template <bool varies, class T>
[[gnu::always_inline]] inline PaidByAdagrad<T> pay_adagrad_vector(const T* weights, const T* accumulators,
                                                                  const Common<T>& c, T epsilon,
                                                                  const AdagradDebts<T>& owed) {
  const auto w = load<Vector<T>>(weights), accumulator = load<Vector<T>>(accumulators);
  if (!(c.l2 > T(0))) return pay_adagrad_vector<true, false, false>(w, accumulator, c, epsilon, owed);
  if (c.l1 > T(0)) return pay_adagrad_vector<true, true, varies>(w, accumulator, c, epsilon, owed);
  return pay_adagrad_vector<false, true, varies>(w, accumulator, c, epsilon, owed);
}

// Pays n of them, of which the i-th owes debt(i); returns whether any are left over.
template <bool varies, class T, class Debt>
[[gnu::always_inline]] inline bool pay_adagrad_columns(T* w, const T* accumulator, int64_t n, const Common<T>& c,
                                                       T epsilon, Debt debt, T* left) {
  const auto pay = [&](const T* weights, const T* accumulators, auto debt_of) SKOPTIM_INLINE {
    return pay_adagrad_vector<varies>(weights, accumulators, c, epsilon, AdagradDebts<T>::of(debt_of));
  };
  const int64_t whole = n / lanes<T> * lanes<T>;
  bool any_left = false;
  for (int64_t i = 0; i < whole; i += lanes<T>) {
    const auto debt_of = [=](int j) SKOPTIM_INLINE { return debt(i + j); };
    any_left |= pay(w + i, accumulator + i, debt_of).store_to(w + i, left + i);
  }
  if (whole == n) return any_left;
  T last_w[lanes<T>] = {}, last_accumulator[lanes<T>] = {}, last_left[lanes<T>];
  std::copy(w + whole, w + n, last_w);
  std::copy(accumulator + whole, accumulator + n, last_accumulator);
  const auto debt_of = [=](int j) SKOPTIM_INLINE { return debt(std::min(whole + j, n - 1)); };
  any_left |= pay(last_w, last_accumulator, debt_of).store_to(last_w, last_left);
  std::copy_n(last_w, n - whole, w + whole);
  std::copy_n(last_left, n - whole, left + whole);
  return any_left;
}

// The same where all owe the same.
template <bool varies, class T>
[[gnu::always_inline]] inline bool pay_adagrad_run(T* w, const T* accumulator, int64_t n, const Common<T>& c, T epsilon,
                                                   const AdagradDebt& debt, T* left) {
  if (n < lanes<T>)
    return pay_adagrad_columns<varies>(
        w, accumulator, n, c, epsilon, [=](int64_t) SKOPTIM_INLINE { return debt; }, left);
  const auto owed = AdagradDebts<T>::same(debt);
  const auto pay = [&](int64_t i) SKOPTIM_INLINE {
    return pay_adagrad_vector<varies>(w + i, accumulator + i, c, epsilon, owed);
  };
  // The last vector shares some with the one before: it is paid before that is stored.
  const int64_t last = n - lanes<T>;
  const PaidByAdagrad<T> paid = pay(last);
  bool any_left = false;
  for (int64_t i = 0; i < last; i += lanes<T>) any_left |= pay(i).store_to(w + i, left + i);
  return paid.store_to(w + last, left + last) || any_left;
}

SKOPTIM_END
