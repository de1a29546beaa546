// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The kernels of a usual dispatch in latency mode; usual.cuh says what that is, dispatch.cu is for calls of any kind.
#include "cuda/kernels.h"
#include "cuda/latency/usual_dispatch_recv.cuh"
#include "cuda/latency/usual_dispatch_send.cuh"

namespace ferry::cuda {
namespace latency {
namespace {

extern __shared__ __align__(128) std::byte shared_bytes[];

/// What the warps of a block tell each other.
struct Notices {
  Epochs epochs;
  int bad;        ///< token * 8 + choice of an id out of range
  bool repeated;  ///< a token names an expert twice
  bool failed;    ///< a wait of this block ended badly, or the call cannot be
};

/// What of the handle is about no token. By the block that keeps the books.
__device__ void write_usual_totals(const LatencyDispatchArgs& a, const UsualMemory& m, const UsualRouter& router,
                                   const Epochs& epochs) {
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), ranks = a.group.num_ranks;
  const int warps = threads / 32, slots = a.group.placement.num_slots;
  for (int slot = tid; slot < slots; slot += threads) a.handle.rank_of_slot[slot] = router.rank_of(slot);
  for (int rank = tid / 32; rank < ranks; rank += warps) {
    int choices = 0;
    for (int i = lane_idx(); i < a.num_local; i += 32) choices += m.totals[rank * a.num_local + i];
    choices = __reduce_add_sync(kAllLanes, choices);
    if (lane_idx() == 0) a.handle.choices_to[rank] = choices;
  }
  if (tid >= 32) return;
  const int mine = tid < ranks ? m.tokens[tid] : 0;
  if (tid < ranks) a.handle.tokens_to[tid] = mine;
  const int all = __reduce_add_sync(kAllLanes, mine);
  if (tid == 0) write_nodes(a.handle, all, epochs.now);
}

/// A call that failed leaves counts and weights of 0, and a handle with which a combine sends and awaits nothing. By every warp that
/// fails.
__device__ __noinline__ void clear_usual(const LatencyDispatchArgs& a, std::uint64_t epoch) {
  __threadfence();
  const int lane = lane_idx();
  for (int i = lane; i < a.num_tokens * kUsualTopK; i += 32)
    a.handle.slots[i] = a.handle.ranks[i] = a.handle.rows[i] = a.handle.tokens[i] = -1;
  for (int rank = lane; rank < a.group.num_ranks; rank += 32) {
    a.handle.tokens_to[rank] = a.handle.choices_to[rank] = a.handle.source_offsets[rank + 1] = 0;
  }
  for (int slot = lane; slot < a.group.placement.num_slots; slot += 32)
    a.handle.rank_of_slot[slot] = a.group.placement.rank_of_slot[slot];
  for (int e = lane; e <= a.num_local; e += 32) {
    if (e < a.num_local) a.handle.expert_counts[e] = 0;
    a.handle.expert_offsets[e] = 0;
  }
  if (lane == 0) a.handle.source_offsets[0] = 0;
  if (lane == 0) write_nodes(a.handle, 0, epoch);
  if (lane == 0 && a.num_rows != nullptr) *a.num_rows = 0;
  if (a.weights_out == nullptr) return;
  for (std::int64_t i = lane; i < a.num_local * a.shape.capacity; i += 32) a.weights_out[i] = 0.0f;
}

/// Sends. All threads of a block.
template <bool kCoded>
__device__ void send_usual(const UsualDispatchArgs& args, const UsualMemory& m, const Shifts& shifts,
                           const UsualRehearsal& rehearsal, Notices& notices) {
  const LatencyDispatchArgs& a = args.call;
  const bool gives = shifts.keeps_books && shifts.warp == shifts.warps - 1;
  // What needs no other load is asked for first, all of it; then comes the first wait.
  Peer peer(a.group, LatencyKind::kDispatch);
  UsualRouter router(args, m);
  UsualSender<kCoded> sender(args, m, router, peer, shifts);
  Epochs next;
  if (threadIdx.x == 0 || gives) next = next_epochs(a.group, LatencyKind::kDispatch);
  router.start();
  sender.start();
  if (threadIdx.x == 0) {
    notices.bad = UsualRouter::kNone;
    notices.repeated = notices.failed = false;
  }
  __syncthreads();
  if (threadIdx.x == 0) notices.epochs = next;
  if (!rehearsal.wanted) {
    if (const int mine = router.find(&notices.repeated); mine != UsualRouter::kNone) atomicMin(&notices.bad, mine);
  }
  const auto begin = [&](std::uint32_t& tag, bool& repeated) {
    if (meet_unless(rehearsal.wanted)) return true;
    const Epochs epochs = notices.epochs;
    tag = epochs.tag();
    repeated = notices.repeated;
    if (shifts.keeps_books) router.add_up(repeated);
    if (gives) give_credits(a.group, LatencyKind::kDispatch, next);
    if (threadIdx.x == blockDim.x - 1) file_call(a.group, LatencyKind::kDispatch, epochs);
    if (!peer.wait_credits(FaultStep::kDispatchSend, epochs)) {
      notices.failed = true;
      return false;
    }
    if (shifts.keeps_books) send_usual_manifests(a, m, peer, shifts, epochs, notices.bad);
    return notices.bad == UsualRouter::kNone;  // else this rank's own manifest says so
  };
  if (!sender.send_all(rehearsal.wanted, begin)) return;
  if (shifts.keeps_books) write_usual_totals(a, m, router, notices.epochs);
}

/// Receives; false in a warp for which the call has failed. All threads of a block.
template <bool kCoded>
__device__ bool receive_usual(const UsualDispatchArgs& args, const UsualMemory& m, const Shifts& shifts,
                              const UsualRehearsal& rehearsal, Notices& notices) {
  const LatencyDispatchArgs& a = args.call;
  UsualReceiver<kCoded> receiver(args, m, notices.epochs);
  const auto begin = [&] {
    if (!read_usual_manifests(a, m, shifts, notices.epochs)) notices.failed = true;
    __syncthreads();
    if (notices.failed) return false;
    if (shifts.keeps_books) write_usual_arrivals(a, m, notices.epochs);
    return true;
  };
  bool good = receiver.take_all(shifts, rehearsal.wanted, begin);
  // By every warp, for what it has written itself must be cleared behind it.
  if (good) good = all_experts_fit(a, m);
  if (good) clear_usual_weights(a, m, shifts);
  if (shifts.keeps_books) {
    // This warp's counts before the look: a warp that fails marks the call before it clears them.
    __threadfence();
    good = good && !has_failed(a.group, notices.epochs.now);
  }
  return __all_sync(kAllLanes, good) != 0;
}

template <Phase kPhase, bool kCoded>
__global__ void __launch_bounds__(kLatencyThreads, 2)
    usual_dispatch_kernel(const __grid_constant__ UsualDispatchArgs args) {
  __shared__ Notices notices;
  const LatencyDispatchArgs& a = args.call;
  UsualMemory memory;
  memory.lay_out(reinterpret_cast<std::size_t>(shared_bytes), a.group.placement.num_slots, a.group.num_ranks,
                 a.num_local, a.num_tokens);
  const Shifts shifts;
  const UsualRehearsal rehearsal(shifts, static_cast<int>(a.num_tokens) * (a.format.pieces() + 1),
                                 static_cast<int>(a.num_tokens), a.group.num_ranks);
  if constexpr (kPhase == Phase::kReceive) {
    resume_call(a.group, LatencyKind::kDispatch, notices.epochs);
    if (threadIdx.x == 0) notices.failed = false;
    __syncthreads();
  } else {
    send_usual<kCoded>(args, memory, shifts, rehearsal, notices);
  }
  if constexpr (kPhase == Phase::kSend) {
    __syncthreads();
    if (notices.failed || notices.bad != UsualRouter::kNone) clear_usual(a, notices.epochs.now);
  } else {
    if (!receive_usual<kCoded>(args, memory, shifts, rehearsal, notices)) clear_usual(a, notices.epochs.now);
    end_usual(a.group, LatencyKind::kDispatch, notices.epochs);
  }
}

template <bool kCoded>
const void* kernel_of(Phase phase) {
  switch (phase) {
    case Phase::kSend:
      return reinterpret_cast<const void*>(usual_dispatch_kernel<Phase::kSend, kCoded>);
    case Phase::kReceive:
      return reinterpret_cast<const void*>(usual_dispatch_kernel<Phase::kReceive, kCoded>);
    case Phase::kWhole:
      break;
  }
  return reinterpret_cast<const void*>(usual_dispatch_kernel<Phase::kWhole, kCoded>);
}

}  // namespace
}  // namespace latency

std::size_t usual_dispatch_shared_bytes(const LatencySize& size) {
  return latency::UsualMemory().lay_out(0, size.num_slots, size.num_ranks, size.num_local, size.choices / kUsualTopK);
}

void launch_usual_dispatch(const UsualDispatchArgs& args, Phase phase, const Launch& launch, cudaStream_t stream) {
  void* arguments[] = {const_cast<UsualDispatchArgs*>(&args)};
  const void* kernel =
      args.call.codec == Codec::kNone ? latency::kernel_of<false>(phase) : latency::kernel_of<true>(phase);
  cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(launch.blocks)), dim3(static_cast<unsigned>(launch.threads)),
                   arguments, launch.shared_bytes, stream);
}

void prepare_usual_dispatch(int dynamic_bytes) {
  for (const Phase phase : {Phase::kSend, Phase::kReceive, Phase::kWhole}) {
    prepare_kernel(latency::kernel_of<false>(phase), dynamic_bytes);
    prepare_kernel(latency::kernel_of<true>(phase), dynamic_bytes);
  }
}

}  // namespace ferry::cuda
