// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 1, route: the owner of each choice; in throughput mode everybody's counts, and from them the row that every token
// takes, by exclusive scans over (source rank, source token, choice).
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "backend/handle_layout.h"
#include "backend/trace.h"
#include "core/check.h"
#include "host/dispatch_result.h"
#include "host/host_backend.h"
#include "routing/dedup.h"

namespace ferry::host {
namespace {

constexpr const char* kStep = "route";

/// One rank's counts as they lie in a window.
struct Counts {
  CallNote* note;
  std::int32_t* tokens;          ///< [R] tokens for each rank
  std::int32_t* tokens_to_node;  ///< [nodes]
  std::int32_t* choices;         ///< [S]

  Counts(std::byte* at, const Topology& topology)
      : note(reinterpret_cast<CallNote*>(at)),
        tokens(reinterpret_cast<std::int32_t*>(at + sizeof(CallNote))),
        tokens_to_node(tokens + topology.num_ranks()),
        choices(tokens_to_node + topology.num_nodes()) {}
  static std::int64_t bytes(const Topology& topology, int num_slots) {
    return static_cast<std::int64_t>(sizeof(CallNote)) +
           4 * (static_cast<std::int64_t>(topology.num_ranks()) + topology.num_nodes() + num_slots);
  }
};

std::int64_t id_at(const Tensor& ids, std::int64_t token, int k) {
  const std::int64_t index = token * ids.strides[0] + k * ids.strides[1];
  return ids.dtype == DType::kInt64 ? static_cast<const std::int64_t*>(ids.data)[index]
                                    : static_cast<const std::int32_t*>(ids.data)[index];
}

/// Slot and rank of every choice. Returns a note about the first id out of range, status 0 if there is none.
CallNote choose_slots(const Runtime& runtime, DispatchCall& call) {
  const Placement& placement = *call.placement;
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    for (int k = 0; k < call.top_k; ++k) {
      const std::int64_t id = id_at(call.args.topk_ids, t, k);
      if (id >= placement.num_experts()) return CallNote{.status = kCallBadId, .where = t, .value = id};
      const auto at = static_cast<std::size_t>(t * call.top_k + k);
      call.slots[at] = id < 0 ? -1 : placement.choose_slot(static_cast<int>(id), runtime.rank, t, runtime.masked_now);
      call.ranks[at] = call.slots[at] < 0 ? -1 : placement.rank_of_slot(call.slots[at]);
    }
  }
  return {};
}

/// Copies the weights; on request scales those of live choices up so that a token's sum is what all its choices had.
void read_weights(DispatchCall& call) {
  const Tensor& weights = call.args.topk_weights;
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    float* row = call.weights.data() + t * call.top_k;
    const std::int32_t* slots = call.slots.data() + t * call.top_k;
    for (int k = 0; k < call.top_k; ++k)
      row[k] = static_cast<const float*>(weights.data)[t * weights.strides[0] + k * weights.strides[1]];
    if (!call.args.renormalise || !call.args.topk_ids.present()) continue;
    float all = 0.0f, live = 0.0f;
    for (int k = 0; k < call.top_k; ++k) {
      if (id_at(call.args.topk_ids, t, k) >= 0) all += row[k];
      if (slots[k] >= 0) live += row[k];
    }
    if (live == all || live == 0.0f) continue;
    const float scale = all / live;
    for (int k = 0; k < call.top_k; ++k) row[k] *= scale;
  }
}

/// Routes as the dispatch that made the handle did.
void read_handle(DispatchCall& call) {
  const HandleView view(call.cached.mutable_bytes());
  const auto n = static_cast<std::size_t>(call.num_tokens * call.top_k);
  call.slots.assign(view.slots(), view.slots() + n);
  call.ranks.assign(view.ranks(), view.ranks() + n);
  call.rows.assign(view.rows(), view.rows() + n);
  call.tokens.assign(view.tokens(), view.tokens() + n);
  if (view.header().has_weights != 0 && !call.args.topk_weights.present())
    call.weights.assign(view.weights(), view.weights() + n);
  call.forward_rows.assign(view.forward_rows(), view.forward_rows() + call.num_tokens * view.header().num_nodes);
}

