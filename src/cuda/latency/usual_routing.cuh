// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 1, route, of a usual dispatch: bits say which tokens chose a slot and which need a rank; a token's number among those, and
// the place of its choices, are the bits set before its own. See routing.cuh for calls of any kind.
#pragma once

#include "cuda/latency/usual.cuh"

namespace ferry::cuda::latency {

/// Shared memory of a block.
struct UsualMemory {
  std::uint32_t* slot_bits;  ///< [S][W] bit t: token t chose the slot
  std::uint32_t* rank_bits;  ///< [R][W] bit t: token t needs the rank
  std::int32_t* slots;       ///< [T][8], -1 without
  std::int32_t* totals;      ///< [S] choices of each slot, and
  std::int32_t* tokens;      ///< [R] tokens for each rank; where the books are kept
  std::int32_t* rows;        ///< [R] rows that come from each source
  std::int32_t* counts;      ///< [R][E_local] of them for each expert
  int words;                 ///< W

  /// Lays them out from `at` on; returns the end. From 0 on, that is the size.
  FERRY_HD std::size_t lay_out(std::size_t at, int slots_of_all, int ranks, int num_local, std::int64_t num_tokens) {
    const auto take = [&](auto*& array, std::int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += (static_cast<std::size_t>(count) * sizeof(*array) + 15) / 16 * 16;
    };
    words = static_cast<int>((num_tokens + 31) / 32);
    take(slot_bits, static_cast<std::int64_t>(slots_of_all) * words);
    take(rank_bits, static_cast<std::int64_t>(ranks) * words);
    take(slots, num_tokens * kUsualTopK);
    take(totals, slots_of_all);
    take(tokens, ranks);
    take(rows, ranks);
    take(counts, static_cast<std::int64_t>(ranks) * num_local);
    return at;
  }
};

/// How many of the bits before bit `t`; all of them: t = 32 * words.
__device__ inline int bits_before(const std::uint32_t* bits, int t) {
  int count = 0;
  for (int word = 0; word < t / 32; ++word) count += __popc(bits[word]);
  return t % 32 == 0 ? count : count + __popc(bits[t / 32] & ((1u << t % 32) - 1));
}

/// How many of so many choices took the slot; where tokens name experts twice, which is rare.
__device__ __noinline__ inline std::int32_t count_choices(const std::int32_t* slots, int num_choices,
                                                          std::int32_t slot) {
  std::int32_t count = 0;
  for (int i = 0; i < num_choices; ++i) count += slots[i] == slot ? 1 : 0;
  return count;
}

class UsualRouter {
 public:
  static constexpr int kNone = INT32_MAX;

  __device__ UsualRouter(const UsualDispatchArgs& args, const UsualMemory& memory)
      : a_(args.call),
        m_(memory),
        local_(args.by_local),
        lane_(lane_idx()),
        num_tokens_(static_cast<int>(args.call.num_tokens)),
        first_(static_cast<int>(threadIdx.x) / 32 * kTokensAtOnce),
        step_(static_cast<int>(blockDim.x) / 32 * kTokensAtOnce) {}

  /// Asks for ids, and clears the tables. Before the block's next barrier.
  __device__ void start() {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead_[i] = id_of(first_ + i * step_);
    const int threads = static_cast<int>(blockDim.x);
    for (int i = static_cast<int>(threadIdx.x); i < a_.group.placement.num_slots * m_.words; i += threads)
      m_.slot_bits[i] = 0;
    for (int i = static_cast<int>(threadIdx.x); i < a_.group.num_ranks * m_.words; i += threads) m_.rank_bits[i] = 0;
  }

  /// After that barrier; before the next. Smallest token * 8 + choice of this lane's with an id out of range, or kNone; `repeated`
  /// becomes true if a token names an expert twice.
  __device__ int find(bool* repeated) const {
    int bad = kNone;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) bad = min(bad, take(first_ + i * step_, ahead_[i], repeated));
#pragma unroll 1
    for (int first = first_ + kAhead * step_; first < num_tokens_; first += step_)
      bad = min(bad, take(first, id_of(first), repeated));
    return bad;
  }

  /// Of lane k < 8: how many of this rank's choices of the same slot come before choice k of token t.
  __device__ std::int32_t position(int t, std::int32_t slot, bool repeated) const {
    if (slot < 0) return -1;
    if (repeated) return count_choices(m_.slots, t * kUsualTopK + lane_, slot);
    return bits_before(m_.slot_bits + slot * m_.words, t);
  }
  __device__ std::int32_t rank_of(std::int32_t slot) const {
    return local_.quotient(slot);
  }
  /// Adds up the choices of each slot and the tokens of each rank. All threads of a block.
  __device__ void add_up(bool repeated) const {
    for (int slot = static_cast<int>(threadIdx.x); slot < a_.group.placement.num_slots;
         slot += static_cast<int>(blockDim.x))
      m_.totals[slot] = repeated ? count_choices(m_.slots, num_tokens_ * kUsualTopK, slot)
                                 : bits_before(m_.slot_bits + slot * m_.words, 32 * m_.words);
    if (const auto rank = static_cast<int>(threadIdx.x); rank < a_.group.num_ranks)
      m_.tokens[rank] = bits_before(m_.rank_bits + rank * m_.words, 32 * m_.words);
    __syncthreads();
  }

 private:
  static constexpr int kAhead = 4;

  __device__ int token_of(int first) const {
    return first + lane_ / kUsualTopK;
  }

  /// As far as 32 bits tell; -1 beyond the tokens.
  __device__ std::int32_t id_of(int first) const {
    const int at = first * kUsualTopK + lane_;
    if (token_of(first) >= num_tokens_) return -1;
    if (!a_.wide_ids) return __ldg(static_cast<const std::int32_t*>(a_.ids) + at);
    const long long id = __ldg(static_cast<const long long*>(a_.ids) + at);
    return id < 0 ? -1 : static_cast<std::int32_t>(min(id, static_cast<long long>(INT32_MAX)));
  }

  __device__ int take(int first, std::int32_t id, bool* repeated) const {
    if (first >= num_tokens_) return kNone;  // of the whole warp
    const int t = token_of(first), k = lane_ % kUsualTopK;
    const bool bad = id >= a_.group.placement.num_slots;
    const std::int32_t slot = id < 0 || bad ? -1 : id;
    const unsigned same =
        __match_any_sync(kAllLanes, slot >= 0 ? lane_ / kUsualTopK * a_.group.placement.num_slots + slot : -1 - lane_);
    if ((same & ((1u << lane_) - 1)) != 0) *repeated = true;
    if (slot >= 0) {
      const std::uint32_t bit = 1u << t % 32;
      atomicOr(m_.slot_bits + slot * m_.words + t / 32, bit);
      atomicOr(m_.rank_bits + local_.quotient(slot) * m_.words + t / 32, bit);
    }
    if (t < num_tokens_) m_.slots[t * kUsualTopK + k] = slot;
    return bad ? t * kUsualTopK + k : kNone;
  }

  const LatencyDispatchArgs& a_;
  const UsualMemory m_;
  const Division local_;
  const int lane_, num_tokens_, first_, step_;
  std::int32_t ahead_[kAhead];
};

}  // namespace ferry::cuda::latency
