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

// Sums as whole numbers of 64 bits. The unit is a power of two, such that the sum of `n` terms of a column cannot
// overflow: a rounding error is 2^-61 of n times the largest |delta| times the column's bound.
template <class T>
struct FixedPoint {
  const T* bounds;   // largest |value| in each column; of all columns when n_bounds is 1
  int32_t n_bounds;
  double reach;      // n times the largest |delta|
  SKOPTIM_HD int exponent(int64_t column) const {
    int found = 0;
    frexp(reach * double(bounds[n_bounds == 1 ? 0 : column]), &found);
    return found > -900 ? 61 - found : 961;  // A power beyond 2^1023 would be infinite.
  }
  SKOPTIM_HD double scale(int64_t column) const { return ldexp(1.0, exponent(column)); }
  SKOPTIM_HD void add(int64_t* sum, double scaled) const {
    atomicAdd((uint64_t*)sum, uint64_t(__double2ll_rn(scaled)));
  }
  // Sums of terms that are not finite are NaN, whatever whole numbers they gave.
  SKOPTIM_HD T value(int64_t sum, int64_t column) const {
    return reach < SKOPTIM_INFINITY ? T(ldexp(double(sum), -exponent(column))) : T(reach - reach);
  }
};

// Walks over the entries of a batch of rows, block by block of rows_at_once rows, a warp a row: `begins`, `next` for
// the blocks, `first`, `has`, `advance` for this thread's entries in them.
struct EachEntry {
  static constexpr int rows_at_once = 16, n_warps = block_size / warp_size;
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

// Some of the columns that a block has met, in shared memory. Without it all blocks would ask for the columns that
// every row has at once, and an address answers one after the other.
struct ColumnSet {
  static constexpr int n_slots = 1024;
  int32_t columns[n_slots];
  SKOPTIM_HD void clear() {
    __syncthreads();
    for (int slot = threadIdx.x; slot < n_slots; slot += block_size) columns[slot] = -1;
    __syncthreads();
  }
  // Where the column stands; -1 if another has its place. `is_new` if it did not stand there before.
  SKOPTIM_HD int place(int32_t column, bool& is_new) {
    const int slot = (uint32_t(column) * 2654435769u) >> 22;
    const int32_t found = atomicCAS(columns + slot, -1, column);
    is_new = found == -1;
    return is_new || found == column ? slot : -1;
  }
  SKOPTIM_HD bool may_be_new(int32_t column) {
    bool is_new;
    return place(column, is_new) < 0 || is_new;
  }
};

// Not negative numbers are ordered as their bits are.
SKOPTIM_HD void atomic_largest(float* largest, float value) { atomicMax((int32_t*)largest, __float_as_int(value)); }
SKOPTIM_HD void atomic_largest(double* largest, double value) {
  atomicMax((int64_t*)largest, __double_as_longlong(value));
}

SKOPTIM_END
