// Averaging in a table, at no cost for columns that are not touched; see cpu_table.hpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

// For rules whose weights are a function of the state of a column and of sums over the steps so far. Let F be what the
// averaged weights of a column would add up to, had its state been all along, since the account was begun, what it is
// now. The sum that is wanted is F plus a number that stays the same while the state does: this is what a record holds.
// When the state changes, F of the old one is added to it, and F of the new one taken off. Where F could no longer be
// told exactly (`suits`), the table pays all columns, and begins the account anew.
template <class Rule, class T>
class AveragedPaths {
 public:
  static constexpr bool holds = false;
  struct Sums {};
  void begin(double) {}
  bool is_empty() const { return true; }
  Sums sums() const { return {}; }
  void go_back(const Sums&) {}
};

// Sums over the first steps of an account, for each number of steps, and a threshold that has grown meanwhile. A step
// under way, which may have raised the threshold, is not among them yet.
class History {
 public:
  // `sums` are those before the threshold began to grow.
  void begin(int64_t n_sums, const double* sums) {
    n_sums_ = n_sums;
    thresholds_.clear();
    sums_.assign(sums, sums + n_sums);
  }
  void append(double threshold, const double* sums) {
    thresholds_.push_back(threshold);
    sums_.insert(sums_.end(), sums, sums + n_sums_);
  }
  // Forgets all but the first steps; `sums` are those after them.
  void go_back(int64_t n_steps, const double* sums) {
    if (n_steps == 0) return begin(n_sums_, sums);
    thresholds_.resize(n_steps);
    sums_.resize((n_steps + 1) * n_sums_);
  }
  int64_t n_steps() const { return int64_t(thresholds_.size()); }
  // It takes no more memory than this.
  bool is_full() const { return (thresholds_.size() + sums_.size()) * sizeof(double) > (16 << 20); }
  double last() const { return thresholds_.back(); }
  // Those over the steps before the threshold came to a magnitude.
  const double* sums_below(double magnitude) const { return &sums_[steps_below(magnitude) * n_sums_]; }

 private:
  int64_t steps_below(double magnitude) const {
    const int64_t n = n_steps();
    if (n == 0 || thresholds_[n - 1] < magnitude) return n;
    if (!(thresholds_[0] < magnitude)) return 0;
    // Mostly a threshold grows by the same amount in every step.
    const double part = (magnitude - thresholds_[0]) / (thresholds_[n - 1] - thresholds_[0]);
    const int64_t guess = part < 1.0 ? int64_t(part * double(n - 1)) : 0;
    int64_t low = std::max<int64_t>(guess - 1, 0), high = std::min(guess + 2, n - 1);
    for (int64_t by = 2; !(thresholds_[low] < magnitude); by *= 2) low = std::max<int64_t>(low - by, 0);
    for (int64_t by = 2; thresholds_[high] < magnitude; by *= 2) high = std::min(high + by, n - 1);
    const double* const all = thresholds_.data();
    return std::partition_point(all + low, all + high, [=](double t) { return t < magnitude; }) - all;
  }
  int64_t n_sums_ = 0;
  std::vector<double> thresholds_, sums_;
};

// What is summed up over the steps of an account: up to n numbers, and their history.
template <int n>
class AccountSums {
 public:
  struct Sums {
    double values[n] = {};
    int64_t n_steps = 0, n_recorded = 0;
  };
  // F is zero as long as nothing has been counted.
  bool is_empty() const { return sums_.n_steps == 0; }
  const Sums& sums() const { return sums_; }
  // Forgets the steps since `sums` was taken.
  void go_back(const Sums& sums) {
    sums_ = sums;
    history_.go_back(sums.n_recorded, sums.values);
  }

 protected:
  void record(double threshold) {
    history_.append(threshold, sums_.values);
    ++sums_.n_recorded;
  }
  Sums sums_;
  History history_;
};

