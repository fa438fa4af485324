// Sparse training leaves alone the columns that a batch does not touch. The zero-gradient steps
// they miss (momentum, moment decay, weight decay, L1, L2) are owed, and paid here when the column
// is next read, so that the model is the one that dense training gives.
#pragma once
#ifndef __CUDACC_RTC__
#include "kernels.hpp"
#endif
#include "rules.hpp"

SKOPTIM_BEGIN

// The prepared scalars of recorded steps, with running sums over them.
template <class T>
struct Steps {
  const T* rows;            // (n_steps, width): Common, then the rule's own
  int64_t width;
  // (n_steps + 1) each; what the first two hold depends on the rule, see `Idle`.
  const double* decay;
  const double* threshold;
  const double* averaged;      // sum of the averaging weights
  const double* highest_rate;  // largest learning rate from a step to the end of the record
  const double* lead;          // what a moment of 1 would take from a weight until then, see `UniformIdle`
  bool closed_idle;         // the idle steps of this rule have a closed form in this record
  bool averaging;
#ifndef __CUDACC_RTC__
  // For cpu_fading.hpp; null without.
  const T* factors;
  const FadingStep* series;  // (n_steps + 1)
  int64_t n_steps;
  FadingConstants fading;
  bool one_rate;               // in all steps
#endif
  SKOPTIM_HD const T* row(int64_t step) const { return rows + step * width; }
};

// What a rule does in steps without a gradient, beyond replaying them one by one.
struct NoClosedForm {
  static constexpr bool closed = false;
  static constexpr bool averages = false;     // whether the averaged weights of such steps have a closed form, too
  static constexpr bool has_moment = false;   // whether it covers what a moment moves
  static constexpr bool keeps_state = false;  // whether such a step leaves the state arrays as they are
  // What is ahead of a moment, see `Steps`.
  template <class T>
  SKOPTIM_HD static double lead(const Common<T>&, const T*, double) { return 0.0; }
};
template <class Rule>
struct Idle : NoClosedForm {};

template <class Rule, class T>
SKOPTIM_HD T derived_weight(T w, const T* s, const Scalars<Rule, T>& last) {
  return clamp(Rule::weight(w, s, last.common, last.own), last.common.lower, last.common.upper);
}

// The rules whose weight is a function of the state and of the last step's scalars.
template <class Rule>
struct DerivedIdle : NoClosedForm {
  static constexpr bool closed = true, keeps_state = true;

  template <class T>
  SKOPTIM_HD static bool sums(const Common<T>&, const T*, double*, double*) { return true; }
  template <class T>
  SKOPTIM_HD static bool still(T, const T*, double, const T*) { return true; }
  template <class T>
  SKOPTIM_HD static bool pay(T& w, const T* s, T unit, const Steps<T>& steps, int64_t, int64_t to) {
    const Scalars<Rule, T> last = Scalars<Rule, T>(steps.row(to - 1)).with_unit(unit);
    w = derived_weight<Rule>(w, s, last);
    return true;
  }
};
template <bool square_root>
struct Idle<FTRL<square_root>> : DerivedIdle<FTRL<square_root>> {};

// One step size h for all coefficients: |w| <- factor |w| - amount, down to zero, where
// factor = (shrink - rate * coupled_l2) / (1 + h l2) and amount = h l1 / (1 + h l2); and a gradient
// moves w by `gradient` = 1 / (1 + h l2) times what the rule alone does, as does a moment, once it has decayed.
// `decay` is minus the sum of the logarithms of the factors, `threshold` what the amounts come to: in each step it is
// multiplied by the factor, and grows by the amount. If a moment m went on to the end of the record, it would take
// m `lead` from a weight; so between two steps w - m lead is multiplied by the factors, and nothing else happens to it.
struct UniformStep {
  double factor, amount, gradient;
  bool holds;  // whether the step is of that form
};

