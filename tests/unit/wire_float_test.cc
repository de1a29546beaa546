// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Element conversions against a slow reference: a table of every representable value in double, searched for the nearest.
#include "wire/float.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace ferry::wire {
namespace {

/// A small float format by its numbers; shares nothing with the code under test.
struct Format {
  int exponent_bits, mantissa_bits, bias;
  bool has_infinity;  // else the top exponent holds values and only the last code is NaN

  int magnitudes() const { return 1 << (exponent_bits + mantissa_bits); }
  double value(int magnitude) const {
    const int exponent = magnitude >> mantissa_bits;
    const int mantissa = magnitude & ((1 << mantissa_bits) - 1);
    const int top = (1 << exponent_bits) - 1;
    if (has_infinity && exponent == top) return mantissa == 0 ? HUGE_VAL : std::nan("");
    if (!has_infinity && magnitude == magnitudes() - 1) return std::nan("");
    if (exponent == 0) return std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
};

constexpr Format kBf16{8, 7, 127, true};
constexpr Format kFp16{5, 10, 15, true};
constexpr Format kE4m3{4, 3, 7, false};

class Nearest {
 public:
  explicit Nearest(Format format) : format_(format) {
    for (int m = 0; m < format.magnitudes(); ++m) {
      const double value = format.value(m);
      if (std::isfinite(value)) values_.push_back(value);
    }
  }

  /// Code without sign of the nearest value; -1 for NaN.
  int code(float x) const {
    if (std::isnan(x)) return -1;
    const double a = std::fabs(static_cast<double>(x));
    const int last = static_cast<int>(values_.size()) - 1;
    if (a >= values_.back()) {
      if (!format_.has_infinity) return last;
      const double step = values_[static_cast<std::size_t>(last)] - values_[static_cast<std::size_t>(last) - 1];
      return a - values_.back() < step / 2 ? last : last + 1;  // a tie goes to infinity, whose code is even
    }
    const auto above = std::upper_bound(values_.begin(), values_.end(), a);
    const int low = static_cast<int>(above - values_.begin()) - 1;
    const double down = a - values_[static_cast<std::size_t>(low)];
    const double up = *above - a;
    if (down != up) return down < up ? low : low + 1;
    return low % 2 == 0 ? low : low + 1;
  }

 private:
  Format format_;
  std::vector<double> values_;
};

bool same(double expected, float seen) {
  if (std::isnan(expected)) return std::isnan(seen);
  return expected == static_cast<double>(seen) && std::signbit(expected) == std::signbit(seen);
}

std::vector<float> interesting_floats() {
  std::vector<float> list;
  // Around every value of every format, and around the middle of neighbours.
  for (const Format format : {kBf16, kFp16, kE4m3}) {
    for (int m = 0; m + 1 < format.magnitudes(); ++m) {
      const double value = format.value(m), next = format.value(m + 1);
      for (const double centre : {value, (value + next) / 2}) {
        const float f = static_cast<float>(centre);
        for (const float g : {f, std::nextafter(f, 0.0f), std::nextafter(f, HUGE_VALF)})
          list.insert(list.end(), {g, -g});
      }
    }
  }
  for (const float f :
       {0.0f, 464.0f, 448.0f, 65519.996f, 65520.0f, 65536.0f, HUGE_VALF, std::numeric_limits<float>::max(),
        std::numeric_limits<float>::min(), std::numeric_limits<float>::denorm_min(), std::nanf("")}) {
    list.insert(list.end(), {f, -f});
  }
  for (const std::uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u, 0x7f80ffffu})
    list.push_back(bits_float(bits));
  std::mt19937 random(7);
  for (int i = 0; i < 1'000'000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    list.push_back(bits_float(bits));
    // And as many in the range of fp16 and e4m3.
    list.push_back(bits_float((bits & 0x80ffffffu) | ((96u + (bits >> 26) % 48u) << 23)));
  }
  return list;
}

template <class Encode>
void compare_encoders(Format format, Encode encode) {
  const Nearest nearest(format);
  const int sign = format.magnitudes();
  int failures = 0;
  for (const float x : interesting_floats()) {
    const int code = encode(x);
    const int expected = nearest.code(x);
    const bool right =
        expected < 0 ? std::isnan(format.value(code & (sign - 1))) : code == expected + (std::signbit(x) ? sign : 0);
    if (!right && ++failures < 10)
      ADD_FAILURE() << std::hexfloat << x << ": seen " << code << ", expected " << expected;
  }
  EXPECT_EQ(failures, 0);
}

TEST(WireFloat, EveryBf16AndFp16CodeDecodesAndComesBack) {
  for (int code = 0; code < 65536; ++code) {
    const double sign = code & 0x8000 ? -1.0 : 1.0;
    const auto c = static_cast<std::uint16_t>(code);
    ASSERT_TRUE(same(sign * kBf16.value(code & 0x7fff), bf16_to_float(c))) << code;
    ASSERT_TRUE(same(sign * kFp16.value(code & 0x7fff), fp16_to_float(c))) << code;
    if (!std::isnan(bf16_to_float(c))) {
      ASSERT_EQ(float_to_bf16(bf16_to_float(c)), c);
    }
    if (!std::isnan(fp16_to_float(c))) {
      ASSERT_EQ(float_to_fp16(fp16_to_float(c)), c);
    }
    ASSERT_EQ(std::isnan(bf16_to_float(c)), std::isnan(bf16_to_float(float_to_bf16(bf16_to_float(c))))) << code;
    ASSERT_EQ(std::isnan(fp16_to_float(c)), std::isnan(fp16_to_float(float_to_fp16(fp16_to_float(c))))) << code;
  }
}

TEST(WireFloat, EveryE4m3CodeDecodesAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    const auto c = static_cast<std::uint8_t>(code);
    const double sign = code & 0x80 ? -1.0 : 1.0;
    ASSERT_TRUE(same(sign * kE4m3.value(code & 0x7f), e4m3_to_float(c))) << code;
    ASSERT_EQ(float_to_e4m3(e4m3_to_float(c)), c);  // NaN too: there is one per sign
  }
}

