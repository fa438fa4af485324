// Paying the owed steps of Adam and its kin to many coefficients at once; see owed.hpp.
#pragma once
#include <algorithm>

#include "cpu_vectors.hpp"
#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

// Without a gradient, these rules do from step to step, under L2,
//   m *= moment_decay, r *= root_decay, w = (shrink w - step m / d) / (1 + metric l2 / d)
// where r is the root of a slot over `correction`, d = r + epsilon, and metric / d is the step of `bounded`; with
// a maximum, r is the slot itself and d = r = max(r, epsilon).
template <class Rule>
struct Fading {
  static constexpr bool holds = false;
};
// What Adam and its variants have in common; where one differs, it hides a member.
struct FadingMoments {
  static constexpr bool holds = true, has_moment = true, has_maximum = false;
  static constexpr int moment = 0, average = 1, root = 1;
  template <class T>
  static T moment_decay(const T* k) { return k[0]; }
  template <class T>
  static T decay(const T* k) { return k[1]; }
  template <class T>
  static T epsilon(const T* k) { return k[2]; }
  template <class T>
  static T correction(const T*) { return T(1); }
  // In units of the learning rate.
  template <class T>
  static T step(const T* k) { return T(1) / k[3]; }
  template <class T>
  static T metric(const T* k) { return T(1) / k[3]; }
};
template <bool amsgrad>
struct Fading<Adam<amsgrad>> : FadingMoments {
  static constexpr int root = amsgrad ? 2 : 1;
  template <class T>
  static T correction(const T* k) { return k[4]; }
};
template <>
struct Fading<Nadam> : FadingMoments {
  template <class T>
  static T correction(const T* k) { return k[5]; }
  template <class T>
  static T step(const T* k) { return k[4]; }
  template <class T>
  static T metric(const T*) { return T(1); }
};
template <>
struct Fading<Adamax> : FadingMoments {
  static constexpr bool has_maximum = true;
};
template <>
struct Fading<RMSprop<false, false>> : FadingMoments {
  static constexpr bool has_moment = false;
  static constexpr int average = 0, root = 0;
  template <class T>
  static T moment_decay(const T*) { return T(0); }
  template <class T>
  static T decay(const T* k) { return k[0]; }
  template <class T>
  static T epsilon(const T* k) { return k[1]; }
  template <class T>
  static T step(const T*) { return T(0); }
  template <class T>
  static T metric(const T*) { return T(1); }
};

// By what r falls in a step, beside the correction.
template <class Rule, class T>
double root_decay(const T* k) {
  using F = Fading<Rule>;
  if (F::root != F::average) return 1.0;
  return F::has_maximum ? double(F::decay(k)) : math::sqrt(double(F::decay(k)));
}
template <class Rule, class T>
double root_ratio(const T* rows, int64_t t, int64_t width) {
  const T* const k = rows + t * width + n_common;
  const double now = Fading<Rule>::correction(k), before = t ? double(Fading<Rule>::correction(k - width)) : now;
  return root_decay<Rule>(k) * before / now;
}

// Whether an idle step of these rules with such scalars is paid as below. Where a decay makes weights fall faster than
// moments do, what these move later is without bound beside the weight; half as fast is fast enough.
template <class Rule, class T>
bool fades(const T* row) {
  if constexpr (Fading<Rule>::holds) {
    const Common<T> c = load_common(row);
    const T* const k = row + n_common;
    const bool one_penalty = c.l1 == T(0) || (c.l2 == T(0) && c.shrink == T(1));
    const T moment_decay = Fading<Rule>::moment_decay(k);
    const bool lasts = moment_decay == T(0) || T(2) * (T(1) - c.shrink) <= T(1) - moment_decay;
    return one_penalty && lasts && c.group_l1 == T(0) && c.coupled_l2 == T(0) && !is_boxed(c) &&
           double(Fading<Rule>::epsilon(k)) > (sizeof(T) == 8 ? 1e-30 : 1e-15) && c.shrink > T(0) &&
           Rule::contracts(k) && root_decay<Rule>(k) > 0;
  }
  return false;
}

// The debts in closed form. From step to step
// - L2 and decay multiply a weight by exp(-E), E being the sum of log(1 + pull / d) - log(shrink). With q the
//   product of the ratios by which r falls, d = R q + epsilon, where R = r / q is the same for all steps; as long as
//   epsilon and the pull are small beside r, E is a power series in 1 / R, whose coefficients are sums over the steps;
// - a moment m that went on to the end of the record would take m S from the weight, where
//   S = moment_decay / shrink (step / d + (1 + pull / d) S of the next step). S is a power series in
//   1 / (r + epsilon), r being that before the step: as long as the moment lasts, this hardly changes.
// So a weight w that was paid before, with moment m and sum S, becomes exp(-E) (w - m S) + m' S'. L1, in place of L2,
// takes E off w - m S + m' S', E being the sum of l1 rate metric / d, if the weight is not yet at zero then.
template <class Rule, class T>
class FadingSeries {
  using F = Fading<Rule>;
  static constexpr int n_terms = FadingStep::n_terms;

 public:
  using Lanes = Vector<T>;
  static constexpr int n_lanes = lanes<T>;
  // The largest ratio of successive terms, of the moments' sum and of E: the terms left out are below 7e-12 (float:
  // 1e-8) of the first, and below 2e-9 (3e-6).
  static constexpr double most_moment = sizeof(T) == 8 ? 0.04 : 0.1, most_pull = sizeof(T) == 8 ? 0.08 : 0.2;

