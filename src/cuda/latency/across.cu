// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Latency mode between nodes, a direct path: every source reaches every destination itself, and nothing is forwarded. The kernels that
// send store packets for ranks of other nodes into an outbox, which has the places of their windows; kernels here have them put there
// and say so, and wait for what others put, so that every packet is here when the kernels that receive look. Send halves are three
// kernels then, receive halves two; while data is on the wire nothing runs.
#include "cuda/device/network.cuh"
#include "cuda/kernels.h"
#include "cuda/latency/combine_send.cuh"

namespace ferry::cuda {
namespace latency {
namespace {

constexpr int kThreads = 512;

__device__ NetworkWord word_of(LatencyKind kind) {
  return kind == LatencyKind::kDispatch ? NetworkWord::kLatencyDispatch : NetworkWord::kLatencyCombine;
}
__device__ FaultStep send_step(LatencyKind kind) {
  return kind == LatencyKind::kDispatch ? FaultStep::kDispatchSend : FaultStep::kCombineSend;
}

/// The last call of a kind and flight that was read here. Of the regions that the call of `kind` on its flight takes over, that is every
/// call before it, also one that nobody received.
__device__ std::uint64_t last_read(const GroupArgs& group, LatencyKind kind, int which, int flight) {
  if (which == index_of(kind) && flight == group.flight) return group.state->epoch;
  return group.state->latency_read[which][flight];
}

/// Tells ranks of other nodes which calls were read here, before anything is waited for: their sends wait for it. Then, until the
/// engine has taken what the flight's last call left in the outbox. One block.
__global__ void credits_kernel(const __grid_constant__ GroupArgs group, const __grid_constant__ NetworkArgs net,
                               LatencyKind kind) {
  const std::uint64_t epoch = group.state->epoch + 1;
  const LatencyLayout& layout = group.layout.latency;
  const int flights = static_cast<int>(layout.num_flights);
  for (int i = static_cast<int>(threadIdx.x); i < group.num_ranks * 2 * flights; i += static_cast<int>(blockDim.x)) {
    const int peer = i / (2 * flights), which = i / flights % 2, flight = i % flights;
    const std::uint64_t read = last_read(group, kind, which, flight);
    if (net.window_slot[peer] < 0 || read <= net.state->latency_told[which][flight]) continue;
    delay_signal(group, peer);
    const std::int64_t at = layout.credit_at(static_cast<LatencyKind>(which), flight, group.rank);
    command(group, net, send_step(kind), epoch,
            net::pack_post(static_cast<std::uint32_t>(net.window_slot[peer]), static_cast<std::uint64_t>(at),
                           read << LatencyLayout::kBankBits));
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 2 * flights; i += static_cast<int>(blockDim.x)) {
    std::uint64_t& told = net.state->latency_told[i / flights][i % flights];
    told = max(told, last_read(group, kind, i / flights, i % flights));
  }
  if (threadIdx.x != 0) return;
  wait_completed(group, net, send_step(kind), epoch, net.state->latency_busy[index_of(kind)][group.flight]);
  *net.ring.submitted = commands_so_far(net);
}

/// Says that everything for a rank is on its way, or that it never will be. After the puts of all threads of the only block.
__device__ void post_all(const GroupArgs& group, const NetworkArgs& net, LatencyKind kind, std::uint64_t epoch) {
  __syncthreads();
  const std::uint64_t count = has_failed(group, epoch) ? kNetworkGivenUp : 0;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (net.window_slot[peer] >= 0)
      network_post(group, net, send_step(kind), epoch, peer, word_of(kind), group.flight, 0, total_of(epoch) | count);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const std::uint64_t commands = commands_so_far(net);
  net.state->latency_busy[index_of(kind)][group.flight] = commands;
  *net.ring.submitted = commands;
}

/// Of a rank of another node: what lies at `offset` of its outbox.
__device__ bool put_from_outbox(const GroupArgs& group, const NetworkArgs& net, LatencyKind kind, std::uint64_t epoch,
                                int peer, std::int64_t offset, std::int64_t bytes) {
  return network_put(group, net, send_step(kind), epoch, peer, offset, group.windows[peer] + offset, bytes);
}

/// A manifest and the slots filled for each rank of another node.
__global__ void __launch_bounds__(kThreads)
    ship_dispatch_kernel(const __grid_constant__ GroupArgs group, const __grid_constant__ NetworkArgs net,
                         const std::int32_t* tokens_to) {
  constexpr LatencyKind kKind = LatencyKind::kDispatch;
  const std::uint64_t epoch = group.state->latency_epoch[index_of(kKind)][group.flight];
  const LatencyLayout& layout = group.layout.latency;
  const bool failed = __syncthreads_or(has_failed(group, epoch)) != 0;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks && !failed;
       peer += static_cast<int>(blockDim.x)) {
    if (net.window_slot[peer] < 0) continue;
    if (put_from_outbox(group, net, kKind, epoch, peer, layout.manifest_at(group.flight, group.rank),
                        layout.manifest_bytes))
      put_from_outbox(group, net, kKind, epoch, peer, layout.slot_at(group.flight, group.rank, 0),
                      tokens_to[peer] * layout.slot_bytes);
  }
  post_all(group, net, kKind, epoch);
}

/// A note for each rank of another node, and the rows that this rank has for its tokens, one by one.
__global__ void __launch_bounds__(kThreads)
    ship_combine_kernel(const __grid_constant__ CombineArgsOnDevice a, const __grid_constant__ NetworkArgs net) {
  constexpr LatencyKind kKind = LatencyKind::kCombine;
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->latency_epoch[index_of(kKind)][group.flight];
  const LatencyLayout& layout = group.layout.latency;
  const int lane = lane_idx(), warps = kThreads / 32;
  const bool failed = __syncthreads_or(has_failed(group, epoch)) != 0;
  const int rows = failed ? 0 : a.handle.source_offsets[group.num_ranks];
  for (int n = static_cast<int>(threadIdx.x) / 32; n < rows; n += warps) {
    const wire::TokenMeta record(a.handle.records + n * wire::TokenMeta::bytes(a.top_k), a.top_k);
    const int source = record.source_rank();
    if (net.window_slot[source] < 0) continue;
    const std::int32_t slot = lane < a.top_k ? record.slots()[lane] : -1;
    const std::int32_t rank = slot < 0 ? -1 : a.handle.rank_of_slot[slot];
    const int place = return_place(rank, group.rank);
    // flat: a lane per choice of this rank; else one row.
    const bool puts = is_flat(a) ? rank == group.rank : lane == 0;
    if (puts)
      put_from_outbox(group, net, kKind, epoch, source,
                      layout.return_at(group.flight, 0, record.source_token(), is_flat(a) ? lane : place),
                      layout.return_bytes);
  }
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks && !failed; peer += kThreads) {
    if (net.window_slot[peer] >= 0)
      put_from_outbox(group, net, kKind, epoch, peer, layout.note_at(group.flight, group.rank), wire::kPacketBytes);
  }
  post_all(group, net, kKind, epoch);
}

/// Until everything that ranks of other nodes put for this call is here. One block.
__global__ void await_kernel(const __grid_constant__ GroupArgs group, const __grid_constant__ NetworkArgs net,
                             LatencyKind kind) {
  const std::uint64_t epoch = group.state->latency_epoch[index_of(kind)][group.flight];
  const FaultStep step = kind == LatencyKind::kDispatch ? FaultStep::kDispatchRecv : FaultStep::kCombineRecv;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (net.window_slot[peer] < 0) continue;
    check_network_word(group, step, epoch, peer,
                       wait_network(group, step, epoch, word_of(kind), peer, group.flight, 0, total_of(epoch)));
  }
}

}  // namespace
}  // namespace latency

