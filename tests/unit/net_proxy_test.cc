// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The proxy against a provider under the test's control: gating, order, merging, stalled and failing peers, rest and
// wake-up.
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "ferry/error.h"
#include "net/proxy_engine.h"
#include "net_support.h"

namespace ferry::net {
namespace {

using test::all_completed;
using test::eventually;
using test::open_window;
using test::read_signal;
using test::ScriptedCarrier;
using Script = ScriptedCarrier::Script;

/// Two peers whose windows differ in size, so that the diary tells them apart.
struct Scene {
  explicit Scene(bool ordered, EngineConfig config = {}, std::size_t max_put_bytes = 1 << 20)
      : engine(make_proxy_engine(config, std::make_unique<ScriptedCarrier>(script, ordered, max_put_bytes))),
        a(open_window(*engine, 1, a_memory)),
        b(open_window(*engine, 2, b_memory)) {}

  bool wait_for_diary(std::size_t entries) {
    return eventually([&] { return script->read().size() >= entries; });
  }

  std::shared_ptr<Script> script = std::make_shared<Script>();
  std::shared_ptr<Memory> a_memory = Memory::anonymous(4096);
  std::shared_ptr<Memory> b_memory = Memory::anonymous(8192);
  std::vector<unsigned char> source = std::vector<unsigned char>(8192);
  std::unique_ptr<Engine> engine;
  WindowId a;
  WindowId b;
};

void pause() {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

TEST(NetProxy, GatedPostWaitsForCompletionsAndPutsMayOvertakeIt) {
  Scene scene(false);
  Channel& channel = scene.engine->channel(0);
  ASSERT_TRUE(channel.try_put(scene.a, 0, scene.source.data(), 8));
  ASSERT_TRUE(scene.wait_for_diary(1));
  ASSERT_TRUE(channel.try_put(scene.a, 100, scene.source.data(), 8));
  ASSERT_TRUE(channel.try_post(scene.a, 64, 1));
  ASSERT_TRUE(channel.try_put(scene.a, 200, scene.source.data(), 8));
  ASSERT_TRUE(scene.wait_for_diary(3));
  pause();
  auto diary = scene.script->read();
  ASSERT_EQ(diary.size(), 3u);
  EXPECT_TRUE(std::none_of(diary.begin(), diary.end(), [](const auto& entry) { return entry.is_post; }));
  EXPECT_EQ(channel.completed(), 0u);

  scene.script->complete(diary[1].ticket);  // not the oldest: no prefix yet
  pause();
  EXPECT_EQ(scene.script->read().size(), 3u);
  EXPECT_EQ(channel.completed(), 0u);

  scene.script->complete(diary[0].ticket);
  ASSERT_TRUE(scene.wait_for_diary(4));
  diary = scene.script->read();
  EXPECT_TRUE(diary[3].is_post);
  EXPECT_TRUE(eventually([&] { return channel.completed() == 2; }));
  scene.script->complete(diary[2].ticket);
  pause();
  EXPECT_EQ(channel.completed(), 2u) << "the post is older and not complete";
  scene.script->complete(diary[3].ticket);
  EXPECT_TRUE(all_completed(channel));
}

TEST(NetProxy, OrderedProviderGetsTheCommandsInOrderAtOnce) {
  Scene scene(true);
  Channel& channel = scene.engine->channel(0);
  ASSERT_TRUE(channel.try_put(scene.a, 0, scene.source.data(), 8));
  ASSERT_TRUE(channel.try_post(scene.a, 64, 1));
  ASSERT_TRUE(channel.try_put(scene.a, 8, scene.source.data(), 8));
  ASSERT_TRUE(channel.try_post(scene.a, 64, 2));
  ASSERT_TRUE(scene.wait_for_diary(4));
  const auto diary = scene.script->read();
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(diary[i].is_post, i % 2 == 1);
  EXPECT_EQ(channel.completed(), 0u);
}

TEST(NetProxy, MergesNeighboursAndOnlyNeighboursAndTheNewestPostCounts) {
  Scene scene(true);
  Channel& channel = scene.engine->channel(0);
  scene.script->set_busy(4096, true);  // so that all commands meet in the lane
  const unsigned char* source = scene.source.data();
  ASSERT_TRUE(channel.try_put(scene.a, 0, source, 16));
  ASSERT_TRUE(channel.try_put(scene.a, 16, source + 16, 16));
  ASSERT_TRUE(channel.try_put(scene.a, 32, source + 32, 8));
  ASSERT_TRUE(channel.try_put(scene.a, 40, source + 48, 8));  // gap in the source
  ASSERT_TRUE(channel.try_put(scene.a, 56, source + 56, 8));  // gap in the destination
  ASSERT_TRUE(channel.try_post(scene.a, 64, 1));
  ASSERT_TRUE(channel.try_post(scene.a, 64, 2));
  ASSERT_TRUE(channel.try_post(scene.a, 72, 3));              // another signal
  ASSERT_TRUE(channel.try_put(scene.a, 64, source + 64, 8));  // behind a post
  pause();
  scene.script->set_busy(4096, false);
  ASSERT_TRUE(scene.wait_for_diary(6));
  pause();
  const auto diary = scene.script->read();
  ASSERT_EQ(diary.size(), 6u);
  const std::vector<std::uint64_t> expected{40, 8, 8, 2, 3, 8};  // bytes of puts, totals of posts
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(diary[i].bytes_or_total, expected[i]) << i;
  EXPECT_EQ(scene.engine->statistics().merged, 2u);
  EXPECT_EQ(scene.engine->statistics().commands, 9u);
}

TEST(NetProxy, LongPutsGoInPiecesAndCompleteAsOne) {
  Scene scene(false, {}, 1000);
  Channel& channel = scene.engine->channel(0);
  ASSERT_TRUE(channel.try_put(scene.a, 10, scene.source.data(), 2500));
  ASSERT_TRUE(scene.wait_for_diary(3));
  const auto diary = scene.script->read();
  EXPECT_EQ(diary[2].offset, 2010u);
  EXPECT_EQ(diary[2].bytes_or_total, 500u);
  scene.script->complete(diary[2].ticket);
  scene.script->complete(diary[0].ticket);
  pause();
  EXPECT_EQ(channel.completed(), 0u);
  scene.script->complete(diary[1].ticket);
  EXPECT_TRUE(all_completed(channel));
}

TEST(NetProxy, AStalledPeerDoesNotStallOthers) {
  Scene scene(true, {.num_channels = 2, .ring_slots = 8});
  Channel& channel = scene.engine->channel(0);
  {
    const std::lock_guard lock(scene.script->mutex);
    scene.script->finish_at_once = true;
    scene.script->busy[4096] = true;
  }
  for (std::uint64_t i = 1; i <= 100; ++i) {  // many more than ring slots, on the same channel
    ASSERT_TRUE(test::post(channel, scene.a, 8 * (i % 3), i));
    ASSERT_TRUE(test::post(channel, scene.b, 0, i));
    ASSERT_TRUE(eventually([&] {
      const auto diary = scene.script->read();
      return !diary.empty() && diary.back().window_bytes == 8192 && diary.back().bytes_or_total == i;
    }));
  }
  EXPECT_LE(channel.completed(), 1u);
  scene.script->set_busy(4096, false);
  EXPECT_TRUE(all_completed(channel));
}

TEST(NetProxy, ACompletelyStalledChannelIsBackPressureAndOtherChannelsGoOn) {
  Scene scene(true, {.num_channels = 2, .ring_slots = 8});
  {
    const std::lock_guard lock(scene.script->mutex);
    scene.script->finish_at_once = true;
    scene.script->busy[4096] = true;
  }
  Channel& stalled = scene.engine->channel(0);
  std::uint64_t taken = 0;
  const auto try_one = [&] { return stalled.try_put(scene.a, 16 * (taken % 9), scene.source.data(), 8); };
  while (eventually(try_one, std::chrono::milliseconds(50))) ++taken;
  EXPECT_GT(taken, 8u);
  EXPECT_LT(taken, 5000u) << "memory is bounded";
  EXPECT_GT(scene.engine->statistics().stalls, 0u);
  ASSERT_TRUE(test::post(scene.engine->channel(1), scene.b, 0, 1));
  EXPECT_TRUE(all_completed(scene.engine->channel(1)));
  scene.script->set_busy(4096, false);
  EXPECT_TRUE(all_completed(stalled));
  EXPECT_EQ(stalled.completed(), taken);
}

TEST(NetProxy, AFailedTransferFailsItsPeerOnly) {
  Scene scene(false);
  Channel& channel = scene.engine->channel(0);
  ASSERT_TRUE(channel.try_put(scene.a, 0, scene.source.data(), 8));
  ASSERT_TRUE(channel.try_post(scene.a, 64, 1));
  ASSERT_TRUE(scene.wait_for_diary(1));
  scene.script->complete(scene.script->read()[0].ticket, "the link was cut");
  ASSERT_TRUE(all_completed(channel));
  const auto error = scene.engine->poll_error();
  ASSERT_TRUE(error);
  EXPECT_NE(error->what.find("rank 1: the link was cut"), std::string::npos) << error->what;
  ASSERT_TRUE(channel.try_post(scene.b, 64, 7));
  ASSERT_TRUE(scene.wait_for_diary(2));
  const auto diary = scene.script->read();
  ASSERT_EQ(diary.size(), 2u) << "no post after a lost put";
  EXPECT_EQ(diary[1].bytes_or_total, 7u);
}

TEST(NetProxy, ExceptionsBecomeErrors) {
  Scene scene(false);
  Channel& channel = scene.engine->channel(0);
  {
    const std::lock_guard lock(scene.script->mutex);
    scene.script->throw_from_start = "no route";
  }
  ASSERT_TRUE(channel.try_put(scene.a, 0, scene.source.data(), 8));
  std::optional<Failure> error;
  ASSERT_TRUE(eventually([&] { return (error = scene.engine->poll_error()).has_value(); }));
  EXPECT_NE(error->what.find("rank 1: no route"), std::string::npos) << error->what;
  {
    const std::lock_guard lock(scene.script->mutex);
    scene.script->throw_from_start.clear();
    scene.script->throw_from_progress = "device gone";
  }
  ASSERT_TRUE(channel.try_put(scene.b, 0, scene.source.data(), 8));  // wakes the proxy
  ASSERT_TRUE(eventually([&] { return (error = scene.engine->poll_error()).has_value(); }));
  EXPECT_NE(error->what.find("device gone"), std::string::npos) << error->what;
}

std::chrono::microseconds cpu_time() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto in_us = [](const timeval& t) {
    return std::chrono::seconds(t.tv_sec) + std::chrono::microseconds(t.tv_usec);
  };
  return in_us(usage.ru_utime) + in_us(usage.ru_stime);
}

TEST(NetProxy, IdleProxiesUseAlmostNoTime) {
  std::vector<std::unique_ptr<Engine>> engines;
  for (int i = 0; i < 8; ++i) engines.push_back(make_loopback({.num_channels = 4}));
  pause();
  const auto before = cpu_time();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(cpu_time() - before, std::chrono::milliseconds(60)) << "eight idle proxies, 300 ms";
}

TEST(NetProxy, AnIdleProxyWakesUpSoon) {
  const auto engine = make_loopback({});
  const auto memory = Memory::anonymous(4096);
  const WindowId window = open_window(*engine, 0, memory);
  std::vector<std::chrono::nanoseconds> times;
  for (std::uint64_t i = 1; i <= 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_TRUE(engine->channel(0).try_post(window, 0, i));
    ASSERT_TRUE(eventually([&] { return read_signal(*memory, 0) == i; }));
    times.push_back(std::chrono::steady_clock::now() - begin);
  }
  std::sort(times.begin(), times.end());
  RecordProperty("median_wake_up_ns", static_cast<int>(times[times.size() / 2].count()));
  // Other work may keep the cores from us for long; a lost wake-up would take 500 ms every time.
  EXPECT_LT(times[times.size() / 2], std::chrono::milliseconds(250));
}

TEST(NetProxy, StartsAndStopsOften) {
  for (int i = 0; i < 50; ++i) {
    const auto engine = make_loopback({.shuffle_seed = static_cast<std::uint64_t>(i % 2)});
    if (i % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

}  // namespace
}  // namespace ferry::net
