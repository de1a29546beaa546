// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 3, dispatch_forward: rows that came over the network for ranks of this node are handed on to their owners, as they
// arrive. Throughput mode only: in latency mode every source reaches every destination itself.
#include <algorithm>
#include <cstring>

#include "backend/trace.h"
#include "host/host_backend.h"
#include "routing/dedup.h"

namespace ferry::host {
namespace {

/// Hands one row on to each of its owners in this node.
void forward_row(Runtime& runtime, DispatchCall& call, std::byte* record_at, StepScope& scope) {
  const WindowLayout& layout = call.windows->layout;
  const wire::TokenMeta record(record_at + call.format.row_bytes, call.top_k);
  const int my_node = runtime.topology.node_of(runtime.rank);
  std::vector<std::int32_t> ranks(static_cast<std::size_t>(call.top_k));
  for (int k = 0; k < call.top_k; ++k) {
    ranks[static_cast<std::size_t>(k)] = record.slots()[k] < 0 ? -1 : call.placement->rank_of_slot(record.slots()[k]);
  }
  for (int k = 0; k < call.top_k; ++k) {
    if (!routing::is_first_of_owner(ranks.data(), k)) continue;
    const int peer = ranks[static_cast<std::size_t>(k)];
    if (runtime.topology.node_of(peer) != my_node) continue;
    for (int b = 0; b < call.format.num_blocks; ++b) {
      const wire::Block& block = call.format[b];
      const std::int64_t to =
          layout.recv(call.flight) + layout.recv_rows() * block.offset + record.rows()[k] * block.padded;
      runtime.write(call, peer, to, record_at + block.offset, block.bytes);
    }
    const std::int64_t bytes = wire::TokenMeta::bytes(call.top_k);
    runtime.write(call, peer, layout.recv_meta(call.flight) + record.tokens()[k] * bytes,
                  record_at + call.format.row_bytes, bytes);
    ++call.forwarded_to[static_cast<std::size_t>(peer)];
    scope.count(call.format.row_bytes);
  }
}

}  // namespace

bool dispatch_forward(Runtime& runtime, DispatchCall& call) {
  if (call.forward_posted || call.args.mode == Mode::kLatency) return true;
  const Windows& windows = *call.windows;
  const std::int64_t meta_bytes = wire::TokenMeta::bytes(call.top_k);
  const std::int64_t record_bytes = call.format.row_bytes + meta_bytes;
  const std::int64_t stream_bytes = windows.layout.stream_bytes();
  call.forwarded_to.resize(static_cast<std::size_t>(runtime.topology.num_ranks()), 0);
  bool complete = true;
  std::int64_t first_record = 0;
  for (std::size_t index = 0; index < call.forwards.size(); ++index) {
    ForwardProgress& progress = call.forwards[index];
    if (call.forward_records.empty() && progress.expected > 0) {
      std::int64_t total = 0;
      for (const ForwardProgress& one : call.forwards) total += one.expected;
      call.forward_records.resize(static_cast<std::size_t>(total * meta_bytes));
    }
    const std::uint64_t seen = runtime.signal(windows, Signal::kDispatchNetwork, call.flight, progress.source);
    const std::int64_t arrived =
        seen >> 24 == call.epoch ? std::min(progress.expected, static_cast<std::int64_t>(seen & 0xffffff)) : 0;
    if (progress.done < arrived) {
      StepScope scope(call, "dispatch_forward");
      const std::int64_t stream =
          windows.layout.dispatch_forward(call.flight) + static_cast<std::int64_t>(index) * stream_bytes;
      for (; progress.done < arrived; ++progress.done) {
        std::byte* record_at = windows.own(stream + progress.done * record_bytes);
        forward_row(runtime, call, record_at, scope);
        std::memcpy(call.forward_records.data() + (first_record + progress.done) * meta_bytes,
                    record_at + call.format.row_bytes, static_cast<std::size_t>(meta_bytes));
      }
    }
    first_record += progress.expected;
    // A source that was left out meanwhile will send no more. The counts posted then fall short of what its destinations
    // wait for: they find out by their own masks or their deadline, never by stale rows.
    const bool absent = runtime.masked_now[static_cast<std::size_t>(progress.source)] != 0;
    complete = complete && (progress.done == progress.expected || absent);
  }
  if (!complete) return false;
  for (int peer : windows.node_peers) {
    runtime.post(call, peer, Signal::kDispatchForwarded, call.total(call.forwarded_to[static_cast<std::size_t>(peer)]));
  }
  call.forward_posted = true;
  return true;
}

}  // namespace ferry::host
