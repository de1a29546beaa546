// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The kernels of a dispatch in latency mode: its steps one after the other, or each half in a kernel of its own.
#include "cuda/kernels.h"
#include "cuda/latency/dispatch_recv.cuh"
#include "cuda/latency/dispatch_send.cuh"

namespace ferry::cuda {
namespace latency {
namespace {

extern __shared__ __align__(128) std::byte shared_bytes[];

/// What of the handle is about no token; by one block.
__device__ void write_totals(const LatencyDispatchArgs& a, const RoutingMemory& routing, const Epochs& epochs) {
  const PlacementArgs& p = a.group.placement;
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int rank = tid; rank < a.group.num_ranks; rank += threads) {
    std::int32_t choices = 0;
    for (int slot = p.first_slot[rank]; slot < p.first_slot[rank + 1]; ++slot) choices += routing.slot_counts[slot];
    a.handle.choices_to[rank] = choices;
    a.handle.tokens_to[rank] = routing.rank_counts[rank];
  }
  for (int slot = tid; slot < p.num_slots; slot += threads) a.handle.rank_of_slot[slot] = p.rank_of_slot[slot];
  if (tid != threads - 1) return;
  std::int32_t to_node = 0;
  for (int rank = 0; rank < a.group.num_ranks; ++rank) to_node += routing.rank_counts[rank];
  write_nodes(a.handle, to_node, epochs.now);
}

/// A call that failed leaves a handle with which a combine sends and awaits nothing. By every block that fails.
__device__ void clear_choices(const LatencyDispatchArgs& a, const Epochs& epochs) {
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = tid; i < a.num_tokens * a.top_k; i += threads)
    a.handle.slots[i] = a.handle.ranks[i] = a.handle.rows[i] = a.handle.tokens[i] = -1;
  for (int rank = tid; rank < a.group.num_ranks; rank += threads)
    a.handle.tokens_to[rank] = a.handle.choices_to[rank] = 0;
  for (int slot = tid; slot < a.group.placement.num_slots; slot += threads)
    a.handle.rank_of_slot[slot] = a.group.placement.rank_of_slot[slot];
  if (tid == 0) write_nodes(a.handle, 0, epochs.now);
}

/// Sends; false if the call ends here. All threads of a block; `at`: shared memory.
__device__ bool send(const LatencyDispatchArgs& a, std::size_t at, Epochs& epochs) {
  __shared__ int bad;
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  RoutingMemory routing;
  at = routing.lay_out(at, a.group.placement.num_experts, a.group.placement.num_slots, a.group.num_ranks,
                       a.num_tokens * a.top_k);
  Router router(a, routing);
  DispatchSender sender(a, routing, reinterpret_cast<std::uint32_t*>(at) + warp * kScaleWords, router);
  // What needs no other load is asked for first, all of it; then comes the first wait.
  const Epochs next = next_epochs(a.group, LatencyKind::kDispatch);
  Credits credits(a.group, LatencyKind::kDispatch);
  sender.start();
  Manifest manifest(a, routing);
  router.start();
  if (blockIdx.x == gridDim.x - 1 && warp == warps - 1) give_credits(a.group, LatencyKind::kDispatch, next);
  if (threadIdx.x == 0) {
    epochs = next;
    bad = Router::kNone;
  }
  __syncthreads();
  if (const int mine = router.find_slots(); mine != Router::kNone) atomicMin(&bad, mine);
  __syncthreads();
  router.number();
  if (threadIdx.x == blockDim.x - 1) file_call(a.group, LatencyKind::kDispatch, epochs);
  const bool may_send = credits.wait(FaultStep::kDispatchSend, epochs, routing.windows);
  if (may_send) manifest.send_all(epochs, bad);
  if (!may_send || bad != Router::kNone) {
    if (a.write_handle) clear_choices(a, epochs);
    return may_send;
  }
  sender.send_all(epochs);
  if (a.write_handle && blockIdx.x == gridDim.x - 1) write_totals(a, routing, epochs);
  return true;
}

/// Counts of the call for the host, from the handle; by one block.
__device__ void tell_host(const LatencyDispatchArgs& a, bool good) {
  const HandleArgs& h = a.handle;
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), ranks = a.group.num_ranks;
  if (a.counts == nullptr) return;
  __syncthreads();
  auto* out = reinterpret_cast<volatile std::int32_t*>(a.counts + 1);
  for (int i = tid; i <= ranks; i += threads) out[i] = load_relaxed(h.source_offsets + i);
  for (int i = tid; i < a.num_local; i += threads) out[ranks + 1 + i] = load_relaxed(h.expert_counts + i);
  for (int i = tid; i <= a.num_local; i += threads)
    out[ranks + 1 + a.num_local + i] = load_relaxed(h.expert_offsets + i);
  __threadfence_system();
  __syncthreads();
  if (tid != 0) return;
  volatile HostCounts* counts = a.counts;
  counts->num_rows = load_relaxed(a.num_rows);
  counts->num_expert_rows = load_relaxed(h.expert_offsets + a.num_local);
  counts->failed = good ? 0 : 1;
  __threadfence_system();
  counts->ticket = a.ticket;
}

/// Counts and offsets of what came, for the handle and the result; by one block. For the host, too, unless the half may have to be
/// made again.
__device__ void write_arrivals(const LatencyDispatchArgs& a, const ArrivalMemory& m, bool good) {
  const HandleArgs& h = a.handle;
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), ranks = a.group.num_ranks;
  if (a.write_handle) {
    for (int r = tid; r <= ranks; r += threads) h.source_offsets[r] = good ? m.row_starts[r] : 0;
    for (int e = tid; e <= a.num_local; e += threads) {
      if (e < a.num_local) h.expert_counts[e] = good ? m.expert_counts[e] : 0;
      const bool padded = a.shape.layout == Layout::kExpertPadded;
      h.expert_offsets[e] = good && padded ? static_cast<std::int32_t>(e * a.shape.capacity) : 0;
    }
  }
  if (tid == 0) *a.num_rows = good ? m.row_starts[ranks] : 0;
  if (a.group.auto_masks != 0) return;  // the last block says the rest
  for (int e = tid; good && e < a.num_local; e += threads) count_rows(a.recv_counts, e, m.expert_counts[e]);
  tell_host(a, good);
}

