// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The codecs of combine: the two logarithms over all their arguments, the errors that the documents promise, and the same bits as the
// reference, which shares no code with them.
#include "wire/return_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "support/logfmt.h"

namespace ferry::wire {
namespace {

using Row = std::vector<std::uint16_t>;

constexpr double kUnit = 8388608.0;

double value_of(std::uint16_t bf16) {
  return static_cast<double>(bf16_to_float(bf16));
}

/// A coded row in memory of exactly the size that the layout promises, with a guard behind.
struct Coded {
  std::vector<std::byte> words, channels;
  std::int64_t used = 0;

  Coded(Codec codec, const Row& row) {
    const auto hidden = static_cast<std::int64_t>(row.size());
    words.assign(static_cast<std::size_t>(4 * num_scales(hidden, kCodedGroup)) + 1, std::byte{0xa5});
    channels.assign(static_cast<std::size_t>(most_coded_bytes(codec, hidden)) + 1, std::byte{0xa5});
    used = encode_returned(codec, row.data(), hidden, words.data(), channels.data());
    EXPECT_EQ(words.back(), std::byte{0xa5});
    for (auto at = static_cast<std::size_t>(used); at < channels.size(); ++at)
      EXPECT_EQ(channels[at], std::byte{0xa5}) << "behind " << used << " bytes";
  }
  std::vector<float> restored(Codec codec, std::size_t hidden) const {
    std::vector<float> out(hidden + 1, -7.0f);
    decode_returned(codec, words.data(), channels.data(), static_cast<std::int64_t>(hidden), out.data());
    EXPECT_EQ(out.back(), -7.0f);
    out.pop_back();
    return out;
  }
};

std::vector<float> through(Codec codec, const Row& row) {
  return Coded(codec, row).restored(codec, row.size());
}

/// Magnitudes of `octaves` octaves below 2^`top`, evenly in the logarithm.
Row spread_row(std::mt19937& random, std::size_t hidden, int top, double octaves) {
  std::uniform_real_distribution<double> place(0, octaves);
  Row row;
  while (row.size() < hidden) {
    const double size = std::exp2(top - place(random)) * 0.999;
    row.push_back(float_to_bf16(static_cast<float>(random() % 2 == 0 ? size : -size)));
  }
  return row;
}

TEST(Logfmt, TheLogarithmOfEveryMantissaAndOctave) {
  double worst = 0;
  for (std::uint32_t magnitude = 0x80; magnitude < 0x7f80; ++magnitude) {
    const double exact = 127 + std::log2(value_of(static_cast<std::uint16_t>(magnitude)));
    worst = std::max(worst, std::fabs(logfmt_log2(magnitude) / kUnit - exact));
  }
  EXPECT_LE(worst, 0x1p-21);
}

TEST(Logfmt, LogarithmsGrow) {
  for (std::uint32_t magnitude = 0; magnitude < 0x7f7f; ++magnitude)
    ASSERT_LT(logfmt_log2(magnitude), logfmt_log2(magnitude + 1)) << magnitude;
}

TEST(Logfmt, ThePowerOfEveryFraction) {
  double worst = 0;
  for (std::int32_t fraction = 0; fraction < 0x800000; ++fraction) {
    const double seen = std::log2(static_cast<double>(logfmt_exp2((126 << 23) + fraction)));
    worst = std::max(worst, std::fabs(seen - (fraction / kUnit - 1)));
  }
  EXPECT_LE(worst, 0x1p-21);
  for (const std::int32_t octave : {1, 2, 90, 127, 200, 254}) {
    for (const std::int32_t fraction : {0, 1, 4711, 0x400000, 0x7fffff})
      ASSERT_EQ(logfmt_exp2((octave << 23) + fraction), std::ldexp(logfmt_exp2((126 << 23) + fraction), octave - 126));
  }
}

/// src/wire/logfmt.h derives the bound.
void check_bound(const Row& row) {
  const std::vector<float> restored = through(Codec::kLogfmt10, row);
  for (std::size_t begin = 0; begin < row.size(); begin += kCodedGroup) {
    const std::size_t end = std::min(row.size(), begin + kCodedGroup);
    double largest = 0, least = HUGE_VAL;
    for (std::size_t i = begin; i < end; ++i) {
      const double size = std::fabs(value_of(row[i]));
      largest = std::max(largest, size);
      if (size > 0) least = std::min(least, size);
    }
    const double step = std::min(std::log2(largest / least), 32.0) / 510;
    const double bound = step / 2 + step * 0x1p-11 + 0x1p-19;
    for (std::size_t i = begin; i < end; ++i) {
      const double x = value_of(row[i]), r = static_cast<double>(restored[i]);
      ASSERT_EQ(std::signbit(r), std::signbit(x)) << i;
      if (x == 0) {
        ASSERT_EQ(r, 0) << i;
      } else if (std::fabs(x) < std::ldexp(largest, -32)) {
        ASSERT_LE(std::fabs(r - x), std::ldexp(largest, -32) * (1 + 0x1p-19)) << i;
      } else {
        ASSERT_LE(std::fabs(std::log2(r / x)), bound)
            << i << " of [" << least << ", " << largest << "]: " << x << " became " << r;
        ASSERT_LE(std::fabs(r - x), 0.0221 * std::fabs(x)) << i;
      }
    }
  }
}

TEST(Logfmt, RestoresWithinItsBound) {
  std::mt19937 random(21);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const double octaves =
        std::array{0.02, 0.5, 1.0, 4.0, 10.0, 31.0, 33.0, 60.0}[static_cast<std::size_t>(repeat % 8)];
    Row row = spread_row(random, 1 + random() % 2000, -static_cast<int>(random() % 60), octaves);
    if (repeat % 3 == 0) {
      for (std::uint16_t& x : row) x = random() % 4 == 0 ? static_cast<std::uint16_t>(x & 0x8000u) : x;
    }
    check_bound(row);
  }
}

TEST(Logfmt, TheBoundIsNotTooWide) {
  // Somewhere a value lies nearly half a step off: the bound would notice steps that are not there.
  std::mt19937 random(22);
  const Row row = spread_row(random, 128, 0, 32.0);
  double worst = 0;
  const std::vector<float> restored = through(Codec::kLogfmt10, row);
  for (std::size_t i = 0; i < row.size(); ++i)
    worst = std::max(worst, std::fabs(std::log2(static_cast<double>(restored[i]) / value_of(row[i]))));
  EXPECT_GT(worst, 0.45 * 31 / 510);
}

TEST(Logfmt, ChunksThatDoNotFitStayAsTheyAre) {
  std::mt19937 random(23);
  const Row good = spread_row(random, 3 * kChunkChannels - 100, -1, 8);
  const auto packed = [](std::int64_t n) { return (n * 10 + 7) / 8; };
  ASSERT_EQ(Coded(Codec::kLogfmt10, good).used, packed(768) + packed(768) + packed(668));
  const std::vector<float> all_packed = through(Codec::kLogfmt10, good);
  // One magnitude of 1 in the second chunk's last group; an infinity; NaN; a group of one magnitude; one below 2^-94.
  for (const int kind : {0, 1, 2, 3, 4}) {
    Row row = good;
    for (std::size_t i = 1408; i < 1536; ++i) {
      if (kind < 3 && i == 1500)
        row[i] = std::array<std::uint16_t, 3>{0x3f80, 0xff80, 0x7fc1}[static_cast<std::size_t>(kind)];
      if (kind == 3) row[i] = 0x3e80;
      if (kind == 4) row[i] = static_cast<std::uint16_t>(0x1000 + i % 3);  // 2^-95 and a little
    }
    ASSERT_EQ(Coded(Codec::kLogfmt10, row).used, packed(768) + 2 * 768 + packed(668)) << kind;
    const std::vector<float> restored = through(Codec::kLogfmt10, row);
    for (std::size_t i = 0; i < row.size(); ++i) {
      const bool stays = i >= 768 && i < 1536;
      const std::uint32_t wanted = stays ? std::uint32_t{row[i]} << 16 : float_bits(all_packed[i]);
      ASSERT_EQ(float_bits(restored[i]), wanted) << kind << " " << i;
    }
  }
}

TEST(Logfmt, ZeroGroupsAreZeros) {
  Row row(200, 0);
  for (std::size_t i = 0; i < row.size(); i += 3) row[i] = 0x8000;
  EXPECT_EQ(Coded(Codec::kLogfmt10, row).used, 250);
  const std::vector<float> restored = through(Codec::kLogfmt10, row);
  for (std::size_t i = 0; i < row.size(); ++i) ASSERT_EQ(float_bits(restored[i]), std::uint32_t{row[i]} << 16);
}

TEST(Logfmt, TheSmallestThatFits) {
  check_bound({0x1080, 0x1000, 0x0080, 0x0001, 0x8001, 0x007f, 0});  // 2^-94 down to denormals
}

void check_reference(const Row& row) {
  std::vector<float> values;
  for (const std::uint16_t x : row) values.push_back(bf16_to_float(x));
  const std::vector<float> wanted = test::through_logfmt(values), seen = through(Codec::kLogfmt10, row);
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (std::isnan(wanted[i]) && std::isnan(seen[i])) continue;
    ASSERT_EQ(float_bits(seen[i]), float_bits(wanted[i])) << i << " of " << row.size() << ": " << values[i];
  }
}

