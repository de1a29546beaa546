// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The command ring: laps, indices near 2^32, 2^63 and 2^64, back-pressure, half-written commands, two threads.
#include "net/ring.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "ferry/error.h"
#include "net_support.h"

namespace ferry::net {
namespace {

CommandWords post_of(std::uint64_t total) {
  return pack_post(static_cast<std::uint32_t>(total % kMaxWindows), 8, total);
}

std::uint64_t total_of(CommandWords words) {
  Command command;
  EXPECT_TRUE(unpack(words, command));
  EXPECT_EQ(command.window_slot, command.total % kMaxWindows);
  return command.total;
}

class NetRing : public testing::TestWithParam<std::uint64_t> {};

TEST_P(NetRing, KeepsOrderOverManyLaps) {
  std::vector<CommandWords> slots(8);
  Ring ring(slots, GetParam());
  CommandWords words;
  std::uint64_t pushed = 0;
  std::uint64_t popped = 0;
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < round % 9 && ring.has_room(1); ++i) ring.push(post_of(pushed++));
    EXPECT_EQ(ring.pushed(), pushed);
    while (ring.front(words)) {
      EXPECT_EQ(total_of(words), popped++);
      ring.pop();
    }
    ring.return_slots();
    EXPECT_EQ(popped, pushed);
    EXPECT_EQ(ring.popped(), popped);
  }
  EXPECT_GT(pushed, 300u);
}

TEST_P(NetRing, FullUntilSlotsAreReturned) {
  std::vector<CommandWords> slots(4);
  Ring ring(slots, GetParam());
  CommandWords words;
  EXPECT_FALSE(ring.front(words));
  EXPECT_TRUE(ring.has_room(4));
  EXPECT_FALSE(ring.has_room(5));
  for (std::uint64_t i = 0; i < 4; ++i) ring.push(post_of(i));
  EXPECT_FALSE(ring.has_room(1));
  ASSERT_TRUE(ring.front(words));
  ring.pop();
  EXPECT_FALSE(ring.has_room(1)) << "popped, but the slot was not returned";
  ring.return_slots();
  EXPECT_TRUE(ring.has_room(1));
  EXPECT_FALSE(ring.has_room(2));
}

TEST_P(NetRing, HalfACommandIsNotTaken) {
  std::vector<CommandWords> slots(4);
  Ring ring(slots, GetParam());
  std::vector<CommandWords> twin_slots(4);
  Ring twin(twin_slots, GetParam());
  twin.push(post_of(3));
  const std::uint64_t at = GetParam() & 3;
  CommandWords words;
  slots[at].first = twin_slots[at].first;
  EXPECT_FALSE(ring.front(words));
  slots[at] = with_lap({}, !lap_of(twin_slots[at].first));
  slots[at].second = twin_slots[at].second;
  EXPECT_FALSE(ring.front(words));
  slots[at].first = twin_slots[at].first;
  ASSERT_TRUE(ring.front(words));
  EXPECT_EQ(total_of(words), 3u);
}

TEST_P(NetRing, TwoThreads) {
  const std::uint64_t count = test::kSanitized ? 20000 : 300000;
  std::vector<CommandWords> slots(16);
  Ring ring(slots, GetParam());
  std::thread producer([&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      if (!test::eventually([&] { return ring.has_room(1); })) return;
      ring.push(post_of(i));
    }
  });
  CommandWords words;
  std::uint64_t next = 0;
  EXPECT_TRUE(test::eventually([&] {
    while (ring.front(words)) {
      EXPECT_EQ(total_of(words), next++);
      ring.pop();
      if (next % 3 == 0) ring.return_slots();
    }
    ring.return_slots();
    return next == count;
  }));
  producer.join();
}

INSTANTIATE_TEST_SUITE_P(FirstIndex, NetRing,
                         testing::Values(0u, 5u, (std::uint64_t{1} << 32) - 3, (std::uint64_t{1} << 63) - 10,
                                         ~std::uint64_t{0} - 20));

TEST(NetRingRefuses, SlotsThatAreNoPowerOfTwo) {
  for (const std::size_t count : {0u, 1u, 3u, 12u}) {
    std::vector<CommandWords> slots(count);
    EXPECT_THROW(Ring(slots, 0), Error) << count;
  }
}

}  // namespace
}  // namespace ferry::net