/// Groups that mask on the way: when nothing is made again any more. By one block.
__device__ void tell_result(const LatencyDispatchArgs& a, bool good) {
  tell_host(a, good);
  for (int e = static_cast<int>(threadIdx.x); good && e < a.num_local; e += static_cast<int>(blockDim.x))
    count_rows(a.recv_counts, e, load_relaxed(a.handle.expert_counts + e));
}

/// A call that failed leaves counts of 0. Whoever fails does it, and the last block once it has written
/// counts: one of the two comes last.
__device__ void clear_counts(const LatencyDispatchArgs& a) {
  __threadfence();
  if (threadIdx.x == 0) *a.num_rows = 0;
  if (!a.write_handle) return;
  for (int r = static_cast<int>(threadIdx.x); r <= a.group.num_ranks; r += static_cast<int>(blockDim.x))
    a.handle.source_offsets[r] = 0;
  for (int e = static_cast<int>(threadIdx.x); e < a.num_local; e += static_cast<int>(blockDim.x))
    a.handle.expert_counts[e] = 0;
}

/// `good`: the call has not ended yet. All threads of a block; `epochs` are known after its next barrier.
__device__ void receive(const LatencyDispatchArgs& a, std::size_t at, const Epochs& epochs, bool good,
                        const Team& team) {
  ArrivalMemory memory;
  memory.lay_out(at, a.group.num_ranks, a.num_local);
  Arrivals arrivals(a, memory);
  // Behind this barrier, what sending kept in this memory is not needed any more.
  good = __syncthreads_and(good) != 0 && arrivals.read(epochs);
  if (team.is_last()) write_arrivals(a, memory, good);  // the first blocks have rows to take
  DispatchReceiver receiver(a, memory, arrivals, epochs, team);
  good = good && receiver.take_all();
  good = __syncthreads_and(good) != 0;
  if (good) {
    receiver.clear_rest(arrivals.num_rows());
    if (team.is_last()) {
      __threadfence();  // the counts of this block before the look: a block that fails marks the call before it clears them
      good = !has_failed(a.group, epochs.now);
    }
  }
  if (!good && (has_failed(a.group, epochs.now) || !is_late(a.group, epochs.now))) {
    receiver.clear_rest(0);
    clear_counts(a);
    if (a.write_handle) clear_choices(a, epochs);
  }
  if (team.is_first()) file_read(a.group, LatencyKind::kDispatch, epochs);
  if (team.is_last()) renew_tags(a.group, LatencyKind::kDispatch, epochs);
}

template <Phase kPhase>
__global__ void __launch_bounds__(kLatencyThreads, 2)
    latency_dispatch_kernel(const __grid_constant__ LatencyDispatchArgs a) {
  __shared__ Epochs epochs;
  const auto at = reinterpret_cast<std::size_t>(shared_bytes);
  bool good = true;
  if constexpr (kPhase == Phase::kReceive) {
    resume_call(a.group, LatencyKind::kDispatch, epochs);
    copy_windows(a.group, reinterpret_cast<std::byte**>(at));
  } else {
    good = send(a, at, epochs);
  }
  if constexpr (kPhase != Phase::kSend) {
    Team team;
    do {
      receive(a, at, epochs, good, team);
      good = !has_failed(a.group, epochs.now);
    } while (makes_again(a.group, LatencyKind::kDispatch, epochs, team, reinterpret_cast<std::byte**>(at)));
    if (team.again) tell_result(a, !has_failed(a.group, epochs.now));
  }
}

const void* kernel_of(Phase phase) {
  switch (phase) {
    case Phase::kSend:
      return reinterpret_cast<const void*>(latency_dispatch_kernel<Phase::kSend>);
    case Phase::kReceive:
      return reinterpret_cast<const void*>(latency_dispatch_kernel<Phase::kReceive>);
    case Phase::kWhole:
      break;
  }
  return reinterpret_cast<const void*>(latency_dispatch_kernel<Phase::kWhole>);
}

}  // namespace
}  // namespace latency

std::size_t latency_dispatch_shared_bytes(const LatencySize& size, int warps) {
  latency::RoutingMemory routing;
  const std::size_t send = routing.lay_out(0, size.num_experts, size.num_slots, size.num_ranks, size.choices) +
                           static_cast<std::size_t>(warps) * latency::kScaleWords * sizeof(std::uint32_t);
  latency::ArrivalMemory arrivals;
  const std::size_t receive = arrivals.lay_out(0, size.num_ranks, size.num_local);
  return std::max(send, receive);
}

void launch_latency_dispatch(const LatencyDispatchArgs& args, Phase phase, const Launch& launch, cudaStream_t stream) {
  void* arguments[] = {const_cast<LatencyDispatchArgs*>(&args)};
  cudaLaunchKernel(latency::kernel_of(phase), dim3(static_cast<unsigned>(launch.blocks)),
                   dim3(static_cast<unsigned>(launch.threads)), arguments, launch.shared_bytes, stream);
}

void prepare_latency_dispatch(int dynamic_bytes) {
  for (const Phase phase : {Phase::kSend, Phase::kReceive, Phase::kWhole})
    prepare_kernel(latency::kernel_of(phase), dynamic_bytes);
}

}  // namespace ferry::cuda
