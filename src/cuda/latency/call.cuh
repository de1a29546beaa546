// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What surrounds the rows of a call in latency mode: its epoch, and the credits that let regions be written again. See
// docs/memory_model.md.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/device/packets.cuh"
#include "cuda/latency_args.h"

namespace ferry::cuda::latency {

/// A call's number, and that of the call whose regions it takes over (0: none).
struct Epochs {
  std::uint64_t now = 0, before = 0;
  __device__ std::uint32_t tag() const { return static_cast<std::uint32_t>(now); }
};

__device__ inline int index_of(LatencyKind kind) {
  return static_cast<int>(kind);
}

/// Asks for the number of a call that sends.
__device__ inline Epochs next_epochs(const GroupArgs& group, LatencyKind kind) {
  Epochs out;
  out.now = load_relaxed(&group.state->epoch) + 1;
  out.before = load_relaxed(&group.state->latency_epoch[index_of(kind)][group.flight]);
  return out;
}

/// Files the call, by the last block that comes here: behind a barrier of its block, so that every block has read the number. One
/// thread of each block.
__device__ inline void file_call(const GroupArgs& group, LatencyKind kind, const Epochs& epochs) {
  DeviceState& state = *group.state;
  if (atomicAdd(&state.blocks_begun, 1u) != gridDim.x - 1) return;
  state.blocks_begun = 0;
  state.latency_epoch[index_of(kind)][group.flight] = epochs.now;
  state.epoch = epochs.now;
}

/// The number of a call whose send half was another kernel.
__device__ inline void resume_call(const GroupArgs& group, LatencyKind kind, Epochs& shared) {
  if (threadIdx.x == 0) shared.now = group.state->latency_epoch[index_of(kind)][group.flight];
}

/// Tells the peers which calls were read here. By earlier kernels: their loads are over, so that no fence is needed. Of the regions
/// that this call takes over, that is every call before it; what the state says may already be this call itself, which other blocks
/// have still to read. One warp of the grid; a lane per word, so that few loads wait for each other.
__device__ inline void give_credits(const GroupArgs& group, LatencyKind own_kind, const Epochs& epochs) {
  DeviceState& state = *group.state;
  const LatencyLayout& layout = group.layout.latency;
  const int flights = static_cast<int>(layout.num_flights);
  for (int first = 0; first < 2 * flights; first += 32) {
    const int word = first + lane_idx(), kind = word / flights, flight = word % flights;
    std::uint64_t read = 0, told = 0;
    if (word < 2 * flights) {
      const bool own = kind == index_of(own_kind) && flight == group.flight;
      read = own ? epochs.now - 1 : load_relaxed(&state.latency_read[kind][flight]);
      told = load_relaxed(&state.latency_told[kind][flight]);
      if (read != told) state.latency_told[kind][flight] = read;
    }
    for (unsigned left = __ballot_sync(kAllLanes, read != told); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      const std::uint64_t news = __shfl_sync(kAllLanes, read, lane);
      const std::int64_t at =
          layout.credit_at(static_cast<LatencyKind>((first + lane) / flights), (first + lane) % flights, group.rank);
      for (int peer = lane_idx(); peer < group.num_ranks; peer += 32) {
        if (group.windows[peer] == nullptr) continue;
        delay_signal(group, peer);
        store_relaxed(reinterpret_cast<std::uint64_t*>(group.windows[peer] + at), news);
      }
    }
  }
}

/// The credits that a call needs: of every peer, for the call whose regions it takes over. A thread per peer, all threads of a
/// block; asked for before the call's number is known. No acquire: nothing is read behind a credit, and the stores that it allows
/// are behind the branch on it, which no GPU takes before it is decided.
class Credits {
 public:
  __device__ Credits(const GroupArgs& group, LatencyKind kind) : group_(group), kind_(kind) {
    if (static_cast<int>(threadIdx.x) < group.num_ranks) seen_ = load_relaxed(credit_of(static_cast<int>(threadIdx.x)));
  }
  /// True in all threads if every peer has read that call. `windows`: of the peers, null where one is left out.
  __device__ bool wait(FaultStep step, const Epochs& epochs, std::byte* const* windows) {
    bool good = true;
    for (int peer = static_cast<int>(threadIdx.x); epochs.before != 0 && peer < group_.num_ranks && good;
         peer += static_cast<int>(blockDim.x)) {
      if (windows[peer] == nullptr) continue;
      if (peer != static_cast<int>(threadIdx.x)) seen_ = load_relaxed(credit_of(peer));
      Patience patience(group_, step, epochs.now, peer);
      while (seen_ < epochs.before && good) {
        good = !patience.is_over(total_of(seen_), total_of(epochs.before));
        seen_ = load_relaxed(credit_of(peer));
      }
    }
    return __syncthreads_and(good) != 0;
  }

