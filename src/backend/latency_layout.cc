// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/latency_layout.h"

#include <algorithm>

#include "routing/rows.h"
#include "wire/packets.h"

namespace ferry {
namespace {

/// Any row that a dispatch under these limits may bring: as it is, or coded, when a few bytes of scales go with each piece.
std::int64_t most_slot_bytes(const GroupLimits& limits, std::int64_t row_bytes) {
  wire::RowFormat plain;
  plain.add(DType::kUint8, row_bytes, 1);
  std::int64_t most = wire::packet_format(plain, limits.max_top_k, Codec::kNone, 128).slot_bytes;
  for (const int scale_block : {32, 128}) {
    wire::RowFormat coded;
    coded.add(DType::kFp8E4m3, limits.hidden, 1);
    coded.add(DType::kFp32, wire::num_scales(limits.hidden, scale_block), 4);
    if (const std::int64_t rest = row_bytes - coded.row_bytes; rest > 0) coded.add(DType::kUint8, rest, 1);
    most = std::max(most, wire::packet_format(coded, limits.max_top_k, Codec::kFp8F32, scale_block).slot_bytes);
  }
  return most;
}

}  // namespace

LatencyLayout make_latency_layout(const GroupLimits& limits, std::int64_t num_ranks, std::int64_t num_slots,
                                  const WindowLayout& window, RegionList& list) {
  LatencyLayout out;
  out.num_ranks = num_ranks;
  out.num_flights = limits.num_flights;
  out.max_tokens = limits.max_latency_tokens;
  out.max_top_k = limits.max_top_k;
  if (out.max_tokens == 0) return out;
  const auto flights = [&](const char* name, std::int64_t bytes, std::int64_t& stride) {
    return list.add_each(name, bytes, out.num_flights, stride);
  };
  constexpr std::int64_t kLineBytes = 128;  // two writers never share a line
  out.credit_stride = routing::align_up((2 * out.num_flights + 3) * 8, kLineBytes);
  out.credits = list.add("device latency credits", out.credit_stride * num_ranks);
  out.notes = list.add("device latency notes", 16 * out.num_flights * num_ranks);
  out.manifest_bytes = wire::packets_bytes(wire::packets_of_words(LatencyLayout::kManifestWords + num_slots));
  out.manifests = flights("device latency manifests", out.manifest_bytes * num_ranks, out.manifests_stride);
  out.slot_bytes = most_slot_bytes(limits, window.max_row_bytes());
  out.slots = flights("device latency slots", out.slot_bytes * out.max_tokens * num_ranks, out.slots_stride);
  out.return_bytes = wire::coded_returned_bytes(
      limits.hidden * std::max<std::int64_t>(2, static_cast<std::int64_t>(dtype_bytes(limits.dtype))), limits.max_top_k,
      true);
  out.return_bank_bytes = out.return_bytes * out.max_tokens * limits.max_top_k;
  out.returns = flights("device latency returns", out.return_bank_bytes * window.return_banks(), out.returns_stride);
  out.weights_bytes = wire::packets_bytes(wire::packets_of_words(limits.max_top_k));
  out.weights = flights("device latency weights", out.weights_bytes * out.max_tokens * num_ranks, out.weights_stride);
  out.result_rows = window.latency_out_rows();
  out.results = flights("device latency results", out.result_rows * window.max_row_bytes(), out.results_stride);
  return out;
}

}  // namespace ferry
