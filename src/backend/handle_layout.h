// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The written layout of a handle: a header, then arrays at offsets that follow from the header alone. No pointers, so a
// handle can be copied, stored and checkpointed. docs/handle.md describes it for readers outside.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/handle.h"
#include "wire/token_meta.h"

namespace ferry {

struct HandleHeader {
  static constexpr std::uint64_t kMagic = 0x3245444e48595246;  // "FRYHNDE2"

  std::uint64_t magic = kMagic;
  std::int64_t total_bytes = 0;
  std::uint64_t group = 0;         ///< random number of the group that made it
  std::uint64_t epoch = 0;         ///< of the dispatch that made it, the same on all ranks
  std::uint64_t rails_digest = 0;  ///< who forwarded; a combine under other rails cannot return rows
  std::uint64_t placement_digest = 0;
  std::int32_t rank = 0, num_ranks = 0, num_nodes = 0, num_slots = 0;
  std::int32_t layout = 0, mode = 0, top_k = 0, num_local_experts = 0;
  std::int32_t has_weights = 0;
  std::uint32_t membership = 0;
  std::int64_t num_tokens = 0;       ///< T
  std::int64_t num_rows = 0;         ///< N
  std::int64_t num_expert_rows = 0;  ///< Nx
  std::int64_t expert_capacity = 0;
  std::int64_t alignment = 1;
  std::int64_t num_forwarded = 0;  ///< F: rows of other nodes' tokens that passed through this rank
};

/// What the host knows of a handle that lies on a device: enough to check arguments without asking the device.
struct HandleShadow {
  HandleHeader header;        ///< num_rows and num_expert_rows: the capacity while counts are on the device alone
  bool counts_known = false;  ///< the arrays below hold the counts
  int flight = 0;             ///< of the receive window
  std::vector<std::int32_t> source_offsets, expert_counts, expert_offsets;
};

/// Views of the arrays. Sizes in brackets.
class HandleView {
 public:
  /// Where the arrays lie behind `base`, which may be a device address: nothing is read.
  HandleView(std::byte* base, const HandleHeader& header) : base_(base) { lay_out(header); }

  /// The memory must hold a header whose numbers are right: offsets of all parts are worked out once, here.
  explicit HandleView(std::span<std::byte> memory) : base_(memory.data()) { lay_out(header()); }

  /// The header alone, for memory that was not checked yet (it must be large enough) or not written yet.
  static HandleHeader& header_at(std::span<std::byte> memory) {
    return *reinterpret_cast<HandleHeader*>(memory.data());
  }

  /// Bytes of a handle with this header (total_bytes is not read).
  static std::int64_t bytes_for(const HandleHeader& header) {
    std::int64_t bytes = padded(sizeof(HandleHeader));
    for (int part = 0; part < kEnd; ++part) bytes += padded(part_bytes(header, part));
    return bytes;
  }

  HandleHeader& header() const { return *reinterpret_cast<HandleHeader*>(base_); }

  std::int32_t* slots() const { return ints(kSlots); }    ///< [T, K] global slot of each choice, -1 = none
  std::int32_t* ranks() const { return ints(kRanks); }    ///< [T, K] its rank
  std::int32_t* rows() const { return ints(kRows); }      ///< [T, K] its row in that rank's result (throughput)
  std::int32_t* tokens() const { return ints(kTokens); }  ///< [T, K] the token's rank-major row there (throughput)
  float* weights() const { return reinterpret_cast<float*>(ints(kWeights)); }  ///< [T, K] if has_weights
  std::int32_t* forward_rows() const {
    return ints(kForwardRows);
  }                                                              ///< [T, nodes] row among this rank's tokens for a node
  std::int32_t* tokens_to() const { return ints(kTokensTo); }    ///< [R] this rank's tokens that went to each rank
  std::int32_t* choices_to() const { return ints(kChoicesTo); }  ///< [R] their choices
  std::int32_t* tokens_to_node() const { return ints(kTokensToNode); }     ///< [nodes]
  std::int32_t* rank_of_slot() const { return ints(kRankOfSlot); }         ///< [S]
  std::int32_t* source_offsets() const { return ints(kSourceOffsets); }    ///< [R + 1]
  std::int32_t* expert_counts() const { return ints(kExpertCounts); }      ///< [E_local]
  std::int32_t* expert_offsets() const { return ints(kExpertOffsets); }    ///< [E_local + 1]
  std::int32_t* forward_offsets() const { return ints(kForwardOffsets); }  ///< [R + 1] forwarded rows by source
  wire::TokenMeta record(std::int64_t row) const { return record_at(kRecords, row); }       ///< [N]
  wire::TokenMeta forwarded(std::int64_t row) const { return record_at(kForwarded, row); }  ///< [F]
  std::byte* records() const { return base_ + offset_of(kRecords); }
  std::byte* forwarded_records() const { return base_ + offset_of(kForwarded); }

