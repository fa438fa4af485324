// CPU passes of a network other than the matrix products: losses, activations, dropout, CSR
// products, row gathering.
#pragma once
#include "activations.hpp"
#include "kernels.hpp"
#include "losses.hpp"
#include "prox.hpp"
#include "random.hpp"

SKOPTIM_BEGIN

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

template <class Loss, class T>
struct ElementwiseLoss {
  // Class labels become -1 and +1: one column means "is class 1", several "is class k".
  static T target(const Targets<T>& targets, int64_t row, int64_t k, int64_t n_outputs) {
    if (!targets.labels) return targets.values[row * n_outputs + k];
    return targets.labels[row] == (n_outputs == 1 ? 1 : k) ? T(1) : T(-1);
  }
  static double batch(const T* z, int64_t n, int64_t n_outputs, const Targets<T>& targets,
                      const int64_t* rows, int64_t first, const T* weights, T parameter, T scale,
                      T* d) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = rows ? rows[i] : first + i;
      const T weight = weights ? weights[row] : T(1);
      double loss = 0;
      for (int64_t k = 0; k < n_outputs; ++k) {
        const T score = z[i * n_outputs + k], y = target(targets, row, k, n_outputs);
        loss += Loss::value(score, y, parameter);
        if (d) d[i * n_outputs + k] = scale * weight * Loss::derivative(score, y, parameter);
      }
      total += weight * loss;
    }
    return total;
  }
};

#define SKOPTIM_LOSS_ENTRY(NAME, LOSS) LossKernel<T>{NAME, ElementwiseLoss<LOSS, T>::batch},

template <class T>
struct LossList {
  static constexpr LossKernel<T> entries[] = {
      SKOPTIM_LOSSES(SKOPTIM_LOSS_ENTRY) LossKernel<T>{"multinomial", Multinomial<T>::batch}};
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

// Calls visit(i, column, value) for every stored entry of the given rows.
template <class Index, class T, class Visit>
void visit_entries(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, Visit visit) {
  const Index* indices = static_cast<const Index*>(x.indices);
  const Index* indptr = static_cast<const Index*>(x.indptr);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = rows ? rows[i] : first + i;
    for (int64_t e = int64_t(indptr[row]); e < int64_t(indptr[row + 1]); ++e)
      visit(i, int64_t(indices[e]), x.data[e]);
  }
}

template <class T, class Visit>
void visit_entries(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, Visit visit) {
  if (x.wide)
    visit_entries<int64_t>(x, rows, first, n, visit);
  else
    visit_entries<int32_t>(x, rows, first, n, visit);
}

template <class T>
void add_scaled(T* out, const T* in, T factor, int64_t n) {
#pragma GCC ivdep
  for (int64_t k = 0; k < n; ++k) out[k] += factor * in[k];
}

template <class T>
void csr_matmul(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, const T* w,
                int64_t width, T* out) {
  for (int64_t i = 0; i < n * width; ++i) out[i] = T(0);
  visit_entries(x, rows, first, n, [=](int64_t i, int64_t column, T value) {
    add_scaled(out + i * width, w + column * width, value, width);
  });
}

template <class T>
int64_t touch(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n, int32_t* position,
              int64_t* columns) {
  int64_t count = 0;
  visit_entries(x, rows, first, n, [&](int64_t, int64_t column, T) {
    if (position[column] < 0) {
      position[column] = int32_t(count);
      columns[count++] = column;
    }
  });
  return count;
}

template <class T>
void csr_gradient(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n,
                  const int32_t* position, const T* delta, int64_t width, T* g, int64_t g_rows) {
  visit_entries(x, rows, first, n, [=](int64_t i, int64_t column, T value) {
    const int64_t place = position ? position[column] : column;
    if (place >= 0 && place < g_rows) add_scaled(g + place * width, delta + i * width, value, width);
  });
}

template <class T>
void gather_rows(const T* x, int64_t width, const int64_t* rows, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    const T* from = x + rows[i] * width;
    for (int64_t k = 0; k < width; ++k) out[i * width + k] = from[k];
  }
}

// Inverted dropout: survivors are scaled by 1 / (1 - rate), so prediction needs no change.
template <class T>
void dropout(const T* a, int64_t n, uint64_t seed, uint64_t stream, double rate, T* out) {
  const uint32_t threshold = uint32_t((1.0 - rate) * 4294967295.0);
  const T scale = T(1.0 / (1.0 - rate));
  for (int64_t i = 0; i < n; ++i)
    out[i] = survives(seed, stream, uint64_t(i), threshold) ? a[i] * scale : T(0);
}

template <class T>
void column_sums(const T* a, int64_t n, int64_t width, T* out) {
  for (int64_t k = 0; k < width; ++k) out[k] = T(0);
  for (int64_t i = 0; i < n; ++i) add_scaled(out, a + i * width, T(1), width);
}

// In double and by one thread: the result does not depend on how many there are.
template <class T>
double dot(const T* a, const T* b, int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += double(a[i]) * b[i];
  return total;
}

// `steps` holds one step size for all (n_steps = 1) or one for each weight.
template <class T>
void prox_flat(T* w, int64_t n, const T* steps, int64_t n_steps, T l1, T l2, T lower, T upper) {
  for (int64_t i = 0; i < n; ++i)
    w[i] = prox_elastic_box(w[i], steps[n_steps == 1 ? 0 : i], l1, l2, lower, upper);
}

template <class T>
void prox_groups(T* w, int64_t n_groups, int64_t width, T threshold) {
  for (int64_t j = 0; j < n_groups; ++j) {
    T* const group = w + j * width;
    T norm = T(0);
    for (int64_t k = 0; k < width; ++k) norm += group[k] * group[k];
    const T factor = group_shrinkage(norm, threshold);
    for (int64_t k = 0; k < width; ++k) group[k] *= factor;
  }
}

SKOPTIM_END
