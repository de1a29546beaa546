// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The codec bf16 -> fp8 e4m3 with a scale per block of channels. Exact by definition, so that host and device give the same
// bits:
//
//   amax = max(1e-4f, max |x|) over the block, NaN ignored
//   float32 scales:   scale = amax * (1.0f / 448.0f)          data = e4m3(x * (448.0f / amax))
//   power of two:     scale = 2^e, the smallest with amax <= 448 * 2^e      data = e4m3(x / scale)
//
// every operation rounded as IEEE float32, e4m3() rounding to nearest even and saturating at 448. 448 is 1.75 * 2^8, so with
// amax = m * 2^a, 1 <= m < 2, e is a - 8 if m <= 1.75, else a - 7: no logarithm, no rounding. To restore a value, multiply data
// by scale. NaN becomes NaN. A block with an infinity has no finite scale: it gets infinity or the UE8M0 NaN (255), data 0 for
// finite values and NaN for infinities, so restoring it gives NaN throughout.
#pragma once

#include <cstdint>

#include "wire/float.h"

namespace ferry::wire {

/// What one block is multiplied with, and what travels as its scale.
struct Fp8ScaleF32 {
  float multiplier;
  float scale;
};
struct Fp8ScaleUe8m0 {
  float multiplier;
  std::uint8_t scale;
};

/// Magnitude bits of a bf16 for the block's maximum: NaN counts as 0. Maxima of these bits are maxima of the values.
FERRY_HD_INLINE constexpr std::uint16_t bf16_magnitude_or_zero(std::uint16_t code) {
  const std::uint32_t magnitude = code & 0x7fffu;
  return static_cast<std::uint16_t>(select(magnitude > 0x7f80u, 0u, magnitude));
}

/// Bits of amax as float32 from the largest bf16 magnitude of the block.
FERRY_HD_INLINE constexpr std::uint32_t fp8_amax_bits(std::uint16_t largest_magnitude) {
  const std::uint32_t bits = static_cast<std::uint32_t>(largest_magnitude) << 16;
  const std::uint32_t least = float_bits(1e-4f);
  return bits < least ? least : bits;
}

FERRY_HD_INLINE constexpr Fp8ScaleF32 fp8_scale_f32(std::uint16_t largest_magnitude) {
  const float amax = bits_float(fp8_amax_bits(largest_magnitude));
  return {448.0f / amax, amax * (1.0f / 448.0f)};
}

FERRY_HD_INLINE constexpr Fp8ScaleUe8m0 fp8_scale_ue8m0(std::uint16_t largest_magnitude) {
  const std::uint32_t bits = fp8_amax_bits(largest_magnitude);
  if (bits >= 0x7f800000u) return {0.0f, 255};
  const std::uint32_t code = (bits >> 23) - 8u + ((bits & 0x7fffffu) > 0x600000u ? 1u : 0u);  // 105 .. 247
  return {bits_float((254u - code) << 23), static_cast<std::uint8_t>(code)};                  // 1 / scale is exact
}

FERRY_HD_INLINE constexpr std::uint8_t fp8_encode(std::uint16_t bf16, float multiplier) {
  return float_to_e4m3(bf16_to_float(bf16) * multiplier);
}

/// Scales of one row: a short last block has its own.
FERRY_HD_INLINE constexpr std::int64_t num_scales(std::int64_t hidden, int scale_block) {
  return (hidden + scale_block - 1) / scale_block;
}

/// One row on the host: `hidden` bf16 values, contiguous, into `hidden` e4m3 bytes and num_scales() scales. Any alignment of
/// two bytes (x), one (data) and of the scale's type; nothing beyond these elements is read or written.
void quantise_row_f32(const std::uint16_t* x, std::int64_t hidden, int scale_block, std::uint8_t* data, float* scales);
void quantise_row_ue8m0(const std::uint16_t* x, std::int64_t hidden, int scale_block, std::uint8_t* data,
                        std::uint8_t* scales);

/// out[i] = data[i] * scale of its block, in float32.
void dequantise_row_f32(const std::uint8_t* data, const float* scales, std::int64_t hidden, int scale_block,
                        float* out);
void dequantise_row_ue8m0(const std::uint8_t* data, const std::uint8_t* scales, std::int64_t hidden, int scale_block,
                          float* out);

}  // namespace ferry::wire