  // Powers of less would leave the range of numbers: there a record begins anew, and debts from before to after are
  // replayed.
  static constexpr double smallest_q = 1e-25;

  static FadingConstants constants_of(const T* row) {
    const T* const k = row + n_common;
    FadingConstants constants;
    constants.holds = true;
    constants.l1 = load_common(row).l1;
    constants.least = F::epsilon(k);
    constants.epsilon = F::has_maximum ? 0.0 : constants.least;
    constants.moment_decay = F::moment_decay(k);
    const double nothing = math::log(sizeof(T) == 8 ? 1e-18 : 1e-10);
    constants.horizon = constants.moment_decay > 0 ? int64_t(nothing / math::log(constants.moment_decay)) + 1 : 1;
    const double rate = -math::log(root_decay<Rule>(k));
    const double forgets = 1.0 - constants.moment_decay / double(load_common(row).shrink);  // beside the weight
    constants.falls = math::exp(rate * double(constants.horizon));
    constants.matters = n_terms * rate < 0.8 * forgets ? math::exp(rate * n_terms / forgets) : 0.0;
    return constants;
  }

  // Writes what is summed up before the steps begin..end, and after them; the moments' sums before `begin` are
  // redone as far down as they change.
  static FadingConstants fill(const T* rows, int64_t begin, int64_t end, int64_t width, FadingStep* out) {
    if constexpr (!F::holds) {
      return {};
    } else {
      if (begin == 0) {
        out[0] = FadingStep{};
        out[0].q = 1.0;
        out[0].start = 1.0 / double(F::correction(rows + n_common));
      }
      for (int64_t t = begin; t < end; ++t) add_step(rows, t, width, out);
      FadingConstants constants = constants_of(rows + begin * width);
      for (int64_t t = begin; t < end; ++t) constants.holds = constants.holds && fades<Rule>(rows + t * width);
      std::fill_n(out[end].moment, n_terms, 0.0);
      for (int64_t t = end - 1; t >= 0; --t) {
        // Otherwise 1 / r grows faster than the moment fades, and the sums of its powers without end.
        const bool changes = constants.matters > 0 && lead_moment(rows, t, width, out);
        if (!changes && t < begin) break;
      }
      return constants;
    }
  }

  // What a debt from one step to another comes to; numbers are the same for all coefficients, or `Lanes`, one each.
  template <class C>
  struct Debt {
    // Coefficients of z, ..., z^8: of S, for z = scale / (r + epsilon); of m' S' / m and of E, for the r after the
    // debt, and E without epsilon.
    C moment[n_terms], rest[n_terms], pull[n_terms];
    C decay;                  // of E, that of 1
    C start;                  // what the root of the slot is multiplied by, to give r
    C scale, ratio, fade;     // by what r and m fall
    C limit;                  // the metric times the strength of the penalty
    C held;                   // the largest moment that L1 does not let off zero
    C most_before, most_after;  // the largest z for which this holds: of a moment before it, of any after
  };

  static void fill(Debt<T>& debt, const Steps<T>& steps, int64_t from, int64_t to, double fade) {
    fill(debt, 0, steps, steps.series[from], to, double(to - from), fade, steps.highest_rate[from],
         last_of(steps, from, to).start);
  }

  // Debts from one step each.
  static void fill(Debt<Lanes>& debt, const Steps<T>& steps, const int64_t* from, int64_t to, const double* fade) {
    using Doubles = Vector<double>;
    constexpr int together = lanes<double>;
    for (int first = 0; first < n_lanes; first += together) {
      FadingStepOf<Doubles> before;
      double* const numbers = reinterpret_cast<double*>(&before);
      static_assert(sizeof(before) == before.n_numbers * sizeof(Doubles) && before.n_numbers % 2 == 0);
      for (int n = 0; n < before.n_numbers; n += 2)
        load_two<double>(
            [&](int i) SKOPTIM_INLINE { return reinterpret_cast<const double*>(&steps.series[from[first + i]]) + n; },
            numbers + n * together, numbers + (n + 1) * together);
      const auto each = [&](auto value) SKOPTIM_INLINE {
        return vector_of<double>([&](int i) SKOPTIM_INLINE { return value(first + i); });
      };
      fill(debt, first, steps, before, to, each([&](int j) { return double(to - from[j]); }),
           each([&](int j) { return fade[j]; }), each([&](int j) { return steps.highest_rate[from[j]]; }),
           each([&](int j) { return last_of(steps, from[j], to).start; }));
    }
  }

  // The last step up to which E holds for z.
  static int64_t reach(const Steps<T>& steps, int64_t from, int64_t to, double z) {
    const FadingStep& first = steps.series[from];
    const FadingStep* const beyond = std::partition_point(
        &first, steps.series + to + 1,
        [&, least = first.q * z / most_pull](const FadingStep& s) { return s.part == first.part && s.q >= least; });
    return std::max<int64_t>(beyond - steps.series - 1, from);
  }

 private:
  // The step up to which the terms of the moments' sums grow.
  static const FadingStep& last_of(const Steps<T>& steps, int64_t from, int64_t to) {
    const int64_t horizon = steps.fading.horizon;
    return steps.series[std::min((to - from < horizon ? to : from) + horizon, steps.n_steps)];
  }

