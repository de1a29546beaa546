// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The command ring's memory ordering; docs/network_engine.md has the argument in one place.
#include "net/ring.h"

#include <bit>

#include <fmt/format.h>

#include "core/check.h"

namespace ferry::net {

Ring::Ring(std::span<CommandWords> slots, std::uint64_t first_index, std::uint64_t* tail_for_device)
    : slots_(slots),
      mask_(slots.size() - 1),
      slots_log2_(0),
      first_index_(first_index),
      tail_for_device_(tail_for_device),
      head_(first_index),
      cached_tail_(first_index),
      next_(first_index),
      returned_(first_index),
      tail_(first_index) {
  if (slots.size() < 2 || !std::has_single_bit(slots.size())) {
    refuse("ferry::net::Ring", "slots", fmt::format("{} slots", slots.size()), "a power of two, at least 2");
  }
  slots_log2_ = std::countr_zero(slots.size());
  for (std::uint64_t i = 0; i < slots.size(); ++i) {
    const std::uint64_t index = first_index + i;
    slots_[index & mask_] = with_lap(CommandWords{}, !lap_of_index(index, slots_log2_));
  }
  if (tail_for_device_ != nullptr) *tail_for_device_ = first_index;
}

bool Ring::has_room(std::uint64_t commands) noexcept {
  const std::uint64_t head = head_.load(std::memory_order_relaxed);
  if (num_slots() - (head - cached_tail_) >= commands) return true;
  // Acquire: the consumer's reads of the slots it returns come before our writes into them. Tests do not see it (nor the
  // release in return_slots): on x86 loads stay before later stores, and the slots' words are atomics to ThreadSanitizer.
  cached_tail_ = tail_.load(std::memory_order_acquire);
  return num_slots() - (head - cached_tail_) >= commands;
}

void Ring::push(CommandWords words) noexcept {
  const std::uint64_t head = head_.load(std::memory_order_relaxed);
  CommandWords& slot = slots_[head & mask_];
  const CommandWords marked = with_lap(words, lap_of_index(head, slots_log2_));
  std::atomic_ref(slot.second).store(marked.second, std::memory_order_relaxed);
  // Release: the source rows and the second word come first. Sequentially consistent on top of that, because the
  // producer then asks whether the proxy is asleep, and the proxy says "asleep" and then looks here: one of them must
  // see the other. A test cannot tell that from a release: the window is a few nanoseconds, and what is lost is a wake-up
  // of at most 0.5 s, never the command.
  std::atomic_ref(slot.first).store(marked.first, std::memory_order_seq_cst);
  // Release for whoever counts; commands are found by their lap bits, so no test depends on it.
  head_.store(head + 1, std::memory_order_release);
}

bool Ring::front(CommandWords& words) const noexcept {
  CommandWords& slot = slots_[next_ & mask_];
  const bool lap = lap_of_index(next_, slots_log2_);
  words.first = std::atomic_ref(slot.first).load(std::memory_order_seq_cst);
  if (lap_of(words.first) != lap) return false;
  // A GPU may make the words visible in either order, hence a check and an acquire for each. For a CPU producer the first
  // acquire is enough, so no host test misses the second.
  words.second = std::atomic_ref(slot.second).load(std::memory_order_acquire);
  return lap_of(words.second) == lap;
}

void Ring::return_slots() noexcept {
  if (returned_ == next_) return;
  returned_ = next_;
  tail_.store(next_, std::memory_order_release);
  if (tail_for_device_ != nullptr) std::atomic_ref(*tail_for_device_).store(next_, std::memory_order_release);
}

}  // namespace ferry::net
