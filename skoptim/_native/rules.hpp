// Every element-wise update rule, once. The CPU and CUDA drivers are loops around these functors.
//
// A rule is a struct with
//   slots[], scalars[]   names of its state arrays and of its own scalars, in the order used below
//   contains_penalty     whether its own formula contains l1 and l2 (FTRL): the weight is then a
//                        function of the state, `weight(w, s, c, k)`, a step `advance` of the state
//                        and then that (or still the one it was, until it `has_learned`), and the two
//                        strengths are totals over all steps so far;
//                        otherwise they are a prox step after it
//   uniform              whether its step size is the same for every coefficient
//   step(w, g, s, c, k)  moves one weight; returns the step size of its diagonal metric, in which
//                        non-smooth penalties are applied (the rate at which a constant gradient
//                        moves w, so that the fixed point is that of the penalised objective): a
//                        number, or a `BoundedStep`
//   memory(k)            decay per step of what moves w without a gradient: 0 if nothing does, 1 if
//                        it never fades
//   contracts(k), coast(s, k, n)
//                        for sparse training: see owed.hpp
#pragma once
#include "platform.hpp"
#include "prox.hpp"

SKOPTIM_BEGIN

// The columns that every row of prepared scalars starts with; the rule's own follow.
template <class T>
struct Common {
  T learning_rate;
  T l1;          // strength of the L1 penalty at this step
  T l2;          // strength of the L2 penalty at this step
  T group_l1;    // strength of the group penalty at this step
  T shrink;      // decoupled weight decay: w is multiplied by it before the rule
  T clip_value;  // bound on each entry of the gradient; infinity for none
  T lower, upper;
  T average;     // weight of this step's w in the averaged model
  T coupled_l2;  // the optimizer's own L2, added to the gradient
};
constexpr int n_common = 10;

#ifndef __CUDACC_RTC__
constexpr const char* common_names[n_common] = {"learning_rate", "l1", "l2", "group_l1", "shrink",
                                                "clip_value", "lower", "upper", "average",
                                                "coupled_l2"};
#define SKOPTIM_NAMES(field, ...) static constexpr const char* field[] = {__VA_ARGS__};
#else
#define SKOPTIM_NAMES(field, ...)
#endif

// The step size of a normalised rule. Where gradients were tiny so far, rate / denominator is huge, and a
// penalty would wipe the weight out at once. So a penalty moves a weight by at most twice the rate, or twice
// what the gradient moved it by if that was more: enough to overcome it. Any positive metric has the same
// fixed point.
template <class T>
struct BoundedStep {
  T size, most;  // so far may the pull of the penalty move the weight
};
template <class T>
SKOPTIM_HD BoundedStep<T> bounded(T size, T rate, T before, T w) {
  return {size, T(2) * larger(rate, absolute(w - before))};
}

// The step size as a penalty sees it.
template <class T>
SKOPTIM_HD T step_size(BoundedStep<T> step, T w, const Common<T>& c) {
  const T most = step.most / (c.l1 + c.l2 * absolute(w));
  return most < step.size ? most : step.size;
}
template <class T>
SKOPTIM_HD T step_size(T step, T, const Common<T>&) { return step; }

// The prox of L1 alone with that step size, without a division.
template <class T>
SKOPTIM_HD T prox_lasso(BoundedStep<T> step, T w, T l1) {
  const T pull = step.size * l1;
  return soft_threshold(w, step.most < pull ? step.most : pull);
}
template <class T>
SKOPTIM_HD T prox_lasso(T step, T w, T l1) { return soft_threshold(w, step * l1); }

// The prox of L2 alone with that step size; one division does for both.
template <class T>
SKOPTIM_HD T prox_ridge(BoundedStep<T> step, T w, T l2) {
  const T magnitude = absolute(w), pull = step.size * l2;
  const bool binds = step.most < pull * magnitude;
  return w * ((binds ? magnitude : T(1)) / (binds ? magnitude + step.most : T(1) + pull));
}
template <class T>
SKOPTIM_HD T prox_ridge(T step, T w, T l2) { return w / (T(1) + step * l2); }

