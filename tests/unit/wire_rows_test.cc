// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Row sums, element by element against scalar arithmetic, for lengths that do and do not fill the vector loops.
#include "wire/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "ferry/error.h"
#include "wire/float.h"

namespace ferry::wire {
namespace {

constexpr DType kDtypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};
constexpr std::int64_t kLengths[] = {0, 1, 2, 7, 31, 32, 33, 64, 100, 520, 1031};

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

bool same(float a, float b) {
  return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b));
}

struct RandomRow {
  DType dtype;
  std::vector<std::byte> bytes;

  RandomRow(DType type, std::int64_t n, std::mt19937& random)
      : dtype(type), bytes(static_cast<std::size_t>(n) * dtype_bytes(type)) {
    for (auto& byte : bytes) byte = static_cast<std::byte>(random());  // all bit patterns: denormals, infinities, NaN
  }
  float at(std::int64_t i) const {
    const auto at = static_cast<std::size_t>(i) * dtype_bytes(dtype);
    if (dtype == DType::kFp32) {
      float value;
      std::memcpy(&value, &bytes[at], 4);
      return value;
    }
    std::uint16_t code;
    std::memcpy(&code, &bytes[at], 2);
    return dtype == DType::kBf16 ? bf16_to_float(code) : fp16_to_float(code);
  }
};

std::vector<float> random_floats(std::int64_t n, std::mt19937& random) {
  std::normal_distribution<float> normal(0, 100);
  std::vector<float> values(static_cast<std::size_t>(n) + 1);
  for (auto& value : values) value = normal(random);
  return values;
}

TEST(WireRows, AccumulateAddsElementByElement) {
  std::mt19937 random(3);
  for (const DType dtype : kDtypes) {
    for (const std::int64_t n : kLengths) {
      const RandomRow row(dtype, n, random);
      std::vector<float> acc = random_floats(n, random);
      const std::vector<float> before = acc;
      accumulate(dtype, acc.data(), row.bytes.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        const float expected = before[static_cast<std::size_t>(i)] + row.at(i);
        ASSERT_TRUE(same(acc[static_cast<std::size_t>(i)], expected)) << name(dtype) << " " << n << " " << i;
      }
      ASSERT_EQ(acc.back(), before.back());
    }
  }
}

TEST(WireRows, AccumulateWeightedRoundsOnce) {
  std::mt19937 random(5);
  for (const DType dtype : kDtypes) {
    for (const std::int64_t n : kLengths) {
      for (const float weight : {0.3f, -1.7e-3f, 0.0f, 1e20f, HUGE_VALF, std::nanf("")}) {
        const RandomRow row(dtype, n, random);
        std::vector<float> acc = random_floats(n, random);
        const std::vector<float> before = acc;
        accumulate_weighted(dtype, acc.data(), row.bytes.data(), weight, n);
        for (std::int64_t i = 0; i < n; ++i) {
          const float expected = std::fma(weight, row.at(i), before[static_cast<std::size_t>(i)]);
          ASSERT_TRUE(same(acc[static_cast<std::size_t>(i)], expected))
              << name(dtype) << " " << n << " " << i << " " << weight;
        }
        ASSERT_EQ(acc.back(), before.back());
      }
    }
  }
}

TEST(WireRows, AccumulateWeightedIsFused) {
  // (1 + 2^-12)^2 - (1 + 2^-11) is 2^-24 only if the product is not rounded.
  const float weight = 1 + 0x1p-12f, y = 1 + 0x1p-12f;
  std::vector<float> row(40, y), acc(40, -(1 + 0x1p-11f));
  accumulate_weighted(DType::kFp32, acc.data(), row.data(), weight, 40);
  for (const float value : acc) EXPECT_EQ(value, 0x1p-24f);
}

TEST(WireRows, RoundRowRoundsOnce) {
  std::mt19937 random(9);
  for (const std::int64_t n : kLengths) {
    const RandomRow source(DType::kFp32, n, random);
    std::vector<float> acc(static_cast<std::size_t>(n) + 1);
    for (std::int64_t i = 0; i < n; ++i) acc[static_cast<std::size_t>(i)] = source.at(i);
    std::vector<std::uint16_t> bf16(acc.size(), 0xa5a5), fp16(acc.size(), 0xa5a5);
    std::vector<float> fp32(acc.size(), -7.0f);
    round_row(DType::kBf16, bf16.data(), acc.data(), n);
    round_row(DType::kFp16, fp16.data(), acc.data(), n);
    round_row(DType::kFp32, fp32.data(), acc.data(), n);
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      ASSERT_EQ(bf16[i], float_to_bf16(acc[i]));
      ASSERT_EQ(fp16[i], float_to_fp16(acc[i]));
      ASSERT_EQ(bits_of(fp32[i]), bits_of(acc[i]));
    }
    ASSERT_EQ(bf16.back(), 0xa5a5);
    ASSERT_EQ(fp16.back(), 0xa5a5);
    ASSERT_EQ(fp32.back(), -7.0f);
  }
}

