// CPU passes of a network other than the matrix products: losses, activations, dropout, row gathering.
#pragma once
#include <algorithm>

#include "activations.hpp"
#include "cpu_csr.hpp"
#include "kernels.hpp"
#include "losses.hpp"
#include "prox.hpp"
#include "random.hpp"

SKOPTIM_BEGIN

// term(0) + ... + term(n - 1) in eight or sixteen lanes: the order does not depend on the instruction set. The last
// terms come to their lanes by fours, since lanes that are written one by one would have to go through memory.
template <class Sum, class Term>
SKOPTIM_HD Sum lane_sum(int64_t n, const Term& term) {
  constexpr int lanes = 64 / sizeof(Sum);
  Sum sums[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int j = 0; j < lanes; ++j) sums[j] += term(i + j);
#pragma GCC unroll 4
  for (int first = 0; first < lanes; first += 4, i += 4) {
    const Sum a = i < n ? term(i) : Sum(0), b = i + 1 < n ? term(i + 1) : Sum(0);
    const Sum c = i + 2 < n ? term(i + 2) : Sum(0), d = i + 3 < n ? term(i + 3) : Sum(0);
    sums[first] += a, sums[first + 1] += b, sums[first + 2] += c, sums[first + 3] += d;
  }
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

template <class T>
struct Multinomial {
  static double batch(const T* z, int64_t n, int64_t n_outputs, const Targets<T>& targets,
                      const int64_t* rows, int64_t first, const T* weights, T, T scale, T* d) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = rows ? rows[i] : first + i;
      const T weight = weights ? weights[row] : T(1);
      T* gradient = d ? d + i * n_outputs : nullptr;
      total += double(weight) *
               softmax_cross_entropy(z + i * n_outputs, n_outputs, int64_t(targets.labels[row]), gradient);
      if (d)
        for (int64_t k = 0; k < n_outputs; ++k) gradient[k] *= scale * weight;
    }
    return total;
  }
};

// Class labels become -1 and +1: a column means "is this class".
template <class T>
SKOPTIM_HD T target(const Targets<T>& targets, int64_t row, int64_t k, int64_t n_outputs) {
  if (!targets.labels) return targets.values[row * n_outputs + k];
  return targets.labels[row] == targets.first_class + k ? T(1) : T(-1);
}

// Targets and weights of some scores; (row, output) pairs are numbered row by row. (One copy serves all losses.)
template <class T>
[[gnu::noinline]] void look_up(const Targets<T>& targets, const int64_t* rows, int64_t first, const T* weights,
                               int64_t n_outputs, int64_t begin, int64_t size, T* y, T* weight) {
  if (n_outputs == 1) {
    for (int64_t j = 0; j < size; ++j) {
      const int64_t row = rows ? rows[begin + j] : first + begin + j;
      y[j] = target(targets, row, 0, 1);
      weight[j] = weights ? weights[row] : T(1);
    }
    return;
  }
  int64_t i = begin / n_outputs, k = begin % n_outputs;
  for (int64_t j = 0; j < size; ++j) {
    const int64_t row = rows ? rows[i] : first + i;
    y[j] = target(targets, row, k, n_outputs);
    weight[j] = weights ? weights[row] : T(1);
    if (++k == n_outputs) k = 0, ++i;
  }
}

template <class Loss, class T>
struct ElementwiseLoss {
  // Scores are taken some at a time: targets are looked up, then all are evaluated in one loop.
  static constexpr int64_t chunk = 64, of_a_vector = 32 / sizeof(T);

  static double batch(const T* z, int64_t n, int64_t n_outputs, const Targets<T>& targets,
                      const int64_t* rows, int64_t first, const T* weights, T parameter, T scale,
                      T* d) {
    T score[chunk], y[chunk], weight[chunk], value[chunk], slope[chunk];
    double total = 0;
    for (int64_t begin = 0; begin < n * n_outputs; begin += chunk) {
      const int64_t size = n * n_outputs - begin < chunk ? n * n_outputs - begin : chunk;
      look_up(targets, rows, first, weights, n_outputs, begin, size, y, weight);
      std::copy_n(z + begin, size, score);
      // Few scores fill vectors, too.
      const int64_t filled = (size + of_a_vector - 1) / of_a_vector * of_a_vector;
      for (int64_t j = size; j < filled; ++j) score[j] = weight[j] = T(0), y[j] = T(1);
      if (d) {
#pragma GCC ivdep
        for (int64_t j = 0; j < filled; ++j) {
          value[j] = Loss::value(score[j], y[j], parameter);
          slope[j] = scale * weight[j] * Loss::derivative(score[j], y[j], parameter);
        }
        std::copy_n(slope, size, d + begin);
      } else {
#pragma GCC ivdep
        for (int64_t j = 0; j < filled; ++j) value[j] = Loss::value(score[j], y[j], parameter);
      }
      total += lane_sum<double>(size, [&](int64_t j) SKOPTIM_INLINE { return double(weight[j]) * value[j]; });
    }
    return total;
  }

