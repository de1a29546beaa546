// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What every rank brings to a call of the soak, what must arrive and what must come back: all of it follows from the call's seed
// by a hash, so that kernels make the inputs and compare every element of the results.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ferry/ferry.h"

namespace ferry::test {

inline constexpr int kMaxSoakRanks = 8;

/// One call of the soak as `rank` sees it; all but `rank` is the same on all ranks.
struct SoakCall {
  std::uint64_t seed = 0;
  std::int32_t rank = 0, num_ranks = 1, num_experts = 1, top_k = 1, width = 8;
  std::int32_t tokens[kMaxSoakRanks] = {};
  Layout layout = Layout::kRankMajor;
  std::int32_t alignment = 1;
  bool weighted = false;  ///< combine multiplies with the weights

  std::int64_t own_tokens() const { return tokens[rank]; }
};

/// Device memory of a dispatch's inputs: bf16 [T, width], int32 [T, K], float32 [T, K].
struct SoakInputs {
  void* payload = nullptr;
  std::int32_t* ids = nullptr;
  float* weights = nullptr;
};

enum SoakWhat : std::uint32_t { kNumRows, kSourceOffset, kExpertCount, kExpertOffset, kPayload, kId, kWeight, kSum };

/// The first difference and how many there were. In device memory, zeroed by the caller.
struct SoakReport {
  std::uint32_t errors = 0;
  std::uint32_t what = 0;
  std::int64_t row = 0, column = 0;
  double seen = 0, wanted = 0;
  std::uint64_t seed = 0;
};

/// Loads the kernels for the current device: one that is loaded while another runs may wait for it.
void load_checks();
/// All of these start one kernel on the stream.
void make_inputs(const SoakCall& call, const SoakInputs& inputs, cudaStream_t stream);
/// Compares all rows, ids, weights and counts of a result.
void check_arrivals(const SoakCall& call, const DispatchResult& result, SoakReport* report, cudaStream_t stream);
/// Writes what the experts return into `x`, which has the shape of the result's rows.
void make_returned(const SoakCall& call, const DispatchResult& result, const Tensor& x, cudaStream_t stream);
/// Compares the sums. All terms and sums are small whole numbers, so that their order does not matter.
void check_sums(const SoakCall& call, const Tensor& out, SoakReport* report, cudaStream_t stream);

}  // namespace ferry::test
