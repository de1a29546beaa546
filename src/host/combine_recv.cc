// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 7, combine_recv: wait for the returned rows, weigh, sum in the documented order, add bias, round once.
#include <fmt/format.h>

#include <algorithm>

#include "backend/trace.h"
#include "core/check.h"
#include "host/combine_common.h"
#include "host/host_backend.h"
#include "host/row_sum.h"
#include "wire/return_codec.h"

namespace ferry::host {
namespace {

constexpr const char* kStep = "combine_recv";

/// Rows that the ranks of another node give to the rail peer for this rank's tokens; ranks left out give none.
std::int64_t rows_from_node(const Runtime& runtime, const CombineCall& call, const HandleView& handle, int node) {
  std::int64_t rows = 0;
  for (int rank : call.windows->live) {
    if (runtime.topology.node_of(rank) != node || runtime.masked_now[static_cast<std::size_t>(rank)] != 0) continue;
    rows += is_flat(call) ? handle.choices_to()[rank] : handle.tokens_to()[rank];
  }
  return rows;
}

/// Who posts to this rank: the ranks that return straight, and the rail peer in each other node.
std::vector<Wait> expected_signals(const Runtime& runtime, const CombineCall& call, const HandleView& handle) {
  const int my_node = runtime.topology.node_of(runtime.rank);
  std::vector<Wait> waits;
  for (int peer : call.windows->live) {
    const bool straight = runtime.topology.node_of(peer) == my_node || returns_straight(call);
    if (straight && handle.tokens_to()[peer] > 0) waits.push_back({peer, Signal::kCombineRows, call.total(0)});
  }
  if (returns_straight(call)) return waits;
  for (int node = 0; node < runtime.topology.num_nodes(); ++node) {
    if (node == my_node || handle.tokens_to_node()[node] == 0) continue;
    const int rail = call.windows->rails.rail(runtime.rank, node);
    if (rail >= 0)
      waits.push_back({rail, Signal::kCombineNetwork, call.total(rows_from_node(runtime, call, handle, node))});
  }
  return waits;
}

/// A rail peer that was left out while it had rows of live ranks to send back leaves stale slots behind.
void check_rails(const Runtime& runtime, const CombineCall& call, std::span<const Wait> waits) {
  for (const Wait& wait : waits) {
    if (wait.kind != Signal::kCombineNetwork || runtime.masked_now[static_cast<std::size_t>(wait.peer)] == 0) continue;
    if (runtime.signal(*call.windows, wait.kind, call.flight, wait.peer) >= wait.wanted) continue;
    throw peer_error(ErrorCode::kPeerLost, kStep, call.epoch, wait.peer,
                     fmt::format("{}: call {}: rank {} was left out while rows of its node came back through it", kStep,
                                 call.epoch, wait.peer));
  }
}

void check_notes(const Runtime& runtime, const CombineCall& call, std::span<const Wait> waits) {
  for (const Wait& wait : waits) {
    if (runtime.masked_now[static_cast<std::size_t>(wait.peer)] != 0) continue;
    const CallNote& note = runtime.note_of(call, true, wait.peer);
    const bool refused = note.status == kCallRefused;
    if (note.epoch != call.epoch || (note.digest == call.digest && !refused)) continue;
    const int other = refused ? static_cast<int>(note.where) : wait.peer;
    throw peer_error(
        ErrorCode::kMismatch, kStep, call.epoch, other,
        fmt::format(
            "ferry::Group::combine: call {}: rank {} gave other arguments than this rank (dtype, width, reduction, "
            "weighting, codec or topk_weights)",
            call.epoch, other));
  }
}

/// Sums the returned rows of one token after the other.
class TokenSummer {
 public:
  TokenSummer(const Runtime& runtime, CombineCall& call)
      : runtime_(runtime),
        call_(call),
        handle_(call.handle.mutable_bytes()),
        owners_(runtime.topology, call.top_k),
        token_ranks_(handle_.ranks()),
        next_own_(handle_.source_offsets()[runtime.rank]),
        sum_(call.args.codec == Codec::kNone ? call.args.x.dtype : DType::kFp32, call.args.x.dtype),
        groups_(static_cast<std::size_t>(call.top_k)),
        ranks_(static_cast<std::size_t>(call.top_k)),
        restored_(call.args.codec == Codec::kNone ? 0 : static_cast<std::size_t>(call.top_k * call.hidden)) {}

