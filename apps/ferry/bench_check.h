// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Checks what a benchmark timed against plain loops of its own; shares no code with the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bench_case.h"

namespace ferry::bench {

/// The result of one dispatch on one rank, as the backend handed it out.
struct Received {
  struct Block {
    const std::byte* data = nullptr;
    std::size_t stride_bytes = 0;  ///< from row to row; rows of all experts lie one behind the other in expert_padded
  };
  std::vector<Block> blocks;
  std::int64_t rows = 0;
  const std::int32_t* ids = nullptr;  ///< rank_major: [rows, K] local ids
  const float* weights = nullptr;     ///< [rows, K], or one per row in the expert layouts
};

/// Empty if every row, id and weight is what it should be, else the first difference.
std::string check_dispatch(const BenchCase& bench_case, const RowPools& pools, const Routing& routing, int set,
                           int rank, const Received& received);

/// The same for the sums [T, H] that came back.
std::string check_combine(const BenchCase& bench_case, const RowPools& pools, const Routing& routing, int set, int rank,
                          const std::byte* out);

/// True where combine multiplies with the weights of dispatch: all expert layouts.
bool combine_is_weighted(const BenchCase& bench_case);

}  // namespace ferry::bench
