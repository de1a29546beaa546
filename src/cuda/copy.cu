// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A plain copy on the device with a given number of SMs: owned results that found no room where peers write, and the routing of a
// cached handle that gets new weights.
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kUnrolled = 8;  // loads in flight per thread

__global__ void __launch_bounds__(kThreads) copy_kernel(uint4* to, const uint4* from, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kUnrolled;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads * kUnrolled + threadIdx.x;
  for (std::int64_t begin = first; begin < count; begin += step) {
    uint4 pieces[kUnrolled];
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      if (begin + i * kThreads < count) pieces[i] = from[begin + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      if (begin + i * kThreads < count) to[begin + i * kThreads] = pieces[i];
    }
  }
}

}  // namespace

void launch_copy(void* to, const void* from, std::int64_t bytes, int blocks, cudaStream_t stream) {
  if (bytes <= 0) return;
  copy_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<uint4*>(to), static_cast<const uint4*>(from),
                                               (bytes + 15) / 16);
}

void prepare_copy() {
  prepare_kernel(reinterpret_cast<const void*>(copy_kernel), 0);
}

}  // namespace ferry::cuda
