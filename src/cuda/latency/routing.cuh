// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 1, route, of latency mode: the owner of each choice and each token's place among this rank's rows for its owners. No counts
// are exchanged first, so a block works it out for itself, for all tokens of the rank, in shared memory.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/latency/call.cuh"

namespace ferry::cuda::latency {

/// Shared memory of a block that sends. Arrays over (choice, token): of one choice, tokens lie side by side.
struct RoutingMemory {
  ExpertHome* homes;           ///< [E]
  std::byte** windows;         ///< [R]
  std::int32_t* slots;         ///< [K][T] of each choice, -1 without
  std::int32_t* firsts;        ///< [K][T] the choice's rank if it is the token's first there, else -1
  std::int32_t* indexes;       ///< [K][T] the token's number among those for that rank
  std::int32_t* slot_counts;   ///< [S] this rank's choices
  std::int32_t* rank_counts;   ///< [R] this rank's tokens

  /// Lays them out from `at` on; returns the end. A null `at` gives the size.
  FERRY_HD std::size_t lay_out(std::size_t at, int experts, int slots_of_all, int ranks, std::int64_t choices) {
    const auto take = [&](auto*& array, std::int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += (static_cast<std::size_t>(count) * sizeof(*array) + 15) / 16 * 16;
    };
    take(homes, experts);
    take(windows, ranks);
    take(slots, choices);
    take(firsts, choices);
    take(indexes, choices);
    take(slot_counts, slots_of_all);
    take(rank_counts, ranks);
    return at;
  }
};

/// As Placement::choose_slot, for an expert with several places or none.
__device__ inline std::int32_t choose_slot(const GroupArgs& group, std::byte* const* windows, std::int32_t expert,
                                           std::int64_t token) {
  const PlacementArgs& p = group.placement;
  const std::int32_t begin = p.first_place[expert], end = p.first_place[expert + 1];
  const auto is_live = [&](std::int32_t place) { return windows[p.rank_of_slot[p.slot_of_place[place]]] != nullptr; };
  std::int32_t num_live = 0;
  for (std::int32_t i = begin; i < end; ++i) num_live += is_live(i) ? 1 : 0;
  if (num_live == 0) return -1;
  std::int64_t skip = (group.rank + token) % num_live;
  for (std::int32_t i = begin; i < end; ++i) {
    if (is_live(i) && skip-- == 0) return p.slot_of_place[i];
  }
  return -1;
}

class Router {
 public:
  __device__ Router(const LatencyDispatchArgs& args, const RoutingMemory& memory)
      : a_(args), m_(memory), choices_(args.num_tokens * args.top_k) {}

  /// Brings ids and tables into shared memory; all loads are on their way together. Before the block's next barrier.
  __device__ void load() {
    const GroupArgs& group = a_.group;
    const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    for (int e = tid; e < group.placement.num_experts; e += threads)
      __pipeline_memcpy_async(m_.homes + e, group.placement.homes + e, sizeof(ExpertHome));
    for (int r = tid; r < group.num_ranks; r += threads)
      __pipeline_memcpy_async(m_.windows + r, group.windows + r, sizeof(std::byte*));
    __pipeline_commit();
#pragma unroll 4
    for (std::int64_t i = tid; i < choices_; i += threads) m_.slots[place_of(i)] = given_at(i);
    for (int s = tid; s < group.placement.num_slots; s += threads) m_.slot_counts[s] = 0;
    __pipeline_wait_prior(0);
  }

  /// Ids become slots; the first choice of each rank is marked, choices are counted. A thread takes a token. Returns the smallest
  /// token * K + choice of this thread's with an id out of range, or kNone. After a barrier.
  static constexpr std::int64_t kNone = INT64_MAX;
  __device__ std::int64_t find_slots() {
    std::int64_t bad = kNone;
    for (std::int64_t t = threadIdx.x; t < a_.num_tokens; t += blockDim.x) {
      for (int k = 0; k < a_.top_k; ++k) {
        const std::int64_t at = k * a_.num_tokens + t;
        std::int32_t rank = -1;
        const std::int32_t slot = slot_of(m_.slots[at], t, rank);
        if (slot == kBad && bad == kNone) bad = t * a_.top_k + k;
        m_.slots[at] = slot == kBad ? -1 : slot;
        m_.firsts[at] = rank;
        if (rank >= 0) atomicAdd(&m_.slot_counts[slot], 1);
      }
      for (int k = a_.top_k - 1; k > 0; --k) {
        std::int32_t& mine = m_.firsts[k * a_.num_tokens + t];
        bool first = true;
        for (int j = 0; j < k; ++j) first = first && m_.firsts[j * a_.num_tokens + t] != mine;
        if (!first) mine = -1;
      }
    }
    return bad;
  }

