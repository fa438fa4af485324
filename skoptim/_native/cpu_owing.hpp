// How a table of cpu_table.hpp keeps account of the steps without a gradient.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu_averages.hpp"
#include "cpu_rules.hpp"
#include "cpu_vectors.hpp"

SKOPTIM_BEGIN

// From the cheapest way to the dearest. Those that store weights scaled divide them by the product of all factors so
// far, see UniformIdle.
enum class Owing {
  derived,      // not at all: the weight is a function of the state and of the last step's scalars
  scaled,       // by that product alone
  thresholded,  // and, for a column, by what L1 had taken in all when it was paid
  recorded,     // by the number of the step up to which a column has been paid
};
constexpr bool stores_weights(Owing owing) { return owing != Owing::derived; }
constexpr bool has_marks(Owing owing) { return owing >= Owing::thresholded; }
constexpr bool scales(Owing owing) { return owing == Owing::scaled || owing == Owing::thresholded; }

// What L1 still takes from a weight that was paid at the mark; nothing where another worker has taken more.
template <class T>
SKOPTIM_HD T owed_amount(double threshold, double mark) { return T(larger(threshold - mark, 0.0)); }

// The mark at a place of a record.
template <class T>
SKOPTIM_HD double mark_at(const T* place) { return load<double>(place); }

// Sets the mark of a record. Beside other workers the larger one stays: one of these may have paid more.
template <class T>
SKOPTIM_HD void set_mark(T* place, double mark, bool is_worker) {
  if (is_worker) mark = larger(mark_at(place), mark);
  store(mark, place);
}

// The cheapest way in which a step can be owed.
template <class Rule, class T>
Owing cheapest_owing(const Scalars<Rule, T>& row, bool averaging) {
  const Common<T>& c = row.common;
  if constexpr (Rule::contains_penalty) {
    // Without beta the state says nothing of a weight that has had no gradient.
    return row.own[0] > T(0) && !(averaging && is_boxed(c)) ? Owing::derived : Owing::recorded;
  } else if constexpr (std::is_same_v<Rule, SGD>) {
    // A weight that starts outside of a box is brought in by its first step.
    const UniformStep step = Idle<SGD>::one_step(c, row.own);
    if (is_boxed(c) || !step.holds) return Owing::recorded;
    return step.amount > 0 ? Owing::thresholded : Owing::scaled;
  }
  return Owing::recorded;
}

// Whether a table keeps averages at no cost for columns that are not touched.
template <class Rule, class T>
bool averages_in_table(const T* row) {
  return AveragedPaths<Rule, T>::holds && cheapest_owing(Scalars<Rule, T>(row), true) != Owing::recorded;
}

// What a touched column costs in a table, in coefficients of a step that visits all: beyond what its entry costs there,
// too.
// With closed forms as measured where single rows have two to sixty in a hundred of 1,000 columns. What replaying costs
// depends on the data: for many outputs, which fill vectors, owing took from a twentieth of the time of stepping all
// columns (Zipf-distributed ones) to three times as long (uniform ones).
template <class Rule, class T>
double cost_in_table(const T* row, bool closed_idle, int64_t width) {
  const Common<T> c = load_common(row);
  const bool averaging = c.average != T(0), is_wide = width >= fills_vectors;
  const bool has_l1 = c.l1 > T(0), has_l2 = c.l2 > T(0);
  if (cheapest_owing(Scalars<Rule, T>(row), averaging) != Owing::recorded) return averaging ? 2.0 : 0.5;
  if (!averaging) {
    if (std::is_same_v<Rule, Adagrad> && closed_idle) {
      if (is_wide) return has_l2 ? 9.0 : has_l1 ? 6.0 : 4.5;
      return (width == 1 ? 0.5 : 2.0) + (has_l2 ? 2.0 : 0.0);
    }
    if (is_uniform_idle<Rule> && steps_to_replay<Rule>(row, closed_idle) <= 2.0)
      return (is_wide ? 15.0 : 6.0) * (has_l1 ? 2.0 : 1.0);
    if (fades<Rule>(row)) return is_wide && !has_l2 ? 35.0 : 22.0;
    if (is_wide) return 4.0;
  }
  return 8.0 * (1.0 + steps_to_replay<Rule>(row, closed_idle));
}

// The scalars of the steps since all debts were paid, for tables that keep account by step numbers.
template <class Rule, class T>
class Record {
 public:
  void append(const ScalarBlock<T>& block, bool averaging) {
    const int64_t begin = n_steps_, end = begin + block.n_steps, width = block.width;
    width_ = width;
    averaging_ = averaging;
    rows_.resize(end * width);
    RowReader<T> rows(block);
    for (int64_t t = begin; t < end; ++t) {
      std::copy_n(rows(t - begin), width, &rows_[t * width]);
      const bool same = load_common(&rows_[t * width]).learning_rate == load_common(&rows_[0]).learning_rate;
      one_rate_ = same && (t == 0 || one_rate_);
      owes_nothing_ = rests<Rule>(&rows_[t * width]) && (t == 0 || owes_nothing_);
    }
    for (auto* sums : {&decay_, &threshold_, &averaged_, &highest_rate_, &lead_}) sums->resize(end + 1);
    if (Fading<Rule>::holds) {
      factors_.resize(end * n_fading_factors);
      series_.resize(end + 1);
      FadingDebts<Rule, T>::fill(rows_.data(), begin, end, width, factors_.data());
      const bool held = begin == 0 || fading_.holds;
      fading_ = FadingSeries<Rule, T>::fill(rows_.data(), begin, end, width, series_.data());
      fading_.holds = fading_.holds && held;
    }
    const bool closed =
        running_sums<Rule>(rows_.data(), begin, end, width, averaging, decay_.data(),
                           threshold_.data(), averaged_.data(), highest_rate_.data(), lead_.data());
    closed_ = closed && (begin == 0 || closed_);
    n_steps_ = end;
  }
  // Forgets the last steps.
  void truncate(int64_t n_steps) { n_steps_ = std::min(n_steps_, n_steps); }
  // In any of the steps.
  bool owes_nothing() const { return owes_nothing_; }
  int64_t bytes() const {
    const int64_t of_fading = Fading<Rule>::holds ? n_fading_factors * sizeof(T) + sizeof(FadingStep) : 0;
    return n_steps_ * int64_t(width_ * sizeof(T) + 5 * sizeof(double) + of_fading);
  }
  Steps<T> steps() const {
    return {rows_.data(),     width_,               decay_.data(), threshold_.data(),
            averaged_.data(), highest_rate_.data(), lead_.data(),  closed_,
            averaging_,       Fading<Rule>::holds ? factors_.data() : nullptr,
            series_.data(),   n_steps_,             fading_,       one_rate_};
  }

