// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The 16-byte command: every field survives at its limits, and the documented bits are where the header says.
#include "net/command.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace ferry::net {
namespace {

std::vector<std::uint64_t> edges(std::uint64_t last, std::uint64_t step = 1) {
  std::vector<std::uint64_t> values{0, step, last, last - step};
  for (std::uint64_t v = step; v != 0 && v < last; v <<= 1) values.push_back(v);
  return values;
}

Command put_command(std::uint32_t slot, std::uint64_t offset, std::uint64_t source, std::uint64_t bytes) {
  return {.operation = Operation::kPut,
          .window_slot = slot,
          .offset = offset,
          .source = source,
          .bytes = bytes,
          .total = 0};
}

void expect_round_trip(CommandWords words, const Command& expected) {
  for (const bool lap : {false, true}) {
    const CommandWords marked = with_lap(words, lap);
    ASSERT_EQ(lap_of(marked.first), lap);
    ASSERT_EQ(lap_of(marked.second), lap);
    Command seen;
    ASSERT_TRUE(unpack(marked, seen));
    ASSERT_EQ(seen, expected);
  }
}

TEST(NetCommand, PutRoundTripsOverEdges) {
  for (const std::uint64_t slot : edges(kMaxWindows - 1)) {
    for (const std::uint64_t offset : edges(kMaxWindowBytes - 1)) {
      for (const std::uint64_t bytes : edges(kMaxPutBytes)) {
        if (bytes == 0) continue;
        for (const std::uint64_t source : {std::uint64_t{1}, std::uint64_t{0x7fff'ffff'f001}, kSourceEnd - bytes}) {
          ASSERT_TRUE(put_fits(static_cast<std::uint32_t>(slot), offset, source, bytes) || source + bytes > kSourceEnd);
          expect_round_trip(pack_put(static_cast<std::uint32_t>(slot), offset, source, bytes),
                            put_command(static_cast<std::uint32_t>(slot), offset, source, bytes));
        }
      }
    }
  }
}

TEST(NetCommand, PostRoundTripsOverEdges) {
  for (const std::uint64_t slot : edges(kMaxWindows - 1)) {
    for (const std::uint64_t offset : edges(kMaxWindowBytes - 8, 8)) {
      for (const std::uint64_t total : edges(~std::uint64_t{0})) {
        const auto window = static_cast<std::uint32_t>(slot);
        ASSERT_TRUE(post_fits(window, offset));
        expect_round_trip(pack_post(window, offset, total), {.operation = Operation::kPost,
                                                             .window_slot = window,
                                                             .offset = offset,
                                                             .source = 0,
                                                             .bytes = 0,
                                                             .total = total});
      }
    }
  }
}

TEST(NetCommand, RandomFieldsRoundTrip) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20000; ++i) {
    const auto slot = static_cast<std::uint32_t>(random() % kMaxWindows);
    const std::uint64_t offset = random() % kMaxWindowBytes;
    const std::uint64_t bytes = 1 + random() % kMaxPutBytes;
    const std::uint64_t source = random() % (kSourceEnd - bytes);
    expect_round_trip(pack_put(slot, offset, source, bytes), put_command(slot, offset, source, bytes));
  }
}

TEST(NetCommand, LimitsAreStated) {
  EXPECT_TRUE(put_fits(4095, (std::uint64_t{1} << 40) - 1, 1, std::uint64_t{1} << 24));
  EXPECT_FALSE(put_fits(4096, 0, 1, 1));
  EXPECT_FALSE(put_fits(0, std::uint64_t{1} << 40, 1, 1));
  EXPECT_FALSE(put_fits(0, 0, 1, 0));
  EXPECT_FALSE(put_fits(0, 0, 1, (std::uint64_t{1} << 24) + 1));
  EXPECT_FALSE(put_fits(0, 0, std::uint64_t{1} << 48, 1));
  EXPECT_FALSE(put_fits(0, 0, (std::uint64_t{1} << 48) - 1, 2));
  EXPECT_FALSE(post_fits(0, 4));
  EXPECT_FALSE(post_fits(4096, 0));
}

TEST(NetCommand, BitsAreWhereTheHeaderSays) {
  constexpr CommandWords put = pack_put(0xabc, 0x12'3456'789a, 0x7edc'ba98'7654, 0xfedcba + 1);
  EXPECT_EQ(put.first >> 61, 1u);
  EXPECT_EQ((put.first >> 49) & 0xfff, 0xabcu);
  EXPECT_EQ((put.first >> 9) & 0xff'ffff'ffff, 0x12'3456'789au);
  EXPECT_EQ((put.first & 0x1ff) << 15 | (put.second >> 48 & 0x7fff), 0xfedcbau);
  EXPECT_EQ(put.second & 0xffff'ffff'ffff, 0x7edc'ba98'7654u);
  constexpr CommandWords post = pack_post(1, 8, std::uint64_t{1} << 63 | 5);
  EXPECT_EQ(post.first >> 61, 2u);
  EXPECT_EQ((post.first >> 8) & 1, 1u);
  EXPECT_EQ(post.second, 5u);
}

TEST(NetCommand, OtherOperationsAreNoCommands) {
  Command command;
  EXPECT_FALSE(unpack({0, 0}, command));
  EXPECT_FALSE(unpack({std::uint64_t{3} << 61, 0}, command));
}

TEST(NetCommand, LapBitFlipsEveryLapAndZeroedMemoryIsUnwritten) {
  EXPECT_TRUE(lap_of_index(0, 3));
  EXPECT_TRUE(lap_of_index(7, 3));
  EXPECT_FALSE(lap_of_index(8, 3));
  EXPECT_TRUE(lap_of_index(16, 3));
  EXPECT_NE(lap_of_index(~std::uint64_t{0}, 3), lap_of_index(0, 3));  // the index may wrap
}

}  // namespace
}  // namespace ferry::net
