// CUDA products with the gathered rows of a CSR matrix.
//
// The gradient X[rows].T @ delta must be the same every time, in whatever order threads run. There are two ways.
// For a few outputs, terms are added atomically as whole numbers, whose sum does not depend on the order. For
// many, each segment of a column's entries is summed by one thread, and the sums of segments in their order.
#include "sparse.cuh"

SKOPTIM_BEGIN

template <class T>
struct PlainWeights {
  const T* w;
  int64_t stride;
  SKOPTIM_HD T read(int64_t i) const { return w[i * stride]; }
  SKOPTIM_HD T value(T weight, int64_t) const { return weight; }
};

// out (n, width) = X[rows] @ w, w (n_columns, width).
template <class T>
__global__ void csr_matmul(const T* data, const int32_t* indices, const int64_t* indptr,
                           const int64_t* samples, int64_t first, int64_t first_per_step,
                           const int64_t* counter, int64_t n, const T* w, int64_t w_stride, int64_t width,
                           T* out, int32_t row_lanes, int32_t output_lanes) {
  const Batch batch(samples, moved(first, first_per_step, counter));
  multiply_rows(data, indices, indptr, batch, n, width, out, row_lanes, output_lanes, PlainWeights<T>{w, w_stride});
}

// The largest |delta| of each block, NaN if there is one. The list that `scatter` is to make, if any, begins anew
// after the frequent columns.
template <class T>
__global__ void largest_magnitude(const T* delta, int64_t n, T* largest, int32_t* n_listed, int32_t n_frequent) {
  if (n_listed && grid_begin() == 0) *n_listed = n_frequent;
  __shared__ T of_warp[block_size / warp_size];
  T own = T(0);
  for (int64_t e = grid_begin(); e < n; e += grid_stride()) own = larger_or_nan(own, absolute(delta[e]));
  own = Tile(warp_size).largest(own);
  if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = own;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < block_size / warp_size; ++i) own = larger_or_nan(own, of_warp[i]);
  largest[blockIdx.x] = own;
}

// Lists the columns of a batch but for the frequent ones. Their words are marked, `apply_listed` makes them zero.
__global__ void list_columns(const int32_t* marked, const int64_t* indptr, const int64_t* samples, int64_t first,
                             int64_t first_per_step, const int64_t* counter, int64_t n, int64_t width, int64_t* sums,
                             int64_t word_stride, int32_t* listed, int32_t* n_listed, int32_t row_lanes) {
  const Batch batch(samples, moved(first, first_per_step, counter));
  __shared__ Listing listing;
  listing.begin();
  __syncthreads();
  for_entries(batch, indptr, n, row_lanes, [&](int64_t, int64_t entry, int64_t end) {
    int32_t mark[4];
    for (int j = 0; j < 4; ++j) mark[j] = entry + j * row_lanes < end ? marked[entry + j * row_lanes] : -1;
    bool is_new[4];
    for (int j = 0; j < 4; ++j)
      is_new[j] = !Frequent::is_frequent(mark[j]) && lists(sums[mark[j] * width * word_stride]);
    for (int j = 0; j < 4; ++j)
      if (is_new[j]) listing.add(mark[j], listed, n_listed);
  });
  listing.write(listed, n_listed);
}

// sums (n_columns, width) += data * delta over the entries of a batch, as whole numbers. Lists the columns too, if
// there is a list.
template <class T>
__global__ SKOPTIM_BLOCK(1024) void scatter(const T* data, const int32_t* marked, const int64_t* indptr,
                                            const int64_t* samples, int64_t first, int64_t first_per_step,
                                            const int64_t* counter, int64_t n, const T* bounds, int32_t n_bounds,
                                            const T* delta, const T* largest, int64_t n_largest, int64_t width,
                                            const int32_t* frequent, int32_t n_frequent, int64_t* sums,
                                            int64_t word_stride, int32_t* listed, int32_t* n_listed,
                                            int32_t row_lanes) {
  __shared__ FrequentSums of_block;
  __shared__ Listing listing;
  of_block.clear(int(n_frequent * width));
  listing.begin();
  __syncthreads();
  const Batch batch(samples, moved(first, first_per_step, counter));
  const FixedPoint<T> fixed(bounds, n_bounds, n, largest, n_largest);
  const auto word_of = [&](int32_t column, int64_t k) -> int64_t& { return sums[(column * width + k) * word_stride]; };
  for_entries(batch, indptr, n, row_lanes, [&](int64_t i, int64_t entry, int64_t end) {
    int32_t mark[4];
    T value[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t e = entry + j * row_lanes;
      mark[j] = e < end ? marked[e] : 0;
      value[j] = e < end ? data[e] : T(0);
    }
    for (int64_t k = 0; k < width; ++k) {
      const double own_delta = double(delta[i * width + k]);
      // All of a thread's words first, then what they were: their ways overlap.
      uint64_t before[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        before[j] = 1;
        if (entry + j * row_lanes >= end) continue;
        const bool is_frequent = Frequent::is_frequent(mark[j]);
        const int32_t column = is_frequent && n_bounds > 1 ? frequent[~mark[j]] : mark[j];
        const uint64_t word = fixed.word(double(value[j]) * own_delta, column);
        if (is_frequent)
          of_block.add(int(~mark[j] * width + k), word);
        else
          before[j] = atomicAdd((uint64_t*)&word_of(mark[j], k), word);
      }
      if (k > 0 || !listed) continue;
      // A word may be zero again by chance: the mark decides.
      bool is_new[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) is_new[j] = before[j] == 0 && lists(word_of(mark[j], 0));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (is_new[j]) listing.add(mark[j], listed, n_listed);
    }
  });
  __syncthreads();
  for (int j = threadIdx.x; j < n_frequent * width; j += blockDim.x)
    if (const uint64_t word = of_block.sum(j)) atomicAdd((uint64_t*)&word_of(frequent[j / width], j % width), word);
  if (listed) listing.write(listed, n_listed);
}

// g (n_columns, width) += those sums, which are zero afterwards.
template <class T>
__global__ void add_scattered(int64_t* sums, const T* bounds, int32_t n_bounds, int64_t n, const T* largest,
                              int64_t n_largest, int64_t n_columns, int64_t width, T* g) {
  const FixedPoint<T> fixed(bounds, n_bounds, n, largest, n_largest);
  for (int64_t e = grid_begin(); e < n_columns * width; e += grid_stride())
    if (!is_zero(sums[e])) {
      g[e] += fixed.value(sums[e], Place(e, width).row);
      sums[e] = 0;
    }
}

// The sums of squares of those sums, block by block.
template <class T>
__global__ void scattered_squares(const int64_t* sums, int64_t word_stride, const T* bounds, int32_t n_bounds,
                                  int64_t n, const T* largest, int64_t n_largest, int64_t n_columns, int64_t width,
                                  double* partial_sums) {
  const FixedPoint<T> fixed(bounds, n_bounds, n, largest, n_largest);
  double total = 0;
  for (int64_t e = grid_begin(); e < n_columns * width; e += grid_stride())
    if (const int64_t word = sums[e * word_stride]; !is_zero(word)) {
      const double g = double(fixed.value(word, Place(e, width).row));
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
