// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A ring of 16-byte commands: one producer, one consumer, no clearing (the lap bits tell new from old), 64-bit indices.
// The slots belong to the caller, so that they can lie in pinned memory that a GPU writes.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "net/command.h"

namespace ferry::net {

class Ring {
 public:
  /// `slots`: a power of two of them, at least 2; they are overwritten. `tail_for_device`: where the consumer's position is to be
  /// told as well, for producers that are no CPU thread and never call push(). Throws Error(invalid_argument).
  Ring(std::span<CommandWords> slots, std::uint64_t first_index, std::uint64_t* tail_for_device = nullptr);
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  std::uint64_t num_slots() const noexcept { return slots_.size(); }
  int slots_log2() const noexcept { return slots_log2_; }
  std::uint64_t first_index() const noexcept { return first_index_; }

  /// Producer: whether `commands` more can be pushed now. Reads the consumer's line only when the cached copy says no.
  bool has_room(std::uint64_t commands) noexcept;
  /// Producer: publishes one command; has_room() must have said yes. Any lap bits in `words` are replaced.
  void push(CommandWords words) noexcept;
  /// Any thread: commands pushed since the start.
  std::uint64_t pushed() const noexcept { return head_.load(std::memory_order_acquire) - first_index_; }

  /// Consumer: the oldest command that was not popped, if it has arrived in full.
  bool front(CommandWords& words) const noexcept;
  void pop() noexcept { ++next_; }
  /// Consumer: hands the slots of all popped commands back to the producer.
  void return_slots() noexcept;
  std::uint64_t popped() const noexcept { return next_ - first_index_; }

 private:
  std::span<CommandWords> slots_;
  std::uint64_t mask_;
  int slots_log2_;
  std::uint64_t first_index_;
  std::uint64_t* tail_for_device_;

  alignas(64) std::atomic<std::uint64_t> head_;  // written by the producer
  std::uint64_t cached_tail_;                    // the producer's copy of tail_
  alignas(64) std::uint64_t next_;               // the consumer's position
  std::uint64_t returned_;                       // the consumer's copy of tail_
  alignas(64) std::atomic<std::uint64_t> tail_;  // written by the consumer
};

}  // namespace ferry::net
