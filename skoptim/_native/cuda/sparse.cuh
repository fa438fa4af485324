// How kernels walk over the entries of CSR rows: by the lists of columns that `_devices/batches.py` makes, or one by
// one, with sums as whole numbers.
#pragma once
#include "grid.cuh"

SKOPTIM_BEGIN

// The stored entries of CSR rows batch by batch and, within a batch, column by column: what
// `_devices/batches.py` lists. A column's entries are cut into segments of bounded length, so that a column
// that every row has is not one thread's work. These are the columns begin..end of the list that belong to a
// batch, and the sums over their segments.
struct BatchColumns {
  const int32_t* column_segments;  // where each column's segments begin in the list of all segments
  int64_t begin, end, first_segment;
  SKOPTIM_HD BatchColumns(const int32_t* column_segments_, const int32_t* batch_columns,
                          const int32_t* batch_segments, int64_t batch)
      : column_segments(column_segments_), begin(batch_columns[batch]), end(batch_columns[batch + 1]),
        first_segment(batch_segments[batch]) {}
  // The k-th of `width` coefficients of the j-th column; `sums` are those of this batch's segments.
  template <class T>
  SKOPTIM_HD T gradient(const T* sums, int64_t j, int64_t width, int64_t k) const {
    T total = T(0);
    for (int64_t s = column_segments[j] - first_segment; s < column_segments[j + 1] - first_segment; ++s)
      total += sums[s * width + k];
    return total;
  }
};

SKOPTIM_HD double power_of_two(int exponent) { return __longlong_as_double(int64_t(exponent + 1023) << 52); }

// Sums as whole numbers, in words of 64 bits whose lowest one is free (see `lists`). The unit is a power of two, such
// that the sum of `n` terms of a column cannot overflow: a rounding error is 2^-60 of n times the largest |delta|
// times the column's bound.
template <class T>
struct FixedPoint {
  const T* bounds;     // largest |value| in each column; of all columns when n_bounds is 1
  int32_t n_bounds;
  double reach;        // n times the largest |delta|
  int common_exponent; // of all columns
  // `largest` are those of the blocks of `largest_magnitude`. All threads of a warp make one together.
  SKOPTIM_HD FixedPoint(const T* bounds_, int32_t n_bounds_, int64_t n, const T* largest, int64_t n_largest)
      : bounds(bounds_), n_bounds(n_bounds_) {
    T top = T(0);
    for (int64_t i = threadIdx.x % warp_size; i < n_largest; i += warp_size) top = larger_or_nan(top, largest[i]);
    reach = double(n) * double(Tile(warp_size).largest(top));
    common_exponent = exponent_for(bounds[0]);
  }
  SKOPTIM_HD int exponent_for(T bound) const {
    const int found = int(__double_as_longlong(reach * double(bound)) >> 52) - 1022;
    return found > -900 ? 60 - found : 960;  // A power beyond 2^1023 would be infinite.
  }
  SKOPTIM_HD int exponent(int64_t column) const {
    return n_bounds == 1 ? common_exponent : exponent_for(bounds[column]);
  }
  // Where a term is not finite, sums are NaN; all that counts is that they are not zero.
  SKOPTIM_HD uint64_t word(double term, int64_t column) const {
    return reach < SKOPTIM_INFINITY ? uint64_t(__double2ll_rn(term * power_of_two(exponent(column)))) << 1 : 2;
  }
  SKOPTIM_HD T value(int64_t word, int64_t column) const {
    return reach < SKOPTIM_INFINITY ? T(double(word >> 1) * power_of_two(-exponent(column))) : T(reach - reach);
  }
};
// The words of a column's coefficients, which begin with the first-th.
struct Words {
  int64_t *all, stride, first;
  SKOPTIM_HD int64_t& operator[](int64_t i) const { return all[(first + i) * stride]; }
};

// The gradient of these coefficients, of which nothing is left.
template <class T>
struct ScatteredGradient {
  const FixedPoint<T>& fixed;
  T scale;
  int64_t column;
  Words words;
  SKOPTIM_HD T operator()(int64_t i) const {
    const T g = scale * fixed.value(words[i], column);
    words[i] = 0;
    return g;
  }
};
SKOPTIM_HD bool is_zero(int64_t word) { return word >> 1 == 0; }

// Whether the caller is the first to ask, since the word was made zero: the lowest bit says that the column is listed.
SKOPTIM_HD bool lists(int64_t& word) { return (atomicOr((uint64_t*)&word, uint64_t(1)) & 1) == 0; }

// The entries of a batch, some at a time: a tile of `lanes` threads takes a row, a thread four entries of it at once,
// so that their reads overlap.
template <class Use>
SKOPTIM_HD void for_entries(const Batch& batch, const int64_t* indptr, int64_t n, int lanes, const Use& use) {
  const int64_t n_rows = blockDim.x / lanes;
  for (int64_t i = blockIdx.x * n_rows + threadIdx.x / lanes; i < n; i += gridDim.x * n_rows) {
    const int64_t row = batch.row(i), end = indptr[row + 1];
    for (int64_t entry = indptr[row] + threadIdx.x % lanes; entry < end; entry += 4 * lanes) use(i, entry, end);
  }
}

