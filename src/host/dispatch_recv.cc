// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 4, dispatch_recv: wait for the rows, lay them out as the experts want them, write the handle. Throughput: rows are in
// place already; an expert layout copies a token that several local experts want from its first row to the others. Latency:
// rows are fetched in order of (source rank, source token) into the result, from where their source in this node staged them,
// or from the slots that sources of other nodes filled.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "backend/handle_layout.h"
#include "backend/trace.h"
#include "core/check.h"
#include "host/dispatch_result.h"
#include "host/host_backend.h"
#include "host/row_encoder.h"

namespace ferry::host {
namespace {

constexpr const char* kStep = "dispatch_recv";

/// Rows are compact, so a rank that was left out while its rows (or rows that it hands on) were on the way leaves holes.
void check_nobody_left(const Runtime& runtime, const DispatchCall& call) {
  const int my_node = runtime.topology.node_of(runtime.rank);
  const auto has_come = [&](int peer, Signal kind, std::int32_t count) {
    return runtime.signal(*call.windows, kind, call.flight, peer) >= call.total(count);
  };
  for (int peer : call.windows->live) {
    const auto index = static_cast<std::size_t>(peer);
    if (runtime.masked_now[index] == 0 || runtime.late[index] != 0) continue;
    const bool in_node = runtime.topology.node_of(peer) == my_node;
    const bool own_rows = call.tokens_from[index] == 0 || (in_node && has_come(peer, Signal::kDispatchRows, 0));
    const bool handed_on =
        call.forwarded_from[index] == 0 || has_come(peer, Signal::kDispatchForwarded, call.forwarded_from[index]);
    if (own_rows && handed_on) continue;
    throw peer_error(ErrorCode::kPeerLost, kStep, call.epoch, peer,
                     fmt::format("{}: call {}: rank {} was left out while its rows were on the way; dispatch again",
                                 kStep, call.epoch, peer));
  }
}

void wait_for_rows(Runtime& runtime, DispatchCall& call) {
  std::vector<Wait> waits;
  for (int peer : call.windows->node_peers) {
    const auto index = static_cast<std::size_t>(peer);
    // Groups that mask make a call again if not all came to its send half, so nobody may finish it alone.
    if (call.tokens_from[index] > 0 || call.masks_late) waits.push_back({peer, Signal::kDispatchRows, call.total(0)});
    const std::int32_t handed_on = call.forwarded_from[index];
    if (handed_on > 0) waits.push_back({peer, Signal::kDispatchForwarded, call.total(handed_on)});
  }
  runtime.wait(call, kStep, waits);
  // Rows of others may still have to pass through this rank, also if it receives none itself.
  std::vector<Wait> owed;
  for (const ForwardProgress& progress : call.forwards) {
    if (progress.expected == 0) continue;  // a source without rows for this node says nothing
    owed.push_back({progress.source, Signal::kDispatchNetwork, call.total(progress.expected)});
  }
  runtime.wait(call, "dispatch_forward", owed);
  dispatch_forward(runtime, call);
  check_nobody_left(runtime, call);
}

/// Rows of ranks that were masked on the way keep their places, but nobody owns them.
void disown_rows(const Runtime& runtime, const DispatchCall& call, const HandleView& handle) {
  for (int source : call.windows->live) {
    if (runtime.late[static_cast<std::size_t>(source)] == 0) continue;
    for (std::int32_t n = handle.source_offsets()[source]; n < handle.source_offsets()[source + 1]; ++n) {
      const wire::TokenMeta record = handle.record(n);
      record.source_rank() = source;
      record.source_token() = record.forward_row() = -1;
      for (int k = 0; k < call.top_k; ++k) {
        record.slots()[k] = record.rows()[k] = record.tokens()[k] = -1;
        record.weights()[k] = 0.0f;
      }
    }
  }
}

void receive_throughput(Runtime& runtime, DispatchCall& call, StepScope& scope) {
  wait_for_rows(runtime, call);
  if (call.discard) return;
  const WindowLayout& layout = call.windows->layout;
  ResultRows out(call, call.windows->own(layout.recv(call.flight)), layout.recv_rows());
  const HandleView handle = make_handle(runtime, call);
  std::memcpy(handle.records(), call.windows->own(layout.recv_meta(call.flight)),
              static_cast<std::size_t>(call.num_rows * wire::TokenMeta::bytes(call.top_k)));
  std::copy_n(call.forward_records.data(), call.forward_records.size(), handle.forwarded_records());
  disown_rows(runtime, call, handle);
  if (call.shape.layout == Layout::kRankMajor) return;  // every row is in place
  const LocalSlots local(*call.placement, runtime.rank);
  for (std::int64_t n = 0; n < call.num_rows; ++n) {
    const wire::TokenMeta record = handle.record(n);
    std::int64_t first = -1;
    for (int k = 0; k < call.top_k; ++k) {
      if (local.expert(record.slots()[k]) < 0) continue;
      if (first < 0) {
        first = record.rows()[k];
        continue;
      }
      out.copy_row(first, record.rows()[k]);
      scope.count(call.format.row_bytes);
    }
  }
}

/// How many slots each source filled; refuses what a source confessed or disagrees about.
void wait_for_slots(Runtime& runtime, DispatchCall& call) {
  std::vector<Wait> waits;
  for (int source : call.windows->live) waits.push_back({source, Signal::kDispatchRows, call.total(0)});
  runtime.wait(call, kStep, waits);
  call.tokens_from.assign(static_cast<std::size_t>(runtime.topology.num_ranks()), 0);
  for (int source : call.windows->live) {
    const std::uint64_t seen = runtime.signal(*call.windows, Signal::kDispatchRows, call.flight, source);
    if (seen < call.total(0) || runtime.late[static_cast<std::size_t>(source)] != 0)
      continue;  // left out while its rows were on the way: counts as none
    check_note(call, source, runtime.note_of(call, false, source));
    call.tokens_from[static_cast<std::size_t>(source)] = static_cast<std::int32_t>(seen & 0xffffff);
  }
}

/// The wire rows and records of all slots filled, in order of (source rank, source token).
class SlotReader {
 public:
  explicit SlotReader(const DispatchCall& call)
      : call_(call),
        meta_bytes_(wire::TokenMeta::bytes(call.top_k)),
        record_bytes_(call.format.row_bytes + meta_bytes_) {}

