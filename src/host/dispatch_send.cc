// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 2, dispatch_send: encode a row once and store it at each destination. Throughput: inside the node straight into the
// row where it belongs, for another node once into the staging region and from there, in chunks, to the rail peer. Latency:
// once into the staging region, from where the ranks of this node fetch it; they get its record alone into the slots that
// this rank has at every destination, ranks of other nodes get both.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "backend/trace.h"
#include "core/check.h"
#include "host/host_backend.h"
#include "host/row_encoder.h"
#include "routing/dedup.h"

namespace ferry::host {
namespace {

constexpr const char* kStep = "dispatch_send";

// Network puts of about this size: large enough for a NIC to run at its rate, small enough that forwarding starts early.
constexpr std::int64_t kChunkBytes = 64 * 1024;

/// The record of the token at hand, for all its destinations.
class RecordBuilder {
 public:
  RecordBuilder(const Runtime& runtime, const DispatchCall& call)
      : call_(call),
        words_(static_cast<std::size_t>(wire::TokenMeta::bytes(call.top_k) / 4)),
        source_rank_(runtime.rank) {}

  wire::TokenMeta build(std::int64_t token) {
    wire::TokenMeta record(words_.data(), call_.top_k);
    record.source_rank() = source_rank_;
    record.source_token() = static_cast<std::int32_t>(token);
    record.forward_row() = -1;
    const auto first = static_cast<std::size_t>(token * call_.top_k);
    const auto count = static_cast<std::size_t>(call_.top_k);
    std::copy_n(call_.slots.begin() + static_cast<std::ptrdiff_t>(first), count, record.slots());
    std::copy_n(call_.rows.begin() + static_cast<std::ptrdiff_t>(first), count, record.rows());
    std::copy_n(call_.tokens.begin() + static_cast<std::ptrdiff_t>(first), count, record.tokens());
    if (call_.weights.empty()) {
      std::fill_n(record.weights(), count, 0.0f);
    } else {
      std::copy_n(call_.weights.begin() + static_cast<std::ptrdiff_t>(first), count, record.weights());
    }
    return record;
  }
  const std::int32_t* data() const { return words_.data(); }
  std::int64_t bytes() const { return static_cast<std::int64_t>(words_.size()) * 4; }

 private:
  const DispatchCall& call_;
  std::vector<std::int32_t> words_;
  std::int32_t source_rank_;
};

/// Rows for one other node, collected in the staging region and put to the rail peer in chunks.
class NetworkStream {
 public:
  NetworkStream(Runtime& runtime, DispatchCall& call, int node, std::int64_t record_bytes)
      : runtime_(runtime),
        call_(call),
        rail_(call.windows->rails.rail(runtime.rank, node)),
        record_bytes_(record_bytes) {
    if (rail_ < 0) return;
    const WindowLayout& layout = call.windows->layout;
    const std::int64_t stream_bytes = layout.stream_bytes();
    const int my_node = runtime.topology.node_of(runtime.rank);
    staging_ = layout.dispatch_staging(call.flight) + (node < my_node ? node : node - 1) * stream_bytes;
    remote_ =
        layout.dispatch_forward(call.flight) + call.windows->rails.source_index(rail_, runtime.rank) * stream_bytes;
  }

  /// Where the next row of this stream is to be written.
  std::byte* next() { return call_.windows->own(staging_ + count_ * record_bytes_); }
  void push() {
    ++count_;
    if ((count_ - sent_) * record_bytes_ >= kChunkBytes) flush();
  }
  void flush() {
    if (count_ == sent_) return;
    runtime_.write(call_, rail_, remote_ + sent_ * record_bytes_, call_.windows->own(staging_ + sent_ * record_bytes_),
                   (count_ - sent_) * record_bytes_);
    sent_ = count_;
    runtime_.post(call_, rail_, Signal::kDispatchNetwork, call_.total(sent_));
  }
  std::int64_t bytes() const { return sent_ * record_bytes_; }

