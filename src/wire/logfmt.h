// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The codec logfmt10: bf16 as a sign and 9 bits on a logarithmic scale of its own for each group of channels. Exact by
// definition, so that host and device give the same bits: integers, and float32 operations rounded one by one as written.
//
//   L(x)     log2 of a magnitude in fixed point: (127 + log2 x) * 2^23, which is the bits of x as a float32 and a small
//            correction, a polynomial in its mantissa                  |L(x) / 2^23 - 127 - log2 x| <= 2^-21
//   E(l)     its inverse, made in the same way                         |log2 E(l) - (l / 2^23 - 127)| <= 2^-21
//   a group  top = L(largest), bottom = max(L(least that is not 0), top - 32 * 2^23), span = top - bottom, step = span / 510
//   code     0 is zero; q = 1 + round((L(x) - bottom) / step), at least 0, stands for E(bottom + (q - 1) * step)
//
// A group fits if its largest magnitude lies in [2^-94, 1) and is not the least one, or if it is zero throughout; NaN and
// infinities do not fit. Where a group does not fit, the row's whole chunk of groups stays bf16 (wire/return_codec.h).
//
// How far off: let s be the exact step, (log2 largest - log2 least) / 510 and at most 32 / 510. t = (L(x) - bottom) * (510 / span)
// is a product of three rounded numbers and rounded itself, so off by less than 510 * 2^-22; t + 1.5 rounds once more, by 2^-16 at most.
// So |q - 1 - 510 (L(x) - bottom) / span| <= 1/2 + 2^-12. Restoring rounds the offset by at most 2^-22 of the span and to a whole 2^-23. With
// the errors of L and E, for every x from 2^-32 of the largest on:
//
//   |log2(restored / x)| <= s / 2 + s * 2^-11 + 2^-19,   at most 2.21 % of x
//
// and what is smaller is restored as 0 or as 2^-32 of the largest (within 2^-19 of it): off by no more than that.
#pragma once

#include <cstdint>

#include "wire/float.h"

namespace ferry::wire {

inline constexpr int kLogfmtBits = 10;
inline constexpr std::int32_t kLogfmtSteps = 510;
inline constexpr std::int32_t kLogfmtOctaves = 32;
inline constexpr std::uint32_t kLogfmtSign = 512;  ///< of a code

/// `coefficients` from the constant on, for a correction that is 0 at both ends of an octave; f: 0 .. 1. In units of 2^-23.
FERRY_HD_INLINE constexpr std::int32_t octave_correction(float f, float curve) {
  return static_cast<std::int32_t>((f * (1.0f - f)) * curve * 0x1p23f + 0.5f);
}

/// L of a bf16 magnitude. Denormals come out below every normal number, zero lowest.
FERRY_HD_INLINE constexpr std::int32_t logfmt_log2(std::uint32_t magnitude) {
  const std::uint32_t bits = magnitude << 16;
  const float f = bits_float(0x3f800000u | (bits & 0x7fffffu)) - 1.0f;
  float curve = -0.015199201f;  // of log2(1 + f) - f, over f (1 - f)
  curve = curve * f + 0.06329968f;
  curve = curve * f - 0.12967801f;
  curve = curve * f + 0.1954248f;
  curve = curve * f - 0.27788547f;
  curve = curve * f + 0.4426663f;
  return static_cast<std::int32_t>(bits) + octave_correction(f, curve);
}

/// E, of a logarithm whose octave is that of a normal number.
FERRY_HD_INLINE constexpr float logfmt_exp2(std::int32_t log2) {
  const std::uint32_t bits = static_cast<std::uint32_t>(log2);
  const float f = bits_float(0x3f800000u | (bits & 0x7fffffu)) - 1.0f;
  float curve = 0.0018968501f;  // of 1 + f - 2^f, over f (1 - f)
  curve = curve * f + 0.0108446f;
  curve = curve * f + 0.0666999f;
  curve = curve * f + 0.306847f;
  return bits_float(bits - static_cast<std::uint32_t>(octave_correction(f, curve)));
}

/// What a group's channels have in common and what travels with them: bf16 magnitudes.
struct LogfmtRange {
  std::uint32_t largest = 0;
  std::uint32_t least = 0;  ///< of those that are not 0; 0: all are

  FERRY_HD_INLINE constexpr bool fits() const {
    constexpr std::uint32_t kOne = 0x3f80, kSmallest = (127 - 94) << 7;
    return largest == 0 || (largest < kOne && largest >= kSmallest && least < largest);
  }
  FERRY_HD_INLINE constexpr std::uint32_t word() const { return largest | least << 16; }
  FERRY_HD_INLINE static constexpr LogfmtRange of(std::uint32_t word) { return {word & 0xffffu, word >> 16}; }
};

/// The scale of a group that fits.
struct LogfmtScale {
  std::int32_t bottom = 0;
  float step = 0.0f, steps_per_unit = 0.0f;

  FERRY_HD_INLINE explicit constexpr LogfmtScale(const LogfmtRange& range) {
    if (range.largest == 0) {  // every channel is below the bottom, which is code 0
      bottom = 0x40000000;
      steps_per_unit = 1.0f;
      return;
    }
    const std::int32_t top = logfmt_log2(range.largest), least = logfmt_log2(range.least);
    const std::int32_t lowest = top - kLogfmtOctaves * 0x800000;
    bottom = least > lowest ? least : lowest;
    const float span = static_cast<float>(top - bottom);
    step = span / static_cast<float>(kLogfmtSteps);
    steps_per_unit = static_cast<float>(kLogfmtSteps) / span;
  }

  FERRY_HD_INLINE constexpr std::uint32_t encode(std::uint32_t bf16) const {
    const auto above = static_cast<float>(logfmt_log2(bf16 & 0x7fffu) - bottom);
    const auto code = static_cast<std::int32_t>(above * steps_per_unit + 1.5f);  // towards 0, so that -0.5 is 0, too
    return (bf16 >> 15) * kLogfmtSign | static_cast<std::uint32_t>(code < 0 ? 0 : code);
  }
  FERRY_HD_INLINE constexpr float decode(std::uint32_t code) const {
    const std::uint32_t sign = (code & kLogfmtSign) << 22, place = code & (kLogfmtSign - 1);
    const auto offset =
        static_cast<std::int32_t>(static_cast<float>(static_cast<std::int32_t>(place) - 1) * step + 0.5f);
    const std::uint32_t magnitude = float_bits(logfmt_exp2(bottom + offset));
    return bits_float(sign | select(place == 0, 0u, magnitude));
  }
};

}  // namespace ferry::wire