// A debt of such steps: a weight w with a moment m becomes decay w - moment m, less `amount` of its size, and the
// moment fade m.
struct UniformDebt {
  double decay, amount, moment, fade;

  template <class T>
  SKOPTIM_HD static UniformDebt of(const Steps<T>& steps, int64_t from, int64_t to) {
    const double decay = math::exp(steps.decay[from] - steps.decay[to]);
    return {decay, steps.threshold[to] - decay * steps.threshold[from], 0.0, 0.0};
  }
  template <class T>
  SKOPTIM_HD static UniformDebt of(const Steps<T>& steps, int64_t from, int64_t to, double fade) {
    UniformDebt debt = of(steps, from, to);
    debt.moment = debt.decay * steps.lead[from] - fade * steps.lead[to];
    debt.fade = fade;
    return debt;
  }

  // The weight after the debt; with L1, `stays` is set to 1, or to 0 for one that may go through zero and on, which has
  // to be replayed. (Numbers, not truth values, which would keep a loop from vectors.) `held` is the largest moment
  // before a step with which L1 holds a weight at zero in it, and so ever after.
  template <bool lasso, class T>
  SKOPTIM_HD T paid(T w, T m, T held, T* stays) const {
    const T moved = T(decay) * w - T(moment) * m;
    if constexpr (!lasso) return moved;
    // The size rises at most at first, if the moment pushes that way, and from then on falls: above zero at the
    // end it has been so all along.
    const T pushes = absolute(m) > held ? T(1) : T(0), direction = math::copysign(T(1), w);
    const T rest = direction * moved - T(amount), crosses = rest > T(0) ? T(0) : pushes;
    *stays = w == T(0) ? T(1) - pushes : (direction * m > T(0) ? T(1) - crosses : T(1));
    return w == T(0) || rest <= T(0) ? T(0) : direction * rest;
  }
};

template <class Rule>
struct UniformIdle : NoClosedForm {
  static constexpr bool closed = true, keeps_state = Rule::n_slots == 0;
  static constexpr bool has_moment = Rule::n_slots > 0;

  template <class T>
  SKOPTIM_HD static UniformStep one_step(const Common<T>& c, const T* k) {
    T w = T(0), s[Rule::n_slots + 1] = {};
    const double h = double(Rule::step(w, T(0), s, c, k)), gradient = 1.0 / (1.0 + h * c.l2);
    const double factor = (double(c.shrink) - double(c.learning_rate) * c.coupled_l2) * gradient;
    const bool holds = factor > 0 && factor <= 1 && c.group_l1 == T(0) && c.lower <= T(0) &&
                       c.upper >= T(0) && (Rule::n_slots == 0 || c.coupled_l2 == T(0));
    return {factor, h * c.l1 * gradient, gradient, holds};
  }
  template <class T>
  SKOPTIM_HD static bool sums(const Common<T>& c, const T* k, double* decay, double* threshold) {
    const UniformStep step = one_step(c, k);
    decay[1] = decay[0] - math::log(step.factor);
    threshold[1] = threshold[0] * step.factor + step.amount;
    return step.holds;
  }

  // Whether what is left of a momentum can no longer move w.
  template <class T>
  SKOPTIM_HD static bool still(T w, const T* s, double highest_rate, const T* k) {
    if constexpr (Rule::n_slots == 0) return true;
    const double reach = highest_rate * absolute(double(s[0])) / (1.0 - double(k[0]));
    return reach <= (sizeof(T) == 4 ? 1e-10 : 1e-18) * absolute(double(w));
  }