  void sum(std::int64_t token) {
    owners_.set_ranks(token_ranks_ + token * call_.top_k);
    slots_ = call_.windows->own(call_.windows->layout.return_slots(call_.flight) + slot_offset(call_, token, 0));
    find_own_row();
    num_restored_ = 0;
    sum_.clear();
    if (is_flat(call_)) {
      add_choices(token);
    } else if (is_per_node(call_)) {
      add_nodes();
    } else {
      const int count = routing::distinct_owners(owners_.ranks(), call_.top_k, by_last_choice(call_), groups_.data());
      for (int i = 0; i < count; ++i) add_rank(groups_[static_cast<std::size_t>(i)]);
    }
    sum_.write(row_of(call_.result.out, token), call_.hidden, bias_of(token));
    if (call_.has_topk_weights) sum_weights(token);
  }

 private:
  bool is_here(int rank) const {
    return !call_.windows->membership.is_masked(rank) && runtime_.masked_now[static_cast<std::size_t>(rank)] == 0;
  }
  const std::byte* slot(int place) const { return slots_ + place * call_.slot_bytes; }
  /// The row in it; a coded one as float32.
  const std::byte* returned_row(int place) {
    if (call_.args.codec == Codec::kNone) return slot(place);
    float* row = restored_.data() + num_restored_++ * call_.hidden;
    const std::int64_t begin = return_row_bytes(call_.weights_at, call_.top_k, call_.has_topk_weights);
    wire::decode_returned(call_.args.codec, slot(place), slot(place) + begin, call_.hidden, row);
    return reinterpret_cast<const std::byte*>(row);
  }

  /// Tokens come in order, and so do their rows at this rank: the next own row belongs to the next token that has one.
  void find_own_row() {
    own_row_ = nullptr;
    if (!call_.own_rows_in_place() || routing::last_choice_of(owners_.ranks(), call_.top_k, runtime_.rank) < 0) return;
    const Tensor& x = call_.args.x;
    own_row_ = static_cast<const std::byte*>(x.data) +
               next_own_++ * x.strides[0] * static_cast<std::int64_t>(dtype_bytes(x.dtype));
  }
  const std::byte* row_of_rank(int rank) {
    return rank == runtime_.rank && own_row_ != nullptr ? own_row_ : returned_row(owners_.place_of_rank(rank));
  }

  static std::byte* row_of(const Tensor& tensor, std::int64_t token) {
    if (!tensor.present()) return nullptr;
    return static_cast<std::byte*>(tensor.data) +
           token * tensor.strides[0] * static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  }
  SumBias bias_of(std::int64_t token) const {
    const CombineArgs& args = call_.args;
    return {args.bias0.dtype, args.bias1.dtype, row_of(args.bias0, token), row_of(args.bias1, token)};
  }
  float weight(std::int64_t token, int k) const {
    if (call_.args.weighting == CombineArgs::Weighting::kFromDispatch)
      return handle_.weights()[token * call_.top_k + k];
    const Tensor& weights = call_.args.weights;
    return static_cast<const float*>(weights.data)[token * weights.strides[0] + k * weights.strides[1]];
  }
  void add_choices(std::int64_t token) {
    for (int k = 0; k < call_.top_k; ++k) {
      if (owners_.ranks()[k] < 0 || !is_here(owners_.ranks()[k])) continue;
      if (call_.args.weighting == CombineArgs::Weighting::kNone) {
        sum_.add(returned_row(k));
      } else {
        sum_.add_weighted(returned_row(k), weight(token, k));
      }
    }
  }
  void add_rank(int rank) {
    if (is_here(rank)) sum_.add(row_of_rank(rank));
  }
  bool came_summed(int node) const {
    return node != runtime_.topology.node_of(runtime_.rank) && !returns_straight(call_);
  }

  void add_nodes() {
    const int num_nodes = routing::distinct_owners(owners_.nodes(), call_.top_k, by_last_choice(call_), groups_.data());
    for (int i = 0; i < num_nodes; ++i) {
      const int node = groups_[static_cast<std::size_t>(i)];
      const int count = owners_.ranks_of_node(node, by_last_choice(call_), ranks_.data());
      if (std::none_of(ranks_.begin(), ranks_.begin() + count, [&](std::int32_t rank) { return is_here(rank); }))
        continue;
      if (came_summed(node)) {
        sum_.add(slot(owners_.place_of_node(node)));
        continue;
      }
      sum_.begin_inner();
      for (int r = 0; r < count; ++r) add_rank(ranks_[static_cast<std::size_t>(r)]);
      sum_.end_inner();
    }
  }

