// CUDA products with the gathered rows of a CSR matrix.
//
// The gradient X[rows].T @ delta must be the same every time, so nothing is added atomically. The
// entries of the batch are listed in the order of its rows, each with a key (column, place in the
// list); sorted by key, the entries of a column are a run, in the order of the rows, and one tile
// of threads sums each run.
#include "grid.cuh"

SKOPTIM_BEGIN

SKOPTIM_HD int64_t key_of(int64_t column, int64_t place) { return (column << 32) | place; }
SKOPTIM_HD int64_t column_of(int64_t key) { return key >> 32; }
SKOPTIM_HD int64_t place_of(int64_t key) { return key & 0xffffffffLL; }

// lengths[i] = number of stored entries of row i of the batch.
template <class Index>
__global__ void row_lengths(const Index* indptr, const int64_t* rows, int64_t first, int64_t n,
                            int64_t* lengths) {
  for (int64_t i = grid_begin(); i < n; i += grid_stride()) {
    const int64_t row = rows ? rows[i] : first + i;
    lengths[i] = int64_t(indptr[row + 1]) - int64_t(indptr[row]);
  }
}

// Lists the entries of the batch: key, row within the batch, value. A warp takes a row; its
// entries end at ends[i].
template <class T, class Index>
__global__ void list_entries(const T* data, const Index* indices, const Index* indptr,
                             const int64_t* rows, int64_t first, int64_t n, const int64_t* ends,
                             int64_t* keys, int32_t* batch_rows, T* values) {
  const Tile tile(warp_size);
  for (int64_t i = tile.begin; i < n; i += tile.stride) {
    const int64_t row = rows ? rows[i] : first + i, begin = indptr[row];
    const int64_t length = int64_t(indptr[row + 1]) - begin, start = ends[i] - length;
    for (int64_t e = tile.lane; e < length; e += tile.size) {
      keys[start + e] = key_of(indices[begin + e], start + e);
      batch_rows[start + e] = int32_t(i);
      values[start + e] = data[begin + e];
    }
  }
}

// is_first[e] = whether a column's run begins at sorted entry e.
__global__ void mark_runs(const int64_t* keys, int64_t n_entries, int32_t* is_first) {
  for (int64_t e = grid_begin(); e < n_entries; e += grid_stride())
    is_first[e] = e == 0 || column_of(keys[e]) != column_of(keys[e - 1]);
}

// run_numbers counts the runs up to and with each entry; starts gets one more entry, the end.
__global__ void list_runs(const int64_t* keys, const int32_t* run_numbers, int64_t n_entries,
                          int64_t* columns, int64_t* starts) {
  for (int64_t e = grid_begin(); e < n_entries; e += grid_stride()) {
    const int64_t run = run_numbers[e] - 1;
    if (e == 0 || run_numbers[e - 1] - 1 != run) {
      columns[run] = column_of(keys[e]);
      starts[run] = e;
    }
    if (e == n_entries - 1) starts[run + 1] = n_entries;
  }
}

// position[column] = place of each touched column in the list, copied to `columns`.
__global__ void place_columns(const int64_t* touched, int64_t n, int32_t* position,
                              int64_t* columns) {
  for (int64_t j = grid_begin(); j < n; j += grid_stride()) {
    columns[j] = touched[j];
    position[touched[j]] = int32_t(j);
  }
}

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
template <class T, class Index>
__global__ void csr_matmul(const T* data, const Index* indices, const Index* indptr,
                           const int64_t* rows, int64_t first, int64_t n, const T* w,
                           int64_t width, T* out, int32_t output_lanes) {
  const Tile warp(warp_size);
  const Lanes lanes(output_lanes);
  for (int64_t i = warp.begin; i < n; i += warp.stride) {
    const int64_t row = rows ? rows[i] : first + i, begin = indptr[row], end = indptr[row + 1];
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

// g += X[rows].T @ delta from the sorted entries of the batch; row position[column] of g belongs
// to a column (row `column` when null).
template <class T>
__global__ void csr_gradient(const int64_t* keys, const int32_t* batch_rows, const T* values,
                             const int64_t* columns, const int64_t* starts, int64_t n_runs,
                             const int32_t* position, const T* delta, int64_t width, T* g,
                             int32_t output_lanes) {
  const Tile warp(warp_size);
  const Lanes lanes(output_lanes);
  for (int64_t run = warp.begin; run < n_runs; run += warp.stride) {
    const int64_t column = columns[run], place = position ? position[column] : column;
    for (int64_t tile = 0; tile < width; tile += lanes.n_outputs) {
      const int64_t k = tile + lanes.output;
      T sum = T(0);
      if (k < width)
        for (int64_t e = starts[run] + lanes.entry; e < starts[run + 1]; e += lanes.n_entries) {
          const int64_t entry = place_of(keys[e]);
          sum += values[entry] * delta[batch_rows[entry] * width + k];
        }
      sum = lanes.sum(sum);
      if (lanes.entry == 0 && k < width) g[place * width + k] += sum;
    }
  }
}

SKOPTIM_END
