// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Opening, closing and retiring windows. Only the proxy frees a slot, so it may read an entry without a lock.
#include "net/window_table.h"

#include <utility>

#include <fmt/format.h>

#include "core/check.h"

namespace ferry::net {
namespace {

using Phase = WindowEntry::Phase;

constexpr std::uint32_t kGenerations = std::uint32_t{1} << (32 - kWindowSlotBits);

constexpr std::uint64_t state_of(Phase phase, WindowId id) {
  return (static_cast<std::uint64_t>(phase) << 32) | id;
}
constexpr Phase phase_of(std::uint64_t state) {
  return static_cast<Phase>(state >> 32);
}
constexpr WindowId id_of(std::uint64_t state) {
  return static_cast<WindowId>(state);
}

/// Generation 0 is never used, so that a zero is never an open window.
constexpr WindowId next_id(WindowId last, std::uint32_t slot) {
  const std::uint32_t generation = ((last >> kWindowSlotBits) + 1) % kGenerations;
  return ((generation == 0 ? 1 : generation) << kWindowSlotBits) | slot;
}

bool all_reached(std::span<const std::uint64_t> completed, std::span<const std::uint64_t> pushed) {
  for (std::size_t i = 0; i < pushed.size(); ++i) {
    if (completed[i] < pushed[i]) return false;
  }
  return true;
}

}  // namespace

std::uint32_t WindowTable::take_slot() {
  if (!free_.empty()) {
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  if (entries_.size() == kMaxWindows) {
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("ferry::net::Engine::open: {} windows are open or still in use, which is the most that a command "
                    "can name; close some, or wait until the commands for closed ones are completed",
                    kMaxWindows));
  }
  entries_.push_back(std::make_unique<WindowEntry>());
  const auto slot = static_cast<std::uint32_t>(entries_.size() - 1);
  slots_[slot].store(entries_.back().get(), std::memory_order_release);
  return slot;
}

WindowId WindowTable::open(int peer, std::unique_ptr<RemoteWindow> window) {
  const std::lock_guard lock(mutex_);
  const int lane = lane_of_peer_.try_emplace(peer, static_cast<int>(lane_of_peer_.size())).first->second;
  const std::uint32_t slot = take_slot();
  WindowEntry& entry = *entries_[slot];
  const WindowId id = next_id(id_of(entry.state.load(std::memory_order_relaxed)), slot);
  entry.window = std::move(window);
  entry.peer = peer;
  entry.lane = lane;
  entry.serial = last_serial_.load(std::memory_order_relaxed) + 1;
  entry.window->serial = entry.serial;
  last_serial_.store(entry.serial, std::memory_order_release);
  // Release for other threads that use the window; the proxy has the entry by the ring slot of the command that names it.
  entry.state.store(state_of(Phase::kOpen, id), std::memory_order_release);
  return id;
}

void WindowTable::close(WindowId id, std::vector<std::uint64_t> pushed, std::shared_ptr<const void> sources) {
  const std::lock_guard lock(mutex_);
  if (!is_open(id)) refuse("ferry::net::Engine::close", "window", fmt::format("{:#x}", id), "an open window");
  entries_[slot_of(id)]->state.store(state_of(Phase::kClosing, id), std::memory_order_release);
  closing_.push_back({.slot = slot_of(id), .pushed = std::move(pushed), .sources = std::move(sources)});
  num_closing_.store(closing_.size(), std::memory_order_seq_cst);
}

bool WindowTable::is_open(WindowId id) const noexcept {
  const WindowEntry* entry = slots_[slot_of(id)].load(std::memory_order_acquire);
  return entry != nullptr && entry->state.load(std::memory_order_acquire) == state_of(Phase::kOpen, id);
}

WindowEntry* WindowTable::find(std::uint32_t slot) const noexcept {
  WindowEntry* entry = slots_[slot].load(std::memory_order_acquire);
  if (entry == nullptr || phase_of(entry->state.load(std::memory_order_acquire)) == Phase::kFree) return nullptr;
  return entry;
}

void WindowTable::retire(std::span<const std::uint64_t> completed) {
  std::vector<std::unique_ptr<RemoteWindow>> gone;  // destroyed after the lock: unmapping takes its time
  std::vector<std::shared_ptr<const void>> gone_sources;
  const std::lock_guard lock(mutex_);
  std::erase_if(closing_, [&](const Closing& closing) {
    if (!all_reached(completed, closing.pushed)) return false;
    WindowEntry& entry = *entries_[closing.slot];
    gone.push_back(std::move(entry.window));
    gone_sources.push_back(closing.sources);
    entry.state.store(state_of(Phase::kFree, id_of(entry.state.load(std::memory_order_relaxed))),
                      std::memory_order_release);
    free_.push_back(closing.slot);
    return true;
  });
  num_closing_.store(closing_.size(), std::memory_order_seq_cst);
}

}  // namespace ferry::net