 private:
  Runtime& runtime_;
  DispatchCall& call_;
  int rail_;
  std::int64_t record_bytes_;
  std::int64_t staging_ = 0, remote_ = 0;
  std::int64_t count_ = 0, sent_ = 0;
};

/// Stores a row and its record where they stay, in the window of `peer`, a member of this node.
void store_in_place(Runtime& runtime, DispatchCall& call, const EncodedRow& row, const wire::TokenMeta& record,
                    int peer, int first_choice) {
  const WindowLayout& layout = call.windows->layout;
  for (int b = 0; b < call.format.num_blocks; ++b) {
    const wire::Block& block = call.format[b];
    const std::int64_t offset =
        layout.recv(call.flight) + layout.recv_rows() * block.offset + record.rows()[first_choice] * block.padded;
    runtime.write(call, peer, offset, row.blocks[static_cast<std::size_t>(b)], block.bytes);
  }
  const std::int64_t bytes = wire::TokenMeta::bytes(call.top_k);
  runtime.write(call, peer, layout.recv_meta(call.flight) + record.tokens()[first_choice] * bytes, record.slots() - 4,
                bytes);
}

void send_throughput(Runtime& runtime, DispatchCall& call, StepScope& scope) {
  const Topology& topology = runtime.topology;
  const int my_node = topology.node_of(runtime.rank);
  RowEncoder encoder(call);
  RecordBuilder builder(runtime, call);
  runtime.wait_completed(call, kStep, call.windows->dispatch_staging_busy[static_cast<std::size_t>(call.flight)]);
  std::vector<NetworkStream> streams;
  for (int node = 0; node < topology.num_nodes(); ++node)
    streams.emplace_back(runtime, call, node, call.format.row_bytes + builder.bytes());

  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    const std::int32_t* ranks = call.ranks.data() + t * call.top_k;
    const EncodedRow row = encoder.encode(t);
    wire::TokenMeta record = builder.build(t);
    for (int k = 0; k < call.top_k; ++k) {
      if (!routing::is_first_of_owner(ranks, k) || topology.node_of(ranks[k]) != my_node) continue;
      store_in_place(runtime, call, row, record, ranks[k], k);
      scope.count(call.format.row_bytes);
    }
    for (int node = 0; node < topology.num_nodes(); ++node) {
      const std::int32_t forward_row = call.forward_rows[static_cast<std::size_t>(t * topology.num_nodes() + node)];
      if (node == my_node || forward_row < 0) continue;
      NetworkStream& stream = streams[static_cast<std::size_t>(node)];
      record.forward_row() = forward_row;
      std::byte* to = stream.next();
      encoder.copy(row, to);
      std::memcpy(to + call.format.row_bytes, builder.data(), static_cast<std::size_t>(builder.bytes()));
      stream.push();
      scope.count(call.format.row_bytes);
      record.forward_row() = -1;
    }
  }
  for (NetworkStream& stream : streams) stream.flush();
  call.windows->dispatch_staging_busy[static_cast<std::size_t>(call.flight)] = runtime.submitted();
  for (int peer : call.windows->node_peers) runtime.post(call, peer, Signal::kDispatchRows, call.total(0));
}

/// A slot may be written again once its reader has reported that it read the flight's last call.
void wait_for_free_slots(Runtime& runtime, DispatchCall& call) {
  auto& last = call.windows->last_latency_dispatch[static_cast<std::size_t>(call.flight)];
  if (last != 0) {
    std::vector<Wait> waits;
    for (int peer : call.windows->live) waits.push_back({peer, Signal::kDispatchRead, last << 24});
    runtime.wait(call, kStep, waits);
  }
  const std::uint64_t before = std::exchange(last, call.epoch);
  call.flight_used_before = before;
  if (before == 0) return;
  int num_refused = 0, refusing = -1;
  std::int64_t needed_rows = 0;
  for (int peer : call.windows->live) {
    const std::uint64_t seen = runtime.signal(*call.windows, Signal::kDispatchRead, call.flight, peer);
    const bool refused = seen >> 24 == before && (seen & kReadRefused) != 0;
    // A peer that refused this call already, for the same reason, has overwritten its report of the last one.
    const bool refused_already = seen >> 24 == call.epoch && (seen & kReadRefusedBefore) != 0;
    if (!refused && !refused_already) continue;
    num_refused += refused ? 1 : 0;
    refusing = peer;
    needed_rows = static_cast<std::int64_t>(seen & kReadRowsMask);
  }
  // Every rank sees the same reports, so every rank refuses this call alike, unless all have thrown before.
  if (refusing < 0 || num_refused == static_cast<int>(call.windows->live.size())) return;
  Error error =
      peer_error(ErrorCode::kOverflow, kStep, call.epoch, refusing,
                 fmt::format("{}: rank {} got more rows than expert_capacity in call {}", kStep, refusing, before));
  error.needed_rows = needed_rows;
  throw error;
}

void send_latency(Runtime& runtime, DispatchCall& call, StepScope& scope) {
  const WindowLayout& layout = call.windows->layout;
  const int my_node = runtime.topology.node_of(runtime.rank);
  RowEncoder encoder(call);
  RecordBuilder builder(runtime, call);
  const std::int64_t record_bytes = call.format.row_bytes + builder.bytes();
  wait_for_free_slots(runtime, call);
  runtime.wait_completed(call, kStep, call.windows->dispatch_staging_busy[static_cast<std::size_t>(call.flight)]);

  std::vector<std::int64_t> filled(static_cast<std::size_t>(runtime.topology.num_ranks()), 0);
  const std::int64_t slots = layout.dispatch_slots(call.flight, runtime.rank);
  const std::int64_t num_tokens = call.bad_id.status == kCallGood ? call.num_tokens : 0;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const std::int32_t* ranks = call.ranks.data() + t * call.top_k;
    builder.build(t);
    std::byte* staged = nullptr;
    for (int k = 0; k < call.top_k; ++k) {
      if (!routing::is_first_of_owner(ranks, k)) continue;
      const std::int64_t index = filled[static_cast<std::size_t>(ranks[k])]++;
      const bool in_place = ranks[k] == runtime.rank && call.own_rows_in_place();  // dispatch_recv takes it from there
      if (staged == nullptr && !in_place) {
        staged = call.windows->own(layout.dispatch_staging(call.flight) + t * call.staged_stride());
        encoder.copy(encoder.encode(t), staged);
        std::memcpy(staged + call.format.row_bytes, builder.data(), static_cast<std::size_t>(builder.bytes()));
      }
      if (runtime.topology.node_of(ranks[k]) == my_node) {
        runtime.write(call, ranks[k], slots + index * builder.bytes(), builder.data(), builder.bytes());
      } else {
        runtime.write(call, ranks[k], slots + index * record_bytes, staged, record_bytes);
      }
      if (!in_place) scope.count(call.format.row_bytes);
    }
  }
  CallNote note = call.bad_id;
  note.num_tokens = num_tokens;
  runtime.send_note(call, false, note, call.windows->live);
  for (int peer : call.windows->live)
    runtime.post(call, peer, Signal::kDispatchRows, call.total(filled[static_cast<std::size_t>(peer)]));
  call.windows->dispatch_staging_busy[static_cast<std::size_t>(call.flight)] = runtime.submitted();
}

}  // namespace

void dispatch_send(Runtime& runtime, DispatchCall& call) {
  StepScope scope(call, kStep);
  if (call.args.mode == Mode::kThroughput) return send_throughput(runtime, call, scope);
  try {
    send_latency(runtime, call, scope);
  } catch (const Error& error) {
    // Without this credit peers could not use the flight again.
    if (error.code() == ErrorCode::kOverflow) {
      runtime.report_read(call, kReadRefusedBefore | std::min(error.needed_rows, kReadRowsMask));
    } else {
      runtime.report_failed(call, error);
    }
    throw;
  }
}

}  // namespace ferry::host
