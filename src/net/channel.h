// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A CPU thread's end of a command ring, and what it shares with the proxy.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "net/bell.h"
#include "net/engine.h"
#include "net/ring.h"
#include "net/window_table.h"

namespace ferry::net {

class RingChannel final : public Channel {
 public:
  RingChannel(const EngineConfig& config, const WindowTable& windows, Bell& bell);

  bool try_put(WindowId window, std::uint64_t offset, const void* src, std::size_t bytes) override;
  bool try_post(WindowId window, std::uint64_t offset, std::uint64_t total) override;
  std::uint64_t submitted() const override { return ring_.pushed(); }
  std::uint64_t completed() const override { return completed_.load(std::memory_order_acquire); }

  // The proxy's side.
  Ring& ring() noexcept { return ring_; }
  const Ring& ring() const noexcept { return ring_; }
  /// Release: all reads of the sources so far come before their reuse.
  void set_completed(std::uint64_t commands) noexcept { completed_.store(commands, std::memory_order_release); }
  void count_carried(std::uint64_t bytes, std::uint64_t merged) noexcept;

  void add_to(Statistics& sum) const noexcept;

 private:
  bool has_room_or_stall(std::uint64_t commands) noexcept;

  const WindowTable& windows_;
  Bell& bell_;
  std::vector<CommandWords> slots_;
  Ring ring_;
  // Every counter has one writing thread.
  alignas(64) std::atomic<std::uint64_t> commands_{0};
  std::atomic<std::uint64_t> stalls_{0};
  alignas(64) std::atomic<std::uint64_t> completed_{0};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> merged_{0};
};

}  // namespace ferry::net
