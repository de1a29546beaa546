// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of step 2, dispatch_send, that is for other nodes: tokens are numbered per node, each is staged once for every node that
// needs it, and chunks go to the rail peers while later ones are staged. Runs before dispatch_send, whose rows stay in the node. See
// the host step of this name.
#include "cuda/device/block_scan.cuh"
#include "cuda/device/row_sender.cuh"
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

constexpr FaultStep kStep = FaultStep::kDispatchSend;
constexpr int kNumberThreads = 1024;

/// Numbers this rank's tokens for one node, in their order; how many there are. All threads of the only block.
__device__ std::int32_t number_tokens(const SendArgs& a, const NetworkArgs& net, int node) {
  std::int32_t rows = 0;
  for (std::int64_t first = 0; first < a.num_tokens; first += kNumberThreads) {
    const std::int64_t token = first + threadIdx.x;
    bool wanted = false;
    for (int k = 0; k < a.top_k && token < a.num_tokens; ++k) {
      const std::int32_t rank = a.handle.ranks[token * a.top_k + k];
      wanted = wanted || (rank >= 0 && net.node_of[rank] == node);
    }
    const BlockScan scan(wanted ? 1 : 0);
    if (token < a.num_tokens) a.handle.forward_rows[token * net.num_nodes + node] = wanted ? rows + scan.before : -1;
    rows += scan.all;
  }
  return rows;
}

/// Tells every rail peer how long this rank's stream will be, or that it gave up on the call. `cached`: numbers are in the handle.
__global__ void __launch_bounds__(kNumberThreads, 1)
    number_rows_kernel(const __grid_constant__ SendArgs a, const __grid_constant__ NetworkArgs net, bool cached) {
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->epoch + 1;
  const bool failed = __syncthreads_or(has_failed(group, epoch)) != 0;
  for (int node = 0; node < net.num_nodes && !cached && !failed; ++node) {
    const std::int32_t rows = number_tokens(a, net, node);
    if (threadIdx.x == 0) a.handle.tokens_to_node[node] = rows;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int node = 0; node < net.num_nodes; ++node) {
      if (net.rail[node] < 0) continue;
      const std::uint64_t rows = failed ? kNetworkGivenUp : static_cast<std::uint64_t>(a.handle.tokens_to_node[node]);
      network_post(group, net, kStep, epoch, net.rail[node], NetworkWord::kDispatchTotal, group.flight, 0,
                   total_of(epoch) | rows);
    }
    *net.ring.submitted = commands_so_far(net);
  }
}

/// Where rows for each other node are staged.
__device__ void find_streams(const SendArgs& a, const NetworkArgs& net, const Receivers& receivers) {
  const NetworkLayout& layout = a.group.layout.network;
  for (int node = static_cast<int>(threadIdx.x); node < net.num_nodes; node += static_cast<int>(blockDim.x)) {
    std::byte** to = receivers.of(node);
    to[0] = nullptr;
    if (net.rail[node] < 0) continue;
    std::byte* stream =
        a.group.own_window + layout.staging_at(a.group.flight, NetworkLayout::other_node(node, net.my_node));
    to[0] = stream + layout.max_tokens * a.row_bytes;
    for (int b = 0; b < a.num_blocks; ++b) to[1 + b] = stream + layout.max_tokens * a.blocks[b].begin;
  }
}

extern __shared__ __align__(128) std::byte shared_bytes[];

__global__ void __launch_bounds__(512, 1)
    dispatch_stage_kernel(const __grid_constant__ SendArgs a, const __grid_constant__ NetworkArgs net) {
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->epoch + 1;
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto* stages = reinterpret_cast<SendStages*>(shared_bytes);
  const int record_bytes = static_cast<int>(wire::TokenMeta::bytes(a.top_k));
  std::byte* records = shared_bytes + warps * sizeof(SendStages);
  const Receivers receivers{reinterpret_cast<std::byte**>(records + warps * record_bytes), 1 + a.num_blocks};
  find_streams(a, net, receivers);
  bool good = !has_failed(group, epoch);
  // The engine may still read what the flight's last call staged.
  if (threadIdx.x == 0 && good) good = wait_completed(group, net, kStep, epoch, net.state->dispatch_busy[group.flight]);
  if (__syncthreads_and(good)) {
    RowSender<false, false, true> sender(a, BlockShare(0), receivers, stages[warp],
                                         reinterpret_cast<std::int32_t*>(records + warp * record_bytes), nullptr, &net);
    sender.send_all(epoch, true);
  }
  if (!is_last_block(group) || threadIdx.x != 0) return;
  for (int chunk = 0; chunk < NetworkLayout::kChunks; ++chunk) net.state->chunk_warps[chunk] = 0;
  const std::uint64_t commands = commands_so_far(net);
  net.state->dispatch_busy[group.flight] = commands;
  *net.ring.submitted = commands;
}

}  // namespace

void launch_dispatch_stage(const SendArgs& args, const NetworkArgs& network, bool cached, const Launch& launch,
                           cudaStream_t stream) {
  number_rows_kernel<<<1, kNumberThreads, 0, stream>>>(args, network, cached);
  dispatch_stage_kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args, network);
}

void prepare_dispatch_stage(int dynamic_bytes) {
  prepare_kernel(reinterpret_cast<const void*>(number_rows_kernel), 0);
  prepare_kernel(reinterpret_cast<const void*>(dispatch_stage_kernel), dynamic_bytes);
}

}  // namespace ferry::cuda
