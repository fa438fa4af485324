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
// The gradient of a column's coefficients from these words, of which nothing is left.
template <class T>
struct ScatteredGradient {
  const FixedPoint<T>& fixed;
  T scale;
  int64_t column, *words;
  SKOPTIM_HD T operator()(int64_t i) const {
    const T g = scale * fixed.value(words[i], column);
    words[i] = 0;
    return g;
  }
};
SKOPTIM_HD bool is_zero(int64_t word) { return word >> 1 == 0; }

// Whether the caller is the first to ask, since the word was made zero: the lowest bit says that the column is listed.
SKOPTIM_HD bool lists(int64_t* word) {
  return (*(volatile int64_t*)word & 1) == 0 && (atomicOr((uint64_t*)word, uint64_t(1)) & 1) == 0;
}

// Walks over the entries of a batch of rows, block by block of rows_at_once rows, a warp a row: `begins`, `next` for
// the blocks, `first`, `has`, `advance` for this thread's entries in them.
struct EachEntry {
  static constexpr int rows_at_once = 8, n_warps = block_size / warp_size;
  const Batch batch;
  const int64_t* indptr;
  int64_t n, block, row, end_row, entry, end;
  SKOPTIM_HD EachEntry(const Batch& batch_, const int64_t* indptr_, int64_t n_)
      : batch(batch_), indptr(indptr_), n(n_), block(int64_t(blockIdx.x) * rows_at_once) {}
  SKOPTIM_HD bool begins() const { return block < n; }
  SKOPTIM_HD void next() { block += int64_t(gridDim.x) * rows_at_once; }
  SKOPTIM_HD void first() {
    row = block + threadIdx.x / warp_size;
    end_row = block + rows_at_once < n ? block + rows_at_once : n;
    open();
  }
  SKOPTIM_HD bool has() const { return entry < end; }
  SKOPTIM_HD void advance() {
    entry += warp_size;
    if (entry < end) return;
    row += n_warps;
    open();
  }
  SKOPTIM_HD int64_t at() const { return entry; }
  // The first row from here on that has an entry for this lane.
  SKOPTIM_HD void open() {
    for (entry = end = 0; row < end_row; row += n_warps) {
      const int64_t source = batch.row(row);
      entry = indptr[source] + threadIdx.x % warp_size;
      end = indptr[source + 1];
      if (entry < end) return;
    }
  }
};

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

// out (n, width) = X[batch] @ w; weight(column, k) is one of w (n_columns, width).
template <class T, class Weight>
SKOPTIM_HD void multiply_rows(const T* data, const int32_t* indices, const int64_t* indptr, const Batch& batch,
                              int64_t n, int64_t width, T* out, int output_lanes, const Weight& weight) {
  const Tile warp(warp_size);
  const Lanes lanes(output_lanes);
  for (int64_t i = warp.begin; i < n; i += warp.stride) {
    const int64_t row = batch.row(i), begin = indptr[row], end = indptr[row + 1];
    for (int64_t tile = 0; tile < width; tile += lanes.n_outputs) {
      const int64_t k = tile + lanes.output;
      T sum = T(0);
      if (k < width)
        for (int64_t e = begin + lanes.entry; e < end; e += lanes.n_entries) sum += data[e] * weight(indices[e], k);
      sum = lanes.sum(sum);
      if (lanes.entry == 0 && k < width) out[i * width + k] = sum;
    }
  }
}

// Columns that a block has met, in shared memory. Without it all blocks would ask for the columns that every row has at
// once, and an address answers one after the other.
struct ColumnSet {
  static constexpr int n_slots = 1024, n_tries = 4;
  int32_t columns[n_slots];
  SKOPTIM_HD void clear() {
    __syncthreads();
    for (int slot = threadIdx.x; slot < n_slots; slot += block_size) columns[slot] = -1;
    __syncthreads();
  }
  // Where the column stands; -1 if others have its places.
  SKOPTIM_HD int place(int32_t column) {
    int slot = (uint32_t(column) * 2654435769u) >> 22;
    for (int tries = 0; tries < n_tries; ++tries, slot = (slot + 1) % n_slots) {
      int32_t found = *(volatile int32_t*)(columns + slot);
      if (found == -1) found = atomicCAS(columns + slot, -1, column);
      if (found == -1 || found == column) return slot;
    }
    return -1;
  }
};

// The list of the columns of a batch, in no particular order; no list when `columns` is null.
struct Listing {
  int32_t *columns, *n;
  SKOPTIM_HD Listing(int32_t* columns_, int32_t* n_) : columns(columns_), n(n_) {}
  SKOPTIM_HD void add_alone(int32_t column, int64_t* word) const {
    if (columns && lists(word)) columns[atomicAdd(n, 1)] = column;
  }
  // What a block has met, `width` words a column; all threads call it.
  SKOPTIM_HD void add(const ColumnSet& met, int64_t* words, int64_t width) const {
    if (!columns) return;
    __shared__ int32_t n_new, first;
    constexpr int n_each = ColumnSet::n_slots / block_size;
    int32_t place[n_each];
    if (threadIdx.x == 0) n_new = 0;
    __syncthreads();
    for (int j = 0; j < n_each; ++j) {
      const int32_t column = met.columns[threadIdx.x + j * block_size];
      place[j] = column >= 0 && lists(words + column * width) ? atomicAdd(&n_new, 1) : -1;
    }
    __syncthreads();
    if (threadIdx.x == 0) first = atomicAdd(n, n_new);
    __syncthreads();
    for (int j = 0; j < n_each; ++j)
      if (place[j] >= 0) columns[first + place[j]] = met.columns[threadIdx.x + j * block_size];
  }
};

SKOPTIM_END
