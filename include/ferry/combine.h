// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Combine: the experts' results return to their tokens and are summed.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "ferry/handle.h"
#include "ferry/types.h"

namespace ferry {

/// (*) = must be equal on all ranks.
struct CombineArgs {
  const Handle* handle = nullptr;  ///< of the dispatch whose rows come back
  /// bf16, fp16 or fp32 (*); rank_major [N, H], expert_major [Nx, H], expert_padded [E_local, C, H], H (*). Rows beyond the real
  /// ones are never read. Any row stride, elements contiguous.
  Tensor x{};
  Reduction reduction = Reduction::per_rank();  ///< (*) flat needs an expert layout

  /// (*) Multiply each choice's row with its weight: the ones that travelled with the dispatch, or `weights` below.
  /// Expert layouts only: a rank_major row is already a sum.
  enum class Weighting : std::uint8_t { kNone, kFromDispatch, kGiven };
  Weighting weighting = Weighting::kNone;
  Tensor weights{};  ///< kGiven: [T, K] float32 on the token's side; sent ahead unless the reduction is flat

  /// (*) Fewer bits on the wire; latency mode and bf16 x. What a rank returns for a token (its sum, rounded to bf16; flat:
  /// each choice's row) is coded in groups of 128 channels, also where it stays on the rank, and enters the rest of the
  /// reduction as the float32 that it is restored to.
  ///   kFp8F32    e4m3 with a float32 scale, as in dispatch. Restored r of x: |r - x| <= |x| / 16 * (1 + 2^-16) + m * 2^-18 with
  ///              m = max(1e-4, largest |x| of the group). A group with an infinity becomes NaN.
  ///   kLogfmt10  a sign and 511 steps of equal ratio from the group's largest magnitude down to its least that is not zero, 2^32 of
  ///              range at most: |log2(r / x)| <= s (1/2 + 2^-11) + 2^-19 with s = log2(largest / least) / 510, so |r - x| <= 2.21 %
  ///              of |x|; zeros stay zeros, what is below 2^-32 of the largest is off by that at most. Where a group of a chunk of 768
  ///              channels has magnitudes of 1 and more, infinities, NaN, nothing but one magnitude or only such
  ///              below 2^-94, the chunk travels as it is.
  Codec codec = Codec::kNone;

  /// Optional [T, H] of the dtype of x or float32, on the token's side; need not be given on all ranks.
  Tensor bias0{};
  Tensor bias1{};
  /// Optional (*): float32 in the shape of DispatchResult::topk_weights; each choice's value returns from
  /// its rank to [T, K] (0 for a choice that has none); values at other ranks' choices are not looked at. For backward passes.
  Tensor topk_weights{};

  Tensor out{};      ///< optional [T, H] of x's dtype, elements of a row contiguous, rows apart: written and returned
  Tensor wait_ns{};  ///< as in DispatchArgs, for each rank whose rows come back
  int num_sms = 0;   ///< as in DispatchArgs
  void* stream = nullptr;  ///< as in DispatchArgs
  std::optional<std::chrono::nanoseconds> timeout{};
};

struct CombineResult {
  Tensor out;                         ///< [T, H] in the dtype of x; a token sent nowhere gets the bias, or 0
  Tensor topk_weights;                ///< [T, K] float32, if topk_weights was given
  std::vector<int> late;              ///< as DispatchResult::late
  std::shared_ptr<const void> owner;  ///< owns `out` (unless it was given) and topk_weights
};

class GroupState;
struct CombineCall;

/// As PendingDispatch.
class PendingCombine {
 public:
  PendingCombine() = default;
  PendingCombine(std::shared_ptr<GroupState> group, std::shared_ptr<CombineCall> call);
  PendingCombine(PendingCombine&&) noexcept = default;
  PendingCombine& operator=(PendingCombine&& other) noexcept;
  ~PendingCombine();

  bool valid() const noexcept;
  CombineResult receive();

 private:
  std::shared_ptr<GroupState> group_;
  std::shared_ptr<CombineCall> call_;
};

}  // namespace ferry
