// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A kernel's end of the network: commands to the engine's proxy, and waits for words that ranks of other nodes post. Any thread of
// any block may command; kernels of one group run one after the other, and a group has a ring of its own, so nobody else does.
// What orders what: docs/memory_model.md, docs/network_engine.md.
#pragma once

#include "cuda/device/wait.cuh"
#include "cuda/network_args.h"

namespace ferry::cuda {

struct RingOps {
  __device__ std::uint64_t load_acquire(const std::uint64_t* at) const { return cuda::load_acquire(at); }
  __device__ void store_release(std::uint64_t* at, std::uint64_t value) const { cuda::store_release(at, value); }
  __device__ std::uint64_t compare_and_swap(std::uint64_t* at, std::uint64_t expected, std::uint64_t value) const {
    return atomicCAS(reinterpret_cast<unsigned long long*>(at), expected, value);
  }
  /// One release store of 16 bytes. The proxy looks at the lap bits of both words, whatever the bus makes of it.
  __device__ void publish(net::CommandWords* slot, const net::CommandWords& words) const {
    asm volatile("{\n .reg .b128 all;\n mov.b128 all, {%1, %2};\n st.release.sys.global.b128 [%0], all;\n}" ::"l"(slot),
                 "l"(words.first), "l"(words.second)
                 : "memory");
  }
};

/// One command to the proxy. False if the ring stayed full until the call's deadline: then this rank is named as who is waited for.
__device__ __noinline__ inline bool command(const GroupArgs& group, const NetworkArgs& net, FaultStep step,
                                            std::uint64_t epoch, net::CommandWords words) {
  Patience patience(group, step, epoch, group.rank);
  return net::push_command(net.ring, &net.state->ring, words, RingOps{},
                           [&] { return patience.is_over(total_of(epoch), total_of(epoch)); });
}

/// Has `bytes` at `source` (own memory, unchanged until the command is complete) written to `offset` of the peer's window. What
/// other threads stored there must be ordered before (a fence of the system's scope).
__device__ inline bool network_put(const GroupArgs& group, const NetworkArgs& net, FaultStep step, std::uint64_t epoch,
                                   int peer, std::int64_t offset, const std::byte* source, std::int64_t bytes) {
  constexpr auto kMost = static_cast<std::int64_t>(net::kMaxPutBytes);
  for (std::int64_t done = 0; done < bytes; done += kMost) {
    if (!command(
            group, net, step, epoch,
            net::pack_put(static_cast<std::uint32_t>(net.window_slot[peer]), static_cast<std::uint64_t>(offset + done),
                          reinterpret_cast<std::uint64_t>(source + done),
                          static_cast<std::uint64_t>(min(bytes - done, kMost)))))
      return false;
  }
  return true;
}

/// Makes a word of this rank at a peer of another node become `total` after all earlier puts of this thread, and of whoever it is
/// ordered behind.
__device__ inline bool network_post(const GroupArgs& group, const NetworkArgs& net, FaultStep step, std::uint64_t epoch,
                                    int peer, NetworkWord word, int flight, int index, std::uint64_t total) {
  delay_signal(group, peer);
  const std::int64_t offset = group.layout.network.word_at(word, group.rank, flight, index);
  return command(
      group, net, step, epoch,
      net::pack_post(static_cast<std::uint32_t>(net.window_slot[peer]), static_cast<std::uint64_t>(offset), total));
}

/// Commands of this group so far; no kernel may be commanding.
__device__ inline std::uint64_t commands_so_far(const NetworkArgs& net) {
  return load_acquire(&net.state->ring.head) - net.ring.first_index;
}

/// Until the engine needs the sources of the first `commands` no more. One thread; false if it gave up.
__device__ inline bool wait_completed(const GroupArgs& group, const NetworkArgs& net, FaultStep step,
                                      std::uint64_t epoch, std::uint64_t commands) {
  Patience patience(group, step, epoch, group.rank);
  while (load_acquire(net.ring.completed) < commands) {
    if (patience.is_over(total_of(epoch), total_of(epoch))) return false;
  }
  return true;
}

__device__ inline const std::uint64_t* network_word(const GroupArgs& group, NetworkWord word, int writer, int flight,
                                                    int index) {
  return reinterpret_cast<const std::uint64_t*>(group.own_window +
                                                group.layout.network.word_at(word, writer, flight, index));
}

/// Until a word that `writer` posts has reached `wanted`; what it says then, 0 if the wait gave up. What the engine wrote before it
/// is visible to this thread.
__device__ inline std::uint64_t wait_network(const GroupArgs& group, FaultStep step, std::uint64_t epoch,
                                             NetworkWord word, int writer, int flight, int index,
                                             std::uint64_t wanted) {
  const std::uint64_t* at = network_word(group, word, writer, flight, index);
  Patience patience(group, step, epoch, writer);
  for (;;) {
    const std::uint64_t seen = load_acquire(at);
    if (seen >= wanted) return seen;
    if (patience.is_over(seen, wanted)) return 0;
  }
}

/// The count of a word that says that its writer gave up on the call: what was to come never will.
inline constexpr std::uint64_t kNetworkGivenUp = 0xffffff;

/// Refuses a word of another call, or of a writer that gave up. One thread.
__device__ inline bool check_network_word(const GroupArgs& group, FaultStep step, std::uint64_t epoch, int writer,
                                          std::uint64_t seen) {
  if (seen == 0) return false;  // the wait has failed already
  if (seen >> 24 == epoch && (seen & kNetworkGivenUp) != kNetworkGivenUp) return true;
  fail(group, epoch,
       {.kind = seen >> 24 == epoch ? FaultKind::kGivenUp : FaultKind::kGoneOn,
        .step = step,
        .peer = writer,
        .seen = seen >> 24,
        .wanted = epoch});
  return false;
}

}  // namespace ferry::cuda
