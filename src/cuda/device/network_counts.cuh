// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The exchange of a dispatch's notes and counts with ranks of other nodes: a put of this rank's own words, and a word behind it.
#pragma once

#include "cuda/device/lanes.cuh"
#include "cuda/device/network.cuh"

namespace ferry::cuda {

/// Has this rank's notes and counts, which lie whole in its own window, written to a rank of another node, and says so. A thread each;
/// all threads of the block that told them.
__device__ inline void tell_network(const RouteArgs& a, const NetworkArgs& net, std::uint64_t epoch,
                                    std::uint64_t exchange) {
  const GroupArgs& group = a.group;
  const auto parity = static_cast<int>(exchange % 2);
  const std::int64_t counts = group.layout.counts_at(parity, group.rank);
  const int words = DeviceLayout::kNoteWords + (a.cached ? 0 : group.num_ranks + group.placement.num_slots);
  __threadfence_system();  // the words, before the barrier and the commands behind it
  __syncthreads();
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (net.window_slot[peer] < 0) continue;
    if (network_put(group, net, FaultStep::kRoute, epoch, peer, counts, group.own_window + counts,
                    words * static_cast<std::int64_t>(sizeof(CountWord))))
      network_post(group, net, FaultStep::kRoute, epoch, peer, NetworkWord::kCounts, 0, parity, total_of(exchange));
  }
  __syncthreads();
}

/// Until notes and counts of a rank of another node are here; a whole warp.
__device__ inline bool await_network(const GroupArgs& group, std::uint64_t epoch, std::uint64_t exchange, int peer) {
  const auto parity = static_cast<int>(exchange % 2);
  bool good = true;
  if (threadIdx.x % 32 == 0)
    good =
        wait_network(group, FaultStep::kRoute, epoch, NetworkWord::kCounts, peer, 0, parity, total_of(exchange)) != 0;
  return __shfl_sync(kAll, good, 0);
}

}  // namespace ferry::cuda
