// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 1, route, of latency mode: the owner of each choice and each token's place among this rank's rows for its owners. No counts
// are exchanged first, so a block works it out for itself, for all tokens of the rank, in shared memory. What takes time here is
// latency, so loads are asked for before anything waits, and indexes are 32 bits.
#pragma once

#include "cuda/device/choose_slot.cuh"
#include "cuda/latency/call.cuh"

namespace ferry::cuda::latency {

/// Shared memory of a block that sends. Arrays over (choice, token): of one choice, tokens lie side by side.
struct RoutingMemory {
  std::byte** windows;        ///< [R] first, as in ArrivalMemory
  ExpertHome* homes;          ///< [E]
  std::int32_t* slots;        ///< [K][T] of each choice, -1 without
  std::int32_t* firsts;       ///< [K][T] the choice's rank if it is the token's first there, else -1
  std::int32_t* indexes;      ///< [K][T] the token's number among those for that rank
  std::int32_t* slot_counts;  ///< [S] this rank's choices
  std::int32_t* rank_counts;  ///< [R] this rank's tokens

  /// Lays them out from `at` on; returns the end. From 0 on, that is the size.
  FERRY_HD std::size_t lay_out(std::size_t at, int experts, int slots_of_all, int ranks, std::int64_t choices) {
    const auto take = [&](auto*& array, std::int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += (static_cast<std::size_t>(count) * sizeof(*array) + 15) / 16 * 16;
    };
    take(windows, ranks);
    take(homes, experts);
    take(slots, choices);
    take(firsts, choices);
    take(indexes, choices);
    take(slot_counts, slots_of_all);
    take(rank_counts, ranks);
    return at;
  }
};

class Router {
 public:
  __device__ Router(const LatencyDispatchArgs& args, const RoutingMemory& memory)
      : a_(args),
        m_(memory),
        lane_(lane_idx()),
        num_tokens_(static_cast<int>(args.num_tokens)),
        top_k_(args.top_k),
        per_step_(32 / args.top_k),
        step_(static_cast<int>(blockDim.x) / 32 * per_step_),
        first_(static_cast<int>(threadIdx.x) / 32 * per_step_) {}

  /// Asks for ids and brings the tables into shared memory. Before the block's next barrier.
  __device__ void start() {
    const GroupArgs& group = a_.group;
    const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    std::int32_t ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = given_to(first_ + i * step_);
    for (int e = tid; e < group.placement.num_experts; e += threads)
      __pipeline_memcpy_async(m_.homes + e, group.placement.homes + e, sizeof(ExpertHome));
    for (int r = tid; r < group.num_ranks; r += threads)
      __pipeline_memcpy_async(m_.windows + r, group.windows + r, sizeof(std::byte*));
    __pipeline_commit();
    for (int s = tid; s < group.placement.num_slots; s += threads) m_.slot_counts[s] = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) keep(first_ + i * step_, ahead[i]);
    for (int first = first_ + kAhead * step_; first < num_tokens_; first += step_) keep(first, given_to(first));
    __pipeline_wait_prior(0);
  }

  /// Ids become slots; the first choice of each rank is marked, choices are counted. A warp takes as many tokens at a time as its
  /// lanes have choices for. Returns the smallest token * K + choice of this lane's with an id out of range, or kNone. After a
  /// barrier.
  static constexpr int kNone = INT32_MAX;
  __device__ int find_slots() {
    int bad = kNone;
#pragma unroll 1
    for (int first = first_; first < num_tokens_; first += step_) bad = min(bad, take(first));
    return bad;
  }

  /// Numbers the tokens of each rank, a warp per rank. After a barrier; before the next.
  __device__ void number() {
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (int rank = static_cast<int>(threadIdx.x) / 32; rank < a_.group.num_ranks; rank += warps) {
      int count = 0;
      for (int first = 0; first < num_tokens_; first += 32) {
        const int t = first + lane_;
        int found = -1;
        if (t < num_tokens_) {
          for (int at = t; at < top_k_ * num_tokens_; at += num_tokens_) found = m_.firsts[at] == rank ? at : found;
        }
        const unsigned having = __ballot_sync(kAllLanes, found >= 0);
        if (found >= 0) m_.indexes[found] = count + __popc(having & ((1u << lane_) - 1));
        count += __popc(having);
      }
      if (lane_ == 0) m_.rank_counts[rank] = count;
    }
  }