 private:
  __device__ const std::uint64_t* credit_of(int peer) const {
    return reinterpret_cast<const std::uint64_t*>(group_.own_window +
                                                  group_.layout.latency.credit_at(kind_, group_.flight, peer));
  }
  const GroupArgs& group_;
  const LatencyKind kind_;
  std::uint64_t seen_ = 0;
};

/// Files that a call was read: whatever this kernel reads is over before the next one of the group tells the peers.
__device__ inline void file_read(const GroupArgs& group, LatencyKind kind, const Epochs& epochs) {
  if (blockIdx.x == 0 && threadIdx.x == 0) group.state->latency_read[index_of(kind)][group.flight] = epochs.now;
}

/// Of a dispatch, by the header of a manifest, which is in lanes 0 to 2: refuses what its source confessed, that it is in another call,
/// or that its arguments differ. A whole warp.
__device__ inline bool is_same_call(const GroupArgs& group, const Epochs& epochs, int source, const uint4& seen) {
  const auto word = [&](int i) {
    const std::uint32_t mine = i % 3 == 0 ? seen.x : i % 3 == 1 ? seen.y : seen.z;
    return __shfl_sync(kAllLanes, mine, i / 3);
  };
  const std::uint32_t high = word(0), digest_low = word(1), digest_high = word(2), status = word(3), where = word(4),
                      id_low = word(5), id_high = word(6);
  Fault fault{.step = FaultStep::kRoute, .peer = source, .seen = static_cast<std::uint64_t>(high) << 32 | epochs.tag()};
  if (high != static_cast<std::uint32_t>(epochs.now >> 32)) {
    fault.kind = FaultKind::kGoneOn;
  } else if (status == kCallBadId) {
    fault.kind = FaultKind::kBadId;
    fault.where = where;
    fault.value = static_cast<std::int64_t>(static_cast<std::uint64_t>(id_high) << 32 | id_low);
  } else if (digest_low != static_cast<std::uint32_t>(group.digest) ||
             digest_high != static_cast<std::uint32_t>(group.digest >> 32)) {
    fault.kind = FaultKind::kMismatch;
  } else {
    return true;
  }
  if (lane_idx() == 0) fail(group, epochs.now, fault);
  return false;
}

/// Copies the table of windows into shared memory, where every block has it first; there after the block's next barrier.
__device__ inline void copy_windows(const GroupArgs& group, std::byte** shared) {
  for (int rank = static_cast<int>(threadIdx.x); rank < group.num_ranks; rank += static_cast<int>(blockDim.x))
    __pipeline_memcpy_async(shared + rank, group.windows + rank, sizeof(std::byte*));
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

/// A warp's turns at the items of a kernel, block by block, so that few items are spread over many SMs.
struct Turns {
  int first = static_cast<int>(threadIdx.x / 32 * gridDim.x + blockIdx.x);
  int step = static_cast<int>(gridDim.x * (blockDim.x / 32));
};

}  // namespace ferry::cuda::latency
