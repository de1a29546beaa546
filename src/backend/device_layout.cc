// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/device_layout.h"

#include <algorithm>

#include "backend/handle_layout.h"
#include "wire/row_format.h"
#include "wire/token_meta.h"

namespace ferry {

DeviceLayout make_device_layout(const GroupLimits& limits, const Topology& topology, const Placement& placement,
                                const WindowLayout& window, RegionList& list) {
  DeviceLayout out;
  out.num_ranks = topology.num_ranks();
  out.num_flights = limits.num_flights;
  out.recv_rows = window.recv_rows();
  out.recv_tokens = window.recv_tokens(Mode::kThroughput);
  const std::int64_t words =
      static_cast<int>(DeviceSignal::kNumSignals) * static_cast<std::int64_t>(limits.num_flights);
  out.signal_stride = (words * 8 + DeviceLayout::kLineBytes - 1) / DeviceLayout::kLineBytes * DeviceLayout::kLineBytes;
  out.signals = list.add("device signals", out.signal_stride * out.num_ranks);
  out.notes =
      list.add("combine notes", static_cast<std::int64_t>(sizeof(CombineNote)) * out.num_ranks * out.num_flights);
  out.copied = list.add("device copies", DeviceLayout::kCopyParts * 8 * out.num_ranks * out.num_flights);
  const std::int64_t num_slots = std::max(limits.max_slots, placement.num_slots());
  out.counts_stride = wire::padded(static_cast<std::int64_t>(sizeof(CountWord)) *
                                   (DeviceLayout::kNoteWords + out.num_ranks + num_slots));
  out.counts = list.add("device counts", 2 * out.counts_stride * out.num_ranks);
  const auto flights = [&](const char* name, std::int64_t bytes, std::int64_t& stride) {
    return list.add_each(name, bytes, limits.num_flights, stride);
  };
  const std::int64_t row_bytes =
      wire::padded(limits.hidden * std::max<std::int64_t>(2, static_cast<std::int64_t>(dtype_bytes(limits.dtype))));
  const std::int64_t weights_bytes = out.recv_tokens * limits.max_top_k * 4;
  out.recv = flights("device receive rows", out.recv_rows * window.max_row_bytes(), out.recv_stride);
  out.recv_meta = flights("device receive records", out.recv_tokens * wire::TokenMeta::bytes(limits.max_top_k),
                          out.recv_meta_stride);
  out.combine_input = flights("combine input", out.recv_rows * row_bytes, out.combine_input_stride);
  out.combine_rows = flights("combine rows", out.recv_rows * row_bytes, out.combine_rows_stride);
  out.combine_weights = flights("combine weights", weights_bytes, out.combine_weights_stride);
  out.weights_ahead = flights("device weights ahead", weights_bytes, out.weights_ahead_stride);
  out.owned_bytes = (limits.owned_rows < 0 ? out.recv_tokens : limits.owned_rows) * window.max_row_bytes();
  out.owned = list.add("device owned rows", out.owned_bytes);
  out.latency = make_latency_layout(limits, out.num_ranks, num_slots, window, list);
  out.network = make_network_layout(limits, topology, window, out.latency, list);
  out.total_bytes = list.total_bytes();
  return out;
}

std::int64_t device_result_bytes(const GroupLimits& limits, std::int64_t num_slots, const DeviceLayout& layout) {
  HandleHeader header;  // the largest
  header.num_ranks = static_cast<std::int32_t>(layout.num_ranks);
  header.num_nodes = static_cast<std::int32_t>(layout.network.num_nodes);
  header.num_slots = header.num_local_experts = static_cast<std::int32_t>(num_slots);
  header.top_k = limits.max_top_k;
  header.has_weights = 1;
  header.num_tokens = std::max(limits.max_tokens, limits.max_latency_tokens);
  header.num_rows = std::max(layout.recv_tokens, layout.num_ranks * limits.max_latency_tokens);
  if (layout.network.stream_bytes != 0)
    header.num_forwarded = layout.network.forward_stride / layout.network.stream_bytes * limits.max_tokens;
  const std::int64_t choices = header.num_rows * limits.max_top_k;
  const std::int64_t rows = std::max(layout.recv_rows, layout.latency.result_rows);
  const std::int64_t dispatch = HandleView::bytes_for(header) + choices * 8 + std::max(choices, rows) * 4;
  const std::int64_t combine =
      header.num_tokens *
      (limits.hidden * static_cast<std::int64_t>(std::max<std::size_t>(2, dtype_bytes(limits.dtype))) +
       4 * static_cast<std::int64_t>(limits.max_top_k));
  constexpr std::int64_t kSmallThings = 1 << 20;  // placements, counters, scratch
  return (limits.num_flights + 1) * (dispatch + combine) + kSmallThings;
}

}  // namespace ferry
