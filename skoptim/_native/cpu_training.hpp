// Steps that visit every parameter: of networks and linear models on dense data, and on CSR data where
// the columns that a batch does not touch would owe more than they save. One call trains a block of steps.
// Only glue lies here: what takes time is a kernel of the instruction set in use, or a product of BLAS.
#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "kernels.hpp"

namespace skoptim {

// sgemm or dgemm, as Fortran has them.
template <class T>
using Gemm = void (*)(char*, char*, int*, int*, int*, T*, T*, int*, T*, int*, T*, T*, int*);

// Products of row-major matrices: by BLAS, unless they are so small or thin that plain loops are faster.
template <class T>
class Products {
 public:
  Products(const Kernels<T>& kernels, Gemm<T> gemm) : kernels_(kernels), gemm_(gemm) {}

  // out (n, m) = a (n, k) w (k, m)
  void multiply(const T* a, const T* w, int64_t n, int64_t k, int64_t m, T* out) const {
    if (is_thin(n, k, m)) return kernels_.multiply(a, w, n, k, m, out);
    call('N', 'N', m, n, k, w, m, a, k, out, m);
  }
  // out (k, m) = a' d for a (n, k), d (n, m)
  void gradient(const T* a, const T* d, int64_t n, int64_t k, int64_t m, T* out) const {
    if (is_thin(n, k, m)) return kernels_.multiply_left(a, d, n, k, m, out);
    call('N', 'T', m, k, n, d, m, a, k, out, m);
  }
  // out (n, k) = d w' for d (n, m), w (k, m)
  void back(const T* d, const T* w, int64_t n, int64_t k, int64_t m, T* out) const {
    if (is_thin(n, k, m)) return kernels_.multiply_right(d, w, n, k, m, out);
    call('T', 'N', k, n, m, w, m, d, m, out, k);
  }

 private:
  static bool is_thin(int64_t n, int64_t k, int64_t m) {
    constexpr int64_t worth_a_call = 1 << 12;
    return n == 1 || m == 1 || n * k * m <= worth_a_call;
  }

  // In Fortran's order of memory a row-major matrix is its transpose.
  void call(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
            int64_t ldb, T* c, int64_t ldc) const {
    int sizes[] = {int(m), int(n), int(k), int(lda), int(ldb), int(ldc)};
    T one = T(1), zero = T(0);
    gemm_(&trans_a, &trans_b, &sizes[0], &sizes[1], &sizes[2], &one, const_cast<T*>(a), &sizes[3],
          const_cast<T*>(b), &sizes[4], &zero, c, &sizes[5]);
  }

  const Kernels<T>& kernels_;
  const Gemm<T> gemm_;
};

template <class T>
class NetworkTrainer {
 public:
  // `parameters` is flat: the coefficients of all layers, (fan_in, fan_out) each, then all intercepts.
  NetworkTrainer(const Task<T>& task, const Kernels<T>& kernels, Gemm<T> gemm, const T* parameters)
      : task_(task), kernels_(kernels), products_(kernels, gemm), parameters_(parameters),
        sizes_(task.network.layer_sizes), n_layers_(int64_t(sizes_.size()) - 1) {
    const int64_t n = task.batch_size;
    int64_t n_coefficients = 0, n_intercepts = 0;
    for (int64_t l = 0; l < n_layers_; ++l) {
      coefs_.push_back(n_coefficients);
      n_coefficients += sizes_[l] * sizes_[l + 1];
      n_intercepts += sizes_[l + 1];
    }
    int64_t at = n_coefficients;
    for (int64_t l = 0; l < n_layers_; ++l) {
      intercepts_.push_back(at);
      at += sizes_[l + 1];
    }
    gradient_.resize(n_coefficients + n_intercepts);
    if (!is_sparse() && n > 1) inputs_.resize(n * sizes_[0]);
    for (int64_t l = 0; l < n_layers_; ++l) {
      const size_t size = n * sizes_[l + 1];
      const bool hidden = l + 1 < n_layers_;
      scores_.emplace_back(size);
      deltas_.emplace_back(size);
      outputs_.emplace_back(hidden && task.network.activation->needs_input ? size : 0);
      dropped_.emplace_back(hidden && task.network.dropout > 0 ? size : 0);
    }
  }

  // Calls apply(gradient, scalars) for each step; returns the sum of the losses.
  template <class Apply>
  double run(Apply apply) {
    double loss = 0;
    RowReader<T> rows(task_.scalars);
    for (int64_t step = 0, begin = 0; step < task_.scalars.n_steps; ++step, begin += task_.batch_size) {
      const int64_t n = std::min(task_.batch_size, task_.n_samples - begin);
      const int64_t* const batch = task_.order + begin;
      loss += differentiate(batch, n, step);
      clip_norm();
      apply(gradient_.data(), rows(step));
      if (is_sparse()) kernels_.csr_clear(task_.x, batch, 0, n, sizes_[1], gradient_.data());
    }
    return loss;
  }