// rate / denominator, for a denominator so small that it would overflow the largest number, so that a gradient
// of zero still does nothing.
template <class T>
SKOPTIM_HD T finite_ratio(T rate, T denominator) {
  const T largest = T(sizeof(T) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308);
  const T ratio = rate / denominator;
  return ratio > largest ? largest : ratio;
}

struct SGD {
  static constexpr int n_slots = 0, n_scalars = 0;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = true;
  SKOPTIM_NAMES(slots, "")
  SKOPTIM_NAMES(scalars, "")
  template <class T>
  SKOPTIM_HD static T step(T& w, T g, T*, const Common<T>& c, const T*) {
    w -= c.learning_rate * g;
    return c.learning_rate;
  }
  template <class T>
  SKOPTIM_HD static T memory(const T*) { return T(0); }
  template <class T>
  SKOPTIM_HD static bool contracts(const T*) { return true; }
  template <class T>
  SKOPTIM_HD static void coast(T*, const T*, T) {}
};

struct SGDMomentum {
  static constexpr int n_slots = 1, n_scalars = 5;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = true;
  SKOPTIM_NAMES(slots, "momentum_buffer")
  // The step taken is look_gradient * g + look_buffer * b: (0, 1) plain, (1, momentum) Nesterov.
  SKOPTIM_NAMES(scalars, "momentum", "gradient_weight", "look_gradient", "look_buffer", "stationary_gain")
  template <class T>
  SKOPTIM_HD static T step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    s[0] = k[0] * s[0] + k[1] * g;
    w -= c.learning_rate * (k[2] * g + k[3] * s[0]);
    return c.learning_rate * k[4];
  }
  template <class T>
  SKOPTIM_HD static T memory(const T* k) { return k[0]; }
  template <class T>
  SKOPTIM_HD static bool contracts(const T*) { return true; }
  template <class T>
  SKOPTIM_HD static void coast(T* s, const T* k, T n) { s[0] *= math::pow(k[0], n); }
};

struct Adagrad {
  static constexpr int n_slots = 1, n_scalars = 1;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = false;
  SKOPTIM_NAMES(slots, "accumulator")
  SKOPTIM_NAMES(scalars, "epsilon")
  template <class T>
  SKOPTIM_HD static BoundedStep<T> step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    const T before = w;
    s[0] += g * g;
    const T denominator = math::sqrt(s[0]) + k[0];
    const T gain = finite_ratio(c.learning_rate, denominator);
    w -= gain * g;
    return bounded(gain, c.learning_rate, before, w);
  }
  template <class T>
  SKOPTIM_HD static T memory(const T*) { return T(0); }
  template <class T>
  SKOPTIM_HD static bool contracts(const T*) { return true; }
  template <class T>
  SKOPTIM_HD static void coast(T*, const T*, T) {}
};

