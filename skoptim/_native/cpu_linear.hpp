// A whole block of steps of a linear model in one call: forward, loss, update, owed steps.
#pragma once
#include "cpu_network.hpp"
#include "cpu_rules.hpp"

SKOPTIM_BEGIN

template <class T>
void dense_scores(const Matrix<T>& x, const int64_t* rows, int64_t n, const T* w, int64_t width,
                  T* out) {
  for (int64_t i = 0; i < n; ++i) {
    const T* xi = x.data + rows[i] * x.n_columns;
    T* zi = out + i * width;
    if (width == 1) {
      T total = T(0);
#pragma omp simd reduction(+ : total)
      for (int64_t f = 0; f < x.n_columns; ++f) total += xi[f] * w[f];
      zi[0] = total;
    } else {
      for (int64_t k = 0; k < width; ++k) zi[k] = T(0);
      for (int64_t f = 0; f < x.n_columns; ++f) add_scaled(zi, w + f * width, xi[f], width);
    }
  }
}

template <class T>
void dense_gradient(const Matrix<T>& x, const int64_t* rows, int64_t n, const T* d, int64_t width,
                    T* g) {
  for (int64_t i = 0; i < x.n_columns * width; ++i) g[i] = T(0);
  for (int64_t i = 0; i < n; ++i) {
    const T* xi = x.data + rows[i] * x.n_columns;
    const T* di = d + i * width;
    if (width == 1)
      add_scaled(g, xi, di[0], x.n_columns);
    else
      for (int64_t f = 0; f < x.n_columns; ++f) add_scaled(g + f * width, di, xi[f], width);
  }
}

template <class T>
class LinearTrainer {
 public:
  explicit LinearTrainer(const LinearEpoch<T>& e)
      : e_(e), width_(e.n_outputs), n_coefficients_(e.x.n_columns * e.n_outputs) {}

  double run() {
    double loss = 0;
    for (int64_t begin = 0, step = 0; begin < e_.n_samples; begin += e_.batch_size, ++step) {
      const int64_t n = e_.n_samples - begin < e_.batch_size ? e_.n_samples - begin : e_.batch_size;
      loss += train_batch(e_.order + begin, n, step);
    }
    if (owes()) pay(nullptr, e_.x.n_columns, e_.block.n_steps);
    return loss;
  }

 private:
  bool sparse() const { return e_.x.indices != nullptr; }
  bool owes() const { return sparse() && e_.lazy; }
  const T* row(int64_t step) const { return e_.block.rows + step * e_.block.width; }
  void pay(const int64_t* columns, int64_t n, int64_t to) const {
    e_.rule->pay_columns(e_.parameters, columns, n, width_, e_.block, e_.paid, to);
  }

  double train_batch(const int64_t* rows, int64_t n, int64_t step) const {
    const LinearScratch<T>& scratch = e_.scratch;
    int64_t n_touched = 0;
    if (sparse()) {
      n_touched = touch(e_.x, rows, 0, n, scratch.position, scratch.columns);
      if (owes()) pay(scratch.columns, n_touched, step);
      csr_matmul(e_.x, rows, 0, n, e_.parameters.w, width_, scratch.scores);
    } else {
      dense_scores(e_.x, rows, n, e_.parameters.w, width_, scratch.scores);
    }
    const T* intercept = e_.parameters.w + n_coefficients_;
    for (int64_t i = 0; i < n; ++i)
      add_scaled(scratch.scores + i * width_, intercept, T(1), width_);
    const double loss = e_.loss->batch(scratch.scores, n, width_, e_.targets, rows, 0, e_.weights,
                                       e_.loss_parameter, T(1) / T(n), scratch.derivatives);
    column_sums(scratch.derivatives, n, width_, scratch.bias_gradient);
    if (owes())
      update_touched(rows, n, n_touched, step);
    else
      update_all(rows, n, n_touched, step);
    for (int64_t j = 0; j < n_touched; ++j) scratch.position[scratch.columns[j]] = -1;
    if (e_.fit_intercept)
      e_.rule->apply(e_.parameters, scratch.bias_gradient, n_coefficients_,
                     n_coefficients_ + width_, row(step), false, 0);
    return loss;
  }

  void update_touched(const int64_t* rows, int64_t n, int64_t n_touched, int64_t step) const {
    const LinearScratch<T>& scratch = e_.scratch;
    // Without a gradient the step is an idle one: it is owed like any other.
    if (!any_derivative(n)) return;
    const int64_t size = n_touched * width_;
    for (int64_t i = 0; i < size; ++i) scratch.gradients[i] = T(0);
    csr_gradient(e_.x, rows, 0, n, scratch.position, scratch.derivatives, width_, scratch.gradients,
                 n_touched);
    clip_norm(scratch.gradients, size);
    e_.rule->apply_columns(e_.parameters, scratch.columns, n_touched, width_, scratch.gradients,
                           row(step));
    for (int64_t j = 0; j < n_touched; ++j) e_.paid[scratch.columns[j]] = int32_t(step + 1);
  }

  void update_all(const int64_t* rows, int64_t n, int64_t n_touched, int64_t step) const {
    const LinearScratch<T>& scratch = e_.scratch;
    if (sparse())
      csr_gradient<T>(e_.x, rows, 0, n, nullptr, scratch.derivatives, width_, scratch.gradients,
                      e_.x.n_columns);
    else
      dense_gradient(e_.x, rows, n, scratch.derivatives, width_, scratch.gradients);
    clip_norm(scratch.gradients, n_coefficients_);
    e_.rule->apply(e_.parameters, scratch.gradients, 0, n_coefficients_, row(step), true, width_);
    // Only the touched columns of the gradient are not zero already.
    for (int64_t j = 0; j < n_touched; ++j)
      for (int64_t k = 0; k < width_; ++k) scratch.gradients[scratch.columns[j] * width_ + k] = T(0);
  }

  bool any_derivative(int64_t n) const {
    for (int64_t i = 0; i < n * width_; ++i)
      if (e_.scratch.derivatives[i] != T(0)) return true;
    return false;
  }

  // Scales the whole gradient, intercepts included, to a norm of at most clip_norm.
  void clip_norm(T* gradients, int64_t size) const {
    if (!(e_.clip_norm < SKOPTIM_INFINITY)) return;
    double norm = dot(gradients, gradients, size);
    if (e_.fit_intercept) norm += dot(e_.scratch.bias_gradient, e_.scratch.bias_gradient, width_);
    norm = math::sqrt(norm);
    if (!(norm > e_.clip_norm)) return;
    const T factor = T(e_.clip_norm / norm);
    for (int64_t i = 0; i < size; ++i) gradients[i] *= factor;
    for (int64_t k = 0; k < width_; ++k) e_.scratch.bias_gradient[k] *= factor;
  }

  const LinearEpoch<T>& e_;
  const int64_t width_, n_coefficients_;
};

template <class T>
double linear_epoch(const LinearEpoch<T>& epoch) {
  return LinearTrainer<T>(epoch).run();
}

SKOPTIM_END