// What L1 had taken in all when coefficients were paid: of each its own, or the same of all.
struct Marks {
  const double* of_each = nullptr;
  double of_all = 0.0;
  bool are_zero() const { return !of_each && of_all == 0.0; }
  double operator()(int64_t i) const { return of_each ? of_each[i] : of_all; }
};

// A weight is decay sign(v) (V - threshold), until that is zero, where v is the weight as it is stored, scaled, and
// V = |v| + the threshold when it was paid. So F is a sum of decays times V minus one of decays times thresholds.
template <class T>
class AveragedPaths<SGD, T> : public AccountSums<2> {
  using Row = Scalars<SGD, T>;
  // What is stored, and F, grow as the decay falls, and with them what rounding loses.
  static constexpr double smallest_decay = 1e-2;

 public:
  static constexpr bool holds = true;

  // The sums are of decays, and of these times thresholds.
  void begin(double) {
    sums_ = Sums();
    history_.begin(2, sums_.values);
  }
  // Whether the account may go on with a step, from weights that are stored with this decay.
  bool suits(const Row& row, double decay, double) const {
    return decay * Idle<SGD>::one_step(row.common, row.own).factor > smallest_decay && !history_.is_full();
  }
  // After a step of the table.
  void count(const Row& row, double decay, double threshold) {
    if (is_empty() && row.common.average == T(0)) return;
    ++sums_.n_steps;
    sums_.values[0] += double(row.common.average) * decay;
    sums_.values[1] += double(row.common.average) * decay * threshold;
    if (threshold > 0)
      record(threshold);
    else
      history_.begin(2, sums_.values);
  }
  // Adds `times` F to the averages of n coefficients; `marks` are the thresholds when these were paid.
  void add(double times, const Run<T>& run, int64_t n, Marks marks, double* average) const {
    const T* const v = run.w;
    if (marks.are_zero() && history_.n_steps() == 0) {
      // There has been no threshold, and the step under way brings none.
      const double factor = times * sums_.values[0];
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) average[i] += factor * double(v[i]);
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      if (v[i] == T(0)) continue;
      const double size = absolute(double(v[i])) + marks(i);
      const double* const sums = history_.sums_below(size);
      average[i] += times * double(sign(v[i])) * (size * sums[0] - sums[1]);
    }
  }
};

// In a step with the strengths l1 and l2 the weight is -u sign(z) (|z| - u l1) / (c + u^2 l2), until that is zero, with
// c = (beta + u root) / alpha. In powers of q = u^2 / (c + u^2 L), for an L about which l2 stays,
// 1 / (c + u^2 l2) is the sum of (-q (l2 - L))^n q / u^2: so F is made of sums of (l2 - L)^n, and of these times l1.
constexpr int n_ridge_terms = 10;
template <class T>
class FTRLPaths : public AccountSums<2 * n_ridge_terms> {
  static constexpr int n_terms = n_ridge_terms;
  // Of q |l2 - L|, the ratio of successive terms: the terms left out are below 7e-13 of the first.
  static constexpr double most = 0.06;

 public:
  static constexpr bool holds = true;

