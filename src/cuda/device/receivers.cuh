// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where the ranks of this node take the rows of a dispatch, which blocks store what, and how a send ends.
#pragma once

#include "cuda/device/wait.cuh"

namespace ferry::cuda {

/// Where a rank takes records, and each block's rows; null: it is left out, or another block's business.
struct Receivers {
  std::byte** table;  ///< [R][1 + blocks]
  int stride;
  __device__ std::byte** of(int rank) const { return table + rank * stride; }
};

/// Which rows a block stores. The last own_blocks of the grid take those that stay on this rank, the others what crosses the
/// link; without any, all blocks take everything.
struct BlockShare {
  bool own, peers;
  int blocks, block;  ///< that share the tokens, and this one among them

  __device__ explicit BlockShare(int own_blocks) {
    const int peer_blocks = static_cast<int>(gridDim.x) - own_blocks;
    const bool is_own = static_cast<int>(blockIdx.x) >= peer_blocks;
    own = own_blocks == 0 || is_own;
    peers = !is_own;
    blocks = is_own ? own_blocks : peer_blocks;
    block = static_cast<int>(blockIdx.x) - (is_own ? peer_blocks : 0);
  }
};

/// Fills the table of receivers: the peers have said where, with their counts. False if one has overwritten its words since: it
/// has given up on this call, two exchanges ago. All threads of a block.
__device__ inline bool find_receivers(const GroupArgs& group, int num_blocks, std::uint64_t epoch,
                                      const BlockShare& share, const Receivers& receivers) {
  const DeviceLayout& layout = group.layout;
  const std::uint64_t exchange = group.state->exchanges + 1;
  bool good = true;
  for (int rank = static_cast<int>(threadIdx.x); rank < group.num_ranks; rank += static_cast<int>(blockDim.x)) {
    std::byte* window = (rank == group.rank ? share.own : share.peers) ? group.windows[rank] : nullptr;
    std::byte** to = receivers.of(rank);
    to[0] = window == nullptr ? nullptr : window + layout.recv_meta + group.flight * layout.recv_meta_stride;
    const auto* words = reinterpret_cast<const std::uint64_t*>(group.windows[group.rank] +
                                                               layout.counts_at(static_cast<int>(exchange % 2), rank)) +
                        sizeof(CallNote) / 4;
    for (int b = 0; b < num_blocks && window != nullptr; ++b) {
      const std::uint64_t low = load_relaxed(words + 2 * b), high = load_relaxed(words + 2 * b + 1);
      const auto wanted = static_cast<std::uint32_t>(exchange);
      if (static_cast<std::uint32_t>(low >> 32) != wanted || static_cast<std::uint32_t>(high >> 32) != wanted) {
        fail(group, epoch,
             {.kind = FaultKind::kGoneOn, .step = FaultStep::kRoute, .peer = rank, .seen = epoch + 1, .wanted = epoch});
        good = false;
        break;
      }
      to[1 + b] = window + (high << 32 | static_cast<std::uint32_t>(low));
    }
  }
  return __syncthreads_and(good) != 0;
}

/// Tells the peers that their rows are there, or that they will never come, and files the call; by the last block.
__device__ inline void finish_send(const GroupArgs& group, std::uint64_t epoch) {
  const std::uint64_t total = total_of(epoch, has_failed(group, epoch) ? kRowsGivenUp : kRowsSent);
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x))
    post(group, DeviceSignal::kDispatchRows, peer, total);
  __syncthreads();
  if (threadIdx.x != 0) return;
  group.state->sending_blocks_done = 0;
  group.state->dispatch_epoch[group.flight] = epoch;
  group.state->exchanges += 1;
  group.state->epoch = epoch;
}
}  // namespace ferry::cuda
