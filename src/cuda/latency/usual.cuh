// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of usual calls share. A usual call (is_usual() in usual_calls.cc) is what inference engines decode with:
// eight choices, experts spread evenly in their order, nobody left out or to be masked on the way, no statistics. It goes over
// the same packets, regions and credits as any other call of latency mode (dispatch.cu, combine.cu), and ranks of one call may
// take either kernel; but a rank follows from a slot by arithmetic, so that there are no tables to load, a lane knows one peer,
// and few barriers are left.
#pragma once

#include "cuda/kernels.h"
#include "cuda/latency/call.cuh"
#include "cuda/latency_args.h"

namespace ferry::cuda::latency {

/// Lanes of a warp that hold a token's choices, four tokens at a time.
inline constexpr int kTokensAtOnce = 32 / kUsualTopK;
/// Scales of a coded piece: vectors of 16 channels, 8 to a scale.
inline constexpr int kUsualScales = wire::kPieceVectors / 8;

/// A piece of which nothing lies in a row.
inline constexpr int kBeyond = 1 << 16;

/// The end of a receive half: files the call as read, and renews tags, which the block does that keeps the books.
__device__ inline void end_usual(const GroupArgs& group, LatencyKind kind, const Epochs& epochs) {
  if (blockIdx.x == 0) file_read(group, kind, epochs);
  if (blockIdx.x == gridDim.x - 1) renew_tags(group, kind, epochs);
}

/// Memory so many units of 16 bytes on.
__device__ inline std::byte* at_unit(std::byte* base, std::uint32_t unit) {
  return base + static_cast<std::uint64_t>(unit) * 16;
}
__device__ inline const std::byte* at_unit(const std::byte* base, std::uint32_t unit) {
  return base + static_cast<std::uint64_t>(unit) * 16;
}

/// The peer that this lane knows.
class Peer {
 public:
  /// Asks for its window and its credit.
  __device__ Peer(const GroupArgs& group, LatencyKind kind) : group_(group), kind_(kind), lane_(lane_idx()) {
    if (lane_ >= group.num_ranks) return;
    window_ = group.windows[lane_];
    credit_ = load_credit();
  }
  /// Until every peer has read the call whose regions this one takes over; see Credits.
  __device__ bool wait_credits(FaultStep step, const Epochs& epochs) {
    bool good = true;
    // Both numbers are looked at, so that both are here: whoever comes next may file the call.
    if (lane_ < group_.num_ranks && epochs.before - 1 < epochs.now) {
      Patience patience(group_, step, epochs.now, lane_);
      while (credit_ < epochs.before && good) {
        good = !patience.is_over(total_of(credit_), total_of(epochs.before));
        credit_ = load_credit();
      }
    }
    return __all_sync(kAllLanes, good) != 0;
  }
  __device__ std::byte* window() const { return window_; }
  __device__ std::byte* window_of(int rank) const {
    return reinterpret_cast<std::byte*>(__shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(window_), rank));
  }

 private:
  /// Its epoch. The set of return slots below it is the first one where nobody is masked on the way.
  __device__ std::uint64_t load_credit() const {
    const std::byte* at = group_.own_window + group_.layout.latency.credit_at(kind_, group_.flight, lane_);
    return load_relaxed(reinterpret_cast<const std::uint64_t*>(at)) >> LatencyLayout::kBankBits;
  }
  const GroupArgs& group_;
  const LatencyKind kind_;
  const int lane_;
  std::byte* window_ = nullptr;
  std::uint64_t credit_ = 0;
};

/// Who does what: the last block keeps the books (credits, manifests, notes, counts), the others move rows; a single block does both.
struct Shifts {
  int workers = gridDim.x > 1 ? static_cast<int>(gridDim.x) - 1 : 1;
  bool works = static_cast<int>(blockIdx.x) < workers;
  bool keeps_books = blockIdx.x == gridDim.x - 1;
  int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  /// Items of this warp, block by block, so that few items are spread over many SMs.
  int first = works ? warp * workers + static_cast<int>(blockIdx.x) : INT32_MAX / 2;
  int step = workers * warps;
};

/// Code that nobody has run yet on an SM costs 12 cycles an instruction (seen with clock stamps in a dispatch of one token), and a
/// small call runs each instruction once. So a warp that has nothing to send, and no manifest to read, goes ahead of the others through
/// the same code with a piece of which nothing is read or stored.
struct UsualRehearsal {
  bool wanted;
  __device__ UsualRehearsal(const Shifts& shifts, int items, int num_tokens, int num_ranks)
      : wanted(!shifts.keeps_books && shifts.warp == shifts.warps - 2 && shifts.first >= items &&
               shifts.warp * kTokensAtOnce >= num_tokens && shifts.warp >= num_ranks) {}
};

/// A barrier of the block, for which a warp that is `ahead` does not wait; once in a kernel. Returns `ahead`.
__device__ inline bool meet_unless(bool ahead) {
  if (ahead) {
    asm volatile("bar.arrive 1, %0;" ::"n"(kLatencyThreads) : "memory");
  } else {
    asm volatile("bar.sync 1, %0;" ::"n"(kLatencyThreads) : "memory");
  }
  return ahead;
}

}  // namespace ferry::cuda::latency
