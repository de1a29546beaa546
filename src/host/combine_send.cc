// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 5, combine_send: results go back towards the slot their token came from. Rows of one token are summed inside the rank
// first, unless the reduction is flat. A token of another node returns through the rail peer that handed it on (throughput),
// or straight through the network (latency).
#include <algorithm>
#include <cstring>
#include <utility>

#include "backend/trace.h"
#include "host/combine_common.h"
#include "host/host_backend.h"
#include "host/row_sum.h"
#include "wire/return_codec.h"

namespace ferry::host {
namespace {

constexpr const char* kStep = "combine_send";

/// Regions of a flight may be written again once their readers have reported that they read the flight's last combine.
void wait_for_free_slots(Runtime& runtime, CombineCall& call) {
  auto& last = call.windows->last_combine[static_cast<std::size_t>(call.flight)];
  if (last != 0) {
    std::vector<Wait> waits;
    for (int peer : call.windows->live) waits.push_back({peer, Signal::kCombineRead, last << 24});
    runtime.wait(call, kStep, waits);
  }
  call.flight_used_before = std::exchange(last, call.epoch);
  runtime.wait_completed(call, kStep, call.windows->combine_staging_busy[static_cast<std::size_t>(call.flight)]);
}

bool weights_go_ahead(const CombineCall& call) {
  return call.args.weighting == CombineArgs::Weighting::kGiven && !is_flat(call);
}

/// Sends the weights of this rank's tokens to the ranks that sum their rows; [token order][K] per destination.
void send_weights_ahead(Runtime& runtime, CombineCall& call, const HandleView& handle) {
  const WindowLayout& layout = call.windows->layout;
  const Tensor& weights = call.args.weights;
  const std::int64_t row_bytes = 4 * static_cast<std::int64_t>(call.top_k);
  const std::int32_t* ranks = handle.ranks();
  for (int peer : call.windows->live) {
    // Network puts read their source later, so each destination has a staging row range of its own.
    const bool mapped = call.windows->peer(peer, 0) != nullptr;
    std::byte* base = mapped
                          ? call.windows->peer(peer, layout.weights_ahead(call.flight, runtime.rank))
                          : call.windows->own(layout.weights_ahead(call.flight, runtime.topology.num_ranks() + peer));
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < call.num_tokens; ++t) {
      if (routing::last_choice_of(ranks + t * call.top_k, call.top_k, peer) < 0) continue;
      auto* to = reinterpret_cast<float*>(base + count++ * row_bytes);
      for (int k = 0; k < call.top_k; ++k)
        to[k] = static_cast<const float*>(weights.data)[t * weights.strides[0] + k * weights.strides[1]];
    }
    if (!mapped) runtime.write(call, peer, layout.weights_ahead(call.flight, runtime.rank), base, count * row_bytes);
    if (count > 0) runtime.post(call, peer, Signal::kCombineWeights, call.total(count));
  }
}

void wait_for_weights(Runtime& runtime, CombineCall& call, const HandleView& handle) {
  std::vector<Wait> waits;
  for (int source : call.windows->live) {
    const std::int32_t count = handle.source_offsets()[source + 1] - handle.source_offsets()[source];
    if (count > 0) waits.push_back({source, Signal::kCombineWeights, call.total(count)});
  }
  runtime.wait(call, kStep, waits);
}

/// Writes the rows of received tokens into slots, one after the other.
class RowReturner {
 public:
  RowReturner(Runtime& runtime, CombineCall& call, const HandleView& handle, StepScope& scope)
      : runtime_(runtime),
        call_(call),
        scope_(scope),
        rank_of_slot_(handle.rank_of_slot()),
        owners_(runtime.topology, call.top_k),
        sum_(call.args.x.dtype),
        row_stride_(call.args.x.strides[static_cast<std::size_t>(call.args.x.ndim) - 2] *
                    static_cast<std::int64_t>(dtype_bytes(call.args.x.dtype))),
        records_(handle.records()),
        meta_bytes_(wire::TokenMeta::bytes(call.top_k)),
        uncoded_(call.args.codec == Codec::kNone ? 0 : static_cast<std::size_t>(call.row_bytes)) {}

