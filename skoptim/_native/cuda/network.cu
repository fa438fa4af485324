// CUDA passes of a network other than the matrix products: losses, activations, dropout, row
// gathering, sums, prox. All sums run in an order that depends on sizes alone.
#include "../activations.hpp"
#include "../losses.hpp"
#include "../prox.hpp"
#include "../random.hpp"
#include "grid.cuh"

SKOPTIM_BEGIN

// The sums of weighted losses block by block; derivatives times `scale` into d unless null. Scores are z + bias.
// Class labels become -1 and +1: one output means "is class 1", several "is class k".
template <class Loss, class T>
__global__ void elementwise_loss(const T* z, const T* bias, int64_t n, int64_t n_outputs, const int32_t* labels,
                                 const T* values, const int64_t* rows, int64_t first,
                                 int64_t first_per_step, const int64_t* counter, const T* weights,
                                 T parameter, T scale, T* d, double* partial_sums) {
  const Batch batch(rows, moved(first, first_per_step, counter));
  double sum = 0;
  for (int64_t e = grid_begin(); e < n * n_outputs; e += grid_stride()) {
    const Place place(e, n_outputs);
    const int64_t row = batch.row(place.row), k = place.column;
    const T weight = weights ? weights[row] : T(1), score = bias ? z[e] + bias[k] : z[e];
    T y;
    if (labels)
      y = labels[row] == (n_outputs == 1 ? 1 : k) ? T(1) : T(-1);
    else
      y = values[row * n_outputs + k];
    sum += double(weight) * double(Loss::value(score, y, parameter));
    if (d) d[e] = scale * weight * Loss::derivative(score, y, parameter);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = sum;
}

// The same for the cross-entropy of the softmax, as `softmax_cross_entropy` has it; a tile takes a row.
template <class T>
__global__ void multinomial_loss(const T* z, const T* bias, int64_t n, int64_t n_outputs, const int32_t* labels,
                                 const int64_t* rows, int64_t first, int64_t first_per_step,
                                 const int64_t* counter, const T* weights, T scale, T* d,
                                 double* partial_sums, int32_t tile_size) {
  const Batch batch(rows, moved(first, first_per_step, counter));
  const Tile tile(tile_size);
  double sum = 0;
  for (int64_t i = tile.begin; i < n; i += tile.stride) {
    const int64_t row = batch.row(i), label = labels[row];
    const T weight = weights ? weights[row] : T(1);
    const auto score = [&](int64_t k) { return bias ? z[i * n_outputs + k] + bias[k] : z[i * n_outputs + k]; };
    T top = score(0), partition = T(0);
    for (int64_t k = tile.lane; k < n_outputs; k += tile.size) top = larger(top, score(k));
    top = tile.largest(top);
    for (int64_t k = tile.lane; k < n_outputs; k += tile.size) partition += math::exp(score(k) - top);
    partition = tile.sum(partition);
    if (tile.lane == 0)
      sum += double(weight) * double(math::log(partition) + top - score(label));
    if (d)
      for (int64_t k = tile.lane; k < n_outputs; k += tile.size)
        d[i * n_outputs + k] =
            (math::exp(score(k) - top) / partition - (k == label ? T(1) : T(0))) * (scale * weight);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = sum;
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

// delta *= f', and the sums of delta over chunks of rows into sums (n_chunks, width).
template <class Activation, class T>
__global__ void activation_backward(const T* z, const T* a, T* delta, int64_t n, int64_t width,
                                    int64_t rows_per_chunk, T* sums, int32_t tile_size) {
  const ColumnChunk own(n, width, rows_per_chunk, tile_size);
  T sum = T(0);
  for (int64_t row = own.first; row < own.end; row += 4 * own.stride) {
    const auto has = [&](int j) { return row + j * own.stride < own.end; };
    const auto at = [&](int j) { return (row + j * own.stride) * width + own.column; };
    T product[4];
    for (int j = 0; j < 4; ++j)
      if (has(j)) product[j] = delta[at(j)] * Activation::derivative(z[at(j)], a[at(j)]);
    for (int j = 0; j < 4; ++j)
      if (has(j)) {
        delta[at(j)] = product[j];
        sum += product[j];
      }
  }
  own.write(sum, sums);
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

// What a shuffle sorts.
__global__ void shuffle_keys(uint64_t seed, uint64_t epoch, int64_t n, uint64_t* keys) {
  for (int64_t quad = grid_begin(); quad * 4 < n; quad += grid_stride()) {
    const Philox words = shuffle_words(seed, epoch, quad * 4);
    for (int j = 0; j < 4; ++j)
      if (quad * 4 + j < n) keys[quad * 4 + j] = shuffle_key(words.word[j], quad * 4 + j);
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

// A dot product, block by block.
template <class T>
__global__ void dot(const T* a, const T* b, int64_t n, double* partial_sums) {
  double sum = 0;
  for (int64_t e = grid_begin(); e < n; e += grid_stride()) sum += double(a[e]) * double(b[e]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = sum;
}

// The sums of what blocks left: of each row of partial_sums (n_sums, n), by a block.
__global__ void add_up(const double* partial_sums, int64_t n, double* totals) {
  double sum = 0;
  for (int64_t e = threadIdx.x; e < n; e += block_size) sum += partial_sums[blockIdx.x * n + e];
  sum = block_sum(sum);
  if (threadIdx.x == 0) totals[blockIdx.x] = sum;
}

// The end of a recorded step: its loss joins the sum, it is counted in its block and overall.
__global__ void end_step(const double* loss, double* sum, int64_t* counters) {
  if (grid_begin() > 0) return;
  *sum += *loss;
  ++counters[0];
  ++counters[1];
}

// The sums of a over chunks of rows into sums (n_chunks, width).
template <class T>
__global__ void column_sums(const T* a, int64_t n, int64_t width, int64_t rows_per_chunk, T* sums,
                            int32_t tile_size) {
  const ColumnChunk own(n, width, rows_per_chunk, tile_size);
  T sum = T(0);
  for (int64_t row = own.first; row < own.end; row += own.stride) sum += a[row * width + own.column];
  own.write(sum, sums);
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
__global__ void prox_groups(T* w, int64_t n_groups, int64_t width, const T* thresholds, int64_t n_thresholds) {
  for (int64_t j = grid_begin(); j < n_groups; j += grid_stride()) {
    T* const group = w + j * width;
    T norm = T(0);
    for (int64_t k = 0; k < width; ++k) norm += group[k] * group[k];
    const T factor = group_shrinkage(norm, thresholds[n_thresholds == 1 ? 0 : j]);
    for (int64_t k = 0; k < width; ++k) group[k] *= factor;
  }
}

SKOPTIM_END