  static T slope(T z, const Targets<T>& targets, int64_t row, const T* weights, T parameter) {
    return (weights ? weights[row] : T(1)) * Loss::derivative(z, target(targets, row, 0, 1), parameter);
  }

  static void slopes(const T* z, int64_t n_outputs, const Targets<T>& targets, int64_t row, const T* weights,
                     T parameter, T* d) {
    const T weight = weights ? weights[row] : T(1);
    T y[fills_vectors];
    // What `target` returns for each: labels are compared in a vector.
    if (targets.labels) {
      const T label = T(targets.labels[row] - targets.first_class);
      for (int k = 0; k < fills_vectors; ++k) y[k] = label == T(k) ? T(1) : T(-1);
    } else {
      for (int k = 0; k < fills_vectors; ++k) y[k] = k < n_outputs ? targets.values[row * n_outputs + k] : T(1);
    }
#pragma GCC unroll 1
#pragma GCC ivdep
    for (int k = 0; k < fills_vectors; ++k) d[k] = weight * Loss::derivative(z[k], y[k], parameter);
  }
};

#define SKOPTIM_LOSS_ENTRY(NAME, LOSS) \
  LossKernel<T>{NAME, ElementwiseLoss<LOSS, T>::batch, ElementwiseLoss<LOSS, T>::slope, \
                ElementwiseLoss<LOSS, T>::slopes},

template <class T>
struct LossList {
  static constexpr LossKernel<T> entries[] = {
      SKOPTIM_LOSSES(SKOPTIM_LOSS_ENTRY) LossKernel<T>{"multinomial", Multinomial<T>::batch, nullptr, nullptr}};
  static constexpr int size = sizeof(entries) / sizeof(entries[0]);
};

template <class Activation, class T>
struct ActivationDriver {
  static void forward(T* z, const T* bias, T* a, int64_t n, int64_t width) {
    for (int64_t i = 0; i < n; ++i) {
      T* const zi = z + i * width;
      T* const ai = a + i * width;
#pragma GCC ivdep
      for (int64_t k = 0; k < width; ++k) {
        const T input = zi[k] + bias[k];
        zi[k] = input;
        ai[k] = Activation::value(input);
      }
    }
  }
  static void backward(const T* z, const T* a, T* delta, int64_t n) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) delta[i] *= Activation::derivative(z[i], a[i]);
  }
};

#define SKOPTIM_ACTIVATION_ENTRY(NAME, ACTIVATION, NEEDS_INPUT)                         \
  ActivationKernel<T>{NAME, #ACTIVATION, NEEDS_INPUT, ActivationDriver<ACTIVATION, T>::forward, \
                      ActivationDriver<ACTIVATION, T>::backward},

template <class T>
struct ActivationList {
  static constexpr ActivationKernel<T> entries[] = {SKOPTIM_ACTIVATIONS(SKOPTIM_ACTIVATION_ENTRY)};
  static constexpr int size = sizeof(entries) / sizeof(entries[0]);
};

template <class T>
void gather_rows(const T* x, int64_t width, const int64_t* rows, int64_t n, T* out) {
  // The rows come in a random order, which the processor cannot guess: it is told two rows ahead.
  constexpr int64_t ahead = 2, line = 64 / sizeof(T);
  for (int64_t i = 0; i < n; ++i, out += width) {
    const T* const from = x + rows[i] * width;
    const T* const later = x + rows[i + ahead < n ? i + ahead : i] * width;
    for (int64_t k = 0; k < width; k += line) {
      __builtin_prefetch(later + k);
      std::copy_n(from + k, std::min(line, width - k), out + k);
    }
  }
}

// Inverted dropout: survivors are scaled by 1 / (1 - rate), so prediction needs no change.
template <class T>
void dropout(const T* a, int64_t first, int64_t n, uint64_t seed, uint64_t stream, double rate, T* out) {
  const uint32_t threshold = uint32_t((1.0 - rate) * 4294967295.0);
  const T scale = T(1.0 / (1.0 - rate));
  for (int64_t i = 0; i < n; ++i)
    out[i] = survives(seed, stream, uint64_t(first + i), threshold) ? a[i] * scale : T(0);
}

