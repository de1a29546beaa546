// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where experts live.
#include "ferry/placement.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"
#include "core/digest.h"

namespace ferry {
namespace {

constexpr const char* kExplicitMap = "ferry::Placement::explicit_map";

/// Number of local experts per rank; refuses ranks out of range and local indices with gaps or taken twice.
std::vector<std::int32_t> count_local_experts(const std::vector<std::vector<Place>>& places, int num_ranks) {
  std::vector<std::vector<std::int32_t>> locals(static_cast<std::size_t>(num_ranks));
  for (std::size_t expert = 0; expert < places.size(); ++expert) {
    if (places[expert].empty()) refuse(kExplicitMap, fmt::format("places[{}]", expert), "empty", "at least one place");
    for (const Place& place : places[expert]) {
      if (place.rank < 0 || place.rank >= num_ranks) {
        refuse(kExplicitMap, fmt::format("places[{}] rank", expert), fmt::to_string(place.rank),
               fmt::format("0 to {}", num_ranks - 1));
      }
      locals[static_cast<std::size_t>(place.rank)].push_back(place.local_expert);
    }
  }
  std::vector<std::int32_t> counts;
  for (int rank = 0; rank < num_ranks; ++rank) {
    auto& taken = locals[static_cast<std::size_t>(rank)];
    std::sort(taken.begin(), taken.end());
    for (std::size_t i = 0; i < taken.size(); ++i) {
      if (taken[i] != static_cast<std::int32_t>(i)) {
        refuse(kExplicitMap, fmt::format("local experts of rank {}", rank),
               fmt::format("{} at position {}", taken[i], i), "each index 0 .. n-1 exactly once");
      }
    }
    counts.push_back(static_cast<std::int32_t>(taken.size()));
  }
  return counts;
}

}  // namespace

Placement Placement::contiguous(int num_experts, int num_ranks) {
  if (num_experts < 1) refuse("ferry::Placement::contiguous", "num_experts", fmt::to_string(num_experts), "at least 1");
  if (num_ranks < 1) refuse("ferry::Placement::contiguous", "num_ranks", fmt::to_string(num_ranks), "at least 1");
  std::vector<std::vector<Place>> places;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int count = num_experts / num_ranks + (rank < num_experts % num_ranks ? 1 : 0);
    for (int local = 0; local < count; ++local) places.push_back({Place{rank, local}});
  }
  return explicit_map(places, num_ranks);
}

Placement Placement::explicit_map(const std::vector<std::vector<Place>>& places, int num_ranks) {
  if (num_ranks < 1) refuse(kExplicitMap, "num_ranks", fmt::to_string(num_ranks), "at least 1");
  if (places.empty()) refuse(kExplicitMap, "places", "empty", "at least one expert");
  Placement placement;
  placement.first_slot_.push_back(0);
  for (std::int32_t count : count_local_experts(places, num_ranks))
    placement.first_slot_.push_back(placement.first_slot_.back() + count);
  const auto num_slots = static_cast<std::size_t>(placement.first_slot_.back());
  placement.rank_of_slot_.resize(num_slots);
  placement.expert_of_slot_.resize(num_slots);
  placement.first_place_.push_back(0);
  for (std::size_t expert = 0; expert < places.size(); ++expert) {
    for (const Place& place : places[expert]) {
      const std::int32_t slot = placement.first_slot(place.rank) + place.local_expert;
      placement.slot_of_place_.push_back(slot);
      placement.rank_of_slot_[static_cast<std::size_t>(slot)] = place.rank;
      placement.expert_of_slot_[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(expert);
    }
    placement.first_place_.push_back(static_cast<std::int32_t>(placement.slot_of_place_.size()));
  }
  Digest digest;
  for (const auto* part : {&placement.first_place_, &placement.slot_of_place_, &placement.first_slot_}) {
    digest.add(part->size());
    for (std::int32_t value : *part) digest.add(value);
  }
  placement.digest_ = digest.value();
  return placement;
}

int Placement::max_local_experts() const noexcept {
  int most = 0;
  for (int rank = 0; rank < num_ranks(); ++rank) most = std::max(most, num_local_experts(rank));
  return most;
}

std::span<const std::int32_t> Placement::slots_of(int expert) const {
  const auto begin = static_cast<std::size_t>(first_place_.at(static_cast<std::size_t>(expert)));
  const auto end = static_cast<std::size_t>(first_place_.at(static_cast<std::size_t>(expert) + 1));
  return std::span(slot_of_place_).subspan(begin, end - begin);
}

int Placement::choose_slot(int expert, int source_rank, std::int64_t token,
                           std::span<const std::uint8_t> masked) const {
  const auto slots = slots_of(expert);
  const auto is_live = [&](std::int32_t slot) {
    return masked.empty() || masked[static_cast<std::size_t>(rank_of_slot(slot))] == 0;
  };
  const std::int64_t num_live = std::count_if(slots.begin(), slots.end(), is_live);
  if (num_live == 0) return -1;
  std::int64_t skip = (source_rank + token) % num_live;
  for (std::int32_t slot : slots) {
    if (is_live(slot) && skip-- == 0) return slot;
  }
  return -1;
}

}  // namespace ferry
