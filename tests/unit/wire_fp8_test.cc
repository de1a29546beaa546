// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The fp8 row codec against a reference in double precision: every float32 operation is done exactly in double and rounded
// once (a product of two floats is exact in double; a quotient rounds the same through double), e4m3 is searched in a table.
#include "wire/fp8_quant.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace ferry::wire {
namespace {

using Row = std::vector<std::uint16_t>;

float value_of(std::uint16_t bf16) {
  const std::uint32_t bits = static_cast<std::uint32_t>(bf16) * 65536u;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

Row row_of(const std::vector<float>& values) {
  Row row;
  for (const float value : values) row.push_back(float_to_bf16(value));
  return row;
}

double e4m3_value(int magnitude) {
  return magnitude < 8 ? magnitude / 512.0 : std::ldexp(8 + magnitude % 8, magnitude / 8 - 10);
}

int e4m3_code(double x) {
  const int sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return 0x7f;  // compared without sign
  int best = 0;
  for (int m = 1; m <= 0x7e; ++m) {
    const double here = std::fabs(e4m3_value(m) - std::fabs(x)), before = std::fabs(e4m3_value(best) - std::fabs(x));
    if (here < before || (here == before && m % 2 == 0)) best = m;
  }
  return std::isinf(x) ? sign | 0x7e : sign | best;
}

double block_amax(const std::uint16_t* x, std::int64_t n) {
  double amax = static_cast<double>(1e-4f);
  for (std::int64_t i = 0; i < n; ++i) {
    const double a = std::fabs(static_cast<double>(value_of(x[i])));
    if (a > amax) amax = a;
  }
  return amax;
}

/// The smallest power of two with amax <= 448 * 2^e, by trying.
int power_for(double amax) {
  int e = -60;
  while (std::ldexp(448.0, e) < amax) ++e;
  return e;
}

std::string where(const Row& row, int block, std::size_t i) {
  return "hidden " + std::to_string(row.size()) + " block " + std::to_string(block) + " element " + std::to_string(i);
}

void check(const Row& row, int block) {
  const auto hidden = static_cast<std::int64_t>(row.size());
  const auto scales = static_cast<std::size_t>(num_scales(hidden, block));
  // One more element each, to see that nothing beyond is written.
  std::vector<std::uint8_t> data(row.size() + 1, 0xa5), data2(data), exponents(scales + 1, 0xa5);
  std::vector<float> factors(scales + 1, -7.0f);
  quantise_row_f32(row.data(), hidden, block, data.data(), factors.data());
  quantise_row_ue8m0(row.data(), hidden, block, data2.data(), exponents.data());
  ASSERT_EQ(data.back(), 0xa5);
  ASSERT_EQ(data2.back(), 0xa5);
  ASSERT_EQ(exponents.back(), 0xa5);
  ASSERT_EQ(factors.back(), -7.0f);

  for (std::size_t s = 0; s < scales; ++s) {
    const std::size_t begin = s * static_cast<std::size_t>(block),
                      end = std::min(row.size(), begin + static_cast<std::size_t>(block));
    const double amax = block_amax(row.data() + begin, static_cast<std::int64_t>(end - begin));
    const float scale = static_cast<float>(amax * static_cast<double>(static_cast<float>(1.0 / 448.0)));
    ASSERT_EQ(factors[s], scale) << where(row, block, begin);
    const int power = std::isinf(amax) ? 128 : power_for(amax);
    ASSERT_EQ(exponents[s], power + 127) << where(row, block, begin);
    const float multiplier = static_cast<float>(448.0 / amax);
    for (std::size_t i = begin; i < end; ++i) {
      const float x = value_of(row[i]);
      const float scaled = static_cast<float>(static_cast<double>(x) * static_cast<double>(multiplier));
      const float scaled2 =
          std::isinf(amax) ? x * 0.0f : static_cast<float>(std::ldexp(static_cast<double>(x), -power));
      const int seen = std::isnan(scaled) ? data[i] & 0x7f : data[i],
                seen2 = std::isnan(scaled2) ? data2[i] & 0x7f : data2[i];
      ASSERT_EQ(seen, e4m3_code(scaled)) << where(row, block, i) << " x " << x << " amax " << amax;
      ASSERT_EQ(seen2, e4m3_code(scaled2)) << where(row, block, i) << " x " << x << " amax " << amax;
    }
  }
}

void check_blocks(const Row& row) {
  for (const int block : {128, 32}) check(row, block);
}

TEST(WireFp8, RandomRowsOfAnyWidth) {
  std::mt19937 random(11);
  for (const int hidden : {1, 2, 7, 8, 31, 32, 33, 100, 127, 128, 129, 136, 160, 200, 257, 520, 1000}) {
    for (int repeat = 0; repeat < 6; ++repeat) {
      const double spread = std::ldexp(1.0, static_cast<int>(random() % 60) - 30);
      std::normal_distribution<double> normal(0, spread);
      Row row;
      for (int i = 0; i < hidden; ++i) row.push_back(float_to_bf16(static_cast<float>(normal(random))));
      check_blocks(row);
    }
  }
}

TEST(WireFp8, RandomBits) {
  std::mt19937 random(13);
  for (int repeat = 0; repeat < 40; ++repeat) {
    Row row;
    for (int i = 0; i < 300; ++i) row.push_back(static_cast<std::uint16_t>(random()));
    check_blocks(row);
  }
}

TEST(WireFp8, EveryMagnitudeAsTheMaximum) {
  for (int magnitude = 0; magnitude < 0x8000; magnitude += 1) {
    const auto code = static_cast<std::uint16_t>(magnitude);
    const auto next = static_cast<std::uint16_t>((magnitude * 3) % 0x8000 | 0x8000);
    if (magnitude % 16 == 0 || (magnitude & 0x7f) >= 0x5e)
      check(Row{code, std::min(next, static_cast<std::uint16_t>(code | 0x8000))}, 32);
  }
}

TEST(WireFp8, SpecialValues) {
  const float nan = std::nanf(""), inf = HUGE_VALF;
  check_blocks(row_of({0.0f, -0.0f}));
  check_blocks(row_of({nan, nan, nan}));
  check_blocks(row_of({nan, 1.0f, -2.0f}));
  check_blocks(row_of({inf, 1.0f, -2.0f}));
  check_blocks(row_of({-inf, nan, 0.0f}));
  check_blocks(row_of({1e-5f, -9e-5f, 1e-4f, 1e-30f, 0x1p-133f}));  // below the least amax; a denormal
  check_blocks(row_of({448.0f, 447.0f, -448.0f}));
  check_blocks(row_of({3.3e38f, 1e-38f}));
}

TEST(WireFp8, DocumentedExamples) {
  std::vector<std::uint8_t> data(2);
  float scale = 0;
  std::uint8_t exponent = 0;
  const Row row = row_of({448.0f, -224.0f});
  quantise_row_f32(row.data(), 2, 128, data.data(), &scale);
  EXPECT_EQ(scale, 1.0f);
  EXPECT_EQ(data, (std::vector<std::uint8_t>{0x7e, 0xf6}));
  quantise_row_ue8m0(row.data(), 2, 128, data.data(), &exponent);
  EXPECT_EQ(exponent, 127);  // exactly 448: 2^0
  const Row more = row_of({450.0f, 0.0f});
  quantise_row_ue8m0(more.data(), 2, 128, data.data(), &exponent);
  EXPECT_EQ(exponent, 128);
}

TEST(WireFp8, ThePowerIsWhatTheFloatProductWouldGive) {
  // Implementations that take ceil(log2(amax * (1.0f / 448.0f))) from the bits of the product agree for every bf16 maximum.
  for (int magnitude = 0; magnitude < 0x7f80; ++magnitude) {
    const float amax = std::max(1e-4f, value_of(static_cast<std::uint16_t>(magnitude)));
    int exponent = 0;
    const float mantissa = std::frexp(amax * (1.0f / 448.0f), &exponent);  // [0.5, 1)
    const int power = mantissa == 0.5f ? exponent - 1 : exponent;
    ASSERT_EQ(fp8_scale_ue8m0(static_cast<std::uint16_t>(magnitude)).scale, power + 127) << amax;
  }
}

TEST(WireFp8, RestoredValuesAreNear) {
  std::mt19937 random(17);
  std::normal_distribution<float> normal(0, 3);
  Row row;
  for (int i = 0; i < 1000; ++i) row.push_back(float_to_bf16(normal(random)));
  for (const int block : {128, 32}) {
    std::vector<std::uint8_t> data(1000), exponents(32);
    std::vector<float> factors(32), out(1000), out2(1000);
    quantise_row_f32(row.data(), 1000, block, data.data(), factors.data());
    dequantise_row_f32(data.data(), factors.data(), 1000, block, out.data());
    quantise_row_ue8m0(row.data(), 1000, block, data.data(), exponents.data());
    dequantise_row_ue8m0(data.data(), exponents.data(), 1000, block, out2.data());
    for (std::size_t i = 0; i < 1000; ++i) {
      const float x = value_of(row[i]);
      ASSERT_NEAR(out[i], x, std::fabs(x) / 15 + 0.002) << i;
      ASSERT_NEAR(out2[i], x, std::fabs(x) / 15 + 0.002) << i;
    }
  }
}

}  // namespace
}  // namespace ferry::wire