  /// Of lane k: how many of this rank's choices of the same slot come before choice k of token t; -1 without a slot.
  __device__ std::int32_t position(int t) const {
    const std::int32_t slot = lane_ < top_k_ ? m_.slots[lane_ * num_tokens_ + t] : -1;
    const unsigned same = __match_any_sync(kAllLanes, slot >= 0 ? slot : -1 - lane_);
    int mine = __popc(same & ((1u << lane_) - 1));  // of the token itself
    constexpr int kBatch = 8;
    for (int begin = 0; begin < top_k_; begin += kBatch) {
      std::int32_t wanted[kBatch];
      std::uint32_t before[kBatch] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) wanted[i] = __shfl_sync(kAllLanes, slot, begin + i);
      for (int j = 0; j < top_k_; ++j) {
        for (int other = lane_; other < t; other += 32) {
          const std::int32_t seen = m_.slots[j * num_tokens_ + other];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) before[i] += seen == wanted[i] ? 1u : 0u;
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const auto all = static_cast<int>(__reduce_add_sync(kAllLanes, before[i]));
        if (lane_ == begin + i) mine += all;
      }
    }
    return slot >= 0 ? mine : -1;
  }

 private:
  static constexpr std::int32_t kBad = -3;
  static constexpr int kAhead = 4;

  /// The id of this lane's choice among those of the tokens from `first` on, as far as 32 bits tell; of a cached dispatch, the slot.
  __device__ std::int32_t given_to(int first) const {
    const int t = first + lane_ / top_k_, k = lane_ % top_k_;
    if (!is_choice(t)) return -1;
    if (a_.ids == nullptr) return __ldg(a_.cached_slots + t * top_k_ + k);
    const std::int64_t at = t * a_.ids_stride[0] + k * a_.ids_stride[1];
    if (!a_.wide_ids) return __ldg(static_cast<const std::int32_t*>(a_.ids) + at);
    const long long id = __ldg(static_cast<const long long*>(a_.ids) + at);
    return id < 0 ? -1 : static_cast<std::int32_t>(min(id, static_cast<long long>(INT32_MAX)));
  }

  __device__ bool is_choice(int t) const {
    return lane_ < per_step_ * top_k_ && t < num_tokens_;
  }
  __device__ void keep(int first, std::int32_t given) const {
    const int t = first + lane_ / top_k_;
    if (is_choice(t)) m_.slots[lane_ % top_k_ * num_tokens_ + t] = given;
  }
  __device__ int take(int first) const {
    const int t = first + lane_ / top_k_, k = lane_ % top_k_;
    const bool active = is_choice(t);
    std::int32_t rank = -1;
    std::int32_t slot = active ? slot_of(m_.slots[k * num_tokens_ + t], t, rank) : -1;
    const bool bad = slot == kBad;
    if (bad) slot = -1;
    const unsigned same =
        __match_any_sync(kAllLanes, rank >= 0 ? lane_ / top_k_ * a_.group.num_ranks + rank : -1 - lane_);
    if (active) {
      const int at = k * num_tokens_ + t;
      m_.slots[at] = slot;
      m_.firsts[at] = (same & ((1u << lane_) - 1)) == 0 ? rank : -1;
      if (slot >= 0) atomicAdd(&m_.slot_counts[slot], 1);
    }
    return bad ? t * top_k_ + k : kNone;
  }

  __device__ std::int32_t slot_of(std::int32_t given, int token, std::int32_t& rank) const {
    if (given < 0) return -1;
    const PlacementArgs& p = a_.group.placement;
    std::int32_t slot = given;
    if (a_.ids != nullptr) {
      if (given >= p.num_experts) return kBad;
      const ExpertHome home = m_.homes[given];
      if (home.slot != ExpertHome::kSeveral) {
        rank = m_.windows[home.rank] != nullptr ? home.rank : -1;
        return rank < 0 ? -1 : home.slot;
      }
      slot = choose_slot(a_.group, m_.windows, given, token);
      if (slot < 0) return -1;
    }
    rank = p.rank_of_slot[slot];
    return slot;
  }

  const LatencyDispatchArgs& a_;
  const RoutingMemory m_;
  const int lane_, num_tokens_, top_k_, per_step_, step_, first_;
};

}  // namespace ferry::cuda::latency
