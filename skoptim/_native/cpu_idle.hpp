// Paying owed steps to many coefficients at once, in loops that vectorise; see owed.hpp.
#pragma once
#include <algorithm>

#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

// Without a gradient and without L1 these rules do, from step to step,
//   m *= moment_decay, r *= root_decay, w = (shrink w - step m / d) / (1 + metric l2 / d)
// where r is the root of a slot over `correction`, d = r + epsilon, and metric / d is the step of `bounded`; with
// a maximum, r is the slot itself and d = r = max(r, epsilon).
template <class Rule>
struct Fading {
  static constexpr bool holds = false;
};
template <bool amsgrad>
struct Fading<Adam<amsgrad>> {
  static constexpr bool holds = true, has_moment = true, has_maximum = false;
  static constexpr int moment = 0, average = 1, root = amsgrad ? 2 : 1;
  template <class T>
  static T moment_decay(const T* k) { return k[0]; }
  template <class T>
  static T decay(const T* k) { return k[1]; }
  template <class T>
  static T epsilon(const T* k) { return k[2]; }
  template <class T>
  static T correction(const T* k) { return k[4]; }
  // In units of the learning rate.
  template <class T>
  static T step(const T* k) { return T(1) / k[3]; }
  template <class T>
  static T metric(const T* k) { return T(1) / k[3]; }
};
template <>
struct Fading<Nadam> {
  static constexpr bool holds = true, has_moment = true, has_maximum = false;
  static constexpr int moment = 0, average = 1, root = 1;
  template <class T>
  static T moment_decay(const T* k) { return k[0]; }
  template <class T>
  static T decay(const T* k) { return k[1]; }
  template <class T>
  static T epsilon(const T* k) { return k[2]; }
  template <class T>
  static T correction(const T* k) { return k[5]; }
  template <class T>
  static T step(const T* k) { return k[4]; }
  template <class T>
  static T metric(const T*) { return T(1); }
};
template <>
struct Fading<Adamax> {
  static constexpr bool holds = true, has_moment = true, has_maximum = true;
  static constexpr int moment = 0, average = 1, root = 1;
  template <class T>
  static T moment_decay(const T* k) { return k[0]; }
  template <class T>
  static T decay(const T* k) { return k[1]; }
  template <class T>
  static T epsilon(const T* k) { return k[2]; }
  template <class T>
  static T correction(const T*) { return T(1); }
  template <class T>
  static T step(const T* k) { return T(1) / k[3]; }
  template <class T>
  static T metric(const T* k) { return T(1) / k[3]; }
};
template <>
struct Fading<RMSprop<false, false>> {
  static constexpr bool holds = true, has_moment = false, has_maximum = false;
  static constexpr int moment = 0, average = 0, root = 0;
  template <class T>
  static T moment_decay(const T*) { return T(0); }
  template <class T>
  static T decay(const T* k) { return k[0]; }
  template <class T>
  static T epsilon(const T* k) { return k[1]; }
  template <class T>
  static T correction(const T*) { return T(1); }
  template <class T>
  static T step(const T*) { return T(0); }
  template <class T>
  static T metric(const T*) { return T(1); }
};

// Numbers that each step of a record adds to what `FadingReplay` reads: see `fill`.
constexpr int n_fading_factors = 5;

// Replays the steps of `Fading` rules. The weight is kept as a quotient, of which only every few steps one
// is taken: a division costs more than the rest of a step.
template <class Rule, class T>
class FadingReplay {
  using F = Fading<Rule>;
  typedef T Lanes __attribute__((vector_size(32)));
  static constexpr int n_lanes = 32 / sizeof(T);
  // Steps between divisions; their denominators are multiplied, so these must be neither too small nor
  // too large.
  static constexpr int chunk = sizeof(T) == 8 ? 4 : 2;
  static constexpr double smallest = sizeof(T) == 8 ? 1e-60 : 1e-15, largest = sizeof(T) == 8 ? 1e60 : 1e15;
  // Steps between two looks at whether anything still moves.
  static constexpr int between_looks = 16;

 public:
  // Writes the factors of steps begin..end of a record.
  static void fill(const T* rows, int64_t begin, int64_t end, int64_t width, T* out) {
    if constexpr (F::holds)
      for (int64_t t = begin; t < end; ++t) {
        const T* const row = rows + t * width;
        const Common<T> c = load_common(row);
        const T* const k = row + n_common;
        const double before = t ? double(F::correction(k - width)) : double(F::correction(k));
        T* const f = out + t * n_fading_factors;
        f[0] = T(root_decay(k) * before / double(F::correction(k)));
        f[1] = c.learning_rate * F::step(k);
        f[2] = c.learning_rate * F::metric(k) * c.l2;
        f[3] = F::metric(k) * c.l2;
        f[4] = c.shrink;
      }
  }

