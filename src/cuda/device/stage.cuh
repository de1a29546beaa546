// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A warp's ring of stages in shared memory: pieces of rows come in from global memory and go out to several places. With the
// bulk copy engine where there is one (sm_90 and later), with 16-byte loads and stores otherwise. All calls are made by the whole
// warp. What was stored is where it belongs after drain().
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"

namespace ferry::cuda {

inline constexpr int kStages = 4;
inline constexpr int kStageBytes = 8192;
/// Pieces are asked for this far ahead of the one at hand.
inline constexpr int kAhead = 2;

struct alignas(128) WarpStages {
  std::byte data[kStages][kStageBytes];
  std::uint64_t full[kStages];
};

class StageRing {
 public:
  __device__ explicit StageRing(WarpStages& memory) : memory_(memory), lane_(threadIdx.x % 32) {
#if __CUDA_ARCH__ >= 900
    if (lane_ < kStages) barrier_init(&memory_.full[lane_]);
    fence_bulk();
#endif
    __syncwarp();
  }

  __device__ std::byte* data(std::int64_t piece) { return memory_.data[piece % kStages]; }

  /// Waits until the stage of `piece` may be filled; pieces come one after the other, kAhead before they go out.
  __device__ void claim() {
#if __CUDA_ARCH__ >= 900
    bulk_wait_read<kStages - kAhead - 1>();
#endif
    __syncwarp();
  }
  /// Asks for a piece; bytes and addresses are multiples of 16. After claim().
  __device__ void load(std::int64_t piece, const std::byte* from, int bytes) {
#if __CUDA_ARCH__ >= 900
    if (lane_ != 0) return;
    std::uint64_t* full = &memory_.full[piece % kStages];
    barrier_expect(full, static_cast<std::uint32_t>(bytes));
    bulk_load(data(piece), from, static_cast<std::uint32_t>(bytes), full);
#else
    copy(data(piece), from, bytes);
#endif
  }
  /// Says that the lanes have written a piece by themselves. After claim().
  __device__ void written(std::int64_t piece) {
#if __CUDA_ARCH__ >= 900
    fence_bulk();
    __syncwarp();
    if (lane_ == 0) barrier_expect(&memory_.full[piece % kStages], 0);
#endif
    __syncwarp();
  }
  __device__ void wait_full(std::int64_t piece) {
#if __CUDA_ARCH__ >= 900
    const auto parity = static_cast<std::uint32_t>(piece / kStages & 1);
    while (!barrier_passed(&memory_.full[piece % kStages], parity)) {
    }
#else
    __syncwarp();
#endif
  }
  /// Stores a piece to `to` of every lane that has one.
  __device__ void store(std::int64_t piece, std::byte* to, int bytes) {
#if __CUDA_ARCH__ >= 900
    if (to != nullptr) bulk_store(to, data(piece), static_cast<std::uint32_t>(bytes));
    bulk_commit();
#else
    unsigned left = __ballot_sync(0xffffffffu, to != nullptr);
    for (; left != 0; left &= left - 1) {
      auto* target = reinterpret_cast<std::byte*>(
          __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(to), __ffs(static_cast<int>(left)) - 1));
      copy(target, data(piece), bytes);
    }
    __syncwarp();
#endif
  }
  /// Waits until everything this warp stored is complete.
  __device__ void drain() {
#if __CUDA_ARCH__ >= 900
    bulk_wait_done();
    fence_bulk();  // what follows (a release by an ordinary store) is ordered after the bulk stores
#endif
    __syncwarp();
  }

 private:
#if __CUDA_ARCH__ < 900
  __device__ void copy(std::byte* to, const std::byte* from, int bytes) {
    for (int at = lane_ * 16; at < bytes; at += 32 * 16)
      *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
  }
#endif
  WarpStages& memory_;
  const int lane_;
};

}  // namespace ferry::cuda
