// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of step 5, combine_send, that sends weights ahead to ranks of other nodes: those sum rows of this rank's tokens with them.
// Runs before combine_send, which sums. See the host step of this name.
#include "cuda/device/lanes.cuh"
#include "cuda/device/network.cuh"
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

constexpr FaultStep kStep = FaultStep::kCombineSend;
constexpr int kThreads = 512;

/// Until every rank of another node has read what the flight's last combine brought it, and the engine has taken the weights that were
/// staged then. All threads of a block.
__device__ bool await_room(const GroupArgs& group, const NetworkArgs& net, std::uint64_t epoch) {
  const std::uint64_t last = group.state->combine_epoch[group.flight];
  bool good = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks && last != 0;
       peer += static_cast<int>(blockDim.x)) {
    if (net.window_slot[peer] < 0) continue;
    good = wait_network(group, kStep, epoch, NetworkWord::kRead, peer, group.flight, 0, total_of(last)) != 0 && good;
  }
  if (threadIdx.x == 0) good = wait_completed(group, net, kStep, epoch, net.state->combine_busy[group.flight]) && good;
  return __syncthreads_and(good) != 0;
}

/// The row at `rank` of this rank's first token there; 0 if there is none. A whole warp.
__device__ std::int32_t first_row_at(const CombineArgsOnDevice& a, int rank) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t choices = a.num_tokens * a.top_k;
  for (std::int64_t begin = 0; begin < choices; begin += 32) {
    const std::int64_t at = begin + lane;
    const bool there = at < choices && a.handle.ranks[at] == rank;
    const unsigned found = __ballot_sync(kAll, there);
    if (found != 0) return __shfl_sync(kAll, there ? a.handle.tokens[at] : 0, __ffs(static_cast<int>(found)) - 1);
  }
  return 0;
}

/// A warp per token copies its weights for every rank of another node that has rows of it; those for one rank lie side by side.
__device__ void stage_weights(const CombineArgsOnDevice& a, const NetworkArgs& net, const std::int32_t* first_rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32, k = a.top_k;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
  for (std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; t < a.num_tokens;
       t += step) {
    const std::int32_t rank = lane < k ? a.handle.ranks[t * k + lane] : -1;
    const bool goes = rank >= 0 && net.window_slot[rank] >= 0;
    const unsigned same = __match_any_sync(kAll, goes ? rank : -1 - lane);
    const bool first = goes && (same & ((1u << lane) - 1)) == 0;
    const std::int32_t row = first ? a.handle.tokens[t * k + lane] - first_rows[rank] : 0;
    for (unsigned left = __ballot_sync(kAll, first); left != 0; left &= left - 1) {
      const int who = __ffs(static_cast<int>(left)) - 1;
      const int to_rank = __shfl_sync(kAll, rank, who);
      const std::int64_t to_row = __shfl_sync(kAll, row, who);
      auto* to = reinterpret_cast<float*>(a.group.own_window +
                                          a.group.layout.network.weights_staging_at(a.group.flight, to_rank)) +
                 to_row * k;
      if (lane < k) to[lane] = a.weights[t * a.weights_stride[0] + lane * a.weights_stride[1]];
    }
  }
}

/// Puts each rank's weights behind those of lower sources there, and says so. The last block.
__device__ void put_weights(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch,
                            const std::int32_t* first_rows) {
  const GroupArgs& group = a.group;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (net.window_slot[peer] < 0) continue;
    const std::int64_t row_bytes = 4 * static_cast<std::int64_t>(a.top_k);
    const std::int64_t to = group.layout.weights_ahead + group.flight * group.layout.weights_ahead_stride;
    const std::byte* from = group.own_window + group.layout.network.weights_staging_at(group.flight, peer);
    if (network_put(group, net, kStep, epoch, peer, to + first_rows[peer] * row_bytes, from,
                    a.handle.tokens_to[peer] * row_bytes))
      network_post(group, net, kStep, epoch, peer, NetworkWord::kWeights, group.flight, 0, total_of(epoch));
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const std::uint64_t commands = commands_so_far(net);
  net.state->combine_busy[group.flight] = commands;
  *net.ring.submitted = commands;
}

extern __shared__ std::int32_t shared_rows[];

__global__ void __launch_bounds__(kThreads, 1)
    send_weights_kernel(const __grid_constant__ CombineArgsOnDevice a, const __grid_constant__ NetworkArgs net) {
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->epoch + 1;
  for (int rank = static_cast<int>(threadIdx.x) / 32; rank < group.num_ranks; rank += kThreads / 32) {
    const std::int32_t row = net.window_slot[rank] < 0 ? 0 : first_row_at(a, rank);
    if (threadIdx.x % 32 == 0) shared_rows[rank] = row;
  }
  bool good = !__syncthreads_or(has_failed(group, epoch));
  good = good && await_room(group, net, epoch);
  if (good) stage_weights(a, net, shared_rows);
  __threadfence_system();
  if (is_last_block(group) && !has_failed(group, epoch)) put_weights(a, net, epoch, shared_rows);
}

/// Until the weights of all ranks of other nodes are here.
__global__ void await_weights_kernel(const __grid_constant__ CombineArgsOnDevice a,
                                     const __grid_constant__ NetworkArgs net) {
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->epoch + 1;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (net.window_slot[peer] >= 0)
      wait_network(group, kStep, epoch, NetworkWord::kWeights, peer, group.flight, 0, total_of(epoch));
  }
}

}  // namespace

void launch_weights_across(const CombineArgsOnDevice& args, const NetworkArgs& network, const Launch& launch,
                           cudaStream_t stream) {
  send_weights_kernel<<<launch.blocks, kThreads, static_cast<std::size_t>(args.group.num_ranks) * 4, stream>>>(args,
                                                                                                               network);
  await_weights_kernel<<<1, 128, 0, stream>>>(args, network);
}

void prepare_combine_weights(int dynamic_bytes) {
  prepare_kernel(reinterpret_cast<const void*>(send_weights_kernel), dynamic_bytes);
  prepare_kernel(reinterpret_cast<const void*>(await_weights_kernel), 0);
}

}  // namespace ferry::cuda