  // `lead` before a step, from that after it; infinity where weights shrink faster than a moment fades: it would grow
  // without end.
  template <class T>
  SKOPTIM_HD static double lead(const Common<T>& c, const T* k, double next) {
    if constexpr (has_moment) {
      const UniformStep step = one_step(c, k);
      if (!(double(k[0]) <= step.factor)) return SKOPTIM_INFINITY;
      return double(k[0]) * (double(c.learning_rate) * k[3] * step.gradient + next) / step.factor;
    }
    return 0.0;
  }
  // See `UniformDebt`.
  template <class T>
  SKOPTIM_HD static T held(const Common<T>& c, const T* k) {
    if constexpr (has_moment) return k[4] * c.l1 / (k[0] * k[3]);
    return T(0);
  }

  template <class T>
  SKOPTIM_HD static bool pay(T& w, const T* s, T, const Steps<T>& steps, int64_t from, int64_t to) {
    const T* row = steps.row(from);
    const T* k = row + n_common;
    const Common<T> c = load_common(row);
    T m = T(0), stays = T(1);
    UniformDebt debt = UniformDebt::of(steps, from, to);
    if constexpr (has_moment)
      if (!still(w, s, steps.highest_rate[from], k)) {
        if (is_boxed(c) || !(steps.lead[from] < SKOPTIM_INFINITY)) return false;
        m = s[0];
        if (w == T(0) && absolute(m) > held(c, k) && c.l1 > T(0)) return false;
        debt = UniformDebt::of(steps, from, to, math::pow(double(k[0]), double(to - from)));
      }
    const T after = c.l1 > T(0) ? debt.paid<true>(w, m, held(c, k), &stays) : debt.paid<false>(w, m, T(0), &stays);
    if (!(stays > T(0))) return false;
    w = after;
    return true;
  }
};
template <>
struct Idle<SGD> : UniformIdle<SGD> {};
template <>
struct Idle<SGDMomentum> : UniformIdle<SGDMomentum> {};

// A step size h_t = rate_t / d with a denominator d that stands still: with x = l2 / d and
// E = sum of log(1 + x rate_t), |w| + l1/l2 is multiplied by exp(-E); without l2, |w| falls by
// l1 / d times the sum of the rates. `decay` is the sum of the rates, `threshold` of their squares.
template <>
struct Idle<Adagrad> : NoClosedForm {
  static constexpr bool closed = true, averages = true, keeps_state = true;

  template <class T>
  SKOPTIM_HD static bool sums(const Common<T>& c, const T*, double* decay, double* threshold) {
    const double rate = c.learning_rate;
    decay[1] = decay[0] + rate;
    threshold[1] = threshold[0] + rate * rate;
    return c.shrink == T(1) && c.coupled_l2 == T(0);
  }

  template <class T>
  SKOPTIM_HD static bool still(T, const T*, double, const T*) { return true; }

  // False when the rates vary too much for the expansion of E around their mean.
  template <class T>
  SKOPTIM_HD static bool pay(T& w, const T* s, T, const Steps<T>& steps, int64_t from, int64_t to) {
    const T* row = steps.row(from);
    const Common<T> c = load_common(row);
    const double denominator = double(math::sqrt(s[0])) + row[n_common];
    const double n = double(to - from), total = steps.decay[to] - steps.decay[from];
    const double magnitude = absolute(double(w));
    // Where `bounded` binds, replay; the pull only falls.
    if (c.l1 + c.l2 * magnitude > 2.0 * denominator) return false;
    double rest = magnitude - c.l1 / denominator * total;
    if (c.l2 > T(0)) {
      const double x = c.l2 / denominator, mean = total / n;
      const double variance =
          larger((steps.threshold[to] - steps.threshold[from]) / n - mean * mean, 0.0);
      // The next term of the expansion is below 1e-10 of E.
      if (!(x * x * variance < 1e-10)) return false;
      const double ridge = 1.0 + x * mean;
      const double exponent = n * (math::log1p(x * mean) - 0.5 * x * x * variance / (ridge * ridge));
      rest = magnitude + (magnitude + double(c.l1) / c.l2) * math::expm1(-exponent);
    }
    w = rest > 0 ? T(sign(double(w)) * rest) : (rest <= 0 ? T(0) : w);
    return true;
  }

