// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where everything lies in a window. All ranks use one layout, sized for the neediest of them, so that an offset means the
// same in every window. Who writes, who reads and when a region may be reused: docs/memory_model.md.
#pragma once

#include <cstdint>
#include <vector>

#include "core/regions.h"
#include "ferry/group.h"
#include "ferry/topology.h"

namespace ferry {

/// Kinds of signals; each writer has one 64-bit word per kind (and flight) in the reader's window.
enum class Signal : std::uint8_t {
  kActivity,    ///< epoch << 24 | what the writer has begun; for messages only (network peers)
  kCountsEven,  ///< route: the writer's counts of an even throughput dispatch are here
  kCountsOdd,
  kMapped,        ///< the writer has mapped everybody's device memory; 1 once it has
  kLeftOut,       ///< 1: the writer has masked this rank by itself
  kWaiting,       ///< grows while the writer waits for anybody: it is there, and late only because somebody else is
  kDispatchRows,  ///< rows that the writer stored here straight (throughput), or its number of slots filled (latency)
  kDispatchNetwork,    ///< rows of the writer that have arrived in this rank's forward region so far
  kDispatchForwarded,  ///< rows that the writer, a rail peer, has handed on to this rank
  kDispatchRead,       ///< the writer has read its latency slots, and the rows staged for it, of this flight
  kCombineWeights,     ///< weights sent ahead by the writer are here
  kCombineRows,        ///< rows that the writer stored into this rank's return slots
  kCombineForward,     ///< rows that the writer stored into this rank's forward region, for tokens of other nodes
  kCombineNetwork,     ///< rows that the writer, a rail peer in another node, has put into this rank's return slots
  kCombineRead,        ///< the writer has read its return slots, forward region and weights of this flight
  kNumSignals,
};

/// What a rank says to another beside rows: in front of counts (throughput) or before the rows signal (latency, combine).
struct CallNote {
  std::uint64_t epoch = 0;
  std::uint64_t digest = 0;     ///< of the arguments that must agree
  std::int64_t status = 0;      ///< 0, or a CallStatus: the writer refuses its part
  std::int64_t where = 0;       ///< row of the bad id
  std::int64_t value = 0;       ///< the bad id
  std::int64_t num_tokens = 0;  ///< T of the writer
  std::int64_t reserved[2] = {};
};
static_assert(sizeof(CallNote) == 64);

enum CallStatus : std::int64_t {
  kCallGood = 0,
  kCallBadId = 1,
  kCallRefused = 2,  ///< combine: a rail peer found that rank `where` of its node disagrees about the arguments
};

/// Counts of the read signals: how the call went at its writer.
enum ReadCount : std::int64_t {
  kReadWell = 0,
  kReadGivenUp = 1,        ///< the writer's call failed: it says nothing about what others may expect
  kReadDisagreed = 2,      ///< the writer found that ranks disagree about the call
  kReadRefused = 1 << 22,  ///< plus the rows needed: more came than expert_capacity, nothing was handed out
  kReadRefusedBefore =
      1 << 23,  ///< plus the rows needed: not taken up, because a peer had refused the flight's last call
};
inline constexpr std::int64_t kReadRowsMask = (1 << 22) - 1;
/// A combine's read report also names the set of return slots that the flight's next combine uses at its writer.
inline constexpr int kReadBankShift = 8;
inline constexpr std::uint64_t kReadBankMask = 0xff;

/// Where rows lie: in the window's host memory, or in its device memory (device_layout.h), so that only control regions are here.
enum class RowPlace : std::uint8_t { kHost, kDevice };

/// Largest alignment that the default capacity of expert_major allows for; calls with a larger one may overflow cleanly.
constexpr std::int64_t kPlannedAlignment = 128;

class WindowLayout {
 public:
  /// `max_sources`: most sources that one rail peer receives for (0 on a single node). `return_banks`: sets of return slots of each
  /// flight; a new one is taken into use when somebody who may still write into the old one is masked (memory_model.md).
  WindowLayout(const GroupLimits& limits, const Topology& topology, const Placement& placement, int max_sources,
               RowPlace place = RowPlace::kHost, int return_banks = 1);

  std::int64_t total_bytes() const noexcept { return list_.total_bytes(); }
  const RegionList& list() const noexcept { return list_; }

  std::int64_t signal(Signal kind, int flight, int writer) const;
  std::int64_t abort_word() const noexcept { return abort_; }  ///< rank + 1 of whoever aborted; any rank may write it
  std::int64_t note(int flight, bool combine, int writer) const;
  /// The counts that `writer` announces: a CallNote, then int32 tokens[R], tokens_to_node[N], choices[S].
  std::int64_t counts(int parity, int writer) const;
  std::int64_t counts_bytes() const noexcept { return counts_stride_; }