  // Numbers of a debt, from the i-th on.
  static void set(T& to, int, double value) { to = T(value); }
  static void set(Lanes& to, int i, Vector<double> value) {
    using Part = typename VectorOf<T, lanes<double> * sizeof(T)>::type;
    store(__builtin_convertvector(value, Part), reinterpret_cast<T*>(&to) + i);
  }

  // N: double or a vector of doubles.
  template <class C, class N>
  [[gnu::always_inline]] static void fill(Debt<C>& debt, int i, const Steps<T>& steps, const FadingStepOf<N>& before,
                                          int64_t to, N owed, N fade, N highest_rate, N last_start) {
    const FadingConstants& constants = steps.fading;
    const FadingStep& after = steps.series[to];
    const bool lasso = constants.l1 > 0;
    const N nothing{}, one = nothing + 1.0, never = nothing - 1.0;
    const N pull = lasso ? nothing : highest_rate * before.limit;
    const N scale = constants.least + pull, inverse = 1.0 / scale, ratio = after.q / before.q;
    const auto goes_on = owed < double(constants.horizon);
    const N rest = goes_on ? fade : nothing;
    N by = one;
    double q = 1.0;
    for (int n = 0; n < n_terms; ++n) {
      by *= inverse;
      q *= after.q;
      set(debt.moment[n], i, before.moment[n] * by);
      set(debt.rest[n], i, after.moment[n] * (by * rest));
      set(debt.pull[n], i, (after.pull[n] - before.pull[n]) * (by * q));
    }
    set(debt.decay, i, after.decay - before.decay);
    set(debt.start, i, before.start);
    set(debt.scale, i, scale);
    set(debt.ratio, i, ratio);
    set(debt.fade, i, fade);
    set(debt.limit, i, before.limit);
    set(debt.held, i, constants.l1 / before.lead);
    // How fast the terms of the moments' sums fall: by what the corrections let 1 / r grow until these come to their
    // end, by what 1 / (r + epsilon) grows until the second sum, and the ratio of terms.
    const N corrections = before.start / last_start, later = goes_on ? 1.0 / ratio : one;
    const N grows = later * corrections * constants.falls;
    const N of_epsilon = 0.6 * later * (corrections * constants.matters - 1.0);
    const N of_pull = grows / (1.0 - constants.moment_decay);
    // Without epsilon: that r stays above what d never falls below.
    const N floor = F::has_maximum ? most_moment * constants.least * grows : nothing;
    const N terms = constants.epsilon * of_epsilon + pull * of_pull + floor;
    const auto holds = before.part == nothing + after.part;
    const N most = nothing + most_pull, any_size = nothing + SKOPTIM_INFINITY;
    const N most_before = most_moment * scale / terms, most_after = lasso ? most : (pull > nothing ? most : any_size);
    set(debt.most_before, i, constants.matters > 0 ? (holds ? most_before : never) : never);
    set(debt.most_after, i, holds ? most_after : never);
  }

  static double epsilon_of(const T* k) { return F::has_maximum ? 0.0 : double(F::epsilon(k)); }

  static void add_step(const T* rows, int64_t t, int64_t width, FadingStep* out) {
    const Common<T> c = load_common(rows + t * width);
    const T* const k = rows + t * width + n_common;
    FadingStep& before = out[t];
    FadingStep& after = out[t + 1];
    const double epsilon = epsilon_of(k), rate = c.learning_rate, pull = rate * F::metric(k) * c.l2;
    before.limit = F::metric(k) * larger(c.l1, c.l2);
    before.lead = F::moment_decay(k) * F::step(k) / F::metric(k);
    after.start = 1.0 / double(F::correction(k));
    after.part = before.part;
    after.q = before.q * root_ratio<Rule>(rows, t, width);
    after.decay = before.decay - math::log(double(c.shrink));
    // (epsilon + pull)^n - epsilon^n, without cancellation, over n q^n
    double excess = pull, power = epsilon, scale = 1.0 / after.q, lasso = rate * F::metric(k) * c.l1;
    for (int n = 0; n < n_terms; ++n) {
      after.pull[n] = before.pull[n] + (lasso + excess / (n + 1)) * scale;
      excess = (epsilon + pull) * excess + pull * power;
      power *= epsilon;
      lasso *= epsilon;
      scale /= -after.q;
    }
    if (after.q < smallest_q) {
      ++after.part;
      after.q = 1.0;
      std::fill_n(after.pull, n_terms, 0.0);
    }
  }

  // Returns whether the sums of the moments before step t change.
  static bool lead_moment(const T* rows, int64_t t, int64_t width, FadingStep* out) {
    const Common<T> c = load_common(rows + t * width);
    const T* const k = rows + t * width + n_common;
    const double epsilon = epsilon_of(k), rate = c.learning_rate, pull = rate * F::metric(k) * c.l2, step = rate * F::step(k);
    const double decay = F::moment_decay(k) / double(c.shrink), by = 1.0 / root_ratio<Rule>(rows, t, width);
    const double* const next = out[t + 1].moment;
    // In powers of u' = 1 / d: step u' + (1 + pull u') S. With u = 1 / (r + epsilon) before the step,
    // u' = by u / (1 + turn u), which Horner's rule puts in.
    const double turn = epsilon * (by - 1.0);
    double sum[n_terms] = {};
    for (int n = n_terms - 1; n >= 0; --n) {
      double carry = next[n] + (n > 0 ? pull * next[n - 1] : step), last = 0.0;
      for (int j = 0; j < n_terms - n; ++j) {
        last = by * carry - turn * last;
        carry = sum[j];
        sum[j] = last;
      }
    }
    bool changes = false;
    for (int n = 0; n < n_terms; ++n) {
      sum[n] *= decay;
      changes = changes || sum[n] != out[t].moment[n];
      out[t].moment[n] = sum[n];
    }
    return changes;
  }
};

