// Sparse training leaves alone the columns that a batch does not touch. The zero-gradient steps
// they miss (momentum, moment decay, weight decay, L1, L2) are owed, and paid here when the column
// is next read, so that the model is the one that dense training gives.
#pragma once
#include "rules.hpp"

SKOPTIM_BEGIN

// The prepared scalars of a block of steps, with prefix sums over them.
template <class T>
struct Steps {
  const T* rows;            // (n_steps, width): Common, then the rule's own
  int64_t width;
  const double* decay;      // (n_steps + 1): product of the factors by which idle steps shrink w
  const double* threshold;  // (n_steps + 1): sum of their soft thresholds over `decay`
  const double* averaged;   // (n_steps + 1): sum of the averaging weights
  bool closed_idle;         // `decay` and `threshold` describe the idle steps of this rule exactly
  bool averaging;
};

// Rules whose idle steps have a closed form: |w| <- factor |w| - gain * threshold, down to zero.
template <class Rule>
struct Idle {
  static constexpr bool closed = false;
};
template <>
struct Idle<SGD> {
  static constexpr bool closed = true, closed_with_l2 = true;
  template <class T>
  SKOPTIM_HD static double gain(const T*, const T*) { return 1.0; }
};
template <>
struct Idle<ProximalGradient> : Idle<SGD> {};
template <>
struct Idle<Adagrad> {
  static constexpr bool closed = true, closed_with_l2 = false;
  template <class T>
  SKOPTIM_HD static double gain(const T* s, const T* k) { return 1.0 / (math::sqrt(s[0]) + k[0]); }
};

// Fills the prefix sums; returns whether the closed form holds for these steps.
template <class Rule, class T>
bool prefix_sums(const T* rows, int64_t n_steps, int64_t width, bool averaging, double* decay,
                 double* threshold, double* averaged) {
  bool closed = (Idle<Rule>::closed || Rule::penalty == Penalised::closed) && !averaging;
  decay[0] = 1.0;
  threshold[0] = averaged[0] = 0.0;
  for (int64_t t = 0; t < n_steps; ++t) {
    const Common<T> c = load_common(rows + t * width);
    averaged[t + 1] = averaged[t] + c.average;
    const double ridge = double(c.learning_rate) * c.l2;
    const double shrinkage = Rule::penalty == Penalised::proximal ? 1.0 / (1.0 + ridge) : 1.0;
    const double factor =
        Rule::penalty == Penalised::proximal ? c.shrink * shrinkage : c.shrink - ridge;
    decay[t + 1] = decay[t] * factor;
    threshold[t + 1] = threshold[t] + double(c.learning_rate) * c.l1 * shrinkage / decay[t + 1];
    if constexpr (Idle<Rule>::closed)
      closed = closed && factor > 0 && factor <= 1 && c.group_l1 == 0 && c.lower <= 0 &&
               c.upper >= 0 && (c.l2 == 0 || Idle<Rule>::closed_with_l2);
    if constexpr (Rule::penalty == Penalised::closed)
      closed = closed && rows[t * width + n_common + Rule::inverse_rate_change] == T(0);
  }
  // Past this the quotients of `decay` lose digits; replaying is exact.
  return closed && (Rule::penalty == Penalised::closed || decay[n_steps] > 1e-200);
}

// Pays the zero-gradient steps from..to of one parameter.
template <class Rule, class T>
SKOPTIM_HD void pay(T& w, T* s, T* average, const Steps<T>& steps, int64_t from, int64_t to) {
  if (from >= to) return;
  if constexpr (Idle<Rule>::closed)
    if (steps.closed_idle) {
      if (w == T(0)) return;
      const double gain = Idle<Rule>::gain(s, steps.rows + n_common);
      const double rest = absolute(double(w)) / steps.decay[from] -
                          gain * (steps.threshold[to] - steps.threshold[from]);
      w = rest > 0 ? T(sign(double(w)) * rest * steps.decay[to]) : (rest <= 0 ? T(0) : w);
      return;
    }
  // At a constant rate FTRL's weight is a function of its state and the last step's scalars alone.
  if constexpr (Rule::penalty == Penalised::closed)
    if (steps.closed_idle) from = to - 1;
  for (int64_t t = from; t < to; ++t) {
    const T* row = steps.rows + t * steps.width;
    const Common<T> c = load_common(row);
    const T* k = row + n_common;
    const T before = w;
    update<Rule>(w, T(0), s, c, k);
    if (steps.averaging) *average += c.average * w;
    const bool at_rest = w == before && (w == T(0) || (c.l1 == T(0) && c.l2 == T(0) && c.shrink == T(1)));
    if (at_rest && Rule::contracts(k)) {
      // No later idle step moves w either; only the state still decays.
      Rule::coast(s, k, T(to - t - 1));
      if (steps.averaging) *average += T(steps.averaged[to] - steps.averaged[t + 1]) * w;
      return;
    }
  }
}

SKOPTIM_END
