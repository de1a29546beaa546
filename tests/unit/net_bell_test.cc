// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Sleep and wake-up: no work that is there is slept through, and each kind of work wakes the proxy. A wake-up that is
// missing costs half a second or more, so the limits here are wide.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "net/bell.h"
#include "net_support.h"

namespace ferry::net {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTooLong{2};
constexpr std::chrono::seconds kSleep{10};

std::chrono::nanoseconds time_of(const std::function<void()>& work) {
  const auto begin = Clock::now();
  work();
  return Clock::now() - begin;
}

/// The median: other work may keep the cores from us for long now and then, a lost wake-up takes its time always.
std::chrono::nanoseconds median_time_of(const std::function<std::chrono::nanoseconds()>& once) {
  std::vector<std::chrono::nanoseconds> times;
  for (int i = 0; i < 7; ++i) times.push_back(once());
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void let_the_proxy_fall_asleep() {
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

// The proxy sleeps at most 500 ms.
constexpr std::chrono::milliseconds kAsleep{220};

TEST(NetBell, DoesNotSleepOverWorkThatIsThere) {
  Bell bell;
  EXPECT_LT(time_of([&] { bell.sleep(kSleep, [] { return true; }); }), kTooLong);
}

TEST(NetBell, WorkThatComesWhileItLooksWakesIt) {
  Bell bell;
  std::thread ringer;
  const auto took = time_of([&] {
    bell.sleep(kSleep, [&] {
      ringer = std::thread([&] { bell.ring(); });
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the ringer has looked whether somebody sleeps
      return false;
    });
  });
  ringer.join();
  EXPECT_LT(took, kTooLong);
}

TEST(NetBell, WakesASleeper) {
  Bell bell;
  std::thread ringer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    bell.ring();
  });
  EXPECT_LT(time_of([&] { bell.sleep(kSleep, [] { return false; }); }), kTooLong);
  ringer.join();
}

TEST(NetBell, APutAloneWakesTheProxy) {
  const auto engine = make_loopback({});
  const auto memory = Memory::anonymous(4096);
  const WindowId window = test::open_window(*engine, 0, memory);
  const std::vector<unsigned char> source(64);
  EXPECT_LT(median_time_of([&] {
              let_the_proxy_fall_asleep();
              return time_of([&] {
                EXPECT_TRUE(engine->channel(0).try_put(window, 0, source.data(), source.size()));
                EXPECT_TRUE(test::all_completed(engine->channel(0)));
              });
            }),
            kAsleep);
}

TEST(NetBell, AClosedWindowGoesSoon) {
  const auto engine = make_loopback({});
  EXPECT_LT(median_time_of([&] {
              auto memory = Memory::anonymous(4096);
              const std::weak_ptr<Memory> watch = memory;
              const WindowId window = test::open_window(*engine, 0, memory);
              memory.reset();
              let_the_proxy_fall_asleep();
              return time_of([&] {
                engine->close(window, nullptr);
                EXPECT_TRUE(test::eventually([&] { return watch.expired(); }));
              });
            }),
            kAsleep);
}

/// ... but not before the commands for it: the last of them is held back here for a while.
TEST(NetBell, AClosedWindowStaysUntilItsCommandsAreCarriedOut) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const auto engine = make_loopback({.shuffle_seed = seed, .max_post_delay_ns = 50'000'000});
    auto memory = Memory::anonymous(4096);
    const std::weak_ptr<Memory> watch = memory;
    const WindowId window = test::open_window(*engine, 0, memory);
    memory.reset();
    EXPECT_TRUE(engine->channel(0).try_post(window, 0, 1));
    engine->close(window, nullptr);
    EXPECT_TRUE(test::eventually([&] { return watch.expired(); }));
    EXPECT_EQ(engine->channel(0).completed(), 1u) << "the window went first";
  }
}

TEST(NetBell, AnIdleEngineEndsSoon) {
  EXPECT_LT(median_time_of([&] {
              auto engine = make_loopback({});
              let_the_proxy_fall_asleep();
              return time_of([&] { engine.reset(); });
            }),
            kAsleep);
}

}  // namespace
}  // namespace ferry::net
