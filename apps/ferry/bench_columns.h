// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Columns of the table of times that the ranks of a benchmark share; written by bench_run.cc, read by bench_report.cc.
#pragma once

#include "bench_case.h"

namespace ferry::bench {

inline constexpr int kDispatchColumn = 0;
inline constexpr int kCombineColumn = 1;
inline constexpr int kDispatchCopyColumn = 2;
inline constexpr int kCombineCopyColumn = 3;
inline constexpr int kWrongColumn = 4;  ///< iteration 0: 0 = checked and right
inline constexpr int kFirstStepColumn = 5;
inline constexpr int kNumColumns = kFirstStepColumn + 7;

/// Mean over the input sets.
Necessary mean_necessary_bytes(const BenchCase& bench_case);

}  // namespace ferry::bench
