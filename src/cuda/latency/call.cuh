// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What surrounds the rows of a call in latency mode: its epoch, and the credits that let regions be written again. See
// docs/memory_model.md.
#pragma once

#include "cuda/device/packets.cuh"
#include "cuda/latency_args.h"

namespace ferry::cuda::latency {

/// A call's number, and that of the call whose regions it takes over (0: none).
struct Epochs {
  std::uint64_t now = 0, before = 0;
  __device__ std::uint32_t tag() const { return static_cast<std::uint32_t>(now); }
};

/// The words of a call in the device's state.
__device__ inline int index_of(LatencyKind kind) {
  return static_cast<int>(kind);
}

/// Numbers a call that sends. The last block to begin files it: by then every block has read the number. All threads of a block;
/// `shared` is in shared memory and may be read by all after the next barrier of the block.
__device__ inline void begin_call(const GroupArgs& group, LatencyKind kind, Epochs& shared) {
  if (threadIdx.x != 0) return;
  DeviceState& state = *group.state;
  std::uint64_t& flight = state.latency_epoch[index_of(kind)][group.flight];
  // The loads come before the count, or another block could file the call before this one has read its number.
  shared.now = load_acquire(&state.epoch) + 1;
  shared.before = load_acquire(&flight);
  if (atomicAdd(&state.blocks_begun, 1u) != gridDim.x - 1) return;
  state.blocks_begun = 0;
  flight = shared.now;
  state.epoch = shared.now;
}

/// The number of a call whose send half was another kernel.
__device__ inline void resume_call(const GroupArgs& group, LatencyKind kind, Epochs& shared) {
  if (threadIdx.x == 0) shared.now = group.state->latency_epoch[index_of(kind)][group.flight];
}

/// Tells the peers which calls were read here: by earlier kernels, so that their loads are over. One warp of the grid.
__device__ inline void give_credits(const GroupArgs& group) {
  DeviceState& state = *group.state;
  const LatencyLayout& layout = group.layout.latency;
  const int flights = static_cast<int>(layout.num_flights);
  for (int word = 0; word < 2 * flights; ++word) {
    const int kind = word / flights, flight = word % flights;
    const std::uint64_t read = state.latency_read[kind][flight];
    if (read == state.latency_told[kind][flight]) continue;
    for (int peer = lane_idx(); peer < group.num_ranks; peer += 32) {
      if (group.windows[peer] == nullptr) continue;
      delay_signal(group, peer);
      store_release(reinterpret_cast<std::uint64_t*>(
                        group.windows[peer] + layout.credit_at(static_cast<LatencyKind>(kind), flight, group.rank)),
                    read);
    }
    __syncwarp();
    if (lane_idx() == 0) state.latency_told[kind][flight] = read;
  }
}

/// Until every peer has read the call whose regions this one takes over. All threads of a block; true in all if so.
__device__ inline bool wait_for_credits(const GroupArgs& group, FaultStep step, LatencyKind kind, const Epochs& epochs) {
  bool good = true;
  if (epochs.before != 0) {
    for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
      if (group.windows[peer] == nullptr) continue;
      const auto* credit = reinterpret_cast<const std::uint64_t*>(
          group.windows[group.rank] + group.layout.latency.credit_at(kind, group.flight, peer));
      Patience patience(group, step, epochs.now, peer);
      while (load_acquire(credit) < epochs.before) {
        if (!patience.is_over(total_of(load_acquire(credit)), total_of(epochs.before))) continue;
        good = false;
        break;
      }
    }
  }
  return __syncthreads_and(good) != 0;
}

/// Files that a call was read: whatever this kernel reads is over before the next one of the group tells the peers.
__device__ inline void file_read(const GroupArgs& group, LatencyKind kind, const Epochs& epochs) {
  if (blockIdx.x == 0 && threadIdx.x == 0)
    group.state->latency_read[index_of(kind)][group.flight] = epochs.now;
}

/// A warp's turns at the items of a kernel, block by block, so that few items are spread over many SMs.
struct Turns {
  std::int64_t first = static_cast<std::int64_t>(threadIdx.x / 32) * gridDim.x + blockIdx.x;
  std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
};

}  // namespace ferry::cuda::latency
