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

/// Pieces are asked for kAheadOf before they are used. What is also stored from its stage needs a stage more.
template <int kCount, int kBytes, int kAheadOf>
struct alignas(128) WarpStages {
  static constexpr int kStages = kCount, kStageBytes = kBytes, kAhead = kAheadOf;
  std::byte data[kStages][kStageBytes];
  std::uint64_t full[kStages];
};

template <typename Stages>
class StageRing {
 public:
  static constexpr int kStages = Stages::kStages, kAhead = Stages::kAhead;

  __device__ explicit StageRing(Stages& memory) : memory_(memory), lane_(threadIdx.x % 32) {
#if __CUDA_ARCH__ >= 900
    if (lane_ < kStages) barrier_init(&memory_.full[lane_]);
    fence_bulk();
#endif
    __syncwarp();
  }

  __device__ std::byte* data(unsigned piece) {
    return memory_.data[piece % kStages];
  }

  /// Waits until the stage of `piece` may be filled; pieces come one after the other, kAhead before they go out.
  __device__ void claim() {
#if __CUDA_ARCH__ >= 900
    bulk_wait_read<kStages - kAhead - 1>();
#endif
    __syncwarp();
  }
  /// The lanes have written a part of a piece by themselves; before expect().
  __device__ void written() {
#if __CUDA_ARCH__ >= 900
    fence_bulk();
#endif
    __syncwarp();
  }
  /// Says how many bytes of a piece will be asked for with load(). After claim(), before load().
  __device__ void expect(unsigned piece, int bytes) {
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0) barrier_expect(&memory_.full[piece % kStages], static_cast<std::uint32_t>(bytes));
#endif
  }
  /// Asks for the part of a piece of every lane that has a `from`; bytes, addresses and places in the stage are multiples of 16.
  __device__ void load(unsigned piece, int place, const std::byte* from, int bytes) {
#if __CUDA_ARCH__ >= 900
    __syncwarp();  // after expect()
    if (from != nullptr)
      bulk_load(data(piece) + place, from, static_cast<std::uint32_t>(bytes), &memory_.full[piece % kStages]);
#else
    for (unsigned left = __ballot_sync(0xffffffffu, from != nullptr); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      const auto* source = reinterpret_cast<const std::byte*>(
          __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(from), lane));
      copy(data(piece) + __shfl_sync(0xffffffffu, place, lane), source, __shfl_sync(0xffffffffu, bytes, lane));
    }
#endif
  }
  __device__ void wait_full(unsigned piece) {
#if __CUDA_ARCH__ >= 900
    const std::uint32_t parity = piece / kStages & 1u;
    while (!barrier_passed(&memory_.full[piece % kStages], parity)) {
    }
#else
    __syncwarp();
#endif
  }
  /// Stores a part of a piece to `to` of every lane that has one.
  __device__ void store(unsigned piece, int place, std::byte* to, int bytes) {
#if __CUDA_ARCH__ >= 900
    if (to != nullptr) bulk_store(to, data(piece) + place, static_cast<std::uint32_t>(bytes));
#else
    unsigned left = __ballot_sync(0xffffffffu, to != nullptr);
    for (; left != 0; left &= left - 1) {
      auto* target = reinterpret_cast<std::byte*>(
          __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(to), __ffs(static_cast<int>(left)) - 1));
      copy(target, data(piece) + place, bytes);
    }
#endif
  }
  /// After the stores of a piece.
  __device__ void stored() {
#if __CUDA_ARCH__ >= 900
    bulk_commit();
#else
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
  Stages& memory_;
  const int lane_;
};

}  // namespace ferry::cuda