 private:
  bool is_sparse() const { return task_.x.indices != nullptr; }

  // Leaves the gradient of the mean loss of a batch; that of the first layer on CSR data is added to.
  double differentiate(const int64_t* rows, int64_t n, int64_t step) {
    const T* const inputs = is_sparse() ? nullptr : gather(rows, n);
    forward(inputs, rows, n, step);
    T* delta = deltas_.back().data();
    const double loss =
        task_.loss->batch(scores_.back().data(), n, sizes_.back(), task_.targets, rows, 0, task_.weights,
                          task_.loss_parameter, T(1) / T(n), delta);
    for (int64_t l = n_layers_ - 1; l >= 0; --l) {
      const int64_t fan_in = sizes_[l], fan_out = sizes_[l + 1];
      T* const bias_gradient = gradient_.data() + intercepts_[l];
      if (task_.fit_intercept)  // They stay zero otherwise.
        kernels_.column_sums(delta, n, fan_out, bias_gradient);
      T* const g = gradient_.data() + coefs_[l];
      if (l == 0 && is_sparse())
        kernels_.csr_gradient(task_.x, rows, 0, n, delta, fan_out, g);
      else
        products_.gradient(l == 0 ? inputs : output(l - 1), delta, n, fan_in, fan_out, g);
      if (l > 0) delta = back(l, delta, n, step);
    }
    return loss;
  }

  void forward(const T* inputs, const int64_t* rows, int64_t n, int64_t step) {
    for (int64_t l = 0; l < n_layers_; ++l) {
      const int64_t fan_in = sizes_[l], fan_out = sizes_[l + 1];
      const T* const w = parameters_ + coefs_[l];
      const T* const bias = parameters_ + intercepts_[l];
      T* const z = scores_[l].data();
      if (l == 0 && is_sparse())
        kernels_.csr_matmul(task_.x, rows, 0, n, w, fan_out, z);
      else
        products_.multiply(l == 0 ? inputs : output(l - 1), w, n, fan_in, fan_out, z);
      if (l + 1 == n_layers_) return kernels_.add_bias(z, bias, n, fan_out);
      task_.network.activation->forward(z, bias, activated(l), n, fan_out);
      if (!dropped_[l].empty()) drop(activated(l), l, n, step, dropped_[l].data());
    }
  }

  // From the derivatives by the scores of layer l to those of the layer below.
  T* back(int64_t l, const T* delta, int64_t n, int64_t step) {
    T* const below = deltas_[l - 1].data();
    products_.back(delta, parameters_ + coefs_[l], n, sizes_[l], sizes_[l + 1], below);
    if (!dropped_[l - 1].empty()) drop(below, l - 1, n, step, below);
    task_.network.activation->backward(scores_[l - 1].data(), activated(l - 1), below, n * sizes_[l]);
    return below;
  }

  void drop(const T* a, int64_t l, int64_t n, int64_t step, T* out) const {
    const uint64_t stream = uint64_t(task_.first_step + step) * uint64_t(n_layers_) + uint64_t(l);
    kernels_.dropout(a, n * sizes_[l + 1], task_.network.seed, stream, task_.network.dropout, out);
  }

  // Activations lie where the scores were, unless these are needed on the way back.
  T* activated(int64_t l) { return outputs_[l].empty() ? scores_[l].data() : outputs_[l].data(); }
  const T* output(int64_t l) { return dropped_[l].empty() ? activated(l) : dropped_[l].data(); }

  const T* gather(const int64_t* rows, int64_t n) {
    const T* const first = task_.x.data + rows[0] * sizes_[0];
    int64_t in_a_row = 1;
    while (in_a_row < n && rows[in_a_row] == rows[0] + in_a_row) ++in_a_row;
    if (in_a_row == n) return first;
    kernels_.gather_rows(task_.x.data, sizes_[0], rows, n, inputs_.data());
    return inputs_.data();
  }

  // Scales the whole gradient to a norm of at most clip_norm.
  void clip_norm() {
    if (!(task_.clip_norm < std::numeric_limits<double>::infinity())) return;
    const double norm = std::sqrt(kernels_.dot(gradient_.data(), gradient_.data(), gradient_.size()));
    if (!(norm > task_.clip_norm)) return;
    const T factor = T(task_.clip_norm / norm);
    for (T& g : gradient_) g *= factor;
  }

  const Task<T>& task_;
  const Kernels<T>& kernels_;
  const Products<T> products_;
  const T* const parameters_;
  const std::vector<int64_t>& sizes_;
  const int64_t n_layers_;
  std::vector<int64_t> coefs_, intercepts_;  // where those of a layer begin
  std::vector<T> gradient_, inputs_;
  std::vector<std::vector<T>> scores_, outputs_, dropped_, deltas_;  // of each layer
};

}  // namespace skoptim