// Numbers that each step of a record adds to what `FadingDebts` reads: see `fill`.
constexpr int n_fading_factors = 5;

// Pays the debts of `Fading` rules, by their series as far as these hold, and else by replaying the steps. There the
// weight is kept as a quotient, of which only every few steps one is taken: a division costs more than the rest of
// a step.
template <class Rule, class T>
class FadingDebts {
  using F = Fading<Rule>;
  using Series = FadingSeries<Rule, T>;
  using Lanes = typename Series::Lanes;
  template <class C>
  using Debt = typename Series::template Debt<C>;
  static constexpr int n_lanes = Series::n_lanes;
  // Steps between divisions; their denominators are multiplied, so these must not be too large (nor too small, see
  // `fades`).
  static constexpr int chunk = sizeof(T) == 8 ? 4 : 2;
  static constexpr double largest = sizeof(T) == 8 ? 1e60 : 1e15;
  // Steps between two looks at whether anything still moves.
  static constexpr int between_looks = 16;
  // A closed form costs about as much as so many steps of vectors.
  static constexpr int64_t worth_a_leap = 16;
  // A weight that has shrunk to this, or to this part of what it was, is zero.
  static constexpr double vanishing = 1e-30, vanishing_part = 1e-18;

 public:
  // Writes the factors of steps begin..end of a record.
  static void fill(const T* rows, int64_t begin, int64_t end, int64_t width, T* out) {
    if constexpr (F::holds)
      for (int64_t t = begin; t < end; ++t) {
        const T* const row = rows + t * width;
        const Common<T> c = load_common(row);
        const T* const k = row + n_common;
        T* const f = out + t * n_fading_factors;
        f[0] = T(root_ratio<Rule>(rows, t, width));
        f[1] = c.learning_rate * F::step(k);
        f[3] = F::metric(k) * c.l2;
        f[2] = c.learning_rate * f[3];
        f[4] = c.shrink;
      }
  }

  // Vectors of a column that are paid together: enough to wait for nothing, and for which there are registers.
  static constexpr int n_together = vector_bytes == 64 ? 2 : 4;

  // Pays n coefficients of one column the steps from..to; returns how many, from the first on, could be paid.
  static int64_t pay(const Run<T>& run, int64_t n, const Steps<T>& steps, int64_t from, int64_t to) {
    if constexpr (!F::holds) {
      return 0;
    } else {
      if (!steps.factors || steps.averaging || !steps.fading.holds) return 0;
      const T* const k = steps.row(from) + n_common;
      const T faded = power(F::moment_decay(k), to - from), decayed = power(F::decay(k), to - from);
      if (steps.fading.l1 > 0) {
        for (int64_t i = 0; i < n; i += n_lanes)
          pay_lasso(run.from(i), std::min<int64_t>(n_lanes, n - i), steps, from, to, faded, decayed);
        return n;
      }
      Debt<T> debt;
      if (to - from >= worth_a_leap) Series::fill(debt, steps, from, to, faded);
      int64_t i = 0;
      for (; i + n_together * n_lanes <= n; i += n_together * n_lanes)
        if (!pay<n_together>(run.from(i), n_together * n_lanes, steps, from, to, debt, faded, decayed)) return i;
      for (; i < n; i += n_lanes)
        if (!pay<1>(run.from(i), std::min<int64_t>(n_lanes, n - i), steps, from, to, debt, faded, decayed))
          return i;
      return n;
    }
  }

  // Pays n coefficients, each of a column of its own, the steps mark[i]..to.
  static void pay_columns(const Run<T>& run, int64_t n, const Steps<T>& steps, const double* mark, int64_t to) {
    if constexpr (F::holds) {
      const T* const k = steps.row(to - 1) + n_common;
      // (-700: a moment that lasts for one step is gone.)
      const double log_fade = F::has_moment ? larger(math::log(double(F::moment_decay(k))), -700.0) : 0.0;
      const double log_decay = math::log(double(F::decay(k)));
      for (int64_t i = 0; i < n; i += n_lanes) {
        const Run<T> part = run.from(i);
        const int64_t size = std::min<int64_t>(n_lanes, n - i);
        int64_t from[n_lanes];
        double owed[n_lanes], fade[n_lanes], decay[n_lanes];
        // Another worker may have paid more.
        for (int64_t j = 0; j < n_lanes; ++j) owed[j] = j < size ? larger(double(to) - mark[i + j], 0.0) : 0.0;
        for (int j = 0; j < n_lanes; ++j) {
          from[j] = to - int64_t(owed[j]);
          fade[j] = math::exp(owed[j] * log_fade);
          decay[j] = math::exp(owed[j] * log_decay);
        }
        Debt<Lanes> debt;
        Series::fill(debt, steps, from, to, fade);
        Tile<1> tile = load_tile<1>(part, size, debt.start);
        const auto owes = vector_of<T>([&](int j) { return T(owed[j]); }) != 0;
        const auto left = leap<F::has_moment>(tile, debt, steps.fading) & owes;
        put(part, size, tile, ~left & owes, debt.fade, vector_of<T>([&](int j) { return T(decay[j]); }), steps.fading);
        if (any(left))
          for (int64_t j = 0; j < size; ++j) {
            if (!left[j]) continue;
            if (steps.fading.l1 > 0)
              replay_lasso(part.from(j), steps, from[j], to);
            else if (pay(part.from(j), 1, steps, from[j], to) == 0)
              pay_each<Rule>(part.from(j), T(1), nullptr, 1, steps, from[j], to);
          }
      }
    }
  }

