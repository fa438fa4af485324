// What L-BFGS makes of its history: the product of an approximate inverse Hessian with a vector.
#pragma once
#include <vector>

#include "cpu_network.hpp"

SKOPTIM_BEGIN

// A step s and the change y of the gradient along it.
template <class T>
struct Pair {
  const T *step, *change;
  double curvature, change_squares;  // s'y, y' H0 y
};

// Whether s'y is more than the rounding of a product of two such vectors, measured in units in which all coefficients
// are alike; NaN is not.
template <class T>
bool is_trusted(double curvature, double step_squares, double change_squares) {
  return curvature > double(std::numeric_limits<T>::epsilon()) * (math::sqrt(step_squares) * math::sqrt(change_squares));
}

// y' H0 y, with H0 = scale (null: 1).
template <class T>
double scaled_squares(const T* y, const T* scale, int64_t n) {
  if (!scale) return dot(y, y, n);
  return lane_sum<double>(n, [=](int64_t i) SKOPTIM_INLINE { return double(y[i]) * y[i] * scale[i]; });
}

// Two vectors that the recursion changes and multiplies in one pass: vector += factor * by, then vector' with.
template <class T>
double add_and_multiply(T* __restrict vector, T factor, const T* __restrict by, const T* __restrict with, int64_t n) {
  return lane_sum<double>(n, [=](int64_t i) SKOPTIM_INLINE {
    vector[i] += factor * by[i];
    return double(vector[i]) * with[i];
  });
}

// See `inverse_hessian_product` of Kernels: the two loops of Nocedal and Wright, algorithm 7.4.
template <class T>
void inverse_hessian_product(const T* steps, const T* changes, int64_t capacity, int64_t first, int64_t n_pairs,
                             int64_t n, const T* scale, T* vector) {
  std::vector<Pair<T>> pairs;
  for (int64_t j = first; j < first + n_pairs; ++j) {
    const T *const s = steps + j % capacity * n, *const y = changes + j % capacity * n;
    const double curvature = dot(s, y, n), change_squares = scaled_squares(y, scale, n);
    const double step_squares = !scale ? dot(s, s, n) : lane_sum<double>(n, [=](int64_t i) SKOPTIM_INLINE {
      return double(s[i]) * s[i] / scale[i];
    });
    if (is_trusted<T>(curvature, step_squares, change_squares)) pairs.push_back({s, y, curvature, change_squares});
  }
  const int64_t last = int64_t(pairs.size()) - 1;
  std::vector<double> coefficients(pairs.size());
  double product = last >= 0 ? dot(pairs[last].step, vector, n) : 0.0;
  for (int64_t j = last; j >= 0; --j) {
    coefficients[j] = product / pairs[j].curvature;
    product = add_and_multiply(vector, T(-coefficients[j]), pairs[j].change, pairs[j > 0 ? j - 1 : 0].step, n);
  }
  // The pair that is the latest gives the size of what no pair tells about.
  double factor = 1.0;
  if (last >= 0) factor = pairs[last].curvature / pairs[last].change_squares;
  for (int64_t i = 0; i < n; ++i) vector[i] *= T(factor) * (scale ? scale[i] : T(1));
  if (last >= 0) product = dot(pairs[0].change, vector, n);
  for (int64_t j = 0; j <= last; ++j) {
    const T along = T(coefficients[j] - product / pairs[j].curvature);
    product = add_and_multiply(vector, along, pairs[j].step, pairs[j < last ? j + 1 : last].change, n);
  }
}

SKOPTIM_END