 private:
  enum Part {
    kSlots,
    kRanks,
    kRows,
    kTokens,
    kWeights,
    kForwardRows,
    kTokensTo,
    kChoicesTo,
    kTokensToNode,
    kRankOfSlot,
    kSourceOffsets,
    kExpertCounts,
    kExpertOffsets,
    kForwardOffsets,
    kForwarded,
    kRecords,  // last: on a device its room is for the capacity, and no other part may move when num_rows becomes known
    kEnd
  };

  static std::int64_t part_bytes(const HandleHeader& h, int part) {
    const std::int64_t choices = h.num_tokens * h.top_k;
    switch (part) {
      case kSlots:
      case kRanks:
      case kRows:
      case kTokens:
        return 4 * choices;
      case kWeights:
        return h.has_weights != 0 ? 4 * choices : 0;
      case kForwardRows:
        return 4 * h.num_tokens * h.num_nodes;
      case kTokensTo:
      case kChoicesTo:
        return 4 * static_cast<std::int64_t>(h.num_ranks);
      case kTokensToNode:
        return 4 * static_cast<std::int64_t>(h.num_nodes);
      case kRankOfSlot:
        return 4 * static_cast<std::int64_t>(h.num_slots);
      case kSourceOffsets:
      case kForwardOffsets:
        return 4 * (static_cast<std::int64_t>(h.num_ranks) + 1);
      case kExpertCounts:
        return 4 * static_cast<std::int64_t>(h.num_local_experts);
      case kExpertOffsets:
        return 4 * (static_cast<std::int64_t>(h.num_local_experts) + 1);
      case kRecords:
        return h.num_rows * wire::TokenMeta::bytes(h.top_k);
      case kForwarded:
        return h.num_forwarded * wire::TokenMeta::bytes(h.top_k);
      default:
        return 0;
    }
  }
  /// Parts follow each other in the order of the list, each at a multiple of 16 bytes.
  static constexpr std::int64_t padded(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }
  std::int64_t offset_of(Part part) const { return offsets_[static_cast<std::size_t>(part)]; }
  std::int32_t* ints(Part part) const { return reinterpret_cast<std::int32_t*>(base_ + offset_of(part)); }
  wire::TokenMeta record_at(Part part, std::int64_t row) const {
    const int top_k = header().top_k;
    return {base_ + offset_of(part) + row * wire::TokenMeta::bytes(top_k), top_k};
  }

  void lay_out(const HandleHeader& header) {
    std::int64_t offset = padded(sizeof(HandleHeader));
    for (int part = 0; part < kEnd; ++part) {
      offsets_[static_cast<std::size_t>(part)] = offset;
      offset += padded(part_bytes(header, part));
    }
  }

  std::byte* base_;
  std::array<std::int64_t, kEnd> offsets_{};
};

/// The header of a valid handle, wherever it lies.
inline const HandleHeader& header_of(const Handle& handle) {
  return handle.shadow() ? handle.shadow()->header : HandleView::header_at(handle.mutable_bytes());
}

}  // namespace ferry
