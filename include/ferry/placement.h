// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where experts live. A place is one copy of an expert on one rank; an expert may have several (replicas).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ferry {

struct Place {
  int rank = 0;
  int local_expert = 0;  ///< index on that rank, 0 .. num_local_experts(rank) - 1
  friend bool operator==(const Place&, const Place&) = default;
};

/// The map from global expert ids to places. Places of all ranks are numbered through as "slots": the slot of
/// (rank, local) is first_slot(rank) + local.
class Placement {
 public:
  /// Experts in order, each rank as many as the next; the first ranks take one more each if the division leaves a rest.
  static Placement contiguous(int num_experts, int num_ranks);
  /// `places[e]` lists the copies of expert e (at least one). Each (rank, local) must be taken exactly once and every rank's
  /// local indices must be 0 .. n-1 without a gap. Throws Error(invalid_argument) otherwise. Ranks may own no expert.
  static Placement explicit_map(const std::vector<std::vector<Place>>& places, int num_ranks);

  int num_experts() const noexcept { return static_cast<int>(first_place_.size()) - 1; }
  int num_ranks() const noexcept { return static_cast<int>(first_slot_.size()) - 1; }
  int num_slots() const noexcept { return first_slot_.back(); }
  int first_slot(int rank) const { return first_slot_.at(static_cast<std::size_t>(rank)); }
  int num_local_experts(int rank) const { return first_slot(rank + 1) - first_slot(rank); }
  int max_local_experts() const noexcept;
  int rank_of_slot(int slot) const { return rank_of_slot_.at(static_cast<std::size_t>(slot)); }
  /// Global expert id held by a slot.
  int expert_of_slot(int slot) const { return expert_of_slot_.at(static_cast<std::size_t>(slot)); }
  /// Slots that hold copies of an expert, in the order given.
  std::span<const std::int32_t> slots_of(int expert) const;

  /// The copy that a token uses: a pure rule of (source rank, token): live copy number (source_rank + token) mod live copies.
  /// `masked[r] != 0` leaves rank r's copies out. Returns -1 if no copy is left. `masked` may be empty.
  int choose_slot(int expert, int source_rank, std::int64_t token, std::span<const std::uint8_t> masked = {}) const;

  /// A 64-bit digest; ranks compare it to find out that they disagree.
  std::uint64_t digest() const noexcept { return digest_; }

  friend bool operator==(const Placement&, const Placement&) = default;

 private:
  std::vector<std::int32_t> first_place_;    // [E + 1] into slot_of_place_
  std::vector<std::int32_t> slot_of_place_;  // slots, grouped by expert
  std::vector<std::int32_t> first_slot_;     // [R + 1]
  std::vector<std::int32_t> rank_of_slot_;   // [S]
  std::uint64_t digest_ = 0;
  std::vector<std::int32_t> expert_of_slot_;  // [S]
};

}  // namespace ferry
