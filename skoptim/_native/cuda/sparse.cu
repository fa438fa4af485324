// CUDA products with the gathered rows of a CSR matrix.
//
// The gradient X[rows].T @ delta must be the same every time, in whatever order threads run. There are two ways.
// For a few outputs, terms are added atomically as whole numbers, whose sum does not depend on the order. For
// many, each segment of a column's entries is summed by one thread, and the sums of segments in their order.
#include "sparse.cuh"

SKOPTIM_BEGIN

// A warp as (entry lane, output lane): output lanes read neighbouring weights of one entry, entry
// lanes share the entries; their sums meet in entry lane 0.
struct Lanes {
  int n_outputs, n_entries, output, entry;
  SKOPTIM_HD explicit Lanes(int output_lanes)
      : n_outputs(output_lanes), n_entries(warp_size / output_lanes),
        output(threadIdx.x % output_lanes), entry(threadIdx.x % warp_size / output_lanes) {}
  template <class T>
  SKOPTIM_HD T sum(T value) const {
    for (int offset = warp_size / 2; offset >= n_outputs; offset /= 2)
      value += __shfl_down_sync(~0u, value, offset);
    return value;
  }
};

// out (n, width) = X[rows] @ w, w (n_columns, width).
template <class T>
__global__ void csr_matmul(const T* data, const int32_t* indices, const int64_t* indptr,
                           const int64_t* rows, int64_t first, int64_t first_per_step,
                           const int64_t* counter, int64_t n, const T* w, int64_t width, T* out,
                           int32_t output_lanes) {
  const Batch batch(rows, moved(first, first_per_step, counter));
  const Tile warp(warp_size);
  const Lanes lanes(output_lanes);
  for (int64_t i = warp.begin; i < n; i += warp.stride) {
    const int64_t row = batch.row(i), begin = indptr[row], end = indptr[row + 1];
    for (int64_t tile = 0; tile < width; tile += lanes.n_outputs) {
      const int64_t k = tile + lanes.output;
      T sum = T(0);
      if (k < width)
        for (int64_t e = begin + lanes.entry; e < end; e += lanes.n_entries)
          sum += data[e] * w[int64_t(indices[e]) * width + k];
      sum = lanes.sum(sum);
      if (lanes.entry == 0 && k < width) out[i * width + k] = sum;
    }
  }
}

// Raises *largest to the largest |delta|, NaN if there is one.
template <class T>
__global__ void largest_magnitude(const T* delta, int64_t n, T* largest) {
  T own = T(0);
  for (int64_t e = grid_begin(); e < n; e += grid_stride()) own = larger_or_nan(own, absolute(delta[e]));
  own = Tile(warp_size).largest(own);
  if (threadIdx.x % warp_size == 0) atomic_largest(largest, own);
}

// sums (n_columns, width) += data * delta over the entries of a batch, as whole numbers; a warp takes a row.
template <class T>
__global__ void scatter(const T* data, const int32_t* indices, const int64_t* indptr, const int64_t* rows,
                        int64_t first, int64_t first_per_step, const int64_t* counter, int64_t n, const T* bounds,
                        int32_t n_bounds, const T* delta, const T* largest, int64_t width, int64_t* sums) {
  const Batch batch(rows, moved(first, first_per_step, counter));
  const FixedPoint<T> fixed{bounds, n_bounds, double(n) * double(*largest)};
  __shared__ ColumnSet met;
  __shared__ int64_t own[ColumnSet::n_slots];  // The block's sums of one output.
  EachEntry entries(batch, indptr, n);
  for (; entries.begins(); entries.next())
    for (int64_t k = 0; k < width; ++k) {
      met.clear();
      for (int slot = threadIdx.x; slot < ColumnSet::n_slots; slot += block_size) own[slot] = 0;
      __syncthreads();
      for (entries.first(); entries.has(); entries.advance()) {
        const int32_t column = indices[entries.at()];
        const double term = double(data[entries.at()]) * double(delta[entries.row * width + k]);
        bool is_new;
        const int slot = met.place(column, is_new);
        fixed.add(slot < 0 ? sums + column * width + k : own + slot, term * fixed.scale(column));
      }
      __syncthreads();
      for (int slot = threadIdx.x; slot < ColumnSet::n_slots; slot += block_size)
        if (own[slot] != 0) atomicAdd((uint64_t*)(sums + met.columns[slot] * width + k), uint64_t(own[slot]));
    }
}

