// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The producers' end of a command ring where producers are threads of a GPU, many at a time. The slots and the words that the
// proxy writes lie in host memory, the position in device memory. Which accesses these are is the caller's business (Ops), so
// that CPU threads can run the same code in tests; docs/network_engine.md says what they order.
#pragma once

#include <cstdint>

#include "net/command.h"

namespace ferry::net {

/// Where a ring lies; plain data that kernels take by value. Host memory that the device reads and writes.
struct DeviceRing {
  CommandWords* slots = nullptr;
  std::uint64_t num_slots = 0;
  std::int32_t slots_log2 = 0;
  std::uint64_t first_index = 0;
  const std::uint64_t* tail = nullptr;       ///< written by the proxy: slots before this index may be written again
  const std::uint64_t* completed = nullptr;  ///< written by the proxy: so many commands need their sources no more
  std::uint64_t* submitted = nullptr;        ///< written by kernels at their end: commands so far
};

/// What producers share, in device memory. Begins as {first_index, first_index}.
struct DeviceRingState {
  std::uint64_t head = 0;
  std::uint64_t cached_tail = 0;
};

/// Publishes one command; any number of threads at once, in the order in which each of them calls. Waits while the ring is full;
/// false if `gives_up()`, which is asked after each look in vain, said so: then nothing was published.
///
/// Ops: load_acquire, store_release and compare_and_swap (returns what was there; relaxed) of 64-bit words, and publish(slot,
/// words), which makes 16 bytes visible to the proxy after everything that the caller ordered before.
template <typename Ops, typename GivesUp>
FERRY_HD inline bool push_command(const DeviceRing& ring, DeviceRingState* state, CommandWords words, const Ops& ops,
                                  GivesUp&& gives_up) {
  std::uint64_t head = ops.load_acquire(&state->head);
  for (;;) {
    // Room is made sure of before a place is taken: a place that is never written would hold up the ring for good. The copy of the
    // tail may fall behind or run ahead of a `head` that is no longer true: both look full, and both are looked at again.
    if (head - ops.load_acquire(&state->cached_tail) >= ring.num_slots) {
      const std::uint64_t tail = ops.load_acquire(ring.tail);
      ops.store_release(&state->cached_tail, tail);
      const std::uint64_t seen = head;
      head = ops.load_acquire(&state->head);
      if (seen != head || head - tail < ring.num_slots) continue;
      if (gives_up()) return false;
      continue;
    }
    const std::uint64_t seen = ops.compare_and_swap(&state->head, head, head + 1);
    if (seen == head) break;
    head = seen;
  }
  ops.publish(ring.slots + (head & (ring.num_slots - 1)), with_lap(words, lap_of_index(head, ring.slots_log2)));
  return true;
}

}  // namespace ferry::net
