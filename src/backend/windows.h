// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The windows of all ranks under one membership. A change of membership opens fresh windows for everyone who stays, so a
// rank that was left out and wakes up late can only write where nobody reads any more.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/device_layout.h"
#include "backend/device_memory.h"
#include "backend/rails.h"
#include "backend/window_layout.h"
#include "bootstrap/memory.h"
#include "net/engine.h"

namespace ferry {

/// Calls begun so far; equal on all members between calls.
struct CallCounters {
  std::uint64_t epoch = 0;  ///< all calls
  std::uint64_t dispatches = 0;
  std::uint64_t combines = 0;
  std::uint64_t exchanges = 0;  ///< throughput dispatches: they exchange counts
};

struct Membership {
  std::uint32_t number = 0;
  std::vector<std::uint8_t> masked;  ///< [R]
  bool is_masked(int rank) const { return masked[static_cast<std::size_t>(rank)] != 0; }
};

/// Thrown while windows are opened by groups that mask by themselves: others leave more ranks out, or somebody did not come. To be
/// opened again like this.
struct MembershipGrew {
  Membership membership;
};

class Windows {
 public:
  Windows(Membership members, int my_rank, const Topology& topology, WindowLayout window_layout, int num_flights);
  ~Windows();

  std::byte* own(std::int64_t offset) const { return memory_->data() + offset; }
  /// Where `offset` of a node peer's window is mapped here; null if only the network reaches it.
  std::byte* peer(int rank, std::int64_t offset) const {
    std::byte* base = base_[static_cast<std::size_t>(rank)];
    return base == nullptr ? nullptr : base + offset;
  }
  const std::shared_ptr<Memory>& own_memory() const { return memory_; }
  net::WindowId remote(int rank) const { return remote_[static_cast<std::size_t>(rank)].value(); }

  /// The device memory of a peer that only the network reaches.
  net::WindowId remote_device(int rank) const { return remote_device_[static_cast<std::size_t>(rank)].value(); }

  /// Device memory of this rank, or a node peer's as mapped here; null for others, and where rows lie in host memory.
  std::byte* device(int rank) const {
    const auto& memory = device_[static_cast<std::size_t>(rank)];
    return memory ? memory->data() : nullptr;
  }

  const Membership membership;
  const WindowLayout layout;
  const Rails rails;
  std::vector<int> live;        ///< members, ascending
  std::vector<int> node_peers;  ///< members of this rank's node, itself included

  /// Epoch of the last call that used a flight's latency slots, or its combine regions: its readers must have reported
  /// before the regions are written again.
  std::vector<std::uint64_t> last_latency_dispatch, last_combine;
  std::uint64_t last_latency_call = 0;  ///< epoch
  /// Commands to the network that still read a flight's staging (or a parity's counts): channel count to wait for.
  std::vector<std::uint64_t> dispatch_staging_busy, combine_staging_busy;
  std::uint64_t counts_busy[2] = {0, 0};
  /// The set of return slots to be taken into use next, and that of each flight's next combine on this rank: peers know it from the
  /// read report of the combine before (0 without one).
  int bank = 0;
  std::uint64_t bank_epoch = 0;  ///< the call in which it was changed last
  std::vector<int> return_bank;
  /// Calls that the furthest member had begun when these windows were opened: everybody counts on from there.
  std::uint64_t first_epoch = 0;

 private:
  friend class WindowOpener;
  std::shared_ptr<Memory> memory_;
  std::vector<std::shared_ptr<Memory>> mapped_;  // by rank; null for network peers whose memory the engine holds
  std::vector<std::byte*> base_;                 // by rank
  std::vector<std::optional<net::WindowId>> remote_, remote_device_;  // by rank
  std::vector<std::shared_ptr<DeviceMemory>> device_;                 // by rank
  std::shared_ptr<Memory> own_device_;  // this rank's, as the engine knows it; null: rows lie in host memory
  std::shared_ptr<net::Engine> engine_;
};

}  // namespace ferry
