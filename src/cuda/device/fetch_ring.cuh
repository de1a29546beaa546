// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A warp's ring of pieces of rows that are fetched from global memory, near or far, into shared memory, many ahead of their use.
// From sm_90 on one lane asks the bulk copy engine for a whole piece; before, each lane asks for its own vectors and reads back
// only those, so that no word between lanes is needed. All calls are made by the whole warp. Measured in docs/design/cuda.md.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"

namespace ferry::cuda {

/// kDepth pieces of kVectors 16-byte vectors per lane.
template <int kDepth, int kVectors>
struct alignas(128) FetchMemory {
  static constexpr int kPieces = kDepth, kPieceVectors = kVectors, kPieceBytes = kVectors * 32 * 16;
  std::byte data[kPieces][kPieceBytes];
  std::uint64_t full[kPieces];
};

template <typename Memory>
class FetchRing {
 public:
  static constexpr int kDepth = Memory::kPieces, kVectors = Memory::kPieceVectors;

  __device__ explicit FetchRing(Memory& memory)
      : memory_(memory),
        lane_(static_cast<int>(threadIdx.x) % 32),
        vectors_(shared_address(memory.data[0]) + static_cast<std::uint32_t>(lane_) * 16) {
#if __CUDA_ARCH__ >= 900
    if (lane_ < kDepth) barrier_init(&memory_.full[lane_]);
    fence_bulk();
#endif
    __syncwarp();
  }

  /// Asks for a piece, which overwrites the piece kDepth before it: all lanes have read that one. Pieces come in order, and all
  /// up to kDepth - 2 after the one that is waited for, if only with 0 bytes. `bytes` and `from` are multiples of 16.
  __device__ void ask(unsigned piece, const std::byte* from, int bytes) {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    if (lane_ != 0) return;
    std::uint64_t* full = &memory_.full[piece % kDepth];
    barrier_expect(full, static_cast<std::uint32_t>(bytes));
    if (bytes > 0) bulk_load(memory_.data[piece % kDepth], from, static_cast<std::uint32_t>(bytes), full);
#else
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = (v * 32 + lane_) * 16;
      if (at < bytes) copy_async(memory_.data[piece % kDepth] + at, from + at);
    }
    copy_async_commit();
#endif
  }
  /// Until a piece is here; kDepth - 2 pieces after it have been asked for.
  __device__ void wait(unsigned piece) {
#if __CUDA_ARCH__ >= 900
    while (!barrier_passed(&memory_.full[piece % kDepth], piece / kDepth & 1u)) {
    }
#else
    copy_async_wait<kDepth - 2>();
#endif
  }
  /// Vector `v` of this lane.
  __device__ uint4 read(unsigned piece, int v) const {
    return load_shared(vectors_ + piece % kDepth * Memory::kPieceBytes + static_cast<unsigned>(v) * 32 * 16);
  }

 private:
  Memory& memory_;
  const int lane_;
  const std::uint32_t vectors_;  ///< of this lane; an address of shared memory
};

}  // namespace ferry::cuda
