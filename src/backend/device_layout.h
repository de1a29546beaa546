// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where everything lies in the part of a window that is device memory. Plain offsets, so that kernels take it by value; all
// ranks use one layout, sized for the neediest. Regions of latency mode: latency_layout.h, between nodes: network_layout.h. Who writes, who reads and
// when a region may be reused: docs/memory_model.md.
#pragma once

#include <cstdint>

#include "backend/latency_layout.h"
#include "backend/network_layout.h"
#include "backend/window_layout.h"
#include "core/regions.h"
#include "wire/float.h"
#include "wire/row_format.h"

namespace ferry {

/// Signals between devices; each writer has one 64-bit word of each and of each flight in the reader's window.
enum class DeviceSignal : std::uint8_t {
  kDispatchRows,      ///< the writer has stored all its rows for this rank
  kDispatchProgress,  ///< expert layouts: its rows for this rank before this one are here
  kCombineWeights,    ///< the weights that the writer sends ahead are here
  kCombineReady,      ///< the writer's rows may be read; its CombineNote says where
  kCombineRead,       ///< the writer has read this rank's rows
  kNumSignals,
};

/// Where a rank's rows of a combine lie in its window, for its peers.
struct CombineNote {
  std::uint64_t epoch = 0;
  std::uint64_t digest = 0;      ///< of the arguments that must agree
  std::int64_t rows_offset = 0;  ///< of row 0
  std::int64_t row_stride = 0;   ///< bytes
};
static_assert(sizeof(CombineNote) == 32);

/// What a rank tells its peers before a dispatch.
struct DispatchNote {
  CallNote call;
  std::int64_t rows_at[wire::kMaxBlocks] = {};  ///< where each block's row 0 belongs in the writer's window
};

/// Notes and counts cross in words that say themselves that they are here: no signal, no fence and no second trip of the link.
struct CountWord {
  std::uint32_t value = 0;
  std::uint32_t exchange = 0;  ///< number of the exchange, low half
};
static_assert(sizeof(CountWord) == 8);

struct DeviceLayout {
  static constexpr int kNoteWords = static_cast<int>(sizeof(DispatchNote) / 4);
  static constexpr std::int64_t kLineBytes = 128;  ///< two writers never share a line
  static constexpr int kCopyParts = 8;             ///< a source's rows are copied in so many interleaved parts

  std::int64_t num_ranks = 0, num_flights = 0;
  std::int64_t recv_rows = 0;    ///< capacity of a receive region
  std::int64_t recv_tokens = 0;  ///< most (token, this rank) pairs
  std::int64_t signals = 0, signal_stride = 0;
  std::int64_t notes = 0;
  std::int64_t copied = 0;
  std::int64_t counts = 0, counts_stride = 0;
  // First flight's region, and the step to the next flight's.
  std::int64_t recv = 0, recv_stride = 0;
  std::int64_t recv_meta = 0, recv_meta_stride = 0;
  std::int64_t combine_input = 0, combine_input_stride = 0;      ///< handed out to the caller's experts
  std::int64_t combine_rows = 0, combine_rows_stride = 0;        ///< copies and sums of other rows
  std::int64_t combine_weights = 0, combine_weights_stride = 0;  ///< [recv_tokens][K] float32, combined top-k weights
  std::int64_t weights_ahead = 0, weights_ahead_stride = 0;      ///< [recv_tokens][K] float32, written by the peers
  std::int64_t owned = 0, owned_bytes = 0;                       ///< rows of owned results
  LatencyLayout latency;
  NetworkLayout network;
  std::int64_t total_bytes = 0;

  FERRY_HD std::int64_t signal_at(DeviceSignal kind, int flight, int writer) const {
    const int word = static_cast<int>(kind) + flight * static_cast<int>(DeviceSignal::kNumSignals);
    return signals + writer * signal_stride + word * 8;
  }
  FERRY_HD std::int64_t note_at(int flight, int writer) const {
    return notes + (flight * num_ranks + writer) * static_cast<std::int64_t>(sizeof(CombineNote));
  }
  /// uint64[kCopyParts]: how far the owner has copied the rows of `source` before all had arrived.
  FERRY_HD std::int64_t copied_at(int flight, int source) const {
    return copied + (flight * num_ranks + source) * static_cast<std::int64_t>(kCopyParts * sizeof(std::uint64_t));
  }
  /// CountWord[kNoteWords] of a DispatchNote, then of int32 tokens[R], choices[S].
  FERRY_HD std::int64_t counts_at(int parity, int writer) const {
    return counts + (parity * num_ranks + writer) * counts_stride;
  }
};

/// Adds the regions to `list`, whose sum is the allocation.
DeviceLayout make_device_layout(const GroupLimits& limits, const Topology& topology, const Placement& placement,
                                const WindowLayout& window, RegionList& list);

/// What a group reserves beside its windows: results and handles of as many calls as are in flight, and of one more, so that
/// no call has to ask the driver. `num_slots`: most places of experts over all ranks.
std::int64_t device_result_bytes(const GroupLimits& limits, std::int64_t num_slots, const DeviceLayout& layout);

}  // namespace ferry