 private:
  // The denominator of a step, after r has become that of the step.
  [[gnu::always_inline]] static Lanes denominator_of(Lanes& r, T epsilon) {
    if constexpr (F::has_maximum)
      return r = r < epsilon ? Lanes{} + epsilon : r;
    else
      return r + epsilon;
  }

  static T power(T base, int64_t exponent) {
    double result = 1, square = base;
    for (; exponent; exponent /= 2, square *= square)
      if (exponent % 2) result *= square;
    return T(result);
  }

  static Lanes magnitude(Lanes x) { return x < 0 ? -x : x; }

  template <int n_vectors>
  struct Tile {
    Lanes w[n_vectors], m[n_vectors], r[n_vectors];
  };

  // Of `size` numbers, which fill the vectors or, if there is one vector, may not.
  template <int n_vectors>
  static void load(const T* from, int64_t size, Lanes* to) {
    if (size == n_vectors * n_lanes) {
      __builtin_memcpy(to, from, n_vectors * sizeof(Lanes));
    } else {
      *to = Lanes{};
      for (int64_t i = 0; i < size; ++i) (*to)[i] = from[i];
    }
  }
  // `start` is that of the first step that is owed, one for all, or one each.
  template <int n_vectors, class C>
  static Tile<n_vectors> load_tile(const Run<T>& run, int64_t size, C start) {
    Tile<n_vectors> tile{};
    load<n_vectors>(run.w, size, tile.w);
    if (F::has_moment) load<n_vectors>(run.slots[F::moment], size, tile.m);
    load<n_vectors>(run.slots[F::root], size, tile.r);
    if constexpr (!F::has_maximum) {
      T* const roots = reinterpret_cast<T*>(tile.r);
      for (int i = 0; i < n_vectors * n_lanes; ++i) roots[i] = math::sqrt(roots[i]);
      for (int j = 0; j < n_vectors; ++j) tile.r[j] *= start;
    }
    return tile;
  }
  template <int n_vectors>
  static void store(const Lanes* from, int64_t size, T* to) {
    if (size == n_vectors * n_lanes)
      __builtin_memcpy(to, from, n_vectors * sizeof(Lanes));
    else
      for (int64_t i = 0; i < size; ++i) to[i] = (*from)[i];
  }

  // Returns false, and changes nothing, if numbers are too large.
  template <int n_vectors>
  static bool pay(const Run<T>& run, int64_t size, const Steps<T>& steps, int64_t from, int64_t to,
                  const Debt<T>& debt, T faded, T decayed) {
    Tile<n_vectors> tile = load_tile<n_vectors>(run, size, T(steps.series[from].start));
    auto huge = tile.r[0] > T(largest);
    for (int j = 1; j < n_vectors; ++j) huge |= tile.r[j] > T(largest);
    if (any(huge)) return false;
    Tile<n_vectors> paid = tile;
    if (to - from >= worth_a_leap && !any(leap<F::has_moment>(paid, debt, steps.fading)))
      tile = paid;
    else
      replay(tile, steps, from, to);
    store<n_vectors>(tile.w, size, run.w);
    if (F::has_moment) scale(run.slots[F::moment], size, faded);
    scale(run.slots[F::average], size, decayed);
    if constexpr (F::has_maximum)
      for (T *s = run.slots[F::average], *end = s + size; s < end; ++s) *s = larger(*s, T(steps.fading.least));
    return true;
  }

  // What debts have made of those of some coefficients that are `paid`.
  template <class Mask>
  static void put(const Run<T>& run, int64_t size, const Tile<1>& tile, Mask paid, Lanes fade, Lanes decay,
                  const FadingConstants& constants) {
    const Lanes one = Lanes{} + T(1), least = Lanes{} + T(constants.least);
    Lanes w, moment, average;
    load<1>(run.w, size, &w);
    w = paid ? tile.w[0] : w;
    store<1>(&w, size, run.w);
    if (F::has_moment) {
      load<1>(run.slots[F::moment], size, &moment);
      moment *= paid ? fade : one;
      store<1>(&moment, size, run.slots[F::moment]);
    }
    load<1>(run.slots[F::average], size, &average);
    average *= paid ? decay : one;
    if (F::has_maximum) average = paid & (average < least) ? least : average;
    store<1>(&average, size, run.slots[F::average]);
  }

  // Under L1, coefficients of one column, as many as a vector has at most.
  static void pay_lasso(const Run<T>& run, int64_t size, const Steps<T>& steps, int64_t from, int64_t to, T faded,
                        T decayed) {
    Tile<1> tile = load_tile<1>(run, size, T(steps.series[from].start));
    Debt<T> debt;
    Series::fill(debt, steps, from, to, faded);
    const auto left = leap<F::has_moment>(tile, debt, steps.fading);
    put(run, size, tile, ~left, Lanes{} + faded, Lanes{} + decayed, steps.fading);
    for (int64_t j = 0; j < size; ++j)
      if (left[j]) replay_lasso(run.from(j), steps, from, to);
  }