  // The sums are of the powers in use, and of these times l1. `unit` is the largest of all columns.
  void begin(double unit) {
    sums_ = {};
    largest_unit_ = unit;
  }
  template <class Row>
  bool suits(const Row& row, double, double largest_unit) const {
    if (is_empty()) return true;
    if (largest_unit > largest_unit_) return false;
    const double l2 = row.common.l2, l1 = row.common.l1;
    if (double(row.own[0]) != beta_ || double(row.own[3]) != inverse_alpha_) return false;
    if ((l1 > 0) != is_lasso_ || (l2 > 0) != is_ridge_) return false;
    if (is_lasso_ && (l1 < history_.last() || history_.is_full())) return false;
    return absolute(l2 - l2_) <= most * (least_ + l2_);
  }
  template <class Row>
  void count(const Row& row, double, double) {
    const double l1 = row.common.l1, l2 = row.common.l2;
    if (is_empty()) {
      if (row.common.average == T(0)) return;
      beta_ = row.own[0];
      inverse_alpha_ = row.own[3];
      is_lasso_ = l1 > 0;
      is_ridge_ = l2 > 0;
      least_ = beta_ * inverse_alpha_ / (largest_unit_ * largest_unit_);
      // It will grow.
      l2_ = is_ridge_ ? l2 + most * (least_ + l2) : 0.0;
      history_.begin(2 * terms_in_use(), sums_.values);
    }
    double power = row.common.average;
    for (int n = 0; n < terms_in_use(); ++n) {
      sums_.values[n] += power;
      sums_.values[terms_in_use() + n] += power * l1;
      power *= l2 - l2_;
    }
    ++sums_.n_steps;
    if (is_lasso_) record(l1);
  }
  // Adds `times` F to the averages of n coefficients. (Weights that are derived have no marks.)
  [[gnu::noinline]] void add(double times, const Run<T>& run, int64_t n, Marks, double* average) const {
    if (is_ridge_)
      add_all<n_terms>(times, run, n, average);
    else
      add_all<1>(times, run, n, average);
  }

 private:
  int terms_in_use() const { return is_ridge_ ? n_terms : 1; }

  template <int terms>
  void add_all(double times, const Run<T>& run, int64_t n, double* average) const {
    if (run.unit)
      add_all<terms>(times, run, n, average, [unit = run.unit](int64_t i) { return double(unit[i]); });
    else
      add_all<terms>(times, run, n, average, [](int64_t) { return 1.0; });
  }
  template <int terms, class Unit>
  void add_all(double times, const Run<T>& run, int64_t n, double* average, Unit unit) const {
    if (!is_lasso_) return add_loop<false, terms>(times, run, n, average, unit);
    add_loop<true, terms>(times, run, n, average, unit);
    // Weights that L1 has brought to zero since the account began.
    const double last = history_.last();
    for (int64_t i = 0; i < n; ++i) {
      const T z = run.slots[0][i];
      const double u = unit(i), magnitude = absolute(double(z)) / u;
      if (!(magnitude > last))
        average[i] += times * path<terms>(z, run.slots[1][i], u, history_.sums_below(magnitude));
    }
  }
  template <bool lasso, int terms, class Unit>
  [[gnu::always_inline]] void add_loop(double times, const Run<T>& run, int64_t n, double* average, Unit unit) const {
    const T *const z = run.slots[0], *const root = run.slots[1];
    const double last = lasso ? history_.last() : 0.0;
    double sums[2 * terms];
    std::copy_n(sums_.values, 2 * terms, sums);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const double f = path<terms>(z[i], root[i], unit(i), sums);
      average[i] += !lasso || absolute(double(z[i])) / unit(i) > last ? times * f : 0.0;
    }
  }
  // F of one coefficient.
  template <int terms>
  [[gnu::always_inline]] double path(double z, double root, double u, const double* sums) const {
    const double inverse = 1.0 / ((beta_ + u * root) * inverse_alpha_ + u * u * l2_), q = u * u * inverse;
    double of_z = sums[terms - 1], of_l1 = sums[2 * terms - 1];
    for (int j = terms - 2; j >= 0; --j) {
      of_z = sums[j] - q * of_z;
      of_l1 = sums[terms + j] - q * of_l1;
    }
    return -u * inverse * (z * of_z - math::copysign(u, z) * of_l1);
  }

  double beta_ = 0, inverse_alpha_ = 0, largest_unit_ = 1;
  double l2_ = 0, least_ = 0;  // L, and the least c / u^2
  bool is_lasso_ = false, is_ridge_ = false;
};
template <bool square_root, class T>
class AveragedPaths<FTRL<square_root>, T> : public FTRLPaths<T> {};

SKOPTIM_END