template <bool centered, bool with_momentum>
struct RMSprop {
  static constexpr int n_slots = 1 + centered + with_momentum, n_scalars = 4;
  static constexpr int average = 1, buffer = 1 + centered;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = false;
#ifndef __CUDACC_RTC__
  static constexpr const char* slots[] = {
      "square_average", centered ? "gradient_average" : "momentum_buffer", "momentum_buffer"};
#endif
  SKOPTIM_NAMES(scalars, "rho", "epsilon", "momentum", "one_minus_rho")
  template <class T>
  SKOPTIM_HD static BoundedStep<T> step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    const T before = w;
    const T rho = k[0], epsilon = k[1], momentum = k[2];
    s[0] = rho * s[0] + k[3] * (g * g);
    T variance = s[0];
    if constexpr (centered) {
      s[average] = rho * s[average] + k[3] * g;
      // Rounding can make the variance of a constant gradient negative.
      variance = larger(variance - s[average] * s[average], T(0));
    }
    const T denominator = math::sqrt(variance) + epsilon;
    T gain = finite_ratio(c.learning_rate, denominator);
    if constexpr (with_momentum) {
      s[buffer] = momentum * s[buffer] + g / denominator;
      w -= c.learning_rate * s[buffer];
      gain *= T(1) / (T(1) - momentum);
    } else {
      w -= gain * g;
    }
    return bounded(gain, c.learning_rate, before, w);
  }
  template <class T>
  SKOPTIM_HD static T memory(const T* k) { return with_momentum ? k[2] : T(0); }
  // A centred variance can grow at first, and so let go of a weight that L1 holds at zero.
  template <class T>
  SKOPTIM_HD static bool contracts(const T*) { return !(centered && with_momentum); }
  template <class T>
  SKOPTIM_HD static void coast(T* s, const T* k, T n) {
    s[0] *= math::pow(k[0], n);
    if constexpr (centered) s[average] *= math::pow(k[0], n);
    if constexpr (with_momentum) s[buffer] *= math::pow(k[2], n);
  }
};

struct Adadelta {
  static constexpr int n_slots = 2, n_scalars = 3;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = false;
  SKOPTIM_NAMES(slots, "square_average", "delta_average")
  SKOPTIM_NAMES(scalars, "rho", "epsilon", "one_minus_rho")
  template <class T>
  SKOPTIM_HD static T step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    const T rho = k[0], epsilon = k[1];
    s[0] = rho * s[0] + k[2] * (g * g);
    // RMS of the previous deltas over RMS of the gradients: the rate is not known in advance.
    const T ratio = math::sqrt(s[1] + epsilon) / math::sqrt(s[0] + epsilon);
    const T delta = ratio * g;
    s[1] = rho * s[1] + k[2] * (delta * delta);
    w -= c.learning_rate * delta;
    return c.learning_rate * ratio;
  }
  template <class T>
  SKOPTIM_HD static T memory(const T*) { return T(0); }
  template <class T>
  SKOPTIM_HD static bool contracts(const T*) { return true; }
  template <class T>
  SKOPTIM_HD static void coast(T* s, const T* k, T n) {
    const T decay = math::pow(k[0], n);
    s[0] *= decay;
    s[1] *= decay;
  }
};

template <bool amsgrad>
struct Adam {
  static constexpr int n_slots = 2 + amsgrad, n_scalars = 7;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = false;
  SKOPTIM_NAMES(slots, "first_moment", "second_moment", "max_second_moment")
  SKOPTIM_NAMES(scalars, "beta_1", "beta_2", "epsilon", "correction_1", "root_correction_2",
                "one_minus_beta_1", "one_minus_beta_2")
  template <class T>
  SKOPTIM_HD static BoundedStep<T> step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    const T before = w;
    // The correction of the root goes to the other side of the quotient, which spares a division.
    const T beta_1 = k[0], beta_2 = k[1], epsilon = k[2] * k[4], rate = c.learning_rate / k[3] * k[4];
    s[0] = beta_1 * s[0] + k[5] * g;
    s[1] = beta_2 * s[1] + k[6] * (g * g);
    T second_moment = s[1];
    if constexpr (amsgrad) second_moment = s[2] = larger(s[2], s[1]);
    const T gain = finite_ratio(rate, math::sqrt(second_moment) + epsilon);
    w -= gain * s[0];
    return bounded(gain, c.learning_rate, before, w);
  }
  template <class T>
  SKOPTIM_HD static T memory(const T* k) { return k[0]; }
  template <class T>
  SKOPTIM_HD static bool contracts(const T* k) { return k[0] * k[0] <= k[1]; }
  template <class T>
  SKOPTIM_HD static void coast(T* s, const T* k, T n) {
    s[0] *= math::pow(k[0], n);
    s[1] *= math::pow(k[1], n);
  }
};

