// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Signals between ranks, faults, and the waits of kernels: for ranks (Patience: a deadline, an abort, or a call that has failed
// ends them) and for the blocks of the grid (grid_barrier: a deadline). A kernel that gives up marks the call as failed, so that
// its other kernels do nothing.
#pragma once

#include "cuda/args.h"
#include "cuda/device/ptx.cuh"

namespace ferry::cuda {

__device__ inline std::uint64_t total_of(std::uint64_t epoch, std::int64_t count = 0) {
  return epoch << 24 | static_cast<std::uint64_t>(count);
}

__device__ inline std::uint64_t* own_signal(const GroupArgs& group, DeviceSignal kind, int writer, int flight) {
  return reinterpret_cast<std::uint64_t*>(group.windows[group.rank] + group.layout.signal_at(kind, flight, writer));
}
__device__ inline std::uint64_t* own_signal(const GroupArgs& group, DeviceSignal kind, int writer) {
  return own_signal(group, kind, writer, group.flight);
}

/// Test mode: a pause of random length, to bring orders about that are rare otherwise.
__device__ __noinline__ inline void pause_at_random(const GroupArgs& group, int peer) {
  std::uint32_t mixed =
      group.delay_seed ^ static_cast<std::uint32_t>(now_ns()) ^ static_cast<std::uint32_t>(peer * 40503);
  mixed = (mixed ^ (mixed >> 15)) * 2246822519u;
  mixed = (mixed ^ (mixed >> 13)) * 3266489917u;
  const std::int64_t until = now_ns() + mixed % group.max_delay_ns;
  while (now_ns() < until) {
  }
}
__device__ inline void delay_signal(const GroupArgs& group, int peer) {
  if (group.max_delay_ns != 0) pause_at_random(group, peer);
}

/// Makes this rank's signal at `peer` become `total`. Whatever the caller ordered before it (its own stores; those of other
/// threads that it synchronised with) is visible to whoever acquires the signal.
__device__ inline void post(const GroupArgs& group, DeviceSignal kind, int peer, std::uint64_t total) {
  delay_signal(group, peer);
  std::byte* window = group.windows[peer];
  if (window == nullptr) return;
  store_release(reinterpret_cast<std::uint64_t*>(window + group.layout.signal_at(kind, group.flight, group.rank)),
                total);
}

/// The first fault of a group is kept until the host has read it; every fault ends the call. Rare, so its code stands once.
__device__ __noinline__ inline void fail(const GroupArgs& group, std::uint64_t epoch, Fault fault) {
  atomicExch(reinterpret_cast<unsigned long long*>(&group.state->failed_epoch), epoch);
  if (atomicExch(&group.state->fault_taken, 1u) != 0) return;
  volatile Fault* out = group.fault;
  out->step = fault.step;
  out->peer = fault.peer;
  out->expert = fault.expert;
  out->epoch = epoch;
  out->seen = fault.seen;
  out->wanted = fault.wanted;
  out->where = fault.where;
  out->value = fault.value;
  __threadfence_system();
  out->kind = fault.kind;
}

__device__ inline bool has_failed(const GroupArgs& group, std::uint64_t epoch) {
  return load_relaxed(&group.state->failed_epoch) == epoch;
}

/// Where a call receives, everybody has sent what others wait for: who is found late there ends the half, which is made again.
__device__ inline bool receives(FaultStep step) {
  return step == FaultStep::kDispatchRecv || step == FaultStep::kCombineRecv;
}

/// The group's table of windows, in which whoever is masked on the way becomes null. Other blocks may write it.
__device__ inline std::byte* window_now(const GroupArgs& group, int rank) {
  return reinterpret_cast<std::byte*>(load_relaxed(reinterpret_cast<const std::uint64_t*>(group.windows + rank)));
}

/// True if the group goes on without `peer`. Its late packets then cross into regions of its own, and into return slots that no
/// call uses for which it has no credit yet: one new set of them for each half of a call in which somebody is late.
__device__ __noinline__ inline bool mask_late(const GroupArgs& group, FaultStep step, std::uint64_t epoch, int peer) {
  constexpr int kBits = LatencyLayout::kBankBits;
  DeviceState& state = *group.state;
  const std::uint64_t half = epoch << 1 | (receives(step) ? 1u : 0u);
  auto* event = reinterpret_cast<unsigned long long*>(&state.bank_event);
  for (unsigned long long seen = load_relaxed(&state.bank_event); seen >> kBits != half;) {
    const unsigned long long bank = (seen & ((1u << kBits) - 1)) + 1;
    if (bank > static_cast<unsigned long long>(group.auto_masks)) return false;
    const unsigned long long before = atomicCAS(event, seen, half << kBits | bank);
    if (before == seen) break;
    seen = before;
  }
  auto* entry = reinterpret_cast<unsigned long long*>(const_cast<std::byte**>(group.windows + peer));
  if (auto* window = reinterpret_cast<std::byte*>(atomicExch(entry, 0ull)); window != nullptr) {
    group.late[peer] = epoch;
    store_relaxed(reinterpret_cast<std::uint64_t*>(window + group.layout.latency.left_out_at(group.rank)), 1);
  }
  __threadfence();  // the table before the word by which the half is made again
  if (receives(step)) atomicExch(reinterpret_cast<unsigned long long*>(&state.late_epoch), epoch);
  return true;
}

__device__ inline bool is_late(const GroupArgs& group, std::uint64_t epoch) {
  return group.auto_masks != 0 && load_relaxed(&group.state->late_epoch) == epoch;
}

/// Whether a peer waits itself, as far as that shows within a sixteenth of the deadline: then it is late because of somebody else.
__device__ __noinline__ inline bool is_waiting_itself(const GroupArgs& group, int peer) {
  const std::byte* window = window_now(group, peer);
  if (window == nullptr) return false;
  const auto* word = reinterpret_cast<const std::uint64_t*>(window + group.layout.latency.waiting_at(peer));
  const std::uint64_t before = load_relaxed(word);
  for (const std::int64_t start = now_ns(); now_ns() - start < group.timeout_ns / 16;) {
    __nanosleep(2000);
    if (load_relaxed(word) != before) return true;
  }
  return false;
}

/// What groups that mask look at while they wait. Deadlines that a rank may be late because of another one: 4.
enum class LateWait : std::int32_t { kGoesOn, kIsOver, kFails };
__device__ __noinline__ inline LateWait look_who_is_late(const GroupArgs& group, FaultStep step, std::uint64_t epoch,
                                                         int writer, std::int64_t waited_ns) {
  const LatencyLayout& layout = group.layout.latency;
  if (receives(step) && is_late(group, epoch)) return LateWait::kIsOver;
  if (window_now(group, writer) == nullptr) {  // by another block, or while this call was sent
    if (receives(step)) atomicExch(reinterpret_cast<unsigned long long*>(&group.state->late_epoch), epoch);
    return LateWait::kIsOver;
  }
  if (load_relaxed(reinterpret_cast<const std::uint64_t*>(group.own_window + layout.left_out_at(writer))) != 0) {
    fail(group, epoch, {.kind = FaultKind::kLeftOut, .step = step, .peer = writer});
    return LateWait::kIsOver;
  }
  store_relaxed(reinterpret_cast<std::uint64_t*>(group.own_window + layout.waiting_at(group.rank)),
                static_cast<std::uint64_t>(now_ns()));
  if (waited_ns <= group.timeout_ns) return LateWait::kGoesOn;
  if (waited_ns <= 4 * group.timeout_ns && is_waiting_itself(group, writer)) return LateWait::kGoesOn;
  return mask_late(group, step, epoch, writer) ? LateWait::kIsOver : LateWait::kFails;
}

/// Whether a wait that began at `start` is over: at its deadline, by an abort, or because another thread has given up. What is
/// rare stands once, and takes values, so that nothing of a wait has to lie in memory.
__device__ __noinline__ inline bool wait_is_over(const GroupArgs& group, FaultStep step, std::uint64_t epoch,
                                                 int writer, std::int64_t start, bool look_at_host, std::uint64_t seen,
                                                 std::uint64_t wanted) {
  if (has_failed(group, epoch)) return true;
  Fault fault{.kind = FaultKind::kTimeout, .step = step, .peer = writer, .seen = seen, .wanted = wanted};
  const bool aborted = look_at_host && load_relaxed(group.abort_word) != 0;
  if (group.auto_masks != 0 && !aborted) {
    const LateWait late = look_who_is_late(group, step, epoch, writer, now_ns() - start);
    if (late != LateWait::kFails) return late == LateWait::kIsOver;
  } else if (now_ns() - start <= group.timeout_ns) {
    if (!aborted) return false;
    fault.kind = FaultKind::kAborted;
  }
  fail(group, epoch, fault);
  return true;
}

/// What ends a wait of one thread.
class Patience {
 public:
  __device__ Patience(const GroupArgs& group, FaultStep step, std::uint64_t epoch, int writer)
      : group_(group), step_(step), epoch_(epoch), writer_(writer) {}