// Columns that many rows have, see `Matrix.frequent`. An entry's mark is its column, or for a frequent one ~(its place
// among them).
struct Frequent {
  static constexpr int most = 1024;
  SKOPTIM_HD static bool is_frequent(int32_t mark) { return mark < 0; }
};

// The sums of a block for the frequent columns, in shared memory. An address of the device answers one atomic
// operation after the other; without this, all blocks would wait for the columns that every row has.
struct FrequentSums {
  static constexpr int n_words = 4 * Frequent::most;
  uint32_t low[n_words], high[n_words];  // Atomics on words of 64 bits are loops in shared memory.
  SKOPTIM_HD void clear(int n) {
    for (int j = threadIdx.x; j < n; j += blockDim.x) low[j] = high[j] = 0;
  }
  SKOPTIM_HD void add(int place, uint64_t word) {
    const uint32_t sum = atomicAdd(low + place, uint32_t(word)) + uint32_t(word);
    const uint32_t rest = uint32_t(word >> 32) + (sum < uint32_t(word) ? 1 : 0);
    if (rest != 0) atomicAdd(high + place, rest);
  }
  SKOPTIM_HD uint64_t sum(int place) const { return uint64_t(high[place]) << 32 | low[place]; }
};

// What a block adds to the list of the columns of a batch: it asks for places once, as the counter is one address,
// which answers one block after the other. The list is in no particular order, but begins with the frequent columns.
struct Listing {
  static constexpr int n_places = 1024;
  int32_t n, first, columns[n_places];
  SKOPTIM_HD void begin() {
    if (threadIdx.x == 0) n = 0;
  }
  SKOPTIM_HD void add(int32_t column, int32_t* listed, int32_t* n_listed) {
    const int32_t place = atomicAdd(&n, 1);
    if (place < n_places)
      columns[place] = column;
    else
      listed[atomicAdd(n_listed, 1)] = column;
  }
  // All threads of a block call it.
  SKOPTIM_HD void write(int32_t* listed, int32_t* n_listed) {
    __syncthreads();
    const int32_t n_own = n < n_places ? n : n_places;
    if (threadIdx.x == 0 && n_own > 0) first = atomicAdd(n_listed, n_own);
    __syncthreads();
    for (int j = threadIdx.x; j < n_own; j += blockDim.x) listed[first + j] = columns[j];
  }
};

// The threads of a row as (entry lane, output lane): output lanes read neighbouring weights of one entry, entry
// lanes share the entries; their sums meet in entry lane 0.
struct Lanes {
  int n, n_outputs, n_entries, output, entry;
  SKOPTIM_HD Lanes(int row_lanes, int output_lanes)
      : n(row_lanes), n_outputs(output_lanes), n_entries(row_lanes / output_lanes),
        output(threadIdx.x % output_lanes), entry(threadIdx.x % row_lanes / output_lanes) {}
  template <class T>
  SKOPTIM_HD T sum(T value) const {
    for (int offset = n / 2; offset >= n_outputs; offset /= 2) value += __shfl_down_sync(~0u, value, offset, n);
    return value;
  }
};

// out (n, width) = X[batch] @ w. `weights` reads what tells a weight, and then its value. A thread takes four entries
// of a row at once, so that their reads overlap.
template <class T, class Weights>
SKOPTIM_HD void multiply_rows(const T* data, const int32_t* indices, const int64_t* indptr, const Batch& batch,
                              int64_t n, int64_t width, T* out, int row_lanes, int output_lanes,
                              const Weights& weights) {
  const Lanes lanes(row_lanes, output_lanes);
  // The threads of a warp stay together, whatever rows they have: they take their sums together.
  const int64_t own = threadIdx.x % warp_size / row_lanes;
  for (int64_t first = grid_begin() / warp_size * (warp_size / row_lanes); first < n;
       first += grid_stride() / row_lanes) {
    const int64_t i = first + own, row = i < n ? batch.row(i) : 0;
    const int64_t begin = i < n ? indptr[row] : 0, end = i < n ? indptr[row + 1] : 0;
    for (int64_t tile = 0; tile < width; tile += lanes.n_outputs) {
      const int64_t k = tile + lanes.output;
      T sum = T(0);
      if (k < width)
        for (int64_t e = begin + lanes.entry; e < end; e += 4 * lanes.n_entries) {
          int32_t column[4];
          T value[4];
          decltype(weights.read(0)) weight[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int64_t at = e + j * lanes.n_entries < end ? e + j * lanes.n_entries : e;
            column[j] = indices[at];
            value[j] = data[at];
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) weight[j] = weights.read(column[j] * width + k);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (e + j * lanes.n_entries < end) sum += value[j] * weights.value(weight[j], column[j]);
        }
      sum = lanes.sum(sum);
      if (lanes.entry == 0 && k < width && i < n) out[i * width + k] = sum;
    }
  }
}

SKOPTIM_END
