// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What kernels are given, by value, and the memory that host and device share: plain data, no code. Pointers are device
// addresses unless they say otherwise.
#pragma once

#include <cstdint>

#include "backend/device_layout.h"
#include "ferry/types.h"
#include "routing/rows.h"
#include "wire/row_format.h"

namespace ferry::cuda {

inline constexpr int kMaxFlights = 64;
inline constexpr int kMostChunks = 16;  ///< of a dispatch's tokens, for which it reports progress
inline constexpr int kMaxTopK = 32;     ///< a token's choices are the lanes of one warp
/// With more choices than lanes, up to so many, kernels of their own take them in chunks of 32 (throughput mode). What bounds
/// them: combine_recv keeps where the rows of some tokens ahead lie in shared memory, for each warp.
inline constexpr int kWideTopK = 128;

/// Which part of a call a fault happened in; dispatch_send of throughput mode names route, whose words it looks at again.
enum class FaultStep : std::int32_t {
  kRoute,
  kDispatchSend,
  kDispatchForward,
  kDispatchRecv,
  kCombineSend,
  kCombineForward,
  kCombineRecv
};
enum class FaultKind : std::int32_t {
  kNone,
  kTimeout,
  kAborted,
  kBadId,
  kMismatch,
  kGoneOn,
  kGivenUp,
  kOverflow,
  kLeftOut,      ///< the peer has masked this rank
  kRowsMissing,  ///< of a cached dispatch, because a rank was masked since
};

/// Counts of the dispatch-rows signal: the rows are there, or their writer gave up on the call and they will never come.
inline constexpr std::int64_t kRowsSent = 0, kRowsGivenUp = 1;

/// The record of a wait or check that ended badly. In host memory that the device writes.
struct Fault {
  FaultKind kind = FaultKind::kNone;  ///< written last
  FaultStep step = FaultStep::kRoute;
  std::int32_t peer = -1;
  std::int32_t expert = -1;  ///< of an overflow of its capacity
  std::uint64_t epoch = 0, seen = 0, wanted = 0;
  std::int64_t where = 0, value = 0;  ///< row and id of a bad id; rows needed and capacity of an overflow
};

/// Counts of a dispatch for the host, in host memory that the device writes; int32 source_offsets[R + 1],
/// expert_counts[E_local] and expert_offsets[E_local + 1] follow.
struct HostCounts {
  std::uint64_t ticket = 0;  ///< written last: the call these counts belong to
  std::int64_t num_rows = 0, num_expert_rows = 0;
  std::int64_t failed = 0;
};

/// What outlasts a kernel on the device. Kernels of one group run one after the other.
struct DeviceState {
  std::uint64_t epoch = 0;         ///< calls whose send half is done
  std::uint64_t exchanges = 0;     ///< throughput dispatches among them
  std::uint64_t failed_epoch = 0;  ///< the last call that ended badly here: its other kernels do nothing
  std::uint64_t dispatch_epoch[kMaxFlights] = {};
  std::uint64_t combine_epoch[kMaxFlights] = {};
  /// The combine that last read the combine input of a dispatch flight, and its own flight.
  std::uint64_t input_epoch[kMaxFlights] = {};
  std::int32_t input_flight[kMaxFlights] = {};
  std::uint64_t bad_id = ~std::uint64_t{0};  ///< smallest token * K + choice with an id out of range
  std::uint32_t fault_taken = 0;
  std::uint32_t barrier_count = 0, barrier_round = 0;
  std::uint32_t blocks_done = 0;
  // Of dispatch_send in expert layouts: warps that have stored their tokens of each chunk (cleared by route), and blocks that
  // have sent all that they had for peers.
  std::uint32_t chunk_warps[kMostChunks] = {};
  std::uint32_t sending_blocks_done = 0;
  // Latency mode, by kind (LatencyKind) and flight: the last call, the last one that was read here, and what the peers know of that.
  std::uint32_t blocks_begun = 0;
  std::uint64_t latency_epoch[2][kMaxFlights] = {};
  std::uint64_t latency_read[2][kMaxFlights] = {};
  std::uint64_t latency_told[2][kMaxFlights] = {};
  // Ranks masked on the way (GroupArgs::auto_masks): the call whose receive half gave somebody up and is to be made again; what last
  // took a new set of return slots into use, and that set (EventKey); the set of each flight's next combine.
  std::uint64_t late_epoch = 0;
  std::uint64_t bank_event = 0;
  std::uint32_t return_bank[kMaxFlights] = {};
  std::uint32_t renewed[2][kMaxFlights] = {};  ///< how far renew_tags has come, by kind and flight
};

/// A caller's counters of rows per local expert, to be added to; null: not asked for.
struct CountersArgs {
  void* total = nullptr;
  bool wide = false;  ///< int64, else int32
};

/// The one place of an expert.
struct ExpertHome {
  static constexpr std::int32_t kSeveral = -2;
  std::int32_t slot = kSeveral;  ///< kSeveral: there are more, or none
  std::int32_t rank = -1;
};

/// Placement on the device.
struct PlacementArgs {
  const ExpertHome* homes = nullptr;            ///< [E]
  const std::int32_t* first_place = nullptr;    ///< [E + 1]
  const std::int32_t* slot_of_place = nullptr;  ///< slots, grouped by expert
  const std::int32_t* rank_of_slot = nullptr;   ///< [S]
  const std::int32_t* first_slot = nullptr;     ///< [R + 1]
  std::int32_t num_experts = 0, num_slots = 0;
};

/// What every kernel needs.
struct GroupArgs {
  std::int32_t rank = 0, num_ranks = 0, flight = 0;
  std::byte* const* windows = nullptr;  ///< [R] of this node's ranks; null: left out, or in another node
  std::byte* const* members = nullptr;  ///< [R] null: left out
  std::byte* own_window = nullptr;      ///< windows[rank]
  DeviceState* state = nullptr;
  Fault* fault = nullptr;                     ///< in host memory
  const std::uint64_t* abort_word = nullptr;  ///< in host memory
  DeviceLayout layout;
  PlacementArgs placement;
  std::int64_t timeout_ns = 0;
  std::uint64_t digest = 0;
  std::int32_t auto_masks = 0;             ///< how often somebody who is late may be masked in these windows
  volatile std::uint64_t* late = nullptr;  ///< [R] in host memory: the call in which a rank was masked on the way
  std::int64_t* wait_ns = nullptr;  ///< [R] the caller's statistics: time waited for each rank; null: not asked for
  std::uint32_t delay_seed = 0;     ///< test mode: random delays before signals
  std::uint32_t max_delay_ns = 0;
};

/// The arrays of a handle; see backend/handle_layout.h.
struct HandleArgs {
  std::int32_t *slots, *ranks, *rows, *tokens;  ///< [T, K]
  float* weights;                               ///< [T, K] or null
  std::int32_t *tokens_to, *choices_to, *tokens_to_node, *rank_of_slot, *source_offsets, *expert_counts,
      *expert_offsets;
  std::byte* records;  ///< [N] TokenMeta
  std::int32_t *forward_rows, *forward_offsets;
  std::byte* forwarded;  ///< [F] TokenMeta
};

/// One block of the caller's payload.
struct BlockArgs {
  const std::byte* data = nullptr;
  std::int64_t row_stride = 0, element_stride = 0;  ///< bytes
  std::int32_t element_bytes = 1;
  bool in_pieces = false;  ///< rows lie as on the wire: 16-byte pieces can be copied as they are
  std::int32_t begin = 0, bytes = 0, padded = 0, width = 0;  ///< of the block in the wire row; width in elements
};

struct RouteArgs {
  GroupArgs group;
  const void* ids = nullptr;
  bool wide_ids = false;
  std::int64_t ids_stride[2] = {};  ///< elements
  const float* weights = nullptr;   ///< null without
  std::int64_t weights_stride[2] = {};
  bool renormalise = false;
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 0;
  routing::ExpertShape shape;
  HandleArgs handle;
  bool cached = false;                          ///< the handle's routing is used again: only notes are exchanged
  std::int64_t rows_at[wire::kMaxBlocks] = {};  ///< where this rank takes each block's rows, in its window
  std::int32_t* block_totals = nullptr;         ///< scratch [R + S][blocks, rounded up to 4]
  std::int64_t* num_rows = nullptr;             ///< [1] of the result
  HostCounts* counts = nullptr;                 ///< in host memory
  std::uint64_t ticket = 0;
};

struct SendArgs {
  GroupArgs group;
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 0, num_blocks = 0, row_bytes = 0;
  std::int32_t own_blocks =
      0;  ///< of the grid, for this rank's rows for itself; 0, as with a codec: every block does both
  bool own_everywhere =
      false;  ///< expert layouts: a row that stays on this rank goes to each of its choices, not the first alone
  Codec codec = Codec::kNone;
  std::int32_t scale_block = 128;
  BlockArgs blocks[wire::kMaxBlocks];  ///< of the wire row; with a codec, block 0 reads bf16 and block 1 has no data
  HandleArgs handle;
  bool has_weights = false;
  bool more_follows = false;  ///< rows of other nodes are handed on before the peers are told
};

struct ReceiveArgs {
  GroupArgs group;
  std::int32_t top_k = 0, num_blocks = 0, num_local = 0;
  routing::ExpertShape shape;
  std::byte* rows[wire::kMaxBlocks] = {};      ///< of each block
  std::int32_t padded[wire::kMaxBlocks] = {};  ///< bytes from row to row
  HandleArgs handle;
  bool write_records = true;
  bool zero_padding = false;
  bool wide_ids = false;
  std::int64_t shown_rows = 0;  ///< rows of the ids and weights below: what lies beyond the real ones becomes -1 and 0
  void* ids = nullptr;          ///< rank_major: [shown_rows, K]
  float* weights = nullptr;     ///< rank_major [shown_rows, K], expert layouts [shown_rows]; null without
  std::int64_t* num_rows = nullptr;
  CountersArgs recv_counts;
};

/// What peers fetch: rows of the combine input, copies of rows in the window, or sums there of each token's rows.
enum class RowSource : std::int32_t { kInPlace, kCopy, kSumChoices };

struct CombineArgsOnDevice {
  GroupArgs group;
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 0, num_local = 0, num_slots = 0;  ///< of the handle's placement
  std::int32_t max_rows = 0;                             ///< records that the handle has room for
  DType dtype = DType::kBf16;
  std::int64_t hidden = 0;
  Reduction reduction;
  Codec codec = Codec::kNone;  ///< latency mode
  Layout layout = Layout::kRankMajor;
  std::int64_t expert_capacity = 0;
  HandleArgs handle;
  const std::byte* x = nullptr;
  std::int64_t row_stride = 0, expert_stride = 0;  ///< bytes
  RowSource source = RowSource::kCopy;
  bool own_in_place = false;  ///< kCopy: rows for this rank itself are read from x
  bool announces =
      false;  ///< combine_recv itself tells the peers that rows may be read: nothing is left for combine_send
  std::int32_t input_flight = -1;                 ///< kInPlace: whose combine input x is
  std::int64_t rows_offset = 0, sent_stride = 0;  ///< where the rows lie in this rank's window for the peers
  enum class Weigh : std::int32_t { kNone, kFromDispatch, kGiven } weigh = Weigh::kNone;
  const float* weights = nullptr;  ///< kGiven [T, K]
  std::int64_t weights_stride[2] = {};
  const float* topk_weights = nullptr;  ///< combined weights, in the layout's shape
  std::int64_t topk_stride[2] = {};
  const std::byte* bias[2] = {};
  DType bias_dtype[2] = {};
  std::int64_t bias_stride[2] = {};  ///< bytes
  std::byte* out = nullptr;
  std::int64_t out_stride = 0;   ///< bytes
  float* out_weights = nullptr;  ///< [T, K]
};

}  // namespace ferry::cuda
