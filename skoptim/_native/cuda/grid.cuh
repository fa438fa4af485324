// What the kernels share: where a thread stands in the grid, sums over a block, tiles of a warp.
#pragma once
#include "../platform.hpp"

SKOPTIM_BEGIN

constexpr int block_size = 256, warp_size = 32;

// Kernels whose blocks are of another size, which launches read here.
#define SKOPTIM_BLOCK(n) __launch_bounds__(n)

// Kernels loop from grid_begin() in steps of grid_stride(), so that any grid covers any size.
SKOPTIM_HD int64_t grid_begin() { return int64_t(blockIdx.x) * block_size + threadIdx.x; }
SKOPTIM_HD int64_t grid_stride() { return int64_t(gridDim.x) * block_size; }

// The same, four elements a thread at a time: where all are read before the first is written, reads overlap.
struct Quad {
  int64_t first, end;
  SKOPTIM_HD explicit Quad(int64_t n) : first(grid_begin()), end(n) {}
  SKOPTIM_HD bool begins() const { return first < end; }
  SKOPTIM_HD void next() { first += 4 * grid_stride(); }
  SKOPTIM_HD int64_t at(int j) const { return first + j * grid_stride(); }
  SKOPTIM_HD bool has(int j) const { return at(j) < end; }
};

// Neighbouring numbers that are read and written at once.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};
template <class T>
SKOPTIM_HD bool is_aligned(const T* array) { return uint64_t(array) % sizeof(Pack<T>) == 0; }

// A number that may move with the steps of a recorded launch: `counter` holds how many were taken (null:
// the number stands still).
SKOPTIM_HD int64_t moved(int64_t offset, int64_t per_step, const int64_t* counter) {
  return counter ? offset + per_step * *counter : offset;
}

// Sample i of a batch is row rows[first + i] of the data (first + i when rows is null).
struct Batch {
  const int64_t* rows;
  int64_t first;
  SKOPTIM_HD Batch(const int64_t* rows_, int64_t first_) : rows(rows_), first(first_) {}
  SKOPTIM_HD int64_t row(int64_t i) const { return rows ? rows[first + i] : first + i; }
};

// Row and column of element e of a matrix; 32-bit division, several times as fast, where that is enough.
struct Place {
  int64_t row, column;
  SKOPTIM_HD Place(int64_t e, int64_t width) {
    if (e <= 0xffffffffLL) {
      row = uint32_t(e) / uint32_t(width);
      column = uint32_t(e) % uint32_t(width);
    } else {
      row = e / width;
      column = e % width;
    }
  }
};

// The sum over the threads of a block, in an order that is always the same; all of them have it.
SKOPTIM_HD double block_sum(double value) {
  __shared__ double of_warp[block_size / warp_size];
  __syncthreads();  // An earlier sum may still be read.
  for (int offset = warp_size / 2; offset > 0; offset /= 2)
    value += __shfl_down_sync(~0u, value, offset);
  if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = value;
  __syncthreads();
  value = 0;
  for (int i = 0; i < block_size / warp_size; ++i) value += of_warp[i];
  return value;
}

// NaN is larger than anything, so that it is seen.
template <class T>
SKOPTIM_HD T larger_or_nan(T a, T b) { return a < b || b != b ? b : a; }

// Neighbouring threads of one warp that share an item (a column or a row). `size` is a power of two
// up to a warp, chosen by the host to fit the item's width.
struct Tile {
  int size, lane;
  unsigned mask;
  int64_t begin, stride;  // the items of this tile are begin, begin + stride, ...
  SKOPTIM_HD explicit Tile(int size_)
      : size(size_), lane(threadIdx.x % size_), begin(grid_begin() / size_),
        stride(grid_stride() / size_) {
    mask = (~0u >> (warp_size - size)) << (threadIdx.x % warp_size - lane);
  }
  SKOPTIM_HD void sync() const { __syncwarp(mask); }
  SKOPTIM_HD bool all(bool condition) const { return __all_sync(mask, condition); }
  // Of all lanes' values, for each of them.
  template <class T>
  SKOPTIM_HD T sum(T value) const {
    for (int offset = size / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(mask, value, offset, size);
    return value;
  }
  template <class T>
  SKOPTIM_HD T largest(T value) const {
    for (int offset = size / 2; offset > 0; offset /= 2)
      value = larger_or_nan(value, __shfl_xor_sync(mask, value, offset, size));
    return value;
  }
  SKOPTIM_HD int32_t broadcast(int32_t value) const { return __shfl_sync(mask, value, 0, size); }
};

// Sums over columns, of which each thread of a block holds a part: the threads of a tile stand for neighbouring
// columns, the tiles of a block for rows. Valid in the first tile.
template <class T>
SKOPTIM_HD T column_total(T part, int tile_size) {
  __shared__ T parts[block_size];
  parts[threadIdx.x] = part;
  const int n_tiles = block_size / tile_size, own = threadIdx.x / tile_size;
  for (int half = n_tiles / 2; half > 0; half /= 2) {
    __syncthreads();
    if (own < half) parts[threadIdx.x] += parts[threadIdx.x + half * tile_size];
  }
  return parts[threadIdx.x];
}

// What a thread of block (x, y) sums of a matrix (n, width): a column of the x-th tile, some rows of the y-th chunk.
struct ColumnChunk {
  int64_t column, width, first, end;
  int tile_size, stride;
  SKOPTIM_HD ColumnChunk(int64_t n, int64_t width_, int64_t rows_per_chunk, int tile_size_)
      : column(int64_t(blockIdx.x) * tile_size_ + threadIdx.x % tile_size_), width(width_),
        first(int64_t(blockIdx.y) * rows_per_chunk + threadIdx.x / tile_size_),
        end(int64_t(blockIdx.y + 1) * rows_per_chunk < n ? int64_t(blockIdx.y + 1) * rows_per_chunk : n),
        tile_size(tile_size_), stride(block_size / tile_size_) {
    if (column >= width) end = 0;
  }
  // Writes the sums of the chunk to its row of `sums`; all threads of a block call it.
  template <class T>
  SKOPTIM_HD void write(T part, T* sums) const {
    part = column_total(part, tile_size);
    if (threadIdx.x < tile_size && column < width) sums[blockIdx.y * width + column] = part;
  }
};

SKOPTIM_END