TEST(Logfmt, TheSameBitsAsTheReference) {
  std::mt19937 random(24);
  for (int repeat = 0; repeat < 200; ++repeat) {
    Row row = spread_row(random, 1 + random() % 1700, -static_cast<int>(random() % 95),
                         static_cast<double>(random() % 100) / 2);
    if (repeat % 4 == 0) row[random() % row.size()] = static_cast<std::uint16_t>(random());
    check_reference(row);
  }
  // Every magnitude below 1 in one group or another.
  for (std::uint32_t first = 0; first < 0x3f00; first += 64) {
    Row row;
    for (std::uint32_t i = 0; i < 128; ++i) row.push_back(static_cast<std::uint16_t>(first + i));
    check_reference(row);
  }
}

TEST(ReturnedFp8, RestoresWithinItsBound) {
  std::mt19937 random(25);
  for (int repeat = 0; repeat < 100; ++repeat) {
    const Row row = spread_row(random, 1 + random() % 1000, 40 - static_cast<int>(random() % 80), 1 + random() % 20);
    const std::vector<float> restored = through(Codec::kFp8F32, row);
    for (std::size_t i = 0; i < row.size(); ++i) {
      double largest = 1e-4;
      for (std::size_t k = i / 128 * 128; k < std::min(row.size(), i / 128 * 128 + 128); ++k)
        largest = std::max(largest, std::fabs(value_of(row[k])));
      const double x = value_of(row[i]);
      ASSERT_LE(std::fabs(static_cast<double>(restored[i]) - x), std::fabs(x) / 16 * (1 + 0x1p-16) + largest * 0x1p-18)
          << i;
    }
  }
}

TEST(ReturnedFp8, AnInfinityTakesItsGroupWithIt) {
  Row row(256, 0x3f80);
  row[5] = 0x7f80;
  const std::vector<float> restored = through(Codec::kFp8F32, row);
  for (std::size_t i = 0; i < row.size(); ++i) ASSERT_EQ(std::isnan(restored[i]), i < 128) << i;
}

}  // namespace
}  // namespace ferry::wire
