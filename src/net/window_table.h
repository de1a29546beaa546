// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The peers' windows of one engine. A WindowId is a slot (12 bits, travels in commands) and a generation (20 bits), so
// that the id of a closed window is recognised after its slot was given away again.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "net/carrier.h"
#include "net/command.h"

namespace ferry::net {

constexpr std::uint32_t slot_of(WindowId id) {
  return id & (kMaxWindows - 1);
}

struct WindowEntry {
  enum class Phase : std::uint8_t { kFree, kOpen, kClosing };

  std::atomic<std::uint64_t> state{0};   // phase << 32 | id
  std::unique_ptr<RemoteWindow> window;  // set before the state leaves kFree; cleared by the proxy
  int peer = -1;
  int lane = -1;             // dense number of the peer
  std::uint64_t serial = 0;  // grows with every open()
};

class WindowTable {
 public:
  WindowTable() = default;
  WindowTable(const WindowTable&) = delete;
  WindowTable& operator=(const WindowTable&) = delete;

  /// Throws Error(unsupported) when all slots are taken.
  WindowId open(int peer, std::unique_ptr<RemoteWindow> window);
  /// `pushed`: per channel, the commands that may still need the window and read `sources`. Throws
  /// Error(invalid_argument) if it is not open.
  void close(WindowId id, std::vector<std::uint64_t> pushed, std::shared_ptr<const void> sources);
  /// Any thread.
  bool is_open(WindowId id) const noexcept;
  bool has_closing() const noexcept { return num_closing_.load(std::memory_order_seq_cst) != 0; }

  /// Proxy: the window in a slot, null if there is none. Stays valid until this thread calls retire().
  WindowEntry* find(std::uint32_t slot) const noexcept;
  /// Proxy: frees closed windows whose commands are all completed.
  void retire(std::span<const std::uint64_t> completed);
  std::uint64_t last_serial() const noexcept { return last_serial_.load(std::memory_order_acquire); }

 private:
  struct Closing {
    std::uint32_t slot;
    std::vector<std::uint64_t> pushed;
    std::shared_ptr<const void> sources;
  };

  std::uint32_t take_slot();

  std::mutex mutex_;
  std::array<std::atomic<WindowEntry*>, kMaxWindows> slots_{};
  std::vector<std::unique_ptr<WindowEntry>> entries_;  // by slot
  std::vector<std::uint32_t> free_;
  std::vector<Closing> closing_;
  std::unordered_map<int, int> lane_of_peer_;
  std::atomic<std::uint64_t> num_closing_{0};
  std::atomic<std::uint64_t> last_serial_{0};
};

}  // namespace ferry::net
