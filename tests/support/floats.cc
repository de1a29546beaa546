// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "support/floats.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ferry::test {
namespace {

/// A binary format with a sign bit, by its numbers.
struct Format {
  int bytes;
  int mantissa_bits;
  int least_exponent;  // of normal numbers
  double largest;
  bool has_infinity;

  unsigned mantissa_mask() const { return (1u << mantissa_bits) - 1; }
  unsigned sign() const { return 1u << (8 * bytes - 1); }
  unsigned nan() const { return has_infinity ? sign() - (1u << (mantissa_bits - 1)) : sign() - 1; }
  unsigned infinity() const { return sign() - (1u << mantissa_bits); }
};

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return {2, 7, -126, 0x1.fep127, true};
    case DType::kFp16:
      return {2, 10, -14, 65504.0, true};
    default:
      return {1, 3, -6, 448.0, false};
  }
}

unsigned encode(const Format& format, float value) {
  const unsigned sign = std::signbit(value) ? format.sign() : 0;
  if (std::isnan(value)) return sign | format.nan();
  const double magnitude = std::fabs(static_cast<double>(value));
  if (std::isinf(value)) return format.has_infinity ? sign | format.infinity() : sign | (format.nan() - 1);
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), format.least_exponent);
  const double steps =
      std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));  // of the last place; ties to even
  const double rounded = std::ldexp(steps, exponent - format.mantissa_bits);
  if (rounded > format.largest) return format.has_infinity ? sign | format.infinity() : sign | (format.nan() - 1);
  // Steps count on through the codes: one full binade is 2^mantissa_bits codes.
  return sign | (static_cast<unsigned>(exponent - format.least_exponent) * (1u << format.mantissa_bits) +
                 static_cast<unsigned>(steps));
}

float decode(const Format& format, unsigned code) {
  const double sign = code & format.sign() ? -1.0 : 1.0;
  const unsigned magnitude = code & (format.sign() - 1);
  if (format.has_infinity ? magnitude > format.infinity() : magnitude == format.nan()) return std::nanf("");
  if (format.has_infinity && magnitude == format.infinity()) return static_cast<float>(sign) * HUGE_VALF;
  const int exponent = static_cast<int>(magnitude >> format.mantissa_bits);
  const int mantissa =
      static_cast<int>(magnitude & format.mantissa_mask()) + (exponent > 0 ? 1 << format.mantissa_bits : 0);
  return static_cast<float>(
      sign * std::ldexp(mantissa, std::max(exponent, 1) - 1 + format.least_exponent - format.mantissa_bits));
}

}  // namespace

float load(DType dtype, const std::byte* at) {
  if (dtype == DType::kFp32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  unsigned code = static_cast<unsigned>(at[0]);
  if (dtype == DType::kUe8m0)
    return code == 255 ? std::nanf("") : static_cast<float>(std::ldexp(1.0, static_cast<int>(code) - 127));
  const Format format = format_of(dtype);
  if (format.bytes == 2) code |= static_cast<unsigned>(at[1]) << 8;
  return decode(format, code);
}

void store(DType dtype, float value, std::byte* at) {
  if (dtype == DType::kFp32) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  const Format format = format_of(dtype);
  const unsigned code = encode(format, value);
  at[0] = static_cast<std::byte>(code & 0xff);
  if (format.bytes == 2) at[1] = static_cast<std::byte>(code >> 8);
}

bool same_element(DType dtype, const std::byte* a, const std::byte* b) {
  if (std::memcmp(a, b, dtype_bytes(dtype)) == 0) return true;
  switch (dtype) {
    case DType::kBf16:
    case DType::kFp16:
    case DType::kFp32:
    case DType::kFp8E4m3:
      return std::isnan(load(dtype, a)) && std::isnan(load(dtype, b));
    default:
      return false;
  }
}

}  // namespace ferry::test