  template <typename Visit>
  void for_each(Visit&& visit) const {
    const Windows& windows = *call_.windows;
    for (int source : windows.live) {
      std::byte* slot = windows.own(windows.layout.dispatch_slots(call_.flight, source));
      // Null for a source of another node, whose rows lie in the slots.
      const std::byte* staged = windows.peer(source, windows.layout.dispatch_staging(call_.flight));
      for (std::int32_t i = 0; i < call_.tokens_from[static_cast<std::size_t>(source)]; ++i) {
        const wire::TokenMeta record(staged == nullptr ? slot + call_.format.row_bytes : slot, call_.top_k);
        visit(source, staged == nullptr ? slot : staged + record.source_token() * call_.staged_stride(), record);
        slot += staged == nullptr ? record_bytes_ : meta_bytes_;
      }
    }
  }

 private:
  const DispatchCall& call_;
  std::int64_t meta_bytes_, record_bytes_;
};

void count_arrivals(const Runtime& runtime, DispatchCall& call, const SlotReader& slots) {
  const LocalSlots local(*call.placement, runtime.rank);
  call.expert_counts.assign(static_cast<std::size_t>(call.placement->num_local_experts(runtime.rank)), 0);
  call.num_rows = 0;
  slots.for_each([&](int, const std::byte*, wire::TokenMeta record) {
    ++call.num_rows;
    for (int k = 0; k < call.top_k; ++k) {
      const std::int32_t expert = local.expert(record.slots()[k]);
      if (expert >= 0) ++call.expert_counts[static_cast<std::size_t>(expert)];
    }
  });
  if (call.shape.layout != Layout::kExpertPadded) return;
  call.num_expert_rows = call.shape.capacity * static_cast<std::int64_t>(call.expert_counts.size());
  for (std::size_t e = 0; e < call.expert_counts.size(); ++e) {
    if (call.expert_counts[e] <= call.shape.capacity) continue;
    Error error = call_error(
        ErrorCode::kOverflow, kStep, call.epoch,
        fmt::format("ferry::Group::dispatch: call {}: local expert {} of rank {} got {} rows, expert_capacity is {}",
                    call.epoch, e, runtime.rank, call.expert_counts[e], call.shape.capacity));
    error.needed_rows = call.expert_counts[e];
    throw error;
  }
}

/// A source that has masked this rank waits for it no more and stages other rows where this rank has just read.
void check_still_a_member(const Runtime& runtime, const DispatchCall& call) {
  if (!call.masks_late) return;
  std::atomic_thread_fence(std::memory_order_acquire);  // rows first, then the word
  for (int source : call.windows->live) {
    const bool read = call.tokens_from[static_cast<std::size_t>(source)] != 0;
    if (!read || runtime.signal(*call.windows, Signal::kLeftOut, 0, source) == 0) continue;
    throw peer_error(
        ErrorCode::kMismatch, kStep, call.epoch, source,
        fmt::format("{}: call {}: rank {} has left this rank ({}) out", kStep, call.epoch, source, runtime.rank));
  }
}

void receive_latency(Runtime& runtime, DispatchCall& call, StepScope& scope) {
  wait_for_slots(runtime, call);
  if (call.discard) return;
  const SlotReader slots(call);
  count_arrivals(runtime, call, slots);
  const WindowLayout& layout = call.windows->layout;
  ResultRows out(call, call.windows->own(layout.latency_out(call.flight)), layout.latency_out_rows());
  const HandleView handle = make_handle(runtime, call);
  const LocalSlots local(*call.placement, runtime.rank);
  std::vector<std::int32_t> next(handle.expert_offsets(), handle.expert_offsets() + call.expert_counts.size());
  std::int32_t n = 0;
  RowEncoder own_rows(call);
  const auto store = [&](int source, const std::byte* wire_row, std::int32_t token, std::int64_t to) {
    if (source == runtime.rank && call.own_rows_in_place()) return out.store_blocks(own_rows.encode(token).blocks, to);
    out.store_row(wire_row, to);
  };
  slots.for_each([&](int source, const std::byte* row, wire::TokenMeta arrived) {
    const wire::TokenMeta record = handle.record(n);
    std::memcpy(record.slots() - 4, arrived.slots() - 4, static_cast<std::size_t>(wire::TokenMeta::bytes(call.top_k)));
    for (int k = 0; k < call.top_k; ++k) {
      const std::int32_t expert = local.expert(record.slots()[k]);
      if (expert < 0) continue;
      record.tokens()[k] = n;
      record.rows()[k] = call.shape.layout == Layout::kRankMajor ? n : next[static_cast<std::size_t>(expert)]++;
      if (call.shape.layout == Layout::kRankMajor) continue;
      store(source, row, record.source_token(), record.rows()[k]);
      scope.count(call.format.row_bytes);
    }
    if (call.shape.layout == Layout::kRankMajor) {
      store(source, row, record.source_token(), n);
      scope.count(call.format.row_bytes);
    }
    ++n;
  });
  check_still_a_member(runtime, call);
}

}  // namespace

void dispatch_recv(Runtime& runtime, DispatchCall& call) {
  StepScope scope(call, kStep);
  const WindowLayout& layout = call.windows->layout;
  if (call.args.mode == Mode::kThroughput) {
    receive_throughput(runtime, call, scope);
    if (!call.discard) make_result(runtime, call, call.windows->own(layout.recv(call.flight)), layout.recv_rows());
    return;
  }
  try {
    receive_latency(runtime, call, scope);
    if (!call.discard) {
      make_result(runtime, call, call.windows->own(layout.latency_out(call.flight)), layout.latency_out_rows());
    }
  } catch (const Error& error) {
    // The slots are free for the flight's next call all the same. Peers need not wait for a rank that could not take its rows.
    if (error.code() == ErrorCode::kOverflow) {
      runtime.report_read(call, kReadRefused | std::min(error.needed_rows, kReadRowsMask));
    } else {
      runtime.report_failed(call, error);
    }
    throw;
  }
  runtime.report_read(call, kReadWell);
}

}  // namespace ferry::host