  /// Numbers the tokens of each rank, a warp per rank. After a barrier; before the next.
  __device__ void number() {
    const int lane = lane_idx(), warps = static_cast<int>(blockDim.x) / 32;
    for (int rank = static_cast<int>(threadIdx.x) / 32; rank < a_.group.num_ranks; rank += warps) {
      std::int32_t count = 0;
      for (std::int64_t first = 0; first < a_.num_tokens; first += 32) {
        const std::int64_t t = first + lane;
        std::int64_t found = -1;
        for (int k = 0; k < a_.top_k && t < a_.num_tokens; ++k) {
          if (m_.firsts[k * a_.num_tokens + t] == rank) found = k * a_.num_tokens + t;
        }
        const unsigned having = __ballot_sync(kAllLanes, found >= 0);
        if (found >= 0) m_.indexes[found] = count + __popc(having & ((1u << lane) - 1));
        count += __popc(having);
      }
      if (lane == 0) m_.rank_counts[rank] = count;
    }
  }

  /// How many of this rank's choices of the same slot come before choice `k` of token `t`. By a whole warp.
  __device__ std::int32_t position(std::int64_t t, int k) const {
    const std::int32_t slot = m_.slots[k * a_.num_tokens + t];
    if (slot < 0) return -1;
    std::uint32_t before = 0;
    for (int j = 0; j < a_.top_k; ++j) {
      const std::int64_t end = j < k ? t + 1 : t;  // of the token itself, only choices before this one
      for (std::int64_t other = lane_idx(); other < end; other += 32)
        before += m_.slots[j * a_.num_tokens + other] == slot ? 1u : 0u;
    }
    return static_cast<std::int32_t>(__reduce_add_sync(kAllLanes, before));
  }

 private:
  static constexpr std::int32_t kBad = -3;

  __device__ std::int64_t place_of(std::int64_t i) const { return i % a_.top_k * a_.num_tokens + i / a_.top_k; }
  /// The id of a choice, as far as 32 bits tell; of a cached dispatch, the slot.
  __device__ std::int32_t given_at(std::int64_t i) const {
    if (a_.ids == nullptr) return __ldg(a_.cached_slots + i);
    const std::int64_t at = i / a_.top_k * a_.ids_stride[0] + i % a_.top_k * a_.ids_stride[1];
    if (!a_.wide_ids) return __ldg(static_cast<const std::int32_t*>(a_.ids) + at);
    const long long id = __ldg(static_cast<const long long*>(a_.ids) + at);
    return id < 0 ? -1 : static_cast<std::int32_t>(min(id, static_cast<long long>(INT32_MAX)));
  }
  __device__ std::int32_t slot_of(std::int32_t given, std::int64_t token, std::int32_t& rank) const {
    if (given < 0) return -1;
    const PlacementArgs& p = a_.group.placement;
    std::int32_t slot = given;
    if (a_.ids != nullptr) {
      if (given >= p.num_experts) return kBad;
      const ExpertHome home = m_.homes[given];
      slot = home.slot != ExpertHome::kSeveral ? home.slot : choose_slot(a_.group, m_.windows, given, token);
      if (slot < 0) return -1;
      if (home.slot != ExpertHome::kSeveral) {
        rank = m_.windows[home.rank] != nullptr ? home.rank : -1;
        return rank < 0 ? -1 : slot;
      }
    }
    rank = p.rank_of_slot[slot];
    return slot;
  }

  const LatencyDispatchArgs& a_;
  const RoutingMemory m_;
  const std::int64_t choices_;
};

}  // namespace ferry::cuda::latency