// g (n_columns, width) += those sums, which are zero afterwards.
template <class T>
__global__ void add_scattered(int64_t* sums, const T* bounds, int32_t n_bounds, int64_t n, const T* largest,
                              int64_t n_columns, int64_t width, T* g) {
  const FixedPoint<T> fixed{bounds, n_bounds, double(n) * double(*largest)};
  for (int64_t e = grid_begin(); e < n_columns * width; e += grid_stride())
    if (sums[e] != 0) {
      g[e] += fixed.value(sums[e], Place(e, width).row);
      sums[e] = 0;
    }
}

// The sums of squares of those sums, block by block.
template <class T>
__global__ void scattered_squares(const int64_t* sums, const T* bounds, int32_t n_bounds, int64_t n,
                                  const T* largest, int64_t n_columns, int64_t width, double* partial_sums) {
  const FixedPoint<T> fixed{bounds, n_bounds, double(n) * double(*largest)};
  double total = 0;
  for (int64_t e = grid_begin(); e < n_columns * width; e += grid_stride())
    if (sums[e] != 0) {
      const double g = double(fixed.value(sums[e], Place(e, width).row));
      total += g * g;
    }
  total = block_sum(total);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = total;
}

// sums (n_segments, width): over each segment of a batch, values * delta of the rows that they stand in.
template <class T>
__global__ void segment_sums(const T* values, const int32_t* places, const int32_t* segment_starts,
                             const int32_t* batch_segments, int64_t batch, int64_t batch_per_step,
                             const int64_t* counter, const T* delta, int64_t width, T* sums,
                             int32_t tile_size) {
  const int64_t own = moved(batch, batch_per_step, counter), first = batch_segments[own];
  const int64_t n_segments = batch_segments[own + 1] - first;
  const Tile tile(tile_size);
  for (int64_t s = tile.begin; s < n_segments; s += tile.stride) {
    const int64_t begin = segment_starts[first + s], end = segment_starts[first + s + 1];
    for (int64_t k = tile.lane; k < width; k += tile.size) {
      T sum = T(0);
      for (int64_t e = begin; e < end; ++e) sum += values[e] * delta[places[e] * width + k];
      sums[s * width + k] = sum;
    }
  }
}

// g (n_columns, width) += the gradient of a batch.
template <class T>
__global__ void add_gradient(const int32_t* columns, const int32_t* column_segments,
                             const int32_t* batch_columns, const int32_t* batch_segments, int64_t batch,
                             int64_t batch_per_step, const int64_t* counter, const T* sums, int64_t width, T* g,
                             int32_t tile_size) {
  const BatchColumns own(column_segments, batch_columns, batch_segments, moved(batch, batch_per_step, counter));
  const Tile tile(tile_size);
  for (int64_t j = own.begin + tile.begin; j < own.end; j += tile.stride)
    for (int64_t k = tile.lane; k < width; k += tile.size)
      g[columns[j] * width + k] += own.gradient(sums, j, width, k);
}

// The sums of squares of a batch's gradient, block by block.
template <class T>
__global__ void gradient_squares(const int32_t* column_segments, const int32_t* batch_columns,
                                 const int32_t* batch_segments, int64_t batch, int64_t batch_per_step,
                                 const int64_t* counter, const T* sums, int64_t width, double* partial_sums,
                                 int32_t tile_size) {
  const BatchColumns own(column_segments, batch_columns, batch_segments, moved(batch, batch_per_step, counter));
  const Tile tile(tile_size);
  double total = 0;
  for (int64_t j = own.begin + tile.begin; j < own.end; j += tile.stride)
    for (int64_t k = tile.lane; k < width; k += tile.size) {
      const double g = double(own.gradient(sums, j, width, k));
      total += g * g;
    }
  total = block_sum(total);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = total;
}

SKOPTIM_END