  /// Returns row `n`, number `index` of its source's, into the slots that begin at `base`: where the token's K slots lie in the
  /// window of `peer`.
  void give_back(std::int64_t n, std::int64_t index, int peer, std::int64_t base) {
    const wire::TokenMeta record(records_ + n * meta_bytes_, call_.top_k);
    owners_.set_slots(record.slots(), rank_of_slot_);
    if (!is_flat(call_)) {
      std::byte* to = slot(peer, base, owners_.place_of_rank(runtime_.rank));
      const std::byte* sum = sum_of(record, n, index, uncoded_.empty() ? to : uncoded_.data());
      put(sum, record, n, -1, peer, base + owners_.place_of_rank(runtime_.rank) * call_.slot_bytes, to);
      return;
    }
    for (int k = 0; k < call_.top_k; ++k) {
      if (owners_.ranks()[k] != runtime_.rank) continue;
      put(expert_row(record.rows()[k]), record, n, k, peer, base + k * call_.slot_bytes, slot(peer, base, k));
    }
  }

 private:
  /// Where to write: the slot itself inside the node, a place in the staging region otherwise.
  std::byte* slot(int peer, std::int64_t base, int place) {
    if (std::byte* mapped = call_.windows->peer(peer, base + place * call_.slot_bytes)) return mapped;
    return call_.windows->own(call_.windows->layout.combine_staging(call_.flight) + staged_++ * call_.slot_bytes);
  }
  const std::byte* x_row(std::int64_t row) const {
    return static_cast<const std::byte*>(call_.args.x.data) + row * row_stride_;
  }
  /// A row of an expert layout; experts may lie further apart than their rows.
  const std::byte* expert_row(std::int32_t row) const {
    if (call_.args.x.ndim != 3) return x_row(row);
    const std::int64_t capacity = call_.handle.expert_capacity();
    const std::int64_t expert_stride =
        call_.args.x.strides[0] * static_cast<std::int64_t>(dtype_bytes(call_.args.x.dtype));
    return static_cast<const std::byte*>(call_.args.x.data) + row / capacity * expert_stride +
           row % capacity * row_stride_;
  }

  /// What this rank returns: a row of x, or the sum of its experts' rows, made at `to`.
  const std::byte* sum_of(const wire::TokenMeta& record, std::int64_t n, std::int64_t index, std::byte* to) {
    if (call_.handle.layout() == Layout::kRankMajor) return x_row(n);
    sum_.clear();
    const float* given = nullptr;
    if (weights_go_ahead(call_)) {
      given = reinterpret_cast<const float*>(
                  call_.windows->own(call_.windows->layout.weights_ahead(call_.flight, record.source_rank()))) +
              index * call_.top_k;
    }
    for (int k = 0; k < call_.top_k; ++k) {
      if (owners_.ranks()[k] != runtime_.rank) continue;
      const std::byte* row = expert_row(record.rows()[k]);
      if (call_.args.weighting == CombineArgs::Weighting::kNone) {
        sum_.add(row);
      } else {
        sum_.add_weighted(row, given != nullptr ? given[k] : record.weights()[k]);
      }
    }
    sum_.write(to, call_.hidden, {});
    return to;
  }