  // Under L1, one coefficient: first until L1 does not let its moment off zero any more.
  static void replay_lasso(const Run<T>& run, const Steps<T>& steps, int64_t from, int64_t to) {
    int64_t held = from;
    if constexpr (F::has_moment) {
      const double moment_decay = steps.fading.moment_decay, moment = absolute(double(run.slots[F::moment][0]));
      const double excess = moment * steps.series[from].lead / steps.fading.l1;
      if (excess > 1.0) held = std::min(double(to), from + 1.0 - math::log(excess) / math::log(moment_decay));
    }
    if (held > from) pay_lasso_until(run, steps, from, held);
    if (held < to) pay_lasso_until(run, steps, held, to);
  }

  // As far as it holds in closed form; then, where the weight comes to zero, step by step.
  static void pay_lasso_until(const Run<T>& run, const Steps<T>& steps, int64_t from, int64_t to) {
    const double moment_decay = steps.fading.moment_decay, average_decay = F::decay(steps.row(from) + n_common);
    int64_t at_a_time = between_looks / 2;
    for (int64_t t = from; t < to;) {
      const Tile<1> tile = load_tile<1>(run, 1, T(steps.series[t].start));
      Tile<1> paid;
      const auto holds = [&](int64_t stop) {
        Debt<T> debt;
        Series::fill(debt, steps, t, stop, power(T(moment_decay), stop - t));
        paid = tile;
        return !leap_as<F::has_moment, true>(paid, debt, steps.fading)[0];
      };
      // The last step to which it holds, to within some: all, or else in growing strides, then by halves.
      int64_t stop = holds(to) ? to : t, beyond = to;
      for (int64_t next = std::min(t + at_a_time, to); beyond - stop > at_a_time;) {
        (holds(next) ? stop : beyond) = next;
        const int64_t stride = 4 * (stop - t), half = (beyond - stop) / 2;
        next = beyond == to && t + stride < to ? t + stride : stop + half;
      }
      if (stop > t) {
        holds(stop);
        const T fade = power(T(moment_decay), stop - t), decay = power(T(average_decay), stop - t);
        put(run, 1, paid, Lanes{} == 0, Lanes{} + fade, Lanes{} + decay, steps.fading);
      } else {
        at_a_time *= 2;
      }
      t = std::min(to, stop + at_a_time);
      if (stop < t) pay_each<Rule>(run, T(1), nullptr, 1, steps, stop, t);
    }
  }

  static void scale(T* a, int64_t n, T factor) {
    for (int64_t i = 0; i < n; ++i) a[i] *= factor;
  }

  // Pays a debt in closed form; returns which coefficients it does not hold for, and are as they were.
  template <bool moves, class C, int n_vectors>
  [[gnu::always_inline]] static auto leap(Tile<n_vectors>& tile, const Debt<C>& debt,
                                          const FadingConstants& constants) {
    return constants.l1 > 0 ? leap_as<moves, true>(tile, debt, constants)
                            : leap_as<moves, false>(tile, debt, constants);
  }

  template <bool moves, bool lasso, class C, int n_vectors>
  static auto leap_as(Tile<n_vectors>& tile, const Debt<C>& debt, const FadingConstants& constants) {
    auto left = tile.w[0] != tile.w[0];
    left ^= left;
    const Lanes nothing = {};
    const T epsilon = T(constants.epsilon), least = T(constants.least);
    Lanes before[n_vectors], after[n_vectors];
    decltype(left) at_rest[n_vectors], fails[n_vectors];
    for (int j = 0; j < n_vectors; ++j) {
      const Lanes w = tile.w[j], m = moves ? tile.m[j] : nothing;
      if constexpr (lasso)
        at_rest[j] = (w == 0) & (magnitude(m) <= nothing + debt.held);
      else
        at_rest[j] = (m == 0) & ((w == 0) | (nothing + debt.limit == 0));
      before[j] = debt.scale / (tile.r[j] + epsilon), after[j] = debt.scale / (tile.r[j] * debt.ratio);
      fails[j] = ~(((before[j] <= debt.most_before) | (m == 0)) & (after[j] <= debt.most_after)) & ~at_rest[j];
      left |= fails[j];
    }
    // Under L2 all of a column are paid together.
    if (!lasso && std::is_same_v<C, T> && any(left)) return left;
    Lanes exponent[n_vectors], moment_sum[n_vectors], rest[n_vectors], factor[n_vectors];
    for (int j = 0; j < n_vectors; ++j) {
      const Lanes m = moves ? tile.m[j] : nothing;
      const auto leave = fails[j] | at_rest[j];
      exponent[j] = (-debt.decay) - polynomial(debt.pull, leave | (nothing + debt.limit == 0) ? nothing : after[j]);
      moment_sum[j] = moves ? m * polynomial(debt.moment, leave ? nothing : before[j]) : nothing;
      const Lanes z = debt.scale / (tile.r[j] * debt.ratio + epsilon);
      rest[j] = moves ? m * polynomial(debt.rest, leave ? nothing : z) : nothing;
      factor[j] = exponent[j];
    }
    if constexpr (!lasso) {
      T* const factors = reinterpret_cast<T*>(factor);
      for (int i = 0; i < n_vectors * n_lanes; ++i) factors[i] = math::exp(factors[i]);
    }
    for (int j = 0; j < n_vectors; ++j) {
      const Lanes w = tile.w[j], r = tile.r[j] * debt.ratio;
      Lanes next;
      // Where `bounded` may bind, and, under L1, where the weight has crossed zero.
      if constexpr (lasso) {
        // A weight at zero goes where its moment takes it.
        const Lanes side = w == 0 ? -tile.m[j] : w, way = side < 0 ? nothing - T(1) : nothing + T(1);
        next = w - moment_sum[j] + rest[j] + way * exponent[j];
        const auto in_reach = ~fails[j] & (nothing + debt.limit <= T(1.5) * (r + epsilon));
        // If L1 does not let the moment off zero, the weight stays there: what the sums say of the other side never
        // happens.
        const auto crosses = next * way < 0;
        const auto ends = crosses & (magnitude(moves ? tile.m[j] : nothing) <= nothing + debt.held);
        fails[j] |= ~(in_reach & (~crosses | ends)) & ~at_rest[j];
        next = at_rest[j] | ends ? nothing : next;
      } else {
        next = factor[j] * (w - moment_sum[j]) + rest[j];
        fails[j] |= debt.limit * (magnitude(w) + magnitude(moment_sum[j])) > T(1.5) * (r + epsilon);
        fails[j] |= next != next;
      }
      left |= fails[j];
      tile.w[j] = fails[j] ? w : next;
      tile.m[j] = fails[j] || !moves ? tile.m[j] : tile.m[j] * debt.fade;
      tile.r[j] = fails[j] ? tile.r[j] : (F::has_maximum && r < least ? nothing + least : r);
    }
    return left;
  }