struct Adamax {
  static constexpr int n_slots = 2, n_scalars = 5;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = false;
  SKOPTIM_NAMES(slots, "first_moment", "infinity_norm")
  SKOPTIM_NAMES(scalars, "beta_1", "beta_2", "epsilon", "correction_1", "one_minus_beta_1")
  template <class T>
  SKOPTIM_HD static BoundedStep<T> step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    const T before = w;
    s[0] = k[0] * s[0] + k[4] * g;
    s[1] = larger(k[1] * s[1], absolute(g) + k[2]);
    const T gain = finite_ratio(c.learning_rate / k[3], s[1]);
    w -= gain * s[0];
    return bounded(gain, c.learning_rate, before, w);
  }
  template <class T>
  SKOPTIM_HD static T memory(const T* k) { return k[0]; }
  template <class T>
  SKOPTIM_HD static bool contracts(const T* k) { return k[0] <= k[1]; }
  template <class T>
  SKOPTIM_HD static void coast(T* s, const T* k, T n) {
    s[0] *= math::pow(k[0], n);
    s[1] = larger(s[1] * math::pow(k[1], n), k[2]);
  }
};

struct Nadam {
  static constexpr int n_slots = 2, n_scalars = 8;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = false;
  SKOPTIM_NAMES(slots, "first_moment", "second_moment")
  // The look-ahead mixes the gradient and the moment, each with its own bias correction.
  SKOPTIM_NAMES(scalars, "beta_1", "beta_2", "epsilon", "gradient_weight", "moment_weight",
                "root_correction_2", "one_minus_beta_1", "one_minus_beta_2")
  template <class T>
  SKOPTIM_HD static BoundedStep<T> step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    const T before = w;
    s[0] = k[0] * s[0] + k[6] * g;
    s[1] = k[1] * s[1] + k[7] * (g * g);
    const T gain = finite_ratio(c.learning_rate * k[5], math::sqrt(s[1]) + k[2] * k[5]);
    w -= gain * (k[3] * g + k[4] * s[0]);
    return bounded(gain, c.learning_rate, before, w);
  }
  template <class T>
  SKOPTIM_HD static T memory(const T* k) { return k[0]; }
  template <class T>
  SKOPTIM_HD static bool contracts(const T* k) { return k[0] * k[0] <= k[1]; }
  template <class T>
  SKOPTIM_HD static void coast(T* s, const T* k, T n) {
    s[0] *= math::pow(k[0], n);
    s[1] *= math::pow(k[1], n);
  }
};

