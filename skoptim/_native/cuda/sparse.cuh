// The stored entries of CSR rows batch by batch and, within a batch, column by column: what
// `_devices/batches.py` lists. A column's entries are cut into segments of bounded length, so that a column
// that every row has is not one thread's work.
#pragma once
#include "grid.cuh"

SKOPTIM_BEGIN

// The columns begin..end of the list that belong to a batch, and the sums over their segments.
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

SKOPTIM_END
