// Steps of a linear model that visit every column: of dense data, and of CSR data where the columns
// that a batch does not touch would owe more than they save. One call trains a block of steps.
#pragma once
#include "cpu_network.hpp"
#include "cpu_rules.hpp"

SKOPTIM_BEGIN

template <class T>
class FlatTrainer {
 public:
  FlatTrainer(const LinearTask<T>& task, const RuleKernels<T>& rule, const Parameters<T>& parameters,
              const LinearScratch<T>& scratch)
      : task_(task), rule_(rule), parameters_(parameters), scratch_(scratch), width_(task.n_outputs),
        n_coefficients_(task.x.n_columns * task.n_outputs) {}

  double run() const {
    double loss = 0;
    RowReader<T> rows(task_.scalars);
    for (int64_t step = 0, begin = 0; step < task_.scalars.n_steps; ++step, begin += task_.batch_size) {
      const int64_t rest = task_.n_samples - begin;
      loss += train_batch(begin, rest < task_.batch_size ? rest : task_.batch_size, rows(step));
    }
    return loss;
  }

 private:
  bool sparse() const { return task_.x.indices != nullptr; }

  double train_batch(int64_t begin, int64_t n, const T* row) const {
    const int64_t* const rows = task_.order + begin;
    if (sparse())
      csr_matmul(task_.x, rows, 0, n, parameters_.w, width_, scratch_.scores);
    else
      dense_scores(rows, n);
    for (int64_t i = 0; i < n; ++i)
      add_scaled(scratch_.scores + i * width_, parameters_.w + n_coefficients_, T(1), width_);
    const double loss =
        task_.loss->batch(scratch_.scores, n, width_, task_.targets, rows, 0, task_.weights,
                          task_.loss_parameter, T(1) / T(n), scratch_.derivatives);
    column_sums(scratch_.derivatives, n, width_, scratch_.bias_gradient);
    if (sparse())
      csr_gradient(task_.x, rows, 0, n, scratch_.derivatives, width_, scratch_.gradients);
    else
      dense_gradient(rows, n);
    clip_norm();
    rule_.apply(parameters_, scratch_.gradients, 0, n_coefficients_, row, true, width_);
    if (task_.fit_intercept)
      rule_.apply(parameters_, scratch_.bias_gradient, n_coefficients_, n_coefficients_ + width_,
                  row, false, 0);
    if (sparse()) clear(rows, n);
    return loss;
  }

  void dense_scores(const int64_t* rows, int64_t n) const {
    const int64_t n_columns = task_.x.n_columns;
    for (int64_t i = 0; i < n; ++i) {
      const T* const xi = task_.x.data + rows[i] * n_columns;
      T* const zi = scratch_.scores + i * width_;
      if (width_ == 1) {
        zi[0] = lane_dot<T>(xi, parameters_.w, n_columns);
      } else {
        for (int64_t k = 0; k < width_; ++k) zi[k] = T(0);
        for (int64_t f = 0; f < n_columns; ++f)
          add_scaled(zi, parameters_.w + f * width_, xi[f], width_);
      }
    }
  }

  void dense_gradient(const int64_t* rows, int64_t n) const {
    const int64_t n_columns = task_.x.n_columns;
    T* const g = scratch_.gradients;
    for (int64_t i = 0; i < n_coefficients_; ++i) g[i] = T(0);
    for (int64_t i = 0; i < n; ++i) {
      const T* const xi = task_.x.data + rows[i] * n_columns;
      const T* const di = scratch_.derivatives + i * width_;
      if (width_ == 1)
        add_scaled(g, xi, di[0], n_columns);
      else
        for (int64_t f = 0; f < n_columns; ++f) add_scaled(g + f * width_, di, xi[f], width_);
    }
  }

  // Only the touched columns of the gradient are not zero already.
  void clear(const int64_t* rows, int64_t n) const {
    T* const g = scratch_.gradients;
    const int64_t width = width_;
    visit_entries(task_.x, rows, 0, n, [=](int64_t, int64_t column, T) {
      for (int64_t k = 0; k < width; ++k) g[column * width + k] = T(0);
    });
  }

  // Scales the whole gradient, intercepts included, to a norm of at most clip_norm.
  void clip_norm() const {
    if (!(task_.clip_norm < SKOPTIM_INFINITY)) return;
    double norm = dot(scratch_.gradients, scratch_.gradients, n_coefficients_);
    if (task_.fit_intercept) norm += dot(scratch_.bias_gradient, scratch_.bias_gradient, width_);
    norm = math::sqrt(norm);
    if (!(norm > task_.clip_norm)) return;
    const T factor = T(task_.clip_norm / norm);
    for (int64_t i = 0; i < n_coefficients_; ++i) scratch_.gradients[i] *= factor;
    for (int64_t k = 0; k < width_; ++k) scratch_.bias_gradient[k] *= factor;
  }

  const LinearTask<T>& task_;
  const RuleKernels<T>& rule_;
  const Parameters<T>& parameters_;
  const LinearScratch<T>& scratch_;
  const int64_t width_, n_coefficients_;
};

template <class T>
double train_flat(const LinearTask<T>& task, const RuleKernels<T>& rule,
                  const Parameters<T>& parameters, const LinearScratch<T>& scratch) {
  return FlatTrainer<T>(task, rule, parameters, scratch).run();
}

SKOPTIM_END
