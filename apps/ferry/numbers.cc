// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rounding, decoding and coding of the demo's numbers; see numbers.h.
#include "numbers.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace ferry::app {
namespace {

/// Nearest value with `fraction_bits` behind the leading one and no exponent below `min_exponent`; ties to even. Exact
/// in double, since the grid is a power of two and the quotient has few bits.
float round_to_grid(float value, int fraction_bits, int min_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double step = std::ldexp(1.0, exponent - fraction_bits);
  return static_cast<float>(std::nearbyint(static_cast<double>(value) / step) * step);
}

float round_bf16(float value) {
  if (!std::isfinite(value)) return value;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return std::bit_cast<float>(rounded & 0xffff0000u);
}

float round_fp16(float value) {
  const float rounded = round_to_grid(value, 10, -14);
  return std::fabs(rounded) > 65504.0f ? std::copysign(std::numeric_limits<float>::infinity(), value) : rounded;
}

float round_e4m3(float value) {
  return std::clamp(round_to_grid(value, 3, -6), -448.0f, 448.0f);
}

std::uint16_t fp16_bits(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) return sign | static_cast<std::uint16_t>(std::ldexp(magnitude, 24));
  const int exponent = std::ilogb(magnitude);
  const auto fraction = static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024;
  return sign | static_cast<std::uint16_t>(((exponent + 15) << 10) | fraction);
}

float fp16_value(std::uint16_t bits) {
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  if (exponent == 31) return fraction != 0 ? std::nanf("") : sign * std::numeric_limits<float>::infinity();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

float e4m3_value(unsigned bits) {
  const float sign = (bits & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = static_cast<int>(bits >> 3) & 15;
  const int fraction = static_cast<int>(bits & 7);
  if (exponent == 15 && fraction == 7) return std::nanf("");
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -9);
  return sign * std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
}

std::array<float, 256> e4m3_table() {
  std::array<float, 256> table{};
  for (unsigned i = 0; i < table.size(); ++i) table[i] = e4m3_value(i);
  return table;
}

float ue8m0_value(unsigned byte) {
  return byte == 255 ? std::nanf("") : static_cast<float>(std::ldexp(1.0, static_cast<int>(byte) - 127));
}

template <class Element>
Element element_at(const std::byte* in, std::int64_t index) {
  Element element;
  std::memcpy(&element, in + index * static_cast<std::int64_t>(sizeof(Element)), sizeof(Element));
  return element;
}

}  // namespace

float round_to(DType dtype, float value) {
  switch (dtype) {
    case DType::kBf16:
      return round_bf16(value);
    case DType::kFp16:
      return round_fp16(value);
    default:
      return value;
  }
}

void encode(DType dtype, const float* values, std::int64_t count, std::byte* out) {
  if (dtype == DType::kFp32) {
    std::memcpy(out, values, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = dtype == DType::kFp16 ? fp16_bits(values[i])
                                            : static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(values[i]) >> 16);
    std::memcpy(out + i * 2, &bits, 2);
  }
}

void decode(DType dtype, const std::byte* in, std::int64_t count, float* values) {
  static const std::array<float, 256> e4m3 = e4m3_table();
  for (std::int64_t i = 0; i < count; ++i) {
    switch (dtype) {
      case DType::kBf16:
        values[i] = std::bit_cast<float>(static_cast<std::uint32_t>(element_at<std::uint16_t>(in, i)) << 16);
        break;
      case DType::kFp16:
        values[i] = fp16_value(element_at<std::uint16_t>(in, i));
        break;
      case DType::kFp32:
        values[i] = element_at<float>(in, i);
        break;
      case DType::kFp8E4m3:
        values[i] = e4m3[static_cast<unsigned>(in[i])];
        break;
      case DType::kUe8m0:
        values[i] = ue8m0_value(static_cast<unsigned>(in[i]));
        break;
      default:
        values[i] = std::nanf("");
        break;
    }
  }
}

void through_codec(Codec codec, int scale_block, const float* row, std::int64_t width, float* out) {
  if (codec == Codec::kNone) {
    std::copy(row, row + width, out);
    return;
  }
  for (std::int64_t begin = 0; begin < width; begin += scale_block) {
    const std::int64_t end = std::min<std::int64_t>(begin + scale_block, width);
    float largest = 1e-4f;
    for (std::int64_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(row[i]));
    if (codec == Codec::kFp8F32) {
      const float scale = largest * (1.0f / 448.0f);
      const float inverse = 448.0f / largest;
      for (std::int64_t i = begin; i < end; ++i) out[i] = round_e4m3(row[i] * inverse) * scale;
    } else {
      const float ratio = largest * (1.0f / 448.0f);
      int exponent = 0;
      // frexp gives ratio = m * 2^exponent with m in [1/2, 1): the next power of two, or ratio itself if it is one.
      if (std::frexp(ratio, &exponent) == 0.5f) --exponent;
      const float scale = std::ldexp(1.0f, exponent);
      for (std::int64_t i = begin; i < end; ++i) out[i] = round_e4m3(row[i] / scale) * scale;
    }
  }
}

std::uint64_t mix(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

float uniform(std::uint64_t seed, std::uint64_t index) {
  const auto high = static_cast<std::int32_t>(mix(seed, index) >> 40);  // 24 bits
  return static_cast<float>(high - (1 << 23)) * 0x1p-23f;
}

std::uint64_t digest(const std::vector<float>& values, std::uint64_t start) {
  std::uint64_t hash = start;
  for (const float value : values) {
    hash ^= std::bit_cast<std::uint32_t>(value);
    hash *= 0x100000001b3u;
  }
  return hash;
}

}  // namespace ferry::app