 private:
  std::vector<T> rows_, factors_;
  std::vector<FadingStep> series_;
  FadingConstants fading_{};
  std::vector<double> decay_, threshold_, averaged_, highest_rate_, lead_;
  int64_t n_steps_ = 0, width_ = 0;
  bool closed_ = false, averaging_ = false, one_rate_ = true, owes_nothing_ = true;
};

// Paying coefficients of columns each of which has a debt of its own by the record, as long as a closed form holds.
template <class Rule, class T>
class OwnDebts {
 public:
  // Steps before `now` are owed.
  OwnDebts(const Record<Rule, T>& record, int64_t now)
      : steps_(record.steps()), now_(now), has_form_(has_form(steps_)),
        are_any_(now > 0 && (steps_.averaging || !record.owes_nothing())) {
    if constexpr (is_uniform_idle<Rule>)
      // (-700: a moment that lasts for one step is gone.)
      if (now > 0) log_fade_ = larger(math::log(double(Rule::memory(scalars()))), -700.0);
  }

  bool are_any() const { return are_any_; }
  // Whether there is one, and the steps are not replayed.
  bool have_form() const { return has_form_; }

  // If there are any: pays n coefficients, whose columns have been paid up to their marks. `left` has room for as many.
  [[gnu::always_inline]] inline void pay(const Run<T>& run, const double* mark, int64_t n, T* left) const {
    if constexpr (std::is_same_v<Rule, Adagrad>) pay_adagrad(run, mark, n, left);
    if constexpr (is_uniform_idle<Rule>) pay_uniform(run, mark, n, left);
    if constexpr (Fading<Rule>::holds) FadingDebts<Rule, T>::pay_columns(run, n, steps_, mark, now_);
  }

 private:
  static bool has_form(const Steps<T>& steps) {
    if (steps.averaging) return false;
    if (std::is_same_v<Rule, Adagrad>) return steps.closed_idle;
    if (is_uniform_idle<Rule>) return pays_uniformly<Rule>(steps);
    return Fading<Rule>::holds && steps.fading.holds;
  }

  const T* row() const { return steps_.row(now_ - 1); }
  const T* scalars() const { return row() + n_common; }

  [[gnu::always_inline]] inline void pay_adagrad(const Run<T>& run, const double* mark, int64_t n, T* left) const {
    const Common<T> c = load_common(row());
    const auto pay_all = [&](auto varies, auto debt) SKOPTIM_INLINE {
      return pay_adagrad_columns<varies()>(run.w, run.slots[0], n, c, scalars()[0], debt, left);
    };
    // Another worker may have paid more.
    const double rate = c.learning_rate;
    const auto at_one_rate = [=, now = now_](int64_t e) SKOPTIM_INLINE {
      return AdagradDebt{larger(double(now) - mark[e], 0.0), rate, 0.0};
    };
    const double *const rates = steps_.decay, *const squares = steps_.threshold;
    const auto at_any_rate = [=, now = now_](int64_t e) SKOPTIM_INLINE {
      const int64_t from = std::min(int64_t(mark[e]), now);
      return AdagradDebt::of(double(now - from), rates[now] - rates[from], squares[now] - squares[from]);
    };
    if (steps_.one_rate ? pay_all(std::false_type{}, at_one_rate) : pay_all(std::true_type{}, at_any_rate))
      pay_left(run, mark, n, left);
  }

  [[gnu::always_inline]] inline void pay_uniform(const Run<T>& run, const double* mark, int64_t n, T* left) const {
    const auto debt = [=, now = now_](int64_t e) SKOPTIM_INLINE {
      // Another worker may have paid more.
      const int64_t from = std::min(int64_t(mark[e]), now);
      return UniformDebt::of(steps_, from, now, math::exp(double(now - from) * log_fade_));
    };
    if (pay_uniform_columns<Rule>(run, n, row(), debt, left)) pay_left(run, mark, n, left);
  }

  // Those that have no debt in closed form.
  void pay_left(const Run<T>& run, const double* mark, int64_t n, const T* left) const {
    for (int64_t e = 0; e < n; ++e)
      if (left[e] != T(0)) pay_each<Rule>(run.from(e), T(1), nullptr, 1, steps_, int64_t(mark[e]), now_);
  }

  const Steps<T> steps_;
  const int64_t now_;
  const bool has_form_, are_any_;
  double log_fade_ = 0.0;
};

SKOPTIM_END
