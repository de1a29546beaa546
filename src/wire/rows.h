// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of combine on rows, on the host: sums in float32, one rounding at the end. Rows are contiguous bf16, fp16 or
// fp32 (any other dtype throws Error(internal); callers have checked); `n` counts elements. Row and accumulator must not overlap.
#pragma once

#include <cstdint>
#include <span>

#include "ferry/types.h"

namespace ferry::wire {

/// acc[i] += row[i]
void accumulate(DType dtype, float* acc, const void* row, std::int64_t n);

/// acc[i] = fma(weight, row[i], acc[i])
void accumulate_weighted(DType dtype, float* acc, const void* row, float weight, std::int64_t n);

/// memcpy for rows: with vectors where both ends are aligned, which is faster than the `rep movsb` that memcpy uses for
/// such lengths. Measured: docs/design/host-latency.md.
void copy_row(void* to, const void* from, std::int64_t bytes);

/// out[i] = rows[0][i] + rows[1][i] + ... of bf16, from +0 in the order given, rounded once: the same bits as accumulate()
/// and round_row() give, faster. `out` may be one of the rows.
void sum_bf16_rows(void* out, std::span<const void* const> rows, std::int64_t n);

/// out[i] = acc[i], rounded once to nearest even.
void round_row(DType dtype, void* out, const float* acc, std::int64_t n);

/// Where the last stage of a reduction starts: acc = bias0 + bias1 in float32; a null bias is left out; without any, +0.
void set_bias(DType dtype0, const void* bias0, DType dtype1, const void* bias1, float* acc, std::int64_t n);

}  // namespace ferry::wire