  /// Ranks ascending, from +0. A node that came summed brings its sum in one slot, a flat row its choice's value.
  void sum_weights(std::int64_t token) {
    auto* out = static_cast<float*>(call_.result.topk_weights.data) + token * call_.top_k;
    std::fill_n(out, call_.top_k, 0.0f);
    const auto add = [&](int place) {
      wire::accumulate(DType::kFp32, out, slot(place) + call_.weights_at, call_.top_k);
    };
    if (is_flat(call_)) {
      for (int k = 0; k < call_.top_k; ++k) {
        if (owners_.ranks()[k] >= 0 && is_here(owners_.ranks()[k])) add(k);
      }
      return;
    }
    const int count = routing::distinct_owners(owners_.ranks(), call_.top_k, false, ranks_.data());
    int last_summed_node = -1;
    for (int i = 0; i < count; ++i) {
      const int rank = ranks_[static_cast<std::size_t>(i)];
      const int node = runtime_.topology.node_of(rank);
      if (!is_here(rank)) continue;
      if (!is_per_node(call_) || !came_summed(node)) {
        add(owners_.place_of_rank(rank));
      } else if (node != last_summed_node) {
        add(owners_.place_of_node(node));
        last_summed_node = node;
      }
    }
  }

  const Runtime& runtime_;
  CombineCall& call_;
  HandleView handle_;
  Owners owners_;
  const std::int32_t* token_ranks_;
  const std::byte* slots_ = nullptr;
  const std::byte* own_row_ = nullptr;  // of the token at hand, if it is read in place
  std::int64_t next_own_;               // rank-major row
  RowSum sum_;
  std::vector<std::int32_t> groups_, ranks_;
  std::vector<float> restored_;  // with a codec: rows of the token at hand
  std::int64_t num_restored_ = 0;
};

void make_outputs(CombineCall& call) {
  const std::int64_t element = static_cast<std::int64_t>(dtype_bytes(call.args.x.dtype));
  call.result.out = call.args.out.present()
                        ? call.args.out
                        : Tensor::contiguous(call.memory->allocate(call.num_tokens * call.hidden * element),
                                             call.args.x.dtype, {call.num_tokens, call.hidden});
  if (call.has_topk_weights) {
    call.result.topk_weights = Tensor::contiguous(call.memory->allocate(call.num_tokens * call.top_k * 4), DType::kFp32,
                                                  {call.num_tokens, call.top_k});
  }
  call.result.owner = call.memory;
}

void receive(Runtime& runtime, CombineCall& call, StepScope& scope) {
  const HandleView handle(call.handle.mutable_bytes());
  const std::vector<Wait> waits = expected_signals(runtime, call, handle);
  runtime.wait(call, kStep, waits);
  check_rails(runtime, call, waits);
  check_notes(runtime, call, waits);
  if (!call.discard) {
    make_outputs(call);
    TokenSummer summer(runtime, call);
    for (std::int64_t t = 0; t < call.num_tokens; ++t) summer.sum(t);
    scope.rows = call.num_tokens;
    scope.bytes = call.num_tokens * call.row_bytes;
  }
  // Rows of other nodes' tokens may still have to pass through this rank.
  if (returns_straight(call) || call.windows->rails.sources_of(runtime.rank).empty()) return;
  std::vector<Wait> owed;
  for (int peer : call.windows->node_peers) owed.push_back({peer, Signal::kCombineForward, call.total(0)});
  runtime.wait(call, "combine_forward", owed);
  combine_forward(runtime, call);
  runtime.wait_completed(call, "combine_forward",
                         call.windows->combine_staging_busy[static_cast<std::size_t>(call.flight)]);
}

}  // namespace

void combine_recv(Runtime& runtime, CombineCall& call) {
  StepScope scope(call, kStep);
  // Return slots, forward region and weights of this call may be written again, whether or not the call went well.
  try {
    receive(runtime, call, scope);
  } catch (const Error& error) {
    runtime.report_failed(call, error);
    throw;
  }
  runtime.report_read(call, kReadWell);
}

}  // namespace ferry::host
