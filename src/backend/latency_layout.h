// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The regions of latency mode in the part of a window that is device memory. Proportional to ranks x tokens but for the results,
// which are the caller's tensors. Who writes, who reads and when a region may be reused: docs/memory_model.md.
#pragma once

#include <cstdint>

#include "backend/window_layout.h"
#include "core/host_device.h"
#include "core/regions.h"

namespace ferry {

/// Calls that have regions of their own.
enum class LatencyKind : std::uint8_t { kDispatch, kCombine };

struct LatencyLayout {
  /// 32-bit words of a dispatch's manifest before the counts per local expert.
  static constexpr int kManifestWords = 8;

  std::int64_t num_ranks = 0, num_flights = 0;
  std::int64_t max_tokens = 0;  ///< per rank and call; 0 = no latency mode
  std::int64_t max_top_k = 0;
  std::int64_t credits = 0, credit_stride = 0;
  // One writer's part, and the step to the next flight's.
  std::int64_t manifests = 0, manifest_bytes = 0, manifests_stride = 0;
  std::int64_t notes = 0;
  std::int64_t slots = 0, slot_bytes = 0, slots_stride = 0;
  std::int64_t returns = 0, return_bytes = 0, returns_stride = 0, return_bank_bytes = 0;
  std::int64_t weights = 0, weights_bytes = 0, weights_stride = 0;
  std::int64_t results = 0, results_stride = 0, result_rows = 0;

  /// Bits of a credit below its epoch: the set of return slots that the flight's next combine uses at the writer.
  static constexpr int kBankBits = 4;

  /// Epoch of the last call of a kind and flight that `writer` has read: what it was sent may be overwritten. << kBankBits.
  FERRY_HD std::int64_t credit_at(LatencyKind kind, int flight, int writer) const {
    return credits + writer * credit_stride + (static_cast<std::int64_t>(kind) * num_flights + flight) * 8;
  }
  /// 1: `writer` has masked this rank by itself.
  FERRY_HD std::int64_t left_out_at(int writer) const { return credits + writer * credit_stride + 2 * num_flights * 8; }
  /// Grows while `rank` waits; in its own window, where others look whether it is late because of somebody else.
  FERRY_HD std::int64_t waiting_at(int rank) const { return left_out_at(rank) + 8; }
  /// The last dispatch whose rows `writer` could not take, << 24, and the rows that an expert there would have needed.
  FERRY_HD std::int64_t refused_at(int writer) const { return left_out_at(writer) + 16; }
  /// Packets of what a rank says before its rows: kManifestWords, then int32 rows per local expert of the reader.
  FERRY_HD std::int64_t manifest_at(int flight, int writer) const {
    return manifests + flight * manifests_stride + writer * manifest_bytes;
  }
  /// One packet of a combine: what its arguments are.
  FERRY_HD std::int64_t note_at(int flight, int writer) const { return notes + (flight * num_ranks + writer) * 16; }
  /// The i-th row of `writer` for the reader.
  FERRY_HD std::int64_t slot_at(int flight, int writer, std::int64_t i) const {
    return slots + flight * slots_stride + (writer * max_tokens + i) * slot_bytes;
  }
  /// Where the i-th packet of all that a kind of call of a flight receives lies; offset -1 behind the last.
  struct Part {
    std::int64_t offset = -1;
  };
  FERRY_HD Part part_at(LatencyKind kind, int flight, std::int64_t packet) const {
    const bool dispatch = kind == LatencyKind::kDispatch;
    const std::int64_t begins[3] = {
        dispatch ? manifests + flight * manifests_stride : returns + flight * returns_stride,
        dispatch ? slots + flight * slots_stride : weights + flight * weights_stride, notes + flight * num_ranks * 16};
    const std::int64_t bytes[3] = {dispatch ? manifests_stride : returns_stride,
                                   dispatch ? slots_stride : weights_stride, dispatch ? 0 : num_ranks * 16};
    std::int64_t at = packet * 16;
    for (int i = 0; i < 3; ++i) {
      if (at < bytes[i]) return {begins[i] + at};
      at -= bytes[i];
    }
    return {};
  }
  /// A returned row of a token of this rank; `place` counts its ranks, or choices (flat).
  FERRY_HD std::int64_t return_at(int flight, std::uint32_t bank, std::int64_t token, int place) const {
    return returns + flight * returns_stride + bank * return_bank_bytes + (token * max_top_k + place) * return_bytes;
  }
  /// Weights of a token of `writer`, sent ahead of a combine.
  FERRY_HD std::int64_t weights_at(int flight, int writer, std::int64_t token) const {
    return weights + flight * weights_stride + (writer * max_tokens + token) * weights_bytes;
  }
};

/// Adds the regions to `list`. `num_slots`: most places of experts over all ranks.
LatencyLayout make_latency_layout(const GroupLimits& limits, std::int64_t num_ranks, std::int64_t num_slots,
                                  const WindowLayout& window, RegionList& list);

}  // namespace ferry