  // Pays n coefficients the steps from..to; returns how many, from the first on, could be paid.
  static int64_t pay(const Run<T>& run, int64_t n, const Steps<T>& steps, int64_t from, int64_t to) {
    if constexpr (!F::holds) {
      return 0;
    } else {
      const Common<T> c = load_common(steps.row(from));
      const T* const k = steps.row(from) + n_common;
      const bool fits = steps.factors && !steps.averaging && c.l1 == T(0) && c.group_l1 == T(0) &&
                        c.coupled_l2 == T(0) && !(c.lower > -T(SKOPTIM_INFINITY)) &&
                        !(c.upper < T(SKOPTIM_INFINITY)) && double(F::epsilon(k)) > smallest &&
                        Rule::contracts(k) && root_decay(k) > 0 && steps.factors[from * n_fading_factors] > T(0);
      if (!fits) return 0;
      // The loop begins with a step, so the first roots are those of the step before.
      const T start = T(root_decay(k)) / (F::correction(k) * steps.factors[from * n_fading_factors]);
      const T faded = power(F::moment_decay(k), to - from), decayed = power(F::decay(k), to - from);
      int64_t i = 0;
      for (; i + 4 * n_lanes <= n; i += 4 * n_lanes)
        if (!pay<4>(run.from(i), 4 * n_lanes, steps, from, to, start, faded, decayed)) return i;
      for (; i < n; i += n_lanes)
        if (!pay<1>(run.from(i), std::min<int64_t>(n_lanes, n - i), steps, from, to, start, faded, decayed))
          return i;
      return n;
    }
  }

 private:
  static double root_decay(const T* k) {
    if (F::root != F::average) return 1.0;
    return F::has_maximum ? double(F::decay(k)) : math::sqrt(double(F::decay(k)));
  }

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

  template <class Mask>
  static bool any(const Mask& mask) {
    auto found = mask[0];
    for (int i = 1; i < n_lanes; ++i) found |= mask[i];
    return found != 0;
  }

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
  template <int n_vectors>
  static void store(const Lanes* from, int64_t size, T* to) {
    if (size == n_vectors * n_lanes)
      __builtin_memcpy(to, from, n_vectors * sizeof(Lanes));
    else
      for (int64_t i = 0; i < size; ++i) to[i] = (*from)[i];
  }

  // Returns false, and changes nothing, if numbers are too large.
  template <int n_vectors>
  static bool pay(const Run<T>& run, int64_t size, const Steps<T>& steps, int64_t from, int64_t to, T start,
                  T faded, T decayed) {
    Tile<n_vectors> tile;
    load<n_vectors>(run.w, size, tile.w);
    if (F::has_moment)
      load<n_vectors>(run.slots[F::moment], size, tile.m);
    load<n_vectors>(run.slots[F::root], size, tile.r);
    auto huge = tile.r[0] > T(largest);
    T* const roots = reinterpret_cast<T*>(tile.r);
    if constexpr (!F::has_maximum)
      for (int i = 0; i < n_vectors * n_lanes; ++i) roots[i] = math::sqrt(roots[i]) * start;
    for (int j = 0; j < n_vectors; ++j) huge |= tile.r[j] > T(largest);
    if (any(huge)) return false;
    replay(tile, steps, from, to);
    store<n_vectors>(tile.w, size, run.w);
    if (F::has_moment) scale(run.slots[F::moment], size, faded);
    scale(run.slots[F::average], size, decayed);
    if constexpr (F::has_maximum) {
      const T epsilon = F::epsilon(steps.row(from) + n_common);
      for (int64_t i = 0; i < size; ++i) run.slots[F::average][i] = larger(run.slots[F::average][i], epsilon);
    }
    return true;
  }

  static void scale(T* a, int64_t n, T factor) {
    for (int64_t i = 0; i < n; ++i) a[i] *= factor;
  }

  template <int n_vectors>
  static void replay(Tile<n_vectors>& tile, const Steps<T>& steps, int64_t from, int64_t to) {
    bool moves = F::has_moment;
    for (int64_t t = from; t < to;) {
      const int64_t stop = std::min<int64_t>(to, t + between_looks);
      Tile<n_vectors> next = tile;
      const bool quickly = moves ? advance<true>(next, steps, t, stop) : advance<false>(next, steps, t, stop);
      if (quickly)
        tile = next;
      else
        advance_bounded(tile, steps, t, stop);
      t = stop;
      if (t == to) break;
      if (moves) moves = moment_matters(tile, steps, t);
      const Common<T> c = load_common(steps.row(t));
      // At about the highest rate to come.
      const bool lasts = double(c.learning_rate) >= 0.5 * steps.highest_rate[t];
      if (!moves && lasts && c.l2 == T(0) && c.shrink == T(1)) break;
    }
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
      Lanes numerator[n_vectors], denominator[n_vectors];
      for (int j = 0; j < n_vectors; ++j) numerator[j] = w[j];
      take_step<moves, true>(numerator, denominator, m, r, d, f, epsilon, moment_decay);
      for (++t, f += n_fading_factors; t < stop; ++t, f += n_fading_factors)
        take_step<moves, false>(numerator, denominator, m, r, d, f, epsilon, moment_decay);
#pragma GCC unroll 4
      for (int j = 0; j < n_vectors; ++j) {
        const Lanes after = numerator[j] / denominator[j], a = magnitude(w[j]), b = magnitude(after);
        // Well before it binds.
        outside |= limit * (a < b ? b : a) > T(1.5) * d[j];
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