  /// After each look in vain. The clock starts with the 64th: reading it takes longer than most waits.
  __device__ bool is_over(std::uint64_t seen, std::uint64_t wanted) {
    if (++looks_ % 64 != 0) return false;
    if (start_ == 0) start_ = now_ns();
    return wait_is_over(group_, step_, epoch_, writer_, start_, looks_ % 4096 == 0, seen, wanted);
  }

 private:
  const GroupArgs& group_;
  const FaultStep step_;
  const std::uint64_t epoch_;
  const int writer_;
  std::int64_t start_ = 0;
  unsigned looks_ = 0;
};

/// Waits until the signal `kind` of `writer` in this rank's window has reached `wanted`. False if it gave up.
__device__ inline bool wait_signal(const GroupArgs& group, FaultStep step, std::uint64_t epoch, DeviceSignal kind,
                                   int writer, std::uint64_t wanted, int flight) {
  const std::uint64_t* signal = own_signal(group, kind, writer, flight);
  Patience patience(group, step, epoch, writer);
  for (;;) {
    const std::uint64_t seen = load_acquire(signal);
    if (seen >= wanted) return true;
    if (patience.is_over(seen, wanted)) return false;
  }
}

enum class WordIs : std::int32_t { kHere, kOverwritten, kMissing };

/// Waits until a word of `writer` belongs to this exchange, and reads it. Overwritten: the writer has gone on to a later one.
/// Missing: the wait gave up. Orders nothing.
__device__ inline WordIs wait_word(const GroupArgs& group, FaultStep step, std::uint64_t epoch, const CountWord* word,
                                   std::uint64_t exchange, int writer, std::uint32_t& value) {
  const auto wanted = static_cast<std::uint32_t>(exchange);
  Patience patience(group, step, epoch, writer);
  for (;;) {
    const std::uint64_t both = load_relaxed(reinterpret_cast<const std::uint64_t*>(word));
    const auto seen = static_cast<std::uint32_t>(both >> 32);
    value = static_cast<std::uint32_t>(both);
    if (seen == wanted) return WordIs::kHere;
    if (static_cast<std::int32_t>(seen - wanted) > 0) return WordIs::kOverwritten;
    if (patience.is_over(total_of(seen), total_of(exchange))) return WordIs::kMissing;
  }
}

/// Adds to the caller's statistics; one thread of the grid for each rank.
__device__ inline void count_wait(const GroupArgs& group, int rank, std::int64_t waited_ns) {
  if (group.wait_ns != nullptr) group.wait_ns[rank] += waited_ns;
}
__device__ inline void count_rows(const CountersArgs& counters, int local, std::int32_t rows) {
  if (counters.total == nullptr) return;
  if (counters.wide) {
    static_cast<std::int64_t*>(counters.total)[local] += rows;
  } else {
    static_cast<std::int32_t*>(counters.total)[local] += rows;
  }
}

/// Waits for one signal of every live rank, a thread each; true in all threads of the block if all came. `flight`: of the signals.
__device__ inline bool wait_everybody(const GroupArgs& group, FaultStep step, std::uint64_t epoch, DeviceSignal kind,
                                      std::uint64_t wanted, int flight) {
  bool good = true;
  const bool counts = group.wait_ns != nullptr && blockIdx.x == 0;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (group.windows[peer] == nullptr) continue;
    const std::int64_t start = counts ? now_ns() : 0;
    good = wait_signal(group, step, epoch, kind, peer, wanted, flight) && good;
    if (counts) count_wait(group, peer, now_ns() - start);
  }
  return __syncthreads_and(good) != 0;
}
__device__ inline bool wait_everybody(const GroupArgs& group, FaultStep step, std::uint64_t epoch, DeviceSignal kind,
                                      std::uint64_t wanted) {
  return wait_everybody(group, step, epoch, kind, wanted, group.flight);
}