void launch_latency_credits(const GroupArgs& group, const NetworkArgs& network, LatencyKind kind, cudaStream_t stream) {
  latency::credits_kernel<<<1, 128, 0, stream>>>(group, network, kind);
}
void launch_latency_ship(const LatencyDispatchArgs& args, const NetworkArgs& network, cudaStream_t stream) {
  latency::ship_dispatch_kernel<<<1, latency::kThreads, 0, stream>>>(args.group, network, args.handle.tokens_to);
}
void launch_latency_ship(const CombineArgsOnDevice& args, const NetworkArgs& network, cudaStream_t stream) {
  latency::ship_combine_kernel<<<1, latency::kThreads, 0, stream>>>(args, network);
}
void launch_latency_await(const GroupArgs& group, const NetworkArgs& network, LatencyKind kind, cudaStream_t stream) {
  latency::await_kernel<<<1, 128, 0, stream>>>(group, network, kind);
}

void prepare_latency_across() {
  for (const void* kernel : {reinterpret_cast<const void*>(latency::credits_kernel),
                             reinterpret_cast<const void*>(latency::ship_dispatch_kernel),
                             reinterpret_cast<const void*>(latency::ship_combine_kernel),
                             reinterpret_cast<const void*>(latency::await_kernel)})
    prepare_kernel(kernel, 0);
}

}  // namespace ferry::cuda
