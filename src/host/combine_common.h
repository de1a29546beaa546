// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the three combine steps share: who owns a token's choices, where a returned row has its place, how many come.
#pragma once

#include <vector>

#include "backend/call.h"
#include "backend/handle_layout.h"
#include "backend/runtime.h"
#include "routing/dedup.h"

namespace ferry::host {

/// Ranks and nodes of one token's K choices, and the place of each partial sum among the token's K return slots:
/// flat: the choice; otherwise the number of distinct lower ranks (a node's sum takes the place of its lowest rank).
class Owners {
 public:
  Owners(const Topology& topology, int top_k)
      : topology_(topology), ranks_(static_cast<std::size_t>(top_k)), nodes_(static_cast<std::size_t>(top_k)) {}

  void set_ranks(const std::int32_t* ranks) {
    for (std::size_t k = 0; k < ranks_.size(); ++k) set(k, ranks[k]);
  }
  void set_slots(const std::int32_t* slots, const std::int32_t* rank_of_slot) {
    for (std::size_t k = 0; k < ranks_.size(); ++k) set(k, slots[k] < 0 ? -1 : rank_of_slot[slots[k]]);
  }
  int top_k() const { return static_cast<int>(ranks_.size()); }
  const std::int32_t* ranks() const { return ranks_.data(); }
  const std::int32_t* nodes() const { return nodes_.data(); }

  int place_of_rank(int rank) const { return routing::return_place(ranks_.data(), top_k(), rank); }
  int place_of_node(int node) const {
    int lowest = -1;
    for (std::size_t k = 0; k < ranks_.size(); ++k) {
      if (nodes_[k] == node && (lowest < 0 || ranks_[k] < lowest)) lowest = ranks_[k];
    }
    return place_of_rank(lowest);
  }
  /// Distinct ranks of a node in the order of the reduction; `out` holds K.
  int ranks_of_node(int node, bool by_last_choice, std::int32_t* out) const {
    const int count = routing::distinct_owners(ranks_.data(), top_k(), by_last_choice, out);
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      if (topology_.node_of(out[i]) == node) out[kept++] = out[i];
    }
    return kept;
  }

 private:
  void set(std::size_t k, std::int32_t rank) {
    ranks_[k] = rank;
    nodes_[k] = rank < 0 ? -1 : topology_.node_of(rank);
  }

  const Topology& topology_;
  std::vector<std::int32_t> ranks_, nodes_;
};

inline bool by_last_choice(const CombineCall& call) {
  return call.args.reduction.order == Reduction::Order::kLastChoice;
}
inline bool is_flat(const CombineCall& call) {
  return call.args.reduction.group == Reduction::Group::kChoice;
}
inline bool is_per_node(const CombineCall& call) {
  return call.args.reduction.group == Reduction::Group::kNode;
}

/// Where the returned row with this place of a token lies, from the start of a region of return slots.
inline std::int64_t slot_offset(const CombineCall& call, std::int64_t token, int place) {
  return (token * call.top_k + place) * call.slot_bytes;
}

/// Latency mode returns every row straight to its token's rank; throughput mode goes through the rail between nodes.
inline bool returns_straight(const CombineCall& call) {
  return call.handle.mode() == Mode::kLatency;
}

}  // namespace ferry::host
