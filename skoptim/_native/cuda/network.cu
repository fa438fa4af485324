// CUDA passes of a network other than the matrix products: losses, activations, dropout, row
// gathering, sums, prox. All sums run in an order that depends on sizes alone.
#include "../activations.hpp"
#include "../losses.hpp"
#include "../prox.hpp"
#include "../random.hpp"
#include "grid.cuh"

SKOPTIM_BEGIN

// The sum of weighted losses into *total (see `grid_sum`); derivatives times `scale` into d unless null.
// Class labels become -1 and +1: one output means "is class 1", several "is class k".
template <class Loss, class T>
__global__ void elementwise_loss(const T* z, int64_t n, int64_t n_outputs, const int32_t* labels,
                                 const T* values, const int64_t* rows, int64_t first,
                                 int64_t first_per_step, const int64_t* counter, const T* weights,
                                 T parameter, T scale, T* d, double* partial_sums,
                                 uint32_t* arrivals, double* total) {
  const Batch batch(rows, moved(first, first_per_step, counter));
  double sum = 0;
  for (int64_t e = grid_begin(); e < n * n_outputs; e += grid_stride()) {
    const Place place(e, n_outputs);
    const int64_t row = batch.row(place.row), k = place.column;
    const T weight = weights ? weights[row] : T(1), score = z[e];
    T y;
    if (labels)
      y = labels[row] == (n_outputs == 1 ? 1 : k) ? T(1) : T(-1);
    else
      y = values[row * n_outputs + k];
    sum += double(weight) * double(Loss::value(score, y, parameter));
    if (d) d[e] = scale * weight * Loss::derivative(score, y, parameter);
  }
  grid_sum(sum, partial_sums, arrivals, total);
}

// The same for the cross-entropy of the softmax, as `softmax_cross_entropy` has it; a tile takes a row.
template <class T>
__global__ void multinomial_loss(const T* z, int64_t n, int64_t n_outputs, const int32_t* labels,
                                 const int64_t* rows, int64_t first, int64_t first_per_step,
                                 const int64_t* counter, const T* weights, T scale, T* d,
                                 double* partial_sums, uint32_t* arrivals, double* total,
                                 int32_t tile_size) {
  const Batch batch(rows, moved(first, first_per_step, counter));
  const Tile tile(tile_size);
  double sum = 0;
  for (int64_t i = tile.begin; i < n; i += tile.stride) {
    const int64_t row = batch.row(i), label = labels[row];
    const T weight = weights ? weights[row] : T(1);
    const T* const score = z + i * n_outputs;
    T top = score[0], partition = T(0);
    for (int64_t k = tile.lane; k < n_outputs; k += tile.size) top = larger(top, score[k]);
    top = tile.largest(top);
    for (int64_t k = tile.lane; k < n_outputs; k += tile.size) partition += math::exp(score[k] - top);
    partition = tile.sum(partition);
    if (tile.lane == 0)
      sum += double(weight) * double(math::log(partition) + top - score[label]);
    if (d)
      for (int64_t k = tile.lane; k < n_outputs; k += tile.size)
        d[i * n_outputs + k] =
            (math::exp(score[k] - top) / partition - (k == label ? T(1) : T(0))) * (scale * weight);
  }
  grid_sum(sum, partial_sums, arrivals, total);
}

// z += bias, a = f(z); a may be z.
template <class Activation, class T>
__global__ void activation_forward(T* z, const T* bias, T* a, int64_t n, int64_t width) {
  for (Quad e(n * width); e.begins(); e.next()) {
    T input[4];
    for (int j = 0; j < 4; ++j)
      if (e.has(j)) input[j] = z[e.at(j)] + bias[Place(e.at(j), width).column];
    for (int j = 0; j < 4; ++j)
      if (e.has(j)) {
        if (z != a) z[e.at(j)] = input[j];
        a[e.at(j)] = Activation::value(input[j]);
      }
  }
}

// delta *= f'.
template <class Activation, class T>
__global__ void activation_backward(const T* z, const T* a, T* delta, int64_t n) {
  for (Quad e(n); e.begins(); e.next()) {
    T product[4];
    for (int j = 0; j < 4; ++j)
      if (e.has(j)) product[j] = delta[e.at(j)] * Activation::derivative(z[e.at(j)], a[e.at(j)]);
    for (int j = 0; j < 4; ++j)
      if (e.has(j)) delta[e.at(j)] = product[j];
  }
}