void count_choices(const Runtime& runtime, const DispatchCall& call, Counts& counts) {
  std::fill_n(counts.tokens, runtime.topology.num_ranks() + runtime.topology.num_nodes() + call.placement->num_slots(),
              0);
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    const std::int32_t* ranks = call.ranks.data() + t * call.top_k;
    for (int k = 0; k < call.top_k; ++k) {
      if (ranks[k] < 0) continue;
      ++counts.choices[call.slots[static_cast<std::size_t>(t * call.top_k + k)]];
      if (routing::is_first_of_owner(ranks, k)) ++counts.tokens[ranks[k]];
    }
    for (int node = 0; node < runtime.topology.num_nodes(); ++node) {
      if (call.forward_rows[static_cast<std::size_t>(t * runtime.topology.num_nodes() + node)] >= 0)
        ++counts.tokens_to_node[node];
    }
  }
}

/// Numbers this rank's tokens for each node, in order of tokens.
void number_forward_rows(const Runtime& runtime, DispatchCall& call) {
  const int num_nodes = runtime.topology.num_nodes();
  std::vector<std::int32_t> next(static_cast<std::size_t>(num_nodes), 0);
  call.forward_rows.assign(static_cast<std::size_t>(call.num_tokens * num_nodes), -1);
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    for (int k = 0; k < call.top_k; ++k) {
      const std::int32_t rank = call.ranks[static_cast<std::size_t>(t * call.top_k + k)];
      if (rank < 0) continue;
      const int node = runtime.topology.node_of(rank);
      std::int32_t& row = call.forward_rows[static_cast<std::size_t>(t * num_nodes + node)];
      if (row < 0) row = next[static_cast<std::size_t>(node)]++;
    }
  }
}

/// Announces this rank's counts to every member and waits for theirs.
void exchange_counts(Runtime& runtime, DispatchCall& call, CallNote note) {
  Windows& windows = *call.windows;
  const int parity = static_cast<int>(call.exchange % 2);
  const Signal kind = parity == 0 ? Signal::kCountsEven : Signal::kCountsOdd;
  // This rank's own row also is what the engine sends from; the exchange before last must have left it.
  runtime.wait_completed(call, kStep, windows.counts_busy[parity]);
  const std::int64_t offset = windows.layout.counts(parity, runtime.rank);
  Counts mine(windows.own(offset), runtime.topology);
  note.epoch = call.epoch;
  note.digest = call.digest;
  note.num_tokens = call.num_tokens;
  *mine.note = note;
  if (note.status == kCallGood) {
    count_choices(runtime, call, mine);
  } else {
    std::fill_n(mine.tokens, runtime.topology.num_ranks() + runtime.topology.num_nodes() + call.placement->num_slots(),
                0);
  }
  std::vector<Wait> waits;
  for (int peer : windows.live) {
    runtime.write(call, peer, offset, windows.own(offset),
                  Counts::bytes(runtime.topology, call.placement->num_slots()));
    runtime.post(call, peer, kind, call.total(0));
    waits.push_back({peer, kind, call.total(0)});
  }
  windows.counts_busy[parity] = runtime.submitted();
  runtime.wait(call, kStep, waits);
}

/// Places and totals that follow from everybody's counts.
class RowPlan {
 public:
  RowPlan(Runtime& runtime, DispatchCall& call) : runtime_(runtime), call_(call), placement_(*call.placement) {
    const auto num_ranks = static_cast<std::size_t>(runtime.topology.num_ranks());
    const auto num_slots = static_cast<std::size_t>(placement_.num_slots());
    token_base_.assign(num_ranks, 0);
    token_total_.assign(num_ranks, 0);
    choice_base_.assign(num_slots, 0);
    choice_total_.assign(num_slots, 0);
    for (int source : call.windows->live) add_source(source);
    for (int rank = 0; rank < runtime.topology.num_ranks(); ++rank) place_experts(rank);
  }

  /// The same on every rank: all have the same counts.
  void check_capacity() const {
    const std::int64_t capacity = call_.windows->layout.recv_rows();
    std::int64_t needed = 0;
    int fullest = 0;
    for (int rank = 0; rank < runtime_.topology.num_ranks(); ++rank) {
      const std::int64_t rows = rows_of(rank);
      if (rows > needed) {
        needed = rows;
        fullest = rank;
      }
    }
    if (needed > capacity) {
      overflow(needed, fmt::format("rank {} needs {} rows, its receive window holds {} (limits.recv_rows)", fullest,
                                   needed, capacity));
    }
    if (call_.shape.layout != Layout::kExpertPadded) return;
    const auto fullest_slot = std::max_element(choice_total_.begin(), choice_total_.end());
    if (fullest_slot != choice_total_.end() && *fullest_slot > call_.shape.capacity) {
      const int slot = static_cast<int>(fullest_slot - choice_total_.begin());
      overflow(*fullest_slot,
               fmt::format("expert {} on rank {} needs {} rows, expert_capacity is {}", placement_.expert_of_slot(slot),
                           placement_.rank_of_slot(slot), *fullest_slot, call_.shape.capacity));
    }
  }

