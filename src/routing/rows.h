// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Pure arithmetic that fixes destination rows: exclusive scans over (source rank, source token, choice), so order is
// deterministic without a sort.
#pragma once

#include <cstdint>

#include "ferry/types.h"
#include "wire/float.h"

namespace ferry::routing {

FERRY_HD constexpr std::int64_t align_up(std::int64_t value, std::int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

/// Shape of the expert layouts.
struct ExpertShape {
  Layout layout = Layout::kRankMajor;
  std::int64_t alignment = 1;  ///< expert_major
  std::int64_t capacity = 0;   ///< expert_padded: rows per expert
};

/// Rows from one expert's first row to the next expert's.
FERRY_HD inline std::int64_t expert_extent(const ExpertShape& shape, std::int64_t count) {
  return shape.layout == Layout::kExpertPadded ? shape.capacity : align_up(count, shape.alignment);
}

/// Writes the first row of each of `num_experts` local experts and returns the total. `counts[e]` is stepped by `stride`.
FERRY_HD inline std::int64_t expert_starts(const ExpertShape& shape, const std::int32_t* counts, int num_experts,
                                           std::int32_t* starts) {
  std::int64_t row = 0;
  for (int e = 0; e < num_experts; ++e) {
    starts[e] = static_cast<std::int32_t>(row);
    row += expert_extent(shape, counts[e]);
  }
  starts[num_experts] = static_cast<std::int32_t>(row);
  return row;
}

}  // namespace ferry::routing
