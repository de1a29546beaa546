// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 6, combine_forward: the rail peer sends the rows of another node's tokens back along the rail: one sum per
// (token, node) for per_node, every row for the other reductions. Throughput mode only.
#include <algorithm>

#include "backend/trace.h"
#include "host/combine_common.h"
#include "host/host_backend.h"
#include "host/row_sum.h"

namespace ferry::host {
namespace {

class ReturnForwarder {
 public:
  ReturnForwarder(Runtime& runtime, CombineCall& call, StepScope& scope)
      : runtime_(runtime),
        call_(call),
        scope_(scope),
        handle_(call.handle.mutable_bytes()),
        owners_(runtime.topology, call.top_k),
        my_node_(runtime.topology.node_of(runtime.rank)),
        sum_(call.args.x.dtype),
        ranks_(static_cast<std::size_t>(call.top_k)) {}

  /// Returns how many rows of this node's ranks went into what was sent.
  std::int64_t forward_source(int source) {
    counted_ = 0;
    const WindowLayout& layout = call_.windows->layout;
    const std::int64_t stream = layout.combine_forward(call_.flight) +
                                call_.windows->rails.source_index(runtime_.rank, source) * layout.return_stream_bytes();
    for (std::int32_t f = handle_.forward_offsets()[source]; f < handle_.forward_offsets()[source + 1]; ++f) {
      const wire::TokenMeta record = handle_.forwarded(f);
      owners_.set_slots(record.slots(), handle_.rank_of_slot());
      const std::int64_t from = stream + slot_offset(call_, record.forward_row(), 0);
      const std::int64_t to = layout.return_slots(call_.flight) + slot_offset(call_, record.source_token(), 0);
      if (is_per_node(call_)) {
        const int place = owners_.place_of_node(my_node_);
        sum_node(from, place);
        send(source, from, to, place);
      } else if (is_flat(call_)) {
        for (int k = 0; k < call_.top_k; ++k) {
          if (owners_.nodes()[k] != my_node_ || !is_here(owners_.ranks()[k])) continue;
          send(source, from, to, k);
          ++counted_;
        }
      } else {
        const int count = owners_.ranks_of_node(my_node_, false, ranks_.data());
        for (int i = 0; i < count; ++i) {
          const std::int32_t rank = ranks_[static_cast<std::size_t>(i)];
          if (!is_here(rank)) continue;
          send(source, from, to, owners_.place_of_rank(rank));
          ++counted_;
        }
      }
    }
    return counted_;
  }

 private:
  bool is_here(int rank) const {
    return !call_.windows->membership.is_masked(rank) && runtime_.masked_now[static_cast<std::size_t>(rank)] == 0;
  }

  /// Adds up the rows of this node's ranks and leaves the sum in the slot of `place`.
  void sum_node(std::int64_t from, int place) {
    const int count = owners_.ranks_of_node(my_node_, by_last_choice(call_), ranks_.data());
    sum_.clear();
    std::vector<float> weights(static_cast<std::size_t>(call_.top_k), 0.0f);
    const std::int64_t weights_at = call_.weights_at;
    for (int i = 0; i < count; ++i) {
      if (!is_here(ranks_[static_cast<std::size_t>(i)])) continue;
      ++counted_;
      const std::byte* row =
          call_.windows->own(from + owners_.place_of_rank(ranks_[static_cast<std::size_t>(i)]) * call_.slot_bytes);
      sum_.add(row);
      if (call_.has_topk_weights) wire::accumulate(DType::kFp32, weights.data(), row + weights_at, call_.top_k);
    }
    std::byte* out = call_.windows->own(from + place * call_.slot_bytes);
    sum_.write(out, call_.hidden, {});
    if (call_.has_topk_weights) std::copy(weights.begin(), weights.end(), reinterpret_cast<float*>(out + weights_at));
  }

  void send(int source, std::int64_t from, std::int64_t to, int place) {
    runtime_.write(call_, source, to + place * call_.slot_bytes, call_.windows->own(from + place * call_.slot_bytes),
                   call_.slot_bytes);
    scope_.count(call_.row_bytes);
  }

  Runtime& runtime_;
  CombineCall& call_;
  StepScope& scope_;
  HandleView handle_;
  Owners owners_;
  int my_node_;
  RowSum sum_;
  std::vector<std::int32_t> ranks_;
  std::int64_t counted_ = 0;
};

// A count that satisfies every wait of the call: what comes with it is a refusal.
constexpr std::int64_t kAllCounted = 0xffffff;

/// A rank of this node whose arguments differ from this rank's, -1 if there is none. Its rows must not be added up or sent on.
int find_disagreement(const Runtime& runtime, const CombineCall& call) {
  for (int peer : call.windows->node_peers) {
    const CallNote& note = runtime.note_of(call, true, peer);
    if (peer != runtime.rank && note.epoch == call.epoch && note.digest != call.digest) return peer;
  }
  return -1;
}

bool all_rows_are_here(const Runtime& runtime, const CombineCall& call) {
  return std::all_of(call.windows->node_peers.begin(), call.windows->node_peers.end(), [&](int peer) {
    return runtime.masked_now[static_cast<std::size_t>(peer)] != 0 ||
           runtime.signal(*call.windows, Signal::kCombineForward, call.flight, peer) >= call.total(0);
  });
}

}  // namespace

bool combine_forward(Runtime& runtime, CombineCall& call) {
  if (call.forward_posted || returns_straight(call)) return true;
  const auto& sources = call.windows->rails.sources_of(runtime.rank);
  if (!sources.empty() && !all_rows_are_here(runtime, call)) return false;
  call.forward_posted = true;  // first, so that a put that waits cannot come back here through progress
  if (sources.empty()) return true;
  StepScope scope(call, "combine_forward");
  ReturnForwarder forwarder(runtime, call, scope);
  const int disagreeing = find_disagreement(runtime, call);
  for (int source : sources) {
    if (disagreeing >= 0) {
      const CallNote note{.status = kCallRefused, .where = disagreeing};
      runtime.send_note(call, true, note, std::span(&source, 1));
      runtime.post(call, source, Signal::kCombineNetwork, call.total(kAllCounted));
      continue;
    }
    runtime.post(call, source, Signal::kCombineNetwork, call.total(forwarder.forward_source(source)));
  }
  call.windows->combine_staging_busy[static_cast<std::size_t>(call.flight)] = runtime.submitted();
  return true;
}

}  // namespace ferry::host