  void assign_rows() {
    for (std::int64_t t = 0; t < call_.num_tokens; ++t) {
      const std::int32_t* ranks = call_.ranks.data() + t * call_.top_k;
      for (int k = 0; k < call_.top_k; ++k) {
        const auto at = static_cast<std::size_t>(t * call_.top_k + k);
        if (ranks[k] < 0) {
          call_.tokens[at] = call_.rows[at] = -1;
          continue;
        }
        auto& next_token = token_base_[static_cast<std::size_t>(ranks[k])];
        if (routing::is_first_of_owner(ranks, k)) ++next_token;
        call_.tokens[at] = next_token - 1;
        call_.rows[at] = call_.shape.layout == Layout::kRankMajor
                             ? next_token - 1
                             : choice_base_[static_cast<std::size_t>(call_.slots[at])]++;
      }
    }
  }

  /// A rank that gave up on this call meanwhile may have overwritten its counts for the exchange after next: it writes the note
  /// and the counts, then the signal, so both are looked at again. No test shows this look alone: that rank would have to make
  /// two more calls while this one adds up; check_note finds it where it came before.
  void check_still_the_same() const {
    const Signal kind = call_.exchange % 2 == 0 ? Signal::kCountsEven : Signal::kCountsOdd;
    for (int source : call_.windows->live) {
      const bool same_signal = runtime_.signal(*call_.windows, kind, call_.flight, source) == call_.total(0);
      if (same_signal && counts_of(source).note->epoch == call_.epoch) continue;
      throw peer_error(
          ErrorCode::kMismatch, kStep, call_.epoch, source,
          fmt::format("ferry::Group::dispatch: call {}: rank {} has gone on to another call", call_.epoch, source));
    }
  }

  /// What this rank will receive, and forward for others.
  void note_arrivals() {
    const Topology& topology = runtime_.topology;
    const int my_node = topology.node_of(runtime_.rank);
    call_.tokens_from.assign(static_cast<std::size_t>(topology.num_ranks()), 0);
    call_.forwarded_from.assign(static_cast<std::size_t>(topology.num_ranks()), 0);
    call_.rank_counts.assign(token_total_.size() * token_total_.size(), 0);
    for (int source : call_.windows->live) {
      std::copy_n(counts_of(source).tokens, token_total_.size(),
                  call_.rank_counts.begin() + source * topology.num_ranks());
      const std::int32_t count = counts_of(source).tokens[runtime_.rank];
      call_.tokens_from[static_cast<std::size_t>(source)] = count;
      if (topology.node_of(source) != my_node)
        call_.forwarded_from[static_cast<std::size_t>(call_.windows->rails.rail(source, my_node))] += count;
    }
    for (int source : call_.windows->rails.sources_of(runtime_.rank)) {
      call_.forwards.push_back({.source = source, .expected = counts_of(source).tokens_to_node[my_node]});
    }
    const int first_slot = placement_.first_slot(runtime_.rank);
    call_.expert_counts.assign(choice_total_.begin() + first_slot,
                               choice_total_.begin() + placement_.first_slot(runtime_.rank + 1));
    call_.num_rows = token_total_[static_cast<std::size_t>(runtime_.rank)];
    call_.num_expert_rows =
        call_.shape.layout == Layout::kRankMajor ? 0 : expert_rows_[static_cast<std::size_t>(runtime_.rank)];
  }