TEST(WireRows, BiasOfAnyDtypes) {
  std::mt19937 random(21);
  for (const DType first : kDtypes) {
    for (const DType second : kDtypes) {
      for (const std::int64_t n : kLengths) {
        const RandomRow a(first, n, random), b(second, n, random);
        std::vector<float> both(static_cast<std::size_t>(n) + 1, 9), one(both), other(both), none(both);
        set_bias(first, a.bytes.data(), second, b.bytes.data(), both.data(), n);
        if (n == 0) continue;  // an empty vector's data may be null
        set_bias(first, a.bytes.data(), second, nullptr, one.data(), n);
        set_bias(first, nullptr, second, b.bytes.data(), other.data(), n);
        set_bias(first, nullptr, second, nullptr, none.data(), n);
        for (std::int64_t i = 0; i < n; ++i) {
          const auto k = static_cast<std::size_t>(i);
          ASSERT_TRUE(same(both[k], a.at(i) + b.at(i)));
          ASSERT_TRUE(same(one[k], a.at(i)));
          ASSERT_TRUE(same(other[k], b.at(i)));
          ASSERT_EQ(bits_of(none[k]), 0u);
        }
        ASSERT_EQ(none.back(), 9);
      }
    }
  }
}

/// Rows that begin anywhere, also off the vectors' alignment; the sum goes to memory of its own or into the first row.
TEST(WireRows, PlainSumsOfBf16) {
  std::mt19937 random(11);
  for (const std::int64_t n : kLengths) {
    for (const std::size_t num_rows : {0, 1, 2, 5}) {
      for (const bool into_first : {false, true}) {
        const auto lead = static_cast<std::int64_t>(num_rows % 3);
        std::vector<RandomRow> rows(num_rows, RandomRow(DType::kBf16, 0, random));
        std::vector<const void*> starts;
        for (RandomRow& row : rows) {
          row = RandomRow(DType::kBf16, lead + n + 1, random);
          starts.push_back(row.bytes.data() + 2 * lead);
        }
        const std::vector<RandomRow> before = rows;
        std::vector<std::uint16_t> separate(static_cast<std::size_t>(n) + 1, 9);
        auto* out = separate.data();
        if (into_first && num_rows > 0) out = reinterpret_cast<std::uint16_t*>(rows[0].bytes.data()) + lead;
        const std::uint16_t behind = out[n];
        sum_bf16_rows(out, starts, n);
        for (std::int64_t i = 0; i < n; ++i) {
          float sum = 0.0f;
          for (const RandomRow& row : before) sum += row.at(lead + i);
          ASSERT_TRUE(same(bf16_to_float(out[i]), bf16_to_float(float_to_bf16(sum)))) << n << " " << i;
        }
        ASSERT_EQ(out[n], behind);
      }
    }
  }
}

TEST(WireRows, CopiesAtAnyAlignment) {
  std::mt19937 random(12);
  for (const std::int64_t n : {0, 1, 63, 64, 65, 127, 128, 14336, 14345}) {
    for (const std::size_t lead : {0, 1, 16, 32}) {
      alignas(64) static std::byte from[14500], to[14500];
      for (auto& byte : from) byte = static_cast<std::byte>(random());
      std::memset(to, 7, sizeof(to));
      copy_row(to + lead, from + 32, n);
      ASSERT_EQ(std::memcmp(to + lead, from + 32, static_cast<std::size_t>(n)), 0) << n << " " << lead;
      ASSERT_EQ(to[lead + static_cast<std::size_t>(n)], std::byte{7});
      if (lead > 0) {
        ASSERT_EQ(to[lead - 1], std::byte{7});
      }
    }
  }
}

TEST(WireRows, OtherDtypesAreRefused) {
  float acc[4] = {};
  EXPECT_THROW(accumulate(DType::kInt32, acc, acc, 0), Error);
  EXPECT_THROW(accumulate_weighted(DType::kUint8, acc, acc, 1, 0), Error);
  EXPECT_THROW(round_row(DType::kFp8E4m3, acc, acc, 0), Error);
  EXPECT_THROW(set_bias(DType::kInt64, acc, DType::kFp32, nullptr, acc, 0), Error);
}

}  // namespace
}  // namespace ferry::wire