  /// Puts a row and the combined weights into the slot at `at` and, for another node, sends it off. `only` picks one choice's weight, -1 all of
  /// mine.
  void put(const std::byte* row, const wire::TokenMeta& record, std::int64_t n, int only, int peer, std::int64_t offset,
           std::byte* at) {
    std::int64_t used = call_.slot_bytes;
    if (call_.args.codec == Codec::kNone) {
      if (row != at) wire::copy_row(at, row, call_.row_bytes);
      scope_.count(call_.row_bytes);
    } else {
      used = encode(row, at);
    }
    if (call_.has_topk_weights) write_weights(record, n, only, reinterpret_cast<float*>(at + call_.weights_at));
    if (call_.windows->peer(peer, offset) == nullptr) runtime_.write(call_, peer, offset, at, used);
  }
  /// Returns the bytes of the slot that are used.
  std::int64_t encode(const std::byte* row, std::byte* at) {
    const std::int64_t begin = return_row_bytes(call_.weights_at, call_.top_k, call_.has_topk_weights);
    const std::int64_t bytes = wire::encode_returned(call_.args.codec, reinterpret_cast<const std::uint16_t*>(row),
                                                     call_.hidden, at, at + begin);
    scope_.count(4 * wire::num_scales(call_.hidden, wire::kCodedGroup) + bytes);
    return wire::padded(begin + bytes);
  }
  void write_weights(const wire::TokenMeta& record, std::int64_t n, int only, float* to) const {
    const Tensor& weights = call_.args.topk_weights;
    const auto* values = static_cast<const float*>(weights.data);
    for (int k = 0; k < call_.top_k; ++k) {
      to[k] = 0.0f;
      if (only >= 0 && k != only) continue;
      if (owners_.ranks()[k] != runtime_.rank) continue;
      if (call_.handle.layout() == Layout::kRankMajor) {
        to[k] = values[n * weights.strides[0] + k * weights.strides[1]];
      } else {
        const std::int32_t row = record.rows()[k];
        to[k] = weights.ndim == 1 ? values[row * weights.strides[0]]
                                  : values[row / call_.handle.expert_capacity() * weights.strides[0] +
                                           row % call_.handle.expert_capacity() * weights.strides[1]];
      }
    }
  }

  Runtime& runtime_;
  CombineCall& call_;
  StepScope& scope_;
  const std::int32_t* rank_of_slot_;
  Owners owners_;
  RowSum sum_;
  std::int64_t row_stride_;
  std::byte* records_;
  std::int64_t meta_bytes_;
  std::vector<std::byte> uncoded_;  // with a codec: a row before it is coded
  std::int64_t staged_ = 0;
};

/// Returns the rows of one source and says so.
void return_rows_of(Runtime& runtime, CombineCall& call, const HandleView& handle, int source, RowReturner& returner) {
  const WindowLayout& layout = call.windows->layout;
  const std::int32_t* offsets = handle.source_offsets();
  const std::byte* records = handle.records();
  const std::int64_t meta_bytes = wire::TokenMeta::bytes(call.top_k);
  const int my_node = runtime.topology.node_of(runtime.rank);
  const bool straight = runtime.topology.node_of(source) == my_node || returns_straight(call);
  const int rail = straight ? source : call.windows->rails.rail(source, my_node);
  const std::int64_t stream = straight
                                  ? layout.return_slots(call.flight)
                                  : layout.combine_forward(call.flight) +
                                        call.windows->rails.source_index(rail, source) * layout.return_stream_bytes();
  for (std::int32_t n = offsets[source]; n < offsets[source + 1]; ++n) {
    const wire::TokenMeta record(const_cast<std::byte*>(records) + n * meta_bytes, call.top_k);
    const std::int64_t token = straight ? record.source_token() : record.forward_row();
    returner.give_back(n, n - offsets[source], rail, stream + slot_offset(call, token, 0));
  }
}

void send(Runtime& runtime, CombineCall& call) {
  StepScope scope(call, kStep);
  const HandleView handle(call.handle.mutable_bytes());
  wait_for_free_slots(runtime, call);
  runtime.send_note(call, true, {}, call.windows->live);
  if (weights_go_ahead(call)) {
    send_weights_ahead(runtime, call, handle);
    wait_for_weights(runtime, call, handle);
  }
  RowReturner returner(runtime, call, handle, scope);
  for (int source : call.windows->live) {
    if (source == runtime.rank && call.own_rows_in_place()) continue;  // combine_recv reads them where they are
    return_rows_of(runtime, call, handle, source, returner);
  }
  for (int peer : call.windows->live) {
    const bool in_node = runtime.topology.node_of(peer) == runtime.topology.node_of(runtime.rank);
    if (in_node || returns_straight(call)) runtime.post(call, peer, Signal::kCombineRows, call.total(0));
    if (in_node && !returns_straight(call)) runtime.post(call, peer, Signal::kCombineForward, call.total(0));
  }
  call.windows->combine_staging_busy[static_cast<std::size_t>(call.flight)] = runtime.submitted();
}

}  // namespace

void combine_send(Runtime& runtime, CombineCall& call) {
  try {
    send(runtime, call);
  } catch (const Error& error) {
    runtime.report_failed(call, error);  // without this credit peers could not use the flight again
    throw;
  }
}

}  // namespace ferry::host
