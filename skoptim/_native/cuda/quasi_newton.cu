// CUDA passes of L-BFGS: the product of its approximate inverse Hessian with a vector, as
// `inverse_hessian_product` of cpu_quasi_newton.hpp takes it, in launches that the host need not wait for.
//
// Each launch ends with a dot product, block by block, whose sum the next one begins with.
#include "../platform.hpp"
#include "grid.cuh"

SKOPTIM_BEGIN

// What is known of each pair: s' s / H0, y' H0 y, and s'y.
constexpr int n_products = 3;

// The sum of what blocks left, for each thread of this one.
SKOPTIM_HD double added_up(const double* partial_sums, int64_t n_partial_sums) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n_partial_sums; i += block_size) sum += partial_sums[i];
  return block_sum(sum);
}

template <class T>
constexpr double epsilon = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;

// The pairs of a history: rows first..first + n of (capacity, size) arrays, the latest last.
template <class T>
struct History {
  const T *steps, *changes;
  int64_t capacity, first, n, size;
  const double* products;  // (n, n_products)
  SKOPTIM_HD const T* step(int64_t j) const { return steps + (first + j) % capacity * size; }
  SKOPTIM_HD const T* change(int64_t j) const { return changes + (first + j) % capacity * size; }
  SKOPTIM_HD double curvature(int64_t j) const { return products[j * n_products + 2]; }
  SKOPTIM_HD bool is_trusted(int64_t j) const {
    const double* const own = products + j * n_products;
    return own[2] > epsilon<T> * (math::sqrt(own[0]) * math::sqrt(own[1]));
  }
  // What multiplies H0: of the latest pair that is trusted.
  SKOPTIM_HD double factor() const {
    for (int64_t j = n - 1; j >= 0; --j)
      if (is_trusted(j)) return curvature(j) / products[j * n_products + 1];
    return 1.0;
  }
};

// Block (x, j) sums a part of the products of pair j: partial_sums (n_pairs, n_products, n_blocks).
template <class T>
__global__ void pair_products(const T* steps, const T* changes, int64_t capacity, int64_t first_pair, int64_t n,
                              const T* scale, double* partial_sums) {
  const History<T> pairs{steps, changes, capacity, first_pair, int64_t(gridDim.y), n, nullptr};
  const T *const s = pairs.step(blockIdx.y), *const y = pairs.change(blockIdx.y);
  double sums[n_products] = {};
  for (int64_t i = grid_begin(); i < n; i += grid_stride()) {
    const double step = double(s[i]), change = double(y[i]), own_scale = scale ? double(scale[i]) : 1.0;
    sums[0] += step * step / own_scale;
    sums[1] += change * change * own_scale;
    sums[2] += step * change;
  }
  for (int k = 0; k < n_products; ++k) {
    const double total = block_sum(sums[k]);
    if (threadIdx.x == 0) partial_sums[(blockIdx.y * n_products + k) * gridDim.x + blockIdx.x] = total;
  }
}

// The first loop: takes the share of pair `pair` out of the vector, which `products_before` tell of, and then its
// product with the step of the pair before. Without any before, it applies H0, and takes that with the first change.
template <class T>
__global__ void descend(T* vector, const T* steps, const T* changes, int64_t capacity, int64_t first_pair,
                        int64_t n_pairs, int64_t pair, int64_t n, const T* scale, const double* products,
                        double* coefficients, const double* products_before, double* products_after) {
  const History<T> pairs{steps, changes, capacity, first_pair, n_pairs, n, products};
  T along = T(0);
  const bool takes_out = pair < n_pairs && pairs.is_trusted(pair);
  if (pair < n_pairs) {
    const double product = added_up(products_before, gridDim.x);
    const double coefficient = takes_out ? product / pairs.curvature(pair) : 0.0;
    if (grid_begin() == 0) coefficients[pair] = coefficient;
    along = T(-coefficient);
  }
  const T* const y = takes_out ? pairs.change(pair) : nullptr;
  const T factor = pair == 0 ? T(pairs.factor()) : T(1);
  const T* const with = pair > 0 ? pairs.step(pair - 1) : n_pairs > 0 ? pairs.change(0) : nullptr;
  double sum = 0;
  for (int64_t i = grid_begin(); i < n; i += grid_stride()) {
    T value = vector[i];
    if (y) value += along * y[i];
    if (pair == 0) value *= factor * (scale ? scale[i] : T(1));
    vector[i] = value;
    if (with) sum += double(value) * with[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) products_after[blockIdx.x] = sum;
}

// The second loop: adds the share of pair `pair`; then the product with the change of the pair after.
template <class T>
__global__ void ascend(T* vector, const T* steps, const T* changes, int64_t capacity, int64_t first_pair,
                       int64_t n_pairs, int64_t pair, int64_t n, const double* products, const double* coefficients,
                       const double* products_before, double* products_after) {
  const History<T> pairs{steps, changes, capacity, first_pair, n_pairs, n, products};
  const double product = added_up(products_before, gridDim.x);
  const bool adds = pairs.is_trusted(pair);
  const T along = adds ? T(coefficients[pair] - product / pairs.curvature(pair)) : T(0);
  const T *const s = pairs.step(pair), *const with = pair + 1 < n_pairs ? pairs.change(pair + 1) : nullptr;
  double sum = 0;
  for (int64_t i = grid_begin(); i < n; i += grid_stride()) {
    T value = vector[i];
    if (adds) value += along * s[i];
    vector[i] = value;
    if (with) sum += double(value) * with[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) products_after[blockIdx.x] = sum;
}

SKOPTIM_END
