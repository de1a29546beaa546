// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A ring of 16-byte vectors that each lane fetches for itself, asynchronously, into shared memory: many loads in flight without
// registers that hold them, and without any word between lanes, because a lane reads back only what it asked for. On every
// architecture from sm_80 on. Measured against bulk copies (one lane asks, all wait at a barrier) in docs/design/cuda.md.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"

namespace ferry::cuda {

/// kDepth pieces of kVectors vectors per lane.
template <int kDepth, int kVectors>
class LaneRing {
 public:
  static constexpr int kWarpBytes = kDepth * kVectors * 32 * 16;

  /// `memory`: kWarpBytes of this warp's, aligned to 16.
  __device__ explicit LaneRing(std::byte* memory) : own_(memory + threadIdx.x % 32 * 16) {}

  /// Asks for vector `v` of a piece, which overwrites the piece kDepth before it.
  __device__ void ask(unsigned piece, int v, const std::byte* from) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(place(piece, v))), "l"(from)
                 : "memory");
  }
  /// After the vectors of a piece, also if there were none.
  __device__ static void asked() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  /// Waits for the oldest of kDepth - 1 pieces asked for.
  __device__ static void wait_oldest() { asm volatile("cp.async.wait_group %0;" ::"n"(kDepth - 2) : "memory"); }
  __device__ uint4 read(unsigned piece, int v) const { return *reinterpret_cast<const uint4*>(place(piece, v)); }

 private:
  __device__ std::byte* place(unsigned piece, int v) const {
    return own_ + (piece % kDepth * kVectors + static_cast<unsigned>(v)) * 32 * 16;
  }

  std::byte* own_;
};

}  // namespace ferry::cuda