// FTRL-Proximal (McMahan et al. 2013, Algorithm 1), alpha being the rate of the first step and later
// gradients weighted by their rate over it, so that neither another rate nor a rest moves a weight. The
// state is the paper's z, and r = n^-power in place of n, which spares a root. A column may have a unit u
// of its own (1 for none): the step is that of weights w / u on inputs u x, and z is theirs.
// `square_root` is the paper's power -1/2; any other goes through pow.
template <bool square_root>
struct FTRL {
  static constexpr int n_slots = 2, n_scalars = 5, unit = 2;
  static constexpr bool contains_penalty = true;
  static constexpr bool uniform = false;
  SKOPTIM_NAMES(slots, "z", "root")
  SKOPTIM_NAMES(scalars, "beta", "power", "unit", "inverse_alpha", "gradient_weight")
  template <class T>
  SKOPTIM_HD static T grown(T root, T g, const T* k) {
    if constexpr (square_root) return math::sqrt(root * root + g * g);
    return g == T(0) ? root : math::pow(math::pow(root, T(-1) / k[1]) + g * g, -k[1]);
  }
  template <class T>
  SKOPTIM_HD static T denominator_of(const T* s, const Common<T>& c, const T* k) {
    return (k[0] + k[unit] * s[1]) * k[3] + k[unit] * (k[unit] * c.l2);
  }
  // Whether anything has been learned.
  template <class T>
  SKOPTIM_HD static bool has_learned(const T* s, const Common<T>& c, const T* k) {
    return denominator_of(s, c, k) != T(0);
  }
  // The weight that the state stands for; `w` where nothing has been learned (0 / 0).
  template <class T>
  SKOPTIM_HD static T weight(T w, const T* s, const Common<T>& c, const T* k) {
    const T u = k[unit], denominator = denominator_of(s, c, k);
    // Subtracted from zero, and not negated, to leave no negative zeros.
    const T solution = (T(0) - u * soft_threshold(s[0], u * c.l1)) / denominator;
    return denominator == T(0) ? w : solution;
  }
  // Lets the state stand for the same weight in another unit.
  template <class T>
  SKOPTIM_HD static void change_unit(T* s, T new_unit, const Common<T>& c, const T* k) {
    const T w = clamp(weight(T(0), s, c, k), c.lower, c.upper), u = new_unit;
    const T there = T(0) - w * ((k[0] / u + s[1]) * k[3] + u * c.l2) - math::copysign(u * c.l1, w);
    s[0] = w == T(0) ? s[0] * (u / k[unit]) : there;
  }
  // The state after a step from the weight w.
  template <class T>
  SKOPTIM_HD static void advance(T w, T g, T* s, const Common<T>&, const T* k) {
    const T root = grown(s[1], g, k);
    s[0] += k[4] * (k[unit] * g) - (root - s[1]) * k[3] * w;
    s[1] = root;
  }
  template <class T>
  SKOPTIM_HD static T step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    advance(w, g, s, c, k);
    w = weight(w, s, c, k);
    return c.learning_rate;  // never used: the penalty is part of the formula
  }
  template <class T>
  SKOPTIM_HD static T memory(const T*) { return T(0); }
  template <class T>
  SKOPTIM_HD static bool contracts(const T*) { return true; }
  template <class T>
  SKOPTIM_HD static void coast(T*, const T*, T) {}
};

struct Lion {
  static constexpr int n_slots = 1, n_scalars = 4;
  static constexpr bool contains_penalty = false;
  static constexpr bool uniform = false;
  SKOPTIM_NAMES(slots, "first_moment")
  SKOPTIM_NAMES(scalars, "beta_1", "beta_2", "one_minus_beta_1", "one_minus_beta_2")
  template <class T>
  SKOPTIM_HD static BoundedStep<T> step(T& w, T g, T* s, const Common<T>& c, const T* k) {
    const T before = w;
    const T direction = k[0] * s[0] + k[2] * g;
    s[0] = k[1] * s[0] + k[3] * g;
    w -= c.learning_rate * sign(direction);
    // sign(d) = d / |d|: the metric is |d|.
    const T size = absolute(direction);
    const T step_size = size > T(0) ? c.learning_rate / size : T(SKOPTIM_INFINITY);
    return bounded(step_size, c.learning_rate, before, w);
  }
  template <class T>
  SKOPTIM_HD static T memory(const T*) { return T(1); }
  template <class T>
  SKOPTIM_HD static bool contracts(const T*) { return true; }
  template <class T>
  SKOPTIM_HD static void coast(T* s, const T* k, T n) { s[0] *= math::pow(k[1], n); }
};

// name, type: the one list from which the drivers of both devices are made.
#define SKOPTIM_RULES(X)                              \
  X("sgd", SGD)                                       \
  X("sgd_momentum", SGDMomentum)                      \
  X("adagrad", Adagrad)                               \
  X("rmsprop", RMSprop<false, false>)                 \
  X("rmsprop_centered", RMSprop<true, false>)         \
  X("rmsprop_momentum", RMSprop<false, true>)         \
  X("rmsprop_centered_momentum", RMSprop<true, true>) \
  X("adadelta", Adadelta)                             \
  X("adam", Adam<false>)                              \
  X("adam_amsgrad", Adam<true>)                       \
  X("adamax", Adamax)                                 \
  X("nadam", Nadam)                                   \
  X("ftrl", FTRL<true>)                               \
  X("ftrl_power", FTRL<false>)                        \
  X("lion", Lion)