  // Whether the averaged weights have a closed form in a step, as in the first one of the record.
  template <class T>
  SKOPTIM_HD static bool sums_averages(const Common<T>& c, const Common<T>& first) {
    return c.learning_rate == first.learning_rate && (c.l1 == T(0) || c.l2 == T(0));
  }

  // The sum of the averaged weights of such steps; false unless the last ones are averaged, and no others.
  template <class T>
  SKOPTIM_HD static bool sum(T w, const T* s, const Steps<T>& steps, int64_t from, int64_t to, double* sum) {
    const T* row = steps.row(from);
    const Common<T> c = load_common(row);
    const double n = double(to - from), n_averaged = steps.averaged[to] - steps.averaged[from];
    const bool all_last = steps.averaged[to] - steps.averaged[to - int64_t(n_averaged)] == n_averaged;
    if (!all_last) return false;
    const double h = double(c.learning_rate) / (double(math::sqrt(s[0])) + row[n_common]);
    const double magnitude = absolute(double(w));
    double last = n;
    if (c.l1 > T(0) && magnitude < h * c.l1 * n) last = double(int64_t(magnitude / (h * c.l1)));
    const double before = n - n_averaged, count = larger(last - before, 0.0);
    if (c.l2 > T(0)) {
      const double exponent = math::log1p(h * c.l2);
      const double first = magnitude * math::exp(-exponent * (before + 1.0));
      *sum = exponent > 0 ? first * (math::expm1(-exponent * count) / math::expm1(-exponent)) : first * count;
    } else {
      *sum = count * (magnitude - h * c.l1 * 0.5 * (before + 1.0 + last));
    }
    *sum *= sign(double(w));
    return true;
  }
};

// Fills the running sums of the steps begin..end of a record; returns whether the closed form holds
// for them. What lies ahead of a step is redone from the end of the record down.
template <class Rule, class T>
SKOPTIM_HD bool running_sums(const T* rows, int64_t begin, int64_t end, int64_t width,
                             bool averaging, double* decay, double* threshold, double* averaged,
                             double* highest_rate, double* lead) {
  bool closed = Idle<Rule>::closed && (Idle<Rule>::averages || !averaging);
  if (begin == 0) decay[0] = threshold[0] = averaged[0] = 0.0;
  for (int64_t t = begin; t < end; ++t) {
    const Common<T> c = load_common(rows + t * width);
    const T* k = rows + t * width + n_common;
    averaged[t + 1] = averaged[t] + c.average;
    decay[t + 1] = decay[t];
    threshold[t + 1] = threshold[t];
    if constexpr (Idle<Rule>::averages)
      closed = closed && (!averaging || Idle<Rule>::sums_averages(c, load_common(rows)));
    if constexpr (Idle<Rule>::closed)
      closed = Idle<Rule>::sums(c, k, decay + t, threshold + t) && c.group_l1 == T(0) &&
               (Rule::contains_penalty || (c.lower <= T(0) && c.upper >= T(0))) && closed;
  }
  highest_rate[end] = lead[end] = 0.0;
  for (int64_t t = end - 1; t >= 0; --t) {
    const Common<T> c = load_common(rows + t * width);
    const double rate = larger(highest_rate[t + 1], double(c.learning_rate));
    const double of_moment = Idle<Rule>::lead(c, rows + t * width + n_common, lead[t + 1]);
    if (t < begin && rate == highest_rate[t] && of_moment == lead[t]) break;
    highest_rate[t] = rate;
    lead[t] = of_moment;
  }
  return closed;
}

#ifndef __CUDACC_RTC__
// Whether something besides the gradient moves a weight.
template <class Rule, class T>
bool pulls(const Common<T>& c) {
  return c.l1 != T(0) || c.l2 != T(0) || c.group_l1 != T(0) || c.coupled_l2 != T(0) || c.shrink != T(1) ||
         Rule::contains_penalty;
}

