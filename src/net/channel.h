// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A CPU thread's end of a command ring, and what it shares with the proxy.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "net/bell.h"
#include "net/device_ring.h"
#include "net/engine.h"
#include "net/ring.h"
#include "net/window_table.h"

namespace ferry::net {

class RingChannel final : public Channel {
 public:
  RingChannel(const EngineConfig& config, const WindowTable& windows, Bell& bell);
  /// A channel whose commands come from kernels: try_put and try_post refuse. `pinned`: device_bytes() of host memory that the
  /// device writes.
  RingChannel(const EngineConfig& config, const WindowTable& windows, Bell& bell, std::shared_ptr<std::byte> pinned);
  static std::size_t device_bytes(const EngineConfig& config);

  bool try_put(WindowId window, std::uint64_t offset, const void* src, std::size_t bytes) override;
  bool try_post(WindowId window, std::uint64_t offset, std::uint64_t total) override;
  /// Of kernels: what those that are over have published.
  std::uint64_t submitted() const override;
  std::uint64_t completed() const override { return completed_.load(std::memory_order_acquire); }

  // The proxy's side.
  Ring& ring() noexcept { return ring_; }
  const Ring& ring() const noexcept { return ring_; }
  /// Release: all reads of the sources so far come before their reuse.
  void set_completed(std::uint64_t commands) noexcept;
  /// For a channel of kernels.
  DeviceRing device_ring() const noexcept;
  void count_carried(std::uint64_t bytes, std::uint64_t merged) noexcept;

  void add_to(Statistics& sum) const noexcept;

 private:
  void check_producer(const char* function) const;
  bool has_room_or_stall(std::uint64_t commands) noexcept;

  /// What the proxy and kernels tell each other beside commands; a line each.
  struct DeviceWords {
    alignas(64) std::uint64_t tail;
    alignas(64) std::uint64_t completed;
    alignas(64) std::uint64_t submitted;
  };

  const WindowTable& windows_;
  Bell& bell_;
  std::shared_ptr<std::byte> pinned_;    // null: CPU threads are the producers
  DeviceWords* device_words_ = nullptr;  // in pinned_, before the slots
  std::vector<CommandWords> slots_;      // empty where they lie in pinned_
  Ring ring_;
  // Every counter has one writing thread.
  alignas(64) std::atomic<std::uint64_t> commands_{0};
  std::atomic<std::uint64_t> stalls_{0};
  alignas(64) std::atomic<std::uint64_t> completed_{0};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> merged_{0};
};

}  // namespace ferry::net