// One row of prepared scalars: what all rules share, then the rule's own.
template <class T>
SKOPTIM_HD Common<T> load_common(const T* row) {
  return {row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8],
          row[9]};
}

// A row of scalars in registers.
template <class Rule, class T>
struct Scalars {
  Common<T> common;
  T own[Rule::n_scalars + 1];
  Scalars() = default;
  SKOPTIM_HD explicit Scalars(const T* row) : common(load_common(row)), own{} {
    for (int j = 0; j < Rule::n_scalars; ++j) own[j] = row[n_common + j];
  }
  // The same with the unit of a column, for the rules that have one.
  SKOPTIM_HD Scalars with_unit(T unit) const {
    Scalars scaled = *this;
    if constexpr (Rule::contains_penalty) scaled.own[Rule::unit] = unit;
    return scaled;
  }
};

// The same step for a parameter that no penalty, decay or constraint touches (an intercept).
template <class T>
SKOPTIM_HD Common<T> unpenalised(Common<T> c) {
  c.l1 = c.l2 = c.group_l1 = c.coupled_l2 = T(0);
  c.shrink = T(1);
  c.lower = -T(SKOPTIM_INFINITY);
  c.upper = T(SKOPTIM_INFINITY);
  return c;
}

// What there may be besides the rule, weight decay and coupled L2.
enum class Extras { none, ridge, lasso, any };

template <class T>
SKOPTIM_HD bool is_boxed(const Common<T>& c) {
  return c.lower > -T(SKOPTIM_INFINITY) || c.upper < T(SKOPTIM_INFINITY);
}

template <class T>
SKOPTIM_HD Extras extras(const Common<T>& c) {
  if (c.clip_value < T(SKOPTIM_INFINITY) || is_boxed(c)) return Extras::any;
  if (c.l1 != T(0)) return c.l2 != T(0) ? Extras::any : Extras::lasso;
  return c.l2 != T(0) ? Extras::ridge : Extras::none;
}

// One whole step of one parameter: clipping, coupled L2, weight decay, the rule, the prox in the
// rule's metric.
template <class Rule, Extras extras, class T>
SKOPTIM_HD void update_with(T& w, T g, T* s, const Common<T>& c, const T* k) {
  if constexpr (extras == Extras::any) g = clamp(g, -c.clip_value, c.clip_value);
  g += c.coupled_l2 * w;
  w *= c.shrink;
  const auto step = Rule::step(w, g, s, c, k);
  if constexpr (Rule::contains_penalty) {
    if constexpr (extras == Extras::any) w = clamp(w, c.lower, c.upper);
  } else if constexpr (extras == Extras::any) {
    w = prox_elastic_box(w, step_size(step, w, c), c.l1, c.l2, c.lower, c.upper);
  } else if constexpr (extras == Extras::lasso) {
    w = prox_lasso(step, w, c.l1);
  } else if constexpr (extras == Extras::ridge) {
    w = prox_ridge(step, w, c.l2);
  }
}

// The same for extras known only at run time; to the last bit what the loops over many parameters do.
template <class Rule, class T>
SKOPTIM_HD void update(T& w, T g, T* s, const Common<T>& c, const T* k) {
  switch (extras(c)) {
    case Extras::none: return update_with<Rule, Extras::none>(w, g, s, c, k);
    case Extras::ridge: return update_with<Rule, Extras::ridge>(w, g, s, c, k);
    case Extras::lasso: return update_with<Rule, Extras::lasso>(w, g, s, c, k);
    default: return update_with<Rule, Extras::any>(w, g, s, c, k);
  }
}

SKOPTIM_END