template <class T>
void column_sums(const T* a, int64_t n, int64_t width, bool adds, T* out) {
  if (!adds) std::fill_n(out, width, T(0));
  if (width == 1) {
    out[0] += lane_sum<T>(n, [=](int64_t i) SKOPTIM_INLINE { return a[i]; });
    return;
  }
  for (int64_t i = 0; i < n; ++i) add_scaled(out, a + i * width, T(1), width);
}

template <class Sum, class T>
Sum lane_dot(const T* a, const T* b, int64_t n) {
  return lane_sum<Sum>(n, [=](int64_t i) SKOPTIM_INLINE { return Sum(a[i]) * b[i]; });
}

// Products of small or thin matrices, see kernels.hpp.
template <class T>
void multiply(const T* a, const T* w, int64_t n, int64_t k, int64_t m, T* out) {
  for (int64_t i = 0; i < n; ++i, a += k, out += m) {
    if (m == 1) {
      out[0] = lane_dot<T>(a, w, k);
      continue;
    }
    for (int64_t j = 0; j < m; ++j) out[j] = T(0);
    for (int64_t f = 0; f < k; ++f) add_scaled(out, w + f * m, a[f], m);
  }
}

template <class T>
void multiply_left(const T* a, int64_t width, const T* d, int64_t n, int64_t k, int64_t m, bool adds, T* out) {
  if (!adds) std::fill_n(out, k * m, T(0));
  for (int64_t i = 0; i < n; ++i, a += width, d += m) {
    if (m == 1)
      add_scaled(out, a, d[0], k);
    else
      for (int64_t f = 0; f < k; ++f) add_scaled(out + f * m, d, a[f], m);
  }
}

template <class T>
void multiply_right(const T* d, const T* w, int64_t n, int64_t k, int64_t m, T* out) {
  for (int64_t i = 0; i < n; ++i, d += m, out += k) {
    if (m == 1)
      for (int64_t f = 0; f < k; ++f) out[f] = d[0] * w[f];
    else
      for (int64_t f = 0; f < k; ++f) out[f] = lane_dot<T>(d, w + f * m, m);
  }
}

template <class T>
void add_bias(T* z, const T* bias, int64_t n, int64_t width) {
  if (width == 1) {
    const T of_all = bias[0];
    for (int64_t i = 0; i < n; ++i) z[i] += of_all;
    return;
  }
  for (int64_t i = 0; i < n; ++i) add_scaled(z + i * width, bias, T(1), width);
}

// In double and by one thread: the result does not depend on how many there are.
template <class T>
double dot(const T* a, const T* b, int64_t n) { return lane_dot<double>(a, b, n); }

// See kernels.hpp. Weights may be null.
template <class T>
void column_squares(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, const T* weights, double* sums,
                    double* counts) {
  const auto row_of = [=](int64_t i) { return rows ? rows[i] : first + i; };
  const auto add = [=](double weight, int64_t column, double value) {
    sums[column] += weight * value * value;
    counts[column] += value != 0 ? weight : 0.0;
  };
  if (x.indices)
    return visit_entries(x, rows, first, n, [=](int64_t i, int64_t column, T value) {
      add(weights ? double(weights[row_of(i)]) : 1.0, column, double(value));
    });
  for (int64_t i = 0; i < n; ++i) {
    const T* const row = x.data + row_of(i) * x.n_columns;
    const double weight = weights ? double(weights[row_of(i)]) : 1.0;
    for (int64_t f = 0; f < x.n_columns; ++f) add(weight, f, double(row[f]));
  }
}

// `steps` holds one step size for all (n_steps = 1) or one for each weight.
template <class T>
void prox_flat(T* w, int64_t n, const T* steps, int64_t n_steps, T l1, T l2, T lower, T upper) {
  for (int64_t i = 0; i < n; ++i)
    w[i] = prox_elastic_box(w[i], steps[n_steps == 1 ? 0 : i], l1, l2, lower, upper);
}

template <class T>
void prox_groups(T* w, int64_t n_groups, int64_t width, const T* thresholds, int64_t n_thresholds) {
  for (int64_t j = 0; j < n_groups; ++j) {
    T* const group = w + j * width;
    T norm = T(0);
    for (int64_t k = 0; k < width; ++k) norm += group[k] * group[k];
    const T factor = group_shrinkage(norm, thresholds[n_thresholds == 1 ? 0 : j]);
    for (int64_t k = 0; k < width; ++k) group[k] *= factor;
  }
}

SKOPTIM_END
