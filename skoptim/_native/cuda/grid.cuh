// What the kernels share: where a thread stands in the grid, sums over a block, tiles of a warp.
#pragma once
#include "../platform.hpp"

SKOPTIM_BEGIN

constexpr int block_size = 256, warp_size = 32;

// Kernels loop from grid_begin() in steps of grid_stride(), so that any grid covers any size.
SKOPTIM_HD int64_t grid_begin() { return int64_t(blockIdx.x) * block_size + threadIdx.x; }
SKOPTIM_HD int64_t grid_stride() { return int64_t(gridDim.x) * block_size; }

// The sum over the threads of a block, in an order that is always the same; valid in thread 0.
SKOPTIM_HD double block_sum(double value) {
  __shared__ double of_warp[block_size / warp_size];
  for (int offset = warp_size / 2; offset > 0; offset /= 2)
    value += __shfl_down_sync(~0u, value, offset);
  if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = value;
  __syncthreads();
  value = 0;
  for (int i = 0; i < block_size / warp_size; ++i) value += of_warp[i];
  return value;
}

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
  SKOPTIM_HD int32_t broadcast(int32_t value) const { return __shfl_sync(mask, value, 0, size); }
};

SKOPTIM_END