  // The same from step t, as far as it holds for all of a tile; returns the step reached.
  template <int n_vectors>
  static int64_t leap_far(Tile<n_vectors>& tile, const Steps<T>& steps, int64_t t, int64_t to, bool moves) {
    const double pull = steps.highest_rate[t] * steps.series[t].limit;
    if (!(pull > 0) || to - t < worth_a_leap) return t;
    T smallest = T(largest);
    for (int j = 0; j < n_vectors; ++j)
      for (int i = 0; i < n_lanes; ++i)
        if (tile.w[j][i] != 0 || (moves && tile.m[j][i] != 0)) smallest = std::min(smallest, tile.r[j][i]);
    // `bounded` may seem to bind by the end of a leap where the weight has long shrunk: then half of it may do.
    for (int64_t stop = Series::reach(steps, t, to, (steps.fading.least + pull) / double(smallest));
         stop - t >= worth_a_leap; stop = t + (stop - t) / 2) {
      Debt<T> debt;
      Series::fill(debt, steps, t, stop, power(T(steps.fading.moment_decay), stop - t));
      if (moves && (double(debt.scale) / (double(smallest) + steps.fading.epsilon)) > double(debt.most_before)) break;
      Tile<n_vectors> paid = tile;
      if (any(moves ? leap<F::has_moment>(paid, debt, steps.fading) : leap<false>(paid, debt, steps.fading))) continue;
      tile = paid;
      return stop;
    }
    return t;
  }

  // c[0] x + c[1] x^2 + ...
  template <class C, size_t n>
  [[gnu::always_inline]] static Lanes polynomial(const C (&c)[n], Lanes x) {
    Lanes sum = Lanes{} + c[n - 1];
    for (size_t i = n - 1; i > 0; --i) sum = sum * x + c[i - 1];
    return sum * x;
  }

  template <int n_vectors>
  static void replay(Tile<n_vectors>& tile, const Steps<T>& steps, int64_t from, int64_t to) {
    const Tile<n_vectors> first = tile;
    bool moves = F::has_moment, may_leap = true;
    for (int64_t t = from; t < to;) {
      const Common<T> c = load_common(steps.row(t));
      const bool pulls = c.l2 != T(0) || c.shrink != T(1);
      if (moves && t > from) {
        moves = t - from < steps.fading.horizon && moment_matters(tile, steps, t);
        may_leap = may_leap || !moves;
      }
      // At about the highest rate to come.
      const bool lasts = double(c.learning_rate) >= 0.5 * steps.highest_rate[t];
      if (!moves && (pulls ? all_vanish(tile, first) : lasts)) break;
      if (may_leap) {
        const int64_t stop = leap_far(tile, steps, t, to, moves);
        may_leap = stop > t;
        if (may_leap) {
          t = stop;
          continue;
        }
      }
      const int64_t stop = std::min<int64_t>(to, t + between_looks);
      Tile<n_vectors> next = tile;
      const bool quickly = moves ? advance<true>(next, steps, t, stop) : advance<false>(next, steps, t, stop);
      if (quickly)
        tile = next;
      else
        advance_bounded(tile, steps, t, stop);
      t = stop;
    }
  }

  // Without a moment, weights only shrink.
  template <int n_vectors>
  static bool all_vanish(Tile<n_vectors>& tile, const Tile<n_vectors>& first) {
    auto remain = tile.w[0] != tile.w[0];
    for (int j = 0; j < n_vectors; ++j)
      remain |= ~(magnitude(tile.w[j]) <= T(vanishing) + T(vanishing_part) * magnitude(first.w[j]));
    if (any(remain)) return false;
    for (int j = 0; j < n_vectors; ++j) tile.w[j] = Lanes{};
    return true;
  }