 private:
  Counts counts_of(int source) const {
    return {call_.windows->own(call_.windows->layout.counts(static_cast<int>(call_.exchange % 2), source)),
            runtime_.topology};
  }
  void add_source(int source) {
    const Counts counts = counts_of(source);
    check_note(call_, source, *counts.note);  // everybody sees the same notes, so everybody refuses alike
    for (std::size_t rank = 0; rank < token_total_.size(); ++rank) {
      if (source < runtime_.rank) token_base_[rank] += counts.tokens[rank];
      token_total_[rank] += counts.tokens[rank];
    }
    for (std::size_t slot = 0; slot < choice_total_.size(); ++slot) {
      if (source < runtime_.rank) choice_base_[slot] += counts.choices[slot];
      choice_total_[slot] += counts.choices[slot];
    }
  }
  /// Adds the first row of each expert of a rank to this rank's place among that expert's rows.
  void place_experts(int rank) {
    const int first = placement_.first_slot(rank), count = placement_.num_local_experts(rank);
    std::vector<std::int32_t> starts(static_cast<std::size_t>(count) + 1);
    expert_rows_.push_back(routing::expert_starts(call_.shape, choice_total_.data() + first, count, starts.data()));
    for (int e = 0; e < count; ++e)
      choice_base_[static_cast<std::size_t>(first) + static_cast<std::size_t>(e)] +=
          starts[static_cast<std::size_t>(e)];
  }
  std::int64_t rows_of(int rank) const {
    const std::int64_t tokens = token_total_[static_cast<std::size_t>(rank)];
    return call_.shape.layout == Layout::kRankMajor ? tokens
                                                    : std::max(tokens, expert_rows_[static_cast<std::size_t>(rank)]);
  }
  [[noreturn]] void overflow(std::int64_t needed, const std::string& what) const {
    Error error = call_error(ErrorCode::kOverflow, kStep, call_.epoch,
                             fmt::format("ferry::Group::dispatch: call {}: {}", call_.epoch, what));
    error.needed_rows = needed;
    throw error;
  }

  Runtime& runtime_;
  DispatchCall& call_;
  const Placement& placement_;
  std::vector<std::int32_t> token_base_, token_total_;    // [R]
  std::vector<std::int32_t> choice_base_, choice_total_;  // [S]
  std::vector<std::int64_t> expert_rows_;                 // [R]
};

/// A cached dispatch knows its arrivals from the handle; the notes still have to agree.
void arrivals_from_handle(Runtime& runtime, DispatchCall& call) {
  const HandleView view(call.cached.mutable_bytes());
  const Topology& topology = runtime.topology;
  for (int source : call.windows->live) {
    check_note(
        call, source,
        *Counts(call.windows->own(call.windows->layout.counts(static_cast<int>(call.exchange % 2), source)), topology)
             .note);
  }
  call.tokens_from.assign(static_cast<std::size_t>(topology.num_ranks()), 0);
  call.forwarded_from.assign(static_cast<std::size_t>(topology.num_ranks()), 0);
  const int my_node = topology.node_of(runtime.rank);
  for (int source : call.windows->live) {
    const std::int32_t count = view.source_offsets()[source + 1] - view.source_offsets()[source];
    call.tokens_from[static_cast<std::size_t>(source)] = count;
    if (topology.node_of(source) != my_node)
      call.forwarded_from[static_cast<std::size_t>(call.windows->rails.rail(source, my_node))] += count;
  }
  for (int source : call.windows->rails.sources_of(runtime.rank)) {
    call.forwards.push_back(
        {.source = source, .expected = view.forward_offsets()[source + 1] - view.forward_offsets()[source]});
  }
  call.expert_counts.assign(view.expert_counts(), view.expert_counts() + view.header().num_local_experts);
  call.num_rows = view.header().num_rows;
  call.num_expert_rows = view.header().num_expert_rows;
}

}  // namespace

void route(Runtime& runtime, DispatchCall& call) {
  StepScope scope(call, kStep);
  const auto choices = static_cast<std::size_t>(call.num_tokens * call.top_k);
  CallNote note;
  if (call.cached.valid()) {
    read_handle(call);
  } else {
    call.slots.assign(choices, -1);
    call.ranks.assign(choices, -1);
    call.rows.assign(choices, -1);
    call.tokens.assign(choices, -1);
    note = choose_slots(runtime, call);
    number_forward_rows(runtime, call);
  }
  if (call.args.topk_weights.present()) {
    call.weights.assign(choices, 0.0f);
    read_weights(call);
  }
  call.has_weights = call.args.topk_weights.present() ||
                     (call.cached.valid() && HandleView::header_at(call.cached.mutable_bytes()).has_weights != 0);
  scope.rows = call.num_tokens;
  if (call.args.mode == Mode::kLatency) {
    call.bad_id = note;
    return;
  }
  exchange_counts(runtime, call, note);
  scope.bytes = Counts::bytes(runtime.topology, call.placement->num_slots()) *
                static_cast<std::int64_t>(call.windows->live.size());
  if (call.cached.valid()) {
    arrivals_from_handle(runtime, call);
    return;
  }
  RowPlan plan(runtime, call);
  plan.check_capacity();
  plan.note_arrivals();
  plan.assign_rows();
  plan.check_still_the_same();
}

}  // namespace ferry::host