/// Until all blocks of the grid are here; the grid is no larger than what is resident at once. False if it gave up.
__device__ inline bool grid_barrier(const GroupArgs& group, FaultStep step, std::uint64_t epoch) {
  __syncthreads();
  bool good = true;
  if (threadIdx.x == 0) {
    DeviceState* state = group.state;
    __threadfence();
    const std::uint32_t round = load_relaxed(&state->barrier_round);
    if (atomicAdd(&state->barrier_count, 1u) == gridDim.x - 1) {
      state->barrier_count = 0;
      __threadfence();
      atomicAdd(&state->barrier_round, 1u);
    } else {
      const std::int64_t start = now_ns();
      while (load_relaxed(&state->barrier_round) == round) {
        if (now_ns() - start <= group.timeout_ns) continue;
        fail(group, epoch, {.kind = FaultKind::kTimeout, .step = step, .peer = group.rank});
        good = false;
        break;
      }
    }
    __threadfence();
  }
  return __syncthreads_and(good) != 0;
}

/// True in all threads of the block that is the last to come by here; what the other blocks did before is visible to it.
__device__ inline bool is_last_block(const GroupArgs& group) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();
    last = atomicAdd(&group.state->blocks_done, 1u) == gridDim.x - 1;
    if (last) group.state->blocks_done = 0;
    __threadfence_system();
  }
  __syncthreads();
  return last;
}

}  // namespace ferry::cuda