  // Takes the steps begin..end; returns false if `bounded` may have bound in one of them.
  template <bool moves, int n_vectors>
  [[gnu::always_inline]] static bool advance(Tile<n_vectors>& tile, const Steps<T>& steps, int64_t begin,
                                             int64_t end) {
    const T* const k = steps.row(begin) + n_common;
    const T epsilon = F::epsilon(k), moment_decay = F::moment_decay(k);
    Lanes w[n_vectors], m[n_vectors], r[n_vectors], d[n_vectors];
    for (int j = 0; j < n_vectors; ++j) w[j] = tile.w[j], m[j] = tile.m[j], r[j] = tile.r[j];
    auto outside = w[0] != w[0];
    outside ^= outside;
    const T* f = steps.factors + begin * n_fading_factors;
    for (int64_t t = begin; t < end;) {
      const int64_t stop = std::min<int64_t>(end, t + chunk);
      const T limit = f[3];
      T step = f[1];
      Lanes numerator[n_vectors], denominator[n_vectors], most[n_vectors];
      for (int j = 0; j < n_vectors; ++j) {
        numerator[j] = w[j];
        if (moves) most[j] = magnitude(m[j]);
      }
      take_step<moves, true>(numerator, denominator, m, r, d, f, epsilon, moment_decay);
      for (++t, f += n_fading_factors; t < stop; ++t, f += n_fading_factors) {
        step = step < f[1] ? f[1] : step;
        take_step<moves, false>(numerator, denominator, m, r, d, f, epsilon, moment_decay);
      }
#pragma GCC unroll 4
      for (int j = 0; j < n_vectors; ++j) {
        const Lanes after = numerator[j] / denominator[j], a = magnitude(w[j]), b = magnitude(after);
        Lanes largest = (a < b ? b : a) * d[j];
        if (moves) largest += T(chunk) * step * most[j];
        // Well before it binds, wherever the weight may have been meanwhile.
        outside |= limit * largest > T(1.5) * (d[j] * d[j]);
        w[j] = after;
      }
    }
    for (int j = 0; j < n_vectors; ++j) tile.w[j] = w[j], tile.m[j] = m[j], tile.r[j] = r[j];
    return !any(outside);
  }

  // One step with the factors f of quotients, the first of a chunk if their denominators are still 1.
  template <bool moves, bool first, int n_vectors>
  [[gnu::always_inline]] static void take_step(Lanes (&numerator)[n_vectors], Lanes (&denominator)[n_vectors],
                                               Lanes (&m)[n_vectors], Lanes (&r)[n_vectors],
                                               Lanes (&d)[n_vectors], const T* f, T epsilon, T moment_decay) {
    const T ratio = f[0], step = f[1], pull = f[2], shrink = f[4];
#pragma GCC unroll 4
    for (int j = 0; j < n_vectors; ++j) {
      r[j] *= ratio;
      d[j] = denominator_of(r[j], epsilon);
      numerator[j] *= shrink * d[j];
      if (moves) {
        m[j] *= moment_decay;
        numerator[j] -= first ? step * m[j] : (step * m[j]) * denominator[j];
      }
      denominator[j] = first ? d[j] + pull : denominator[j] * (d[j] + pull);
    }
  }

  // The same with `bounded` in every step.
  template <int n_vectors>
  static void advance_bounded(Tile<n_vectors>& tile, const Steps<T>& steps, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Common<T> c = load_common(steps.row(t));
      const T* const k = steps.row(t) + n_common;
      const T* const f = steps.factors + t * n_fading_factors;
      const T metric = c.learning_rate * F::metric(k);
      for (int j = 0; j < n_vectors; ++j) {
        tile.r[j] *= f[0];
        const Lanes d = denominator_of(tile.r[j], F::epsilon(k)), before = tile.w[j] * c.shrink;
        Lanes w = before;
        if (F::has_moment) {
          tile.m[j] *= F::moment_decay(k);
          w -= (f[1] * tile.m[j]) / d;
        }
        const Lanes moved = magnitude(w - before), step = metric / d;
        const Lanes most = T(2) * (moved < c.learning_rate ? c.learning_rate : moved) / (c.l2 * magnitude(w));
        tile.w[j] = c.l2 > T(0) ? w / (T(1) + (most < step ? most : step) * c.l2) : w;
      }
    }
  }

  // Whether what is left of the moments can still move a weight.
  template <int n_vectors>
  static bool moment_matters(Tile<n_vectors>& tile, const Steps<T>& steps, int64_t t) {
    const T* const k = steps.row(t) + n_common;
    const T reach = T(steps.highest_rate[t]) * F::step(k) / (T(1) - F::moment_decay(k));
    const T negligible = sizeof(T) == 8 ? T(1e-18) : T(1e-9), epsilon = F::epsilon(k);
    bool matters = false;
    for (int j = 0; j < n_vectors; ++j)
      matters |= any(reach * magnitude(tile.m[j]) > negligible * (magnitude(tile.w[j]) * denominator_of(tile.r[j], epsilon)));
    return matters;
  }
};

// What paying the debt of a column costs: so many replayed steps of one coefficient. Under L1 many end in a search for
// the step in which the weight comes to zero.
template <class Rule, class T>
double debt_in_steps(const T* row, bool closed_idle) {
  const Common<T> c = load_common(row);
  if (!fades<Rule>(row) || c.average != T(0)) return steps_to_replay<Rule>(row, closed_idle);
  return c.l1 > T(0) ? 10.0 : 3.0;
}

SKOPTIM_END