// Whether an idle step with these scalars changes nothing, so that nothing is owed.
template <class Rule, class T>
bool rests(const T* row) {
  const Common<T> c = load_common(row);
  return Idle<Rule>::keeps_state && !pulls<Rule>(c) && !is_boxed(c);
}

// About how many idle steps of a column have to be replayed one by one before the rest has a closed
// form; infinity if none has.
template <class Rule, class T>
double steps_to_replay(const T* row, bool closed_idle) {
  const Common<T> c = load_common(row);
  if (pulls<Rule>(c) && !closed_idle) return SKOPTIM_INFINITY;
  if (closed_idle && Idle<Rule>::has_moment && !is_boxed(c) &&
      Idle<Rule>::lead(c, row + n_common, 0.0) < SKOPTIM_INFINITY)
    return 2.0;
  const double memory = Rule::memory(row + n_common);
  if (memory >= 1.0) return SKOPTIM_INFINITY;
  return memory > 0 ? math::log(1e-18) / math::log(memory) : 0.0;
}
#endif

// Pays the zero-gradient steps from..to of one parameter; `unit` is that of its column.
template <class Rule, class T>
SKOPTIM_HD void pay(T& w, T* s, double* average, T unit, const Steps<T>& steps, int64_t from,
                    int64_t to) {
  for (int64_t t = from; t < to; ++t) {
    const Scalars<Rule, T> now = Scalars<Rule, T>(steps.rows + t * steps.width).with_unit(unit);
    const Common<T>& c = now.common;
    if constexpr (Idle<Rule>::closed) {
      // A first weight outside the box is brought in by one replayed step.
      bool closed = steps.closed_idle && (Rule::contains_penalty || w == clamp(w, c.lower, c.upper));
      double sum = 0.0;
      if constexpr (Idle<Rule>::averages)
        if (closed && steps.averaging) closed = Idle<Rule>::sum(w, s, steps, t, to, &sum);
      if (closed && Idle<Rule>::pay(w, s, unit, steps, t, to)) {
        Rule::coast(s, now.own, T(to - t));
        if (steps.averaging) *average += sum;
        return;
      }
    }
    const T before = w;
    update<Rule>(w, T(0), s, c, now.own);
    if (steps.averaging) *average += double(c.average) * w;
    const bool free = c.l1 == T(0) && c.l2 == T(0) && c.coupled_l2 == T(0) && c.shrink == T(1);
    // At about the highest rate to come w did not move, and the state only decays: w is at rest. (Strengths that
    // are part of the formula may come and go.)
    const bool at_rest = w == before && (free || w == T(0)) && !Rule::contains_penalty &&
                         double(c.learning_rate) >= 0.5 * steps.highest_rate[t];
    if (at_rest && Rule::contracts(now.own)) {
      Rule::coast(s, now.own, T(to - t - 1));
      if (steps.averaging) *average += (steps.averaged[to] - steps.averaged[t + 1]) * w;
      return;
    }
  }
}

#ifndef __CUDACC_RTC__
// A rule without slots still needs an array of length one.
template <class Rule>
constexpr int slot_storage = Rule::n_slots > 0 ? Rule::n_slots : 1;

// Pays n coefficients one after the other; `average` may be null.
template <class Rule, class T>
void pay_each(const Run<T>& run, T unit, double* average, int64_t n, const Steps<T>& steps, int64_t from, int64_t to) {
  for (int64_t i = 0; i < n; ++i) {
    T s[slot_storage<Rule>] = {};
    for (int j = 0; j < Rule::n_slots; ++j) s[j] = run.slots[j][i];
    pay<Rule>(run.w[i], s, average ? average + i : nullptr, unit, steps, from, to);
    for (int j = 0; j < Rule::n_slots; ++j) run.slots[j][i] = s[j];
  }
}
#endif

SKOPTIM_END
