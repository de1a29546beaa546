// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Dispatch: every token's row goes to the ranks that own its experts.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ferry/handle.h"
#include "ferry/placement.h"
#include "ferry/types.h"

namespace ferry {

/// T tokens of this rank, K choices each. Arguments marked (*) must be equal on all ranks; Ferry checks that before rows move
/// (in latency mode: when they arrive).
struct DispatchArgs {
  /// (*) Dtypes, widths and number of blocks. Block b is [T, W_b], any strides. A row's bytes are any number; on the wire each
  /// block is padded to 16 bytes. The first block is the row itself, e.g. bf16 [T, H] or fp8 [T, H]; scales and any further
  /// bytes follow as blocks of their own. Only the first may be coded on the way.
  std::vector<Tensor> payload{};

  /// [T, K] int32 or int64, any strides: global expert ids; any negative value = no choice. An id may occur twice in a row.
  /// Must be absent if `handle` is given. K must be the same on all ranks (*).
  Tensor topk_ids{};
  /// [T, K] float32, any strides, optional (*): travels with the tokens. May be given together with `handle`.
  Tensor topk_weights{};
  /// A cached dispatch: routes exactly as the call that made this handle; no counting.
  const Handle* handle = nullptr;

  /// (*) kAuto chooses by what all ranks know, never by this rank's own T: the mode of `handle` if one is given; else latency
  /// if the call's largest rank, `max_tokens`, fits limits.max_latency_tokens, the layout is not expert_major, and latency
  /// mode takes this expert_capacity and on this backend so many choices; else throughput. Group::mode_of says what comes of
  /// it, why_not() with kLatency why not latency, the result's handle what was taken. A captured call keeps its mode.
  Mode mode = Mode::kThroughput;
  /// (*) most tokens that any rank gives to this call; a rank that gives more is refused. 0: not said, for kAuto
  /// limits.max_tokens.
  std::int64_t max_tokens = 0;
  Layout layout = Layout::kRankMajor;  ///< (*)
  Codec codec = Codec::kNone;          ///< (*)
  int scale_block = 128;  ///< (*) channels per scale of the fp8 codecs: 128 or 32; a short last block has its own
  int alignment = 1;      ///< (*) expert_major: each expert's block starts at and is padded to a multiple of this
  /// (*) expert_padded: rows per expert. 0 = ranks x max tokens of the mode, or the window's rows divided by the local experts
  /// of the rank that has most if that is less. One expert can want more: where a row names it several times (each choice takes
  /// a row), or where the window holds less than ranks x max tokens rows for each expert (limits.recv_rows). Such a call ends in
  /// Error(overflow), which states the need.
  std::int64_t expert_capacity = 0;
  bool zero_padding = false;  ///< zero the padding rows of expert_major (data, scales and weights)
  bool renormalise = false;   ///< (*) scale the live weights of a token up by what masked ranks would have had
  bool host_counts = true;    ///< shape the results exactly; false: shaped to capacity, counts stay in tensors
  Output output = Output::kWindow;
  /// expert_padded on the host backend, optional: tensors of the caller that the payload goes to, so that they can be handed on
  /// before it has come. One per block of the result, [E_local, C, W_b] of the block's dtype, any strides; `output` says nothing
  /// then. Real rows are written when the call is received, nothing else ever is. The result shows these tensors.
  std::vector<Tensor> out{};
  const Placement* placement = nullptr;  ///< (*) null: the group's
  int num_sms =
      0;  ///< most SMs any kernel of the call occupies; 0 = Ferry chooses, at most 16; ignored by the host backend
  /// cuda backend: the cudaStream_t whose work the call follows and whose later work may use the result; null: the legacy default
  /// stream. Calls of a group on several streams follow each other. Ignored by the host backend.
  /// A stream that is captured in a CUDA graph takes the call into the graph (host_counts must be false). All ranks capture and
  /// replay the same calls in the same order, between direct calls or not. Each replay reads the tensors given here anew and
  /// overwrites the results of the one before; keep results and handles as long as the graph. Ferry does not see replays: who
  /// launches them on another stream than other calls of the group orders the two, and closes the group after they have ended. A
  /// change of masks ends the graphs captured before it.
  void* stream = nullptr;
  std::span<std::byte>
      handle_memory{};  ///< memory for the handle (Group::handle_bytes; cuda backend: of the device); empty: the handle owns it
  std::optional<std::chrono::nanoseconds> timeout{};  ///< of every wait of this call; empty: the group's
};

/// What arrived. N = rows received, Nx = expert rows with padding, C = capacity, rows beyond the real ones are unspecified
/// unless zeroed on request. With host_counts == false, N and Nx in shapes are the receive capacity.
///
/// rank_major:    payload[b] [N, W_b], one row per (token, this rank), ordered by (source rank, source token)
/// expert_major:  payload[b] [Nx, W_b], experts ascending, inside an expert by (source rank, source token, choice)
/// expert_padded: payload[b] [E_local, C, W_b], the same order inside an expert
///
/// Row strides are the block's bytes rounded up to 16, divided by the element size: a block of float32 scales [N, 7] has
/// strides {8, 1}.
struct DispatchResult {
  Layout layout = Layout::kRankMajor;
  std::vector<Tensor> payload;
  Tensor
      topk_ids;  ///< rank_major: [N, K] local expert ids, -1 elsewhere, dtype of the ids given (cached: int32); else absent
  Tensor
      topk_weights;  ///< float32, if weights were given. rank_major [N, K], exactly 0 where the id is -1; expert_major [Nx]; expert_padded [E_local, C]
  Tensor num_rows;   ///< int64 [1]: N
  Tensor source_offsets;  ///< int32 [R + 1]
  Tensor expert_counts;   ///< int32 [E_local], without padding
  Tensor expert_offsets;  ///< int32 [E_local + 1]: first row of each expert, aligned (expert layouts)
  /// int32 [R, R]: rows that rank i sends to rank j, everybody's. Host backend, throughput mode without a handle given; else
  /// absent.
  Tensor rank_counts;
  std::vector<std::int64_t> host_expert_counts;  ///< the aligned counts, if host_counts
  Handle handle;
  std::shared_ptr<const void>
      owner;  ///< keeps the memory mapped; see Group about how long the contents of a window view stay
};

class GroupState;
struct DispatchCall;

/// A dispatch that was sent and not yet received. Move-only. Dropping it is safe: the group then finishes the receive
/// itself (and throws the rows away) when it needs the flight again; peers are not harmed.
class PendingDispatch {
 public:
  PendingDispatch() = default;
  PendingDispatch(std::shared_ptr<GroupState> group, std::shared_ptr<DispatchCall> call);
  PendingDispatch(PendingDispatch&&) noexcept = default;
  PendingDispatch& operator=(PendingDispatch&& other) noexcept;
  ~PendingDispatch();

  /// It can be received: false for an empty object, after a move and once receive() has waited, however that ended.
  bool valid() const noexcept;
  /// Waits for the rows and hands them out. Once only; throws Error(invalid_argument) the second time.
  DispatchResult receive();

 private:
  std::shared_ptr<GroupState> group_;
  std::shared_ptr<DispatchCall> call_;
};

}  // namespace ferry
