// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Element conversions of the reference: written through double and frexp, so that they share nothing with the library's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ferry/types.h"

namespace ferry::test {

/// The value of one bf16, fp16, fp32, fp8 e4m3 or UE8M0 element.
float load(DType dtype, const std::byte* at);
/// Rounds to nearest even and writes one bf16, fp16, fp32 or fp8 e4m3 element (which saturates at 448).
void store(DType dtype, float value, std::byte* at);

/// True if the two elements have the same bits, or both are NaN in a floating dtype.
bool same_element(DType dtype, const std::byte* a, const std::byte* b);

}  // namespace ferry::test
