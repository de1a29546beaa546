// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The number formats of the demo, written down once more and independently of the library, so that the demo's reference
// also checks the library's conversions: values are rounded by arithmetic on their grid, not by shuffling bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ferry/types.h"

namespace ferry::app {

/// The value nearest to `value` in a payload dtype (bf16, fp16, fp32), ties to even.
float round_to(DType dtype, float value);
/// Writes `values` as elements of `dtype`; the values must already be rounded to it.
void encode(DType dtype, const float* values, std::int64_t count, std::byte* out);
/// Reads elements of any float dtype of Ferry (fp8 e4m3 and UE8M0 included).
void decode(DType dtype, const std::byte* in, std::int64_t count, float* values);

/// What a row looks like after it travelled through a codec: blocks of `scale_block` values share a scale.
void through_codec(Codec codec, int scale_block, const float* row, std::int64_t width, float* out);

/// A well-mixed 64-bit value of (seed, index).
std::uint64_t mix(std::uint64_t seed, std::uint64_t index);
/// Uniform in [-1, 1), a multiple of 2^-23.
float uniform(std::uint64_t seed, std::uint64_t index);

/// FNV-1a over the bits of floats: equal digests of two long lists mean equal bits.
std::uint64_t digest(const std::vector<float>& values, std::uint64_t start = 0xcbf29ce484222325u);

}  // namespace ferry::app
