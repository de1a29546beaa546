// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Element conversions with fixed bits: round to nearest even, denormals kept, NaN stays NaN. The same code on host and device.
// Everything that rounds is integer arithmetic without branches, so loops over these functions vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "core/host_device.h"

namespace ferry::wire {

#if defined(__CUDACC__)
FERRY_HD_INLINE constexpr std::uint32_t float_bits(float value) {
  return std::bit_cast<std::uint32_t>(value);
}
FERRY_HD_INLINE constexpr float bits_float(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}
#else
FERRY_HD_INLINE constexpr std::uint32_t float_bits(float value) {
  return __builtin_bit_cast(std::uint32_t, value);
}
FERRY_HD_INLINE constexpr float bits_float(std::uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}
#endif

/// `condition ? yes : no` without a branch; GCC at -O2 does not vectorise loops with the operator.
FERRY_HD_INLINE constexpr std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no) {
  return no ^ ((yes ^ no) & (0u - static_cast<std::uint32_t>(condition)));
}

/// Drops the lowest `shift` (1 .. 31) bits, rounding to nearest even.
FERRY_HD_INLINE constexpr std::uint32_t round_shift(std::uint32_t value, std::uint32_t shift) {
  return (value + ((1u << (shift - 1)) - 1u) + ((value >> shift) & 1u)) >> shift;
}

/// Rounds the magnitude bits of a finite float to a format with `mantissa_bits` and smallest normal exponent field (as a float
/// has it) `first_normal`; overflow runs on into the next exponents.
FERRY_HD_INLINE constexpr std::uint32_t round_magnitude(std::uint32_t magnitude, std::uint32_t mantissa_bits,
                                                        std::uint32_t first_normal) {
  const std::uint32_t exponent = magnitude >> 23;
  const std::uint32_t mantissa =
      (magnitude & 0x7fffffu) | 0x800000u;  // wrong for float denormals, which round to 0 all the same
  const std::uint32_t up_to = select(exponent < first_normal, first_normal, exponent);
  const std::uint32_t below = up_to - exponent;
  const std::uint32_t shift = 23u - mantissa_bits + below;
  // 25 or more drop the whole mantissa and its half: always 0.
  const std::uint32_t rounded = round_shift(mantissa, select(shift < 26u, shift, 26u));
  return ((up_to - first_normal) << mantissa_bits) + rounded;
}

FERRY_HD_INLINE constexpr float bf16_to_float(std::uint16_t code) {
  return bits_float(static_cast<std::uint32_t>(code) << 16);
}

FERRY_HD_INLINE constexpr std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t rounded = round_shift(bits, 16);
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;  // rounding could carry a NaN into infinity
  return static_cast<std::uint16_t>(select((bits & 0x7fffffffu) > 0x7f800000u, quiet_nan, rounded));
}

FERRY_HD_INLINE constexpr float fp16_to_float(std::uint16_t code) {
  const std::uint32_t sign = (code & 0x8000u) << 16;
  const std::uint32_t magnitude = code & 0x7fffu;
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  // At most 10 bits times a power of two: exact.
  const std::uint32_t denormal =
      float_bits(static_cast<float>(static_cast<std::int32_t>(magnitude & 0x3ffu)) * 0x1p-24f);
  const std::uint32_t finite = select(magnitude < 0x400u, denormal, normal);
  return bits_float(sign | select(magnitude >= 0x7c00u, special, finite));
}

FERRY_HD_INLINE constexpr std::uint16_t float_to_fp16(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kOverflow =
      0x47800000u;  // 65536: from here on infinite; 65520 and up arrive there by rounding
  const std::uint32_t rounded = round_magnitude(select(magnitude < kOverflow, magnitude, kOverflow), 10, 113);
  const std::uint32_t quiet_nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  return static_cast<std::uint16_t>(sign | select(magnitude > 0x7f800000u, quiet_nan, rounded));
}

/// e4m3fn: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity, NaN is 0x7f and 0xff, largest 448.
FERRY_HD_INLINE constexpr float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t magnitude = code & 0x7fu;
  const std::uint32_t normal = (magnitude << 20) + (120u << 23);
  const std::uint32_t denormal = float_bits(static_cast<float>(static_cast<std::int32_t>(magnitude & 7u)) * 0x1p-9f);
  const std::uint32_t finite = select(magnitude < 8u, denormal, normal);
  return bits_float(sign | select(magnitude == 0x7fu, 0x7fc00000u, finite));
}

/// Saturates: everything beyond 448, infinity too, becomes 448 with the sign kept.
FERRY_HD_INLINE constexpr std::uint8_t float_to_e4m3(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kLargest = 0x43e00000u;  // 448
  const std::uint32_t rounded = round_magnitude(select(magnitude < kLargest, magnitude, kLargest), 3, 121);
  return static_cast<std::uint8_t>(sign | select(magnitude > 0x7f800000u, 0x7fu, rounded));
}

/// 2^(code - 127); 255 is NaN. Code 0 is 2^-127, a denormal float.
FERRY_HD_INLINE constexpr float ue8m0_to_float(std::uint8_t code) {
  const std::uint32_t special = code == 0 ? 0x00400000u : 0x7fc00000u;
  return bits_float(code == 0 || code == 255 ? special : static_cast<std::uint32_t>(code) << 23);
}

/// The exponent of a float that is a power of two, 2^-127 .. 2^127. What is none gives the next power of two above it; zero,
/// negative values and what lies below 2^-127 give code 0; infinity, NaN and what lies above 2^127 give 255 (NaN).
FERRY_HD_INLINE constexpr std::uint8_t float_to_ue8m0(float value) {
  const std::uint32_t bits = float_bits(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const bool below = (bits >> 31) != 0 || bits <= 0x00400000u;  // at most 2^-127
  const std::uint32_t code = (bits + 0x7fffffu) >> 23;
  return static_cast<std::uint8_t>(is_nan ? 255u : (below ? 0u : code));
}

}  // namespace ferry::wire
