// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A call in flight: the checked arguments, what its steps have found out, and what is still owed to peers. Steps read and
// write it; the API makes it and hands its results out.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/windows.h"
#include "core/tensor_extent.h"
#include "ferry/combine.h"
#include "ferry/dispatch.h"
#include "ferry/group.h"
#include "routing/rows.h"
#include "wire/row_format.h"
#include "wire/token_meta.h"

namespace ferry {

/// Memory of a result beside the window: aligned to 64 bytes, not initialised.
class ResultMemory {
 public:
  void* allocate(std::int64_t bytes);
  std::vector<std::shared_ptr<const void>> keep;  ///< window and handle that views point into

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::vector<std::unique_ptr<std::byte[], Free>> blocks_;
};

enum class CallKind : std::uint8_t { kNone, kDispatch, kCombine, kLatencyDispatch };
const char* name(CallKind kind) noexcept;

/// What every call has.
struct Call {
  CallKind kind = CallKind::kNone;
  std::shared_ptr<Windows> windows;
  std::uint64_t epoch = 0;
  int flight = 0;
  std::chrono::nanoseconds timeout{};
  std::uint64_t digest = 0;              ///< of the arguments that must agree
  std::uint64_t flight_used_before = 0;  ///< epoch of the flight's last call (latency dispatch, combine)
  std::uint64_t handle_epoch = 0;        ///< of the dispatch that made the handle this call uses, 0 without one
  bool blocking = false;  ///< send and receive are one call of the user, whose tensors stay as they are in between
  bool sent = false;      ///< the send half is done
  bool received = false;  ///< receive() was called
  bool discard = false;   ///< finish what is owed to peers, hand nothing out
  bool dropped = false;   ///< nobody will receive it; the group does when it needs the flight
  bool over = false;      ///< received, or failed: nothing is owed any more
  std::shared_ptr<void> backends;  ///< what the backend keeps between the halves
  std::vector<StepTrace> trace;

  /// The value of a signal of this call: epoch << 24 | count.
  std::uint64_t total(std::int64_t count) const { return epoch << 24 | static_cast<std::uint64_t>(count); }
};

/// Rows of other nodes' tokens that passed through this rank, the rail peer of `source`.
struct ForwardProgress {
  int source = 0;
  std::int64_t expected = 0;  ///< rows that will come
  std::int64_t done = 0;      ///< rows handed on
};

struct DispatchCall : Call {
  /// Latency mode: rows to oneself go from the caller's tensor into the result, without being staged in between.
  bool own_rows_in_place() const { return blocking && args.codec == Codec::kNone; }
  /// Latency mode: from one staged record to the next. Rows begin on a cache line, or copies take half as long again.
  std::int64_t staged_stride() const { return routing::align_up(format.row_bytes + wire::TokenMeta::bytes(top_k), 64); }

  DispatchArgs args;  ///< as given; tensors are read until dispatch_send returns
  Handle cached;      ///< args.handle's memory, if this is a cached dispatch
  std::shared_ptr<const Placement> placement;
  wire::RowFormat format;  ///< of the wire rows
  routing::ExpertShape shape;
  std::int64_t num_tokens = 0;  ///< T
  int top_k = 0;                ///< K
  bool has_weights = false;
  std::uint64_t exchange = 0;  ///< number of this throughput dispatch
  CallNote bad_id;             ///< latency mode: what this rank has to confess to its peers; status 0 = nothing

  // Filled by route, [T * K] each.
  std::vector<std::int32_t> slots, ranks, rows, tokens;
  std::vector<float> weights;              ///< [T * K] after renormalisation; empty without weights
  std::vector<std::int32_t> forward_rows;  ///< [T * nodes] row among this rank's tokens for a node, -1 if it needs none

  // Filled by route from everybody's counts (throughput), or by dispatch_recv (latency).
  std::vector<std::int32_t> tokens_from;     ///< [R] rows from each rank
  std::vector<std::int32_t> rank_counts;     ///< [R, R] rows that rank i sends to rank j; empty: not known
  std::vector<std::int32_t> forwarded_from;  ///< [R] of them handed on by rail peer r
  std::vector<std::int32_t> expert_counts;   ///< [E_local]
  std::int64_t num_rows = 0;                 ///< N
  std::int64_t num_expert_rows = 0;          ///< Nx

  std::vector<ForwardProgress> forwards;
  std::vector<std::byte> forward_records;  ///< TokenMeta of every row that passed through, by source
  std::vector<std::int32_t> forwarded_to;  ///< [R] rows handed on to each rank
  bool forward_posted = false;

  DispatchResult result;
  std::shared_ptr<ResultMemory> memory;
};

struct CombineCall : Call {
  /// Rows that return to oneself unsummed are read where the caller has them, without a slot in between.
  bool own_rows_in_place() const {
    return blocking && args.codec == Codec::kNone && !has_topk_weights && handle.layout() == Layout::kRankMajor &&
           !out_over_x();
  }
  /// The result is written over rows that are still to be read.
  bool out_over_x() const { return overlap(args.x, args.out); }

  CombineArgs args;
  Handle handle;
  std::shared_ptr<const Placement> placement;  ///< of the group
  std::int64_t num_tokens = 0;                 ///< T
  int top_k = 0;
  std::int64_t hidden = 0;
  std::int64_t row_bytes = 0;   ///< of a row, without padding
  std::int64_t slot_bytes = 0;  ///< of a returned row with what follows it, at most
  std::int64_t weights_at = 0;  ///< of combined weights in a slot: behind the row, or the words of a coded row's groups
  bool has_topk_weights = false;  ///< K float32 of combined weights follow each returned row
  std::vector<ForwardProgress> forwards;
  bool forward_posted = false;

  CombineResult result;
  std::shared_ptr<ResultMemory> memory;
};

}  // namespace ferry
