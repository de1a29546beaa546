// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// An exclusive sum over the threads of a block.
#pragma once

#include <cstdint>

#include "cuda/device/lanes.cuh"

namespace ferry::cuda {

struct BlockScan {
  std::int32_t before = 0, all = 0;

  /// All threads of a block of whole warps; ends with a barrier, so that it can be called again at once.
  __device__ explicit BlockScan(std::int32_t value) {
    __shared__ std::int32_t warp_sums[32];
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    std::int32_t sum = value;  // inclusive, over the warp
    for (int step = 1; step < 32; step *= 2) {
      const std::int32_t below = __shfl_up_sync(kAll, sum, static_cast<unsigned>(step));
      if (lane >= step) sum += below;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
      if (w < warp) before += warp_sums[w];
      all += warp_sums[w];
    }
    before += sum - value;
    __syncthreads();
  }
};

}  // namespace ferry::cuda