  std::int64_t recv_rows() const noexcept { return recv_rows_; }  ///< capacity of the receive window
  /// Most (token, this rank) pairs that can arrive.
  std::int64_t recv_tokens(Mode mode) const noexcept {
    return mode == Mode::kThroughput ? recv_tokens_ : num_ranks_ * max_latency_tokens_;
  }
  std::int64_t recv(int flight) const;       ///< blocks one after the other, each recv_rows() rows
  std::int64_t recv_meta(int flight) const;  ///< one record per token received
  std::int64_t dispatch_slots(
      int flight, int source) const;  ///< latency: max_latency_tokens records; of ranks of this node without their rows
  std::int64_t latency_out_rows() const noexcept { return latency_out_rows_; }
  std::int64_t latency_out(int flight) const;  ///< local: where latency results are laid out
  std::int64_t dispatch_staging(
      int flight) const;  ///< records on their way to the network; latency: rows that the node's ranks fetch
  std::int64_t dispatch_forward(int flight) const;
  std::int64_t return_slots(int flight, int bank) const;  ///< [tokens][K] rows of this rank's tokens
  int return_banks() const noexcept { return return_banks_; }
  std::int64_t combine_forward(int flight) const;            ///< [forward rows][K]
  std::int64_t combine_staging(int flight) const;            ///< local: rows on their way to the network
  std::int64_t weights_ahead(int flight, int source) const;  ///< [max tokens][K] float32

  std::int64_t max_tokens() const noexcept { return max_tokens_; }  ///< of both modes
  int num_flights() const noexcept { return num_flights_; }
  int forward_sources() const noexcept { return forward_sources_; }  ///< most sources one rail peer serves
  std::int64_t max_row_bytes() const noexcept { return max_row_bytes_; }
  /// A wire row with its TokenMeta.
  std::int64_t max_record_bytes() const noexcept { return max_record_bytes_; }
  /// From one source's first row in a forward region (or one node's in the staging region) to the next one's.
  std::int64_t stream_bytes() const noexcept { return stream_bytes_; }
  /// The same in the combine forward region.
  std::int64_t return_stream_bytes() const noexcept { return return_stream_bytes_; }
  std::int64_t max_return_bytes() const noexcept { return max_return_bytes_; }

 private:
  void add_control_regions(int num_slots);
  void add_dispatch_regions(const GroupLimits& limits, const Placement& placement);
  void add_combine_regions(const GroupLimits& limits);
  /// One region per flight, so that the plan names them all.
  std::vector<std::int64_t> add_flights(const char* name, std::int64_t bytes);

  RegionList list_{256};
  RowPlace place_ = RowPlace::kHost;
  int num_ranks_ = 0;
  int num_nodes_ = 0;
  int num_flights_ = 0;
  int return_banks_ = 1;
  int forward_sources_ = 0;
  std::int64_t max_tokens_ = 0;
  std::int64_t max_row_bytes_ = 0;
  std::int64_t max_record_bytes_ = 0;
  std::int64_t stream_bytes_ = 0;
  std::int64_t return_stream_bytes_ = 0;
  std::int64_t max_return_bytes_ = 0;
  std::int64_t recv_rows_ = 0;
  std::int64_t recv_tokens_ = 0;
  std::int64_t max_latency_tokens_ = 0;
  std::int64_t latency_out_rows_ = 0;
  std::int64_t weights_stride_ = 0, dispatch_slots_stride_ = 0, return_bank_bytes_ = 0;
  std::int64_t signal_stride_ = 0, signals_ = 0, abort_ = 0, notes_ = 0, counts_stride_ = 0, counts_ = 0;
  // Offsets of one region per flight.
  std::vector<std::int64_t> recv_, recv_meta_, dispatch_slots_, latency_out_, dispatch_staging_, dispatch_forward_,
      return_slots_, combine_forward_, combine_staging_, weights_ahead_;
};

/// The widest wire row of a dispatch under these limits: the row in the widest dtype, float32 scales of blocks of 32 for
/// one-byte rows, extra bytes; every block padded.
std::int64_t max_dispatch_row_bytes(const GroupLimits& limits);
/// A returned row with K float32 of combined weights behind it.
std::int64_t return_row_bytes(std::int64_t row_bytes, int top_k, bool with_weights);

}  // namespace ferry
