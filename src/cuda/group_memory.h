// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a group keeps on its device, and in host memory that the device reads and writes, beside its windows.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <vector>

#include "backend/windows.h"
#include "cuda/args.h"
#include "cuda/pool.h"
#include "ferry/placement.h"

namespace ferry::cuda {

/// Host memory that the device writes, zeroed.
class Pinned {
 public:
  explicit Pinned(std::size_t bytes);
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned();
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

class GroupMemory {
 public:
  struct Sizes {
    int num_ranks = 0, num_flights = 0, keys = 0;
    std::int64_t max_local_experts = 0;
    std::int64_t result_bytes = 0;  ///< reserved for results and handles
  };
  GroupMemory(int device, const Sizes& sizes);
  ~GroupMemory();

  /// Points the device at new windows and starts its counters anew. No kernel of the group may be running.
  void adopt(const Windows& windows);
  /// The placement on the device; copied there when it is first seen.
  PlacementArgs placement(const Placement& placement);
  /// Scratch of the route kernel, at least this large.
  std::int32_t* route_scratch(std::size_t bytes);

  std::byte* const* windows() const { return reinterpret_cast<std::byte* const*>(table_.get()); }
  /// [R] not null for every member, wherever it is.
  std::byte* const* members() const { return windows() + num_ranks_; }
  DeviceState* state() const { return reinterpret_cast<DeviceState*>(state_.get()); }
  Fault* fault() const { return reinterpret_cast<Fault*>(board_.data()); }
  std::uint64_t* abort_word() const { return reinterpret_cast<std::uint64_t*>(board_.data() + sizeof(Fault)); }
  /// [R] calls in which the device has masked a rank on the way; 0: none.
  volatile std::uint64_t* late() const {
    return reinterpret_cast<volatile std::uint64_t*>(board_.data() + kBoardBytes);
  }
  HostCounts* counts(int flight) const {
    return reinterpret_cast<HostCounts*>(board_.data() + kBoardBytes + late_bytes_ + flight * counts_bytes_);
  }
  /// On a stream of its own; returns when it is done.
  void copy_to_device(void* to, const void* from, std::size_t bytes);
  /// Makes room for the next fault once the last was read. No kernel of the group may be running.
  void clear_fault();

  const std::shared_ptr<Pool> pool;

 private:
  static constexpr std::int64_t kBoardBytes = 256;

  std::shared_ptr<std::byte> placement_block(std::size_t bytes);

  const int device_, num_ranks_;
  const std::int64_t late_bytes_, counts_bytes_;
  Pinned board_;
  std::shared_ptr<std::byte> table_, state_;
  std::vector<std::shared_ptr<std::byte>> scratches_;  ///< of the route kernel; the last is the largest
  std::size_t scratch_bytes_ = 0;
  cudaStream_t stream_ = nullptr;  ///< for copies of its own, which follow no stream of a caller
  struct PlacementCopy {
    std::shared_ptr<std::byte> memory;
    PlacementArgs args;
  };
  std::map<std::uint64_t, PlacementCopy> placements_;
  /// Never given back: a block of `pool` may still be written by kernels in flight, which the copy of a placement does not follow.
  std::vector<std::shared_ptr<Pool>> placement_memory_;
};

}  // namespace ferry::cuda
