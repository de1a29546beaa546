// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/network_layout.h"

#include <algorithm>

#include "backend/window_layout.h"
#include "routing/rows.h"
#include "wire/row_format.h"
#include "wire/token_meta.h"

namespace ferry {

NetworkLayout make_network_layout(const GroupLimits& limits, const Topology& topology, const WindowLayout& window,
                                  const LatencyLayout& latency, RegionList& list) {
  NetworkLayout out;
  out.num_ranks = topology.num_ranks();
  out.num_nodes = topology.num_nodes();
  out.max_tokens = limits.max_tokens;
  out.max_top_k = limits.max_top_k;
  if (out.num_nodes == 1) return out;
  const auto flights = [&](const char* name, std::int64_t bytes, std::int64_t& stride) {
    return list.add_each(name, bytes, limits.num_flights, stride);
  };
  int smallest = topology.num_ranks();
  for (int node = 0; node < topology.num_nodes(); ++node)
    smallest = std::min(smallest, topology.first_rank(node + 1) - topology.first_rank(node));
  out.latency_begin = latency.credits;
  out.outbox_stride =
      latency.results - latency.credits;  // what peers write; results come behind it, and are the owner's
  out.outbox = list.add("device latency outbox", (out.num_ranks - smallest) * out.outbox_stride);
  constexpr std::int64_t kLineBytes = 128;  // two writers never share a line
  out.words_stride = routing::align_up(8 * (2 + limits.num_flights * NetworkLayout::kFlightWords), kLineBytes);
  out.words = list.add("device network words", out.words_stride * out.num_ranks);
  const std::int64_t record_bytes = window.max_row_bytes() + wire::TokenMeta::bytes(limits.max_top_k);
  const std::int64_t sources = window.forward_sources();
  out.stream_bytes = routing::align_up(limits.max_tokens * record_bytes, kLineBytes);
  out.staging = flights("device dispatch staging", (out.num_nodes - 1) * out.stream_bytes, out.staging_stride);
  out.forward = flights("device dispatch forward", sources * out.stream_bytes, out.forward_stride);
  out.return_row_bytes =
      wire::padded(limits.hidden * std::max<std::int64_t>(2, static_cast<std::int64_t>(dtype_bytes(limits.dtype))));
  const std::int64_t return_bytes = out.max_returned_rows() * out.return_row_bytes;
  out.return_staging = flights("device return staging", sources * return_bytes, out.return_staging_stride);
  out.return_weights_staging =
      flights("device return weights staging", sources * out.weights_bytes(), out.return_weights_staging_stride);
  out.return_weights =
      flights("device return weights", (out.num_nodes - 1) * out.weights_bytes(), out.return_weights_stride);
  out.weights_staging =
      flights("device weights staging", out.num_ranks * out.weights_bytes(), out.weights_staging_stride);
  out.returns = flights("device returns", (out.num_nodes - 1) * return_bytes, out.returns_stride);
  return out;
}

}  // namespace ferry