TEST(WireFloat, Bf16RoundsToNearestEven) {
  compare_encoders(kBf16, [](float x) { return float_to_bf16(x); });
}
TEST(WireFloat, Fp16RoundsToNearestEven) {
  compare_encoders(kFp16, [](float x) { return float_to_fp16(x); });
}
TEST(WireFloat, E4m3RoundsToNearestEvenAndSaturates) {
  compare_encoders(kE4m3, [](float x) { return float_to_e4m3(x); });
}

TEST(WireFloat, E4m3Edges) {
  EXPECT_EQ(float_to_e4m3(HUGE_VALF), 0x7e);
  EXPECT_EQ(float_to_e4m3(-HUGE_VALF), 0xfe);
  EXPECT_EQ(float_to_e4m3(1e30f), 0x7e);
  EXPECT_EQ(float_to_e4m3(std::nanf("")), 0x7f);
  EXPECT_EQ(float_to_e4m3(bits_float(0xffc00000u)), 0xff);
  EXPECT_EQ(float_to_e4m3(-0.0f), 0x80);
  EXPECT_EQ(float_to_e4m3(0x1p-10f), 0x00);  // half of the smallest: tie to even
  EXPECT_EQ(float_to_e4m3(0x1.8p-9f), 0x02);
}

TEST(WireFloat, Ue8m0) {
  for (int code = 0; code < 255; ++code) {
    const auto c = static_cast<std::uint8_t>(code);
    ASSERT_EQ(ue8m0_to_float(c), std::ldexp(1.0f, code - 127));
    ASSERT_EQ(float_to_ue8m0(ue8m0_to_float(c)), c);
  }
  EXPECT_TRUE(std::isnan(ue8m0_to_float(255)));
  for (const float f : {std::nanf(""), -std::nanf(""), HUGE_VALF, std::numeric_limits<float>::max(), 0x1.000002p127f}) {
    EXPECT_EQ(float_to_ue8m0(f), 255) << f;
  }
  for (const float f : {0.0f, -0.0f, -1.0f, -HUGE_VALF, 0x1p-149f, 0x1p-127f}) EXPECT_EQ(float_to_ue8m0(f), 0) << f;
  EXPECT_EQ(float_to_ue8m0(0x1.8p-127f), 1);
  EXPECT_EQ(float_to_ue8m0(3.0f), 129);  // up to 4
}

}  // namespace
}  // namespace ferry::wire