// One thread draws the four words that decide over four neighbouring units, as `survives` does.
template <class T>
__global__ void dropout(const T* a, int64_t n, uint64_t seed, int64_t stream, int64_t stream_per_step,
                        const int64_t* counter, uint32_t threshold, T scale, T* out) {
  const uint64_t own_stream = uint64_t(moved(stream, stream_per_step, counter));
  for (int64_t quad = grid_begin(); quad * 4 < n; quad += grid_stride()) {
    const Philox bits = philox(seed, own_stream, uint64_t(quad));
    for (int j = 0; j < 4; ++j) {
      const int64_t e = quad * 4 + j;
      if (e < n) out[e] = bits.word[j] < threshold ? a[e] * scale : T(0);
    }
  }
}

template <class T>
__global__ void gather_rows(const T* x, int64_t width, const int64_t* rows, int64_t first,
                            int64_t first_per_step, const int64_t* counter, int64_t n, T* out) {
  const Batch batch(rows, moved(first, first_per_step, counter));
  for (Quad e(n * width); e.begins(); e.next()) {
    T value[4];
    for (int j = 0; j < 4; ++j)
      if (e.has(j)) {
        const Place place(e.at(j), width);
        value[j] = x[batch.row(place.row) * width + place.column];
      }
    for (int j = 0; j < 4; ++j)
      if (e.has(j)) out[e.at(j)] = value[j];
  }
}

// partial_sums of a dot product, and its sum.
template <class T>
__global__ void dot(const T* a, const T* b, int64_t n, double* partial_sums, uint32_t* arrivals,
                    double* total) {
  double sum = 0;
  for (int64_t e = grid_begin(); e < n; e += grid_stride()) sum += double(a[e]) * double(b[e]);
  grid_sum(sum, partial_sums, arrivals, total);
}

// The end of a recorded step: adds its loss to the sum, and counts it, in its block and overall.
__global__ void advance(const double* loss, double* sum, int64_t* counters) {
  if (grid_begin() == 0) {
    *sum += *loss;
    counters[0] += 1;
    counters[1] += 1;
  }
}

// Block (x, y) sums a tile of columns over the y-th chunk of rows into out (n_chunks, width).
template <class T>
__global__ void column_sums(const T* a, int64_t n, int64_t width, int64_t rows_per_chunk, T* out,
                            int32_t tile_size) {
  __shared__ T sums[block_size];
  const int n_row_lanes = block_size / tile_size, row_lane = threadIdx.x / tile_size;
  const int64_t column = int64_t(blockIdx.x) * tile_size + threadIdx.x % tile_size;
  const int64_t begin = int64_t(blockIdx.y) * rows_per_chunk;
  const int64_t end = begin + rows_per_chunk < n ? begin + rows_per_chunk : n;
  T sum = T(0);
  if (column < width)
    for (int64_t row = begin + row_lane; row < end; row += n_row_lanes) sum += a[row * width + column];
  sums[threadIdx.x] = sum;
  for (int half = n_row_lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row_lane < half) sums[threadIdx.x] += sums[threadIdx.x + half * tile_size];
  }
  if (row_lane == 0 && column < width) out[blockIdx.y * width + column] = sums[threadIdx.x];
}

template <class T>
__global__ void squared_norm(const T* a, int64_t n, double* partial_sums) {
  double total = 0;
  for (int64_t e = grid_begin(); e < n; e += grid_stride()) total += double(a[e]) * double(a[e]);
  total = block_sum(total);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = total;
}

// The factor that bounds the norm whose square is the sum of partial_sums; one block.
template <class T>
__global__ void clipping_scale(const double* partial_sums, int64_t n, double clip_norm, T* scale) {
  double total = 0;
  for (int64_t e = threadIdx.x; e < n; e += block_size) total += partial_sums[e];
  const double norm = math::sqrt(block_sum(total));
  if (threadIdx.x == 0) *scale = norm > clip_norm ? T(clip_norm / norm) : T(1);
}

// `steps` holds one step size for all (n_steps = 1) or one for each weight.
template <class T>
__global__ void prox(T* w, int64_t n, const T* steps, int64_t n_steps, T l1, T l2, T lower,
                     T upper) {
  for (int64_t i = grid_begin(); i < n; i += grid_stride())
    w[i] = prox_elastic_box(w[i], steps[n_steps == 1 ? 0 : i], l1, l2, lower, upper);
}

template <class T>
__global__ void prox_groups(T* w, int64_t n_groups, int64_t width, T threshold) {
  for (int64_t j = grid_begin(); j < n_groups; j += grid_stride()) {
    T* const group = w + j * width;
    T norm = T(0);
    for (int64_t k = 0; k < width; ++k) norm += group[k] * group[k];
    const T factor = group_shrinkage(norm, threshold);
    for (int64_t k = 0; k < width; ++k) group[k] *= factor;
  }
}

SKOPTIM_END
