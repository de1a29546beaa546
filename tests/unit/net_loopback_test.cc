// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The loopback engine against the contract: a reader that sees the signal sees the rows, sources may be reused after
// completed(), bad offsets never write, memory lives as long as it is needed. All of it shuffled as well.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "ferry/error.h"
#include "net/command.h"
#include "net_support.h"

namespace ferry::net {
namespace {

using test::all_completed;
using test::eventually;
using test::kRowBytes;
using test::kRowsPerPost;
using test::kSanitized;
using test::open_window;
using test::read_signal;
using test::Stream;

/// `peers` streams on one channel, each with its own reader thread.
void run_streams(const EngineConfig& config, int peers, std::uint64_t commands, bool mergeable) {
  const auto engine = make_loopback(config);
  std::vector<std::unique_ptr<Stream>> streams;
  for (int p = 0; p < peers; ++p)
    streams.push_back(std::make_unique<Stream>(*engine, *engine, engine->channel(0), p, mergeable));
  const std::uint64_t batches = commands / (kRowsPerPost + 1) / static_cast<std::uint64_t>(peers);
  std::vector<std::thread> readers;
  for (const auto& stream : streams) {
    readers.emplace_back([&stream, batches] { EXPECT_EQ(stream->read_all(batches), 0u); });
  }
  bool sent = true;
  for (std::uint64_t batch = 0; batch < batches && sent; ++batch) {
    for (const auto& stream : streams) sent = sent && stream->send(batch);
  }
  EXPECT_TRUE(sent);
  for (auto& reader : readers) reader.join();
  EXPECT_TRUE(all_completed(engine->channel(0)));
  EXPECT_EQ(engine->poll_error(), std::nullopt);
  const Statistics statistics = engine->statistics();
  EXPECT_EQ(statistics.commands, batches * (kRowsPerPost + 1) * static_cast<std::uint64_t>(peers));
  EXPECT_EQ(statistics.bytes, batches * kRowsPerPost * kRowBytes * static_cast<std::uint64_t>(peers));
}

TEST(NetLoopback, MillionCommandsEveryPostGuardsItsRows) {
  run_streams({}, 1, kSanitized ? 50'000 : 1'000'000, false);
}

TEST(NetLoopback, MergedPutsToTwoPeers) {
  run_streams({.first_index = (1ull << 32) - 100}, 2, 100'000, true);
}

TEST(NetLoopback, ShuffledPutsEveryPostGuardsItsRows) {
  run_streams({.shuffle_seed = 1}, 1, kSanitized ? 30'000 : 300'000, false);
}

TEST(NetLoopback, ShuffledPutsToThreePeersInASmallRing) {
  run_streams({.ring_slots = 8, .first_index = (1ull << 63) - 9, .shuffle_seed = 2}, 3, 50'000, true);
}

TEST(NetLoopback, DelayedPosts) {
  run_streams({.shuffle_seed = 3, .max_post_delay_ns = 20'000}, 2, 10'000, false);
  run_streams({.max_post_delay_ns = 20'000}, 2, 10'000, false);
}

TEST(NetLoopback, AThreadThatHelpsAndTheProxyTakeTurns) {
  for (const std::uint64_t seed : {0, 7}) {
    const auto engine = make_loopback({.shuffle_seed = seed});
    Stream stream(*engine, *engine, engine->channel(0), 1, false);
    constexpr std::uint64_t kBatches = 400;
    std::atomic<bool> over{false};
    std::atomic<std::uint64_t> moved{0};
    std::thread helper([&] {
      while (!over) moved += engine->help() ? 1 : 0;
    });
    std::thread reader([&] { EXPECT_EQ(stream.read_all(kBatches), 0u); });
    for (std::uint64_t batch = 0; batch < kBatches; ++batch) EXPECT_TRUE(stream.send(batch));
    reader.join();
    // However quick the proxy is, the helper gets a command some day.
    const auto memory = Memory::anonymous(4096);
    const WindowId window = open_window(*engine, 2, memory);
    std::uint64_t total = 0;
    EXPECT_TRUE(eventually([&] {
      static_cast<void>(engine->channel(0).try_post(window, 0, ++total));
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      return moved > 0;
    }));
    over = true;
    helper.join();
    EXPECT_TRUE(all_completed(engine->channel(0)));
    EXPECT_EQ(engine->poll_error(), std::nullopt);
  }
}

TEST(NetLoopback, ThreadsAsRanksOnTheirOwnChannels) {
  constexpr int kThreads = 3;
  const std::uint64_t batches = kSanitized ? 300 : 2000;
  const auto engine = make_loopback({.num_channels = kThreads});
  std::vector<std::unique_ptr<Stream>> streams;
  for (int t = 0; t < kThreads; ++t)
    streams.push_back(std::make_unique<Stream>(*engine, *engine, engine->channel(t), 5, false));
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    Stream& stream = *streams[static_cast<std::size_t>(t)];
    threads.emplace_back([&stream, count = batches] {
      for (std::uint64_t batch = 0; batch < count; ++batch) ASSERT_TRUE(stream.send(batch));
    });
    threads.emplace_back([&stream, count = batches] { EXPECT_EQ(stream.read_all(count), 0u); });
  }
  for (auto& thread : threads) thread.join();
}

class NetLoopbackBoth : public testing::TestWithParam<std::uint64_t> {
 protected:
  EngineConfig config() const { return {.ring_slots = 16, .shuffle_seed = GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(ShuffleSeed, NetLoopbackBoth, testing::Values(0u, 11u));

TEST_P(NetLoopbackBoth, SourceMayBeOverwrittenOnceCompleted) {
  const auto engine = make_loopback(config());
  Channel& channel = engine->channel(0);
  const auto memory = Memory::anonymous(1 << 16);
  const WindowId window = open_window(*engine, 1, memory);
  std::vector<unsigned char> source(1000);
  for (int round = 1; round < 60; ++round) {
    std::fill(source.begin(), source.end(), static_cast<unsigned char>(round));
    ASSERT_TRUE(test::put(channel, window, 1000u * static_cast<unsigned>(round), source.data(), source.size()));
    ASSERT_TRUE(all_completed(channel));
    std::fill(source.begin(), source.end(), static_cast<unsigned char>(0xee));
  }
  ASSERT_TRUE(test::post(channel, window, 0, 1));
  ASSERT_TRUE(eventually([&] { return read_signal(*memory, 0) == 1; }));
  for (std::size_t i = 1000; i < 60'000; ++i) ASSERT_EQ(static_cast<std::size_t>(memory->data()[i]), i / 1000) << i;
}

TEST_P(NetLoopbackBoth, OddSizesAndOffsetsAndPutsOfManyCommands) {
  const auto engine = make_loopback(config());
  Channel& channel = engine->channel(0);
  const std::size_t long_bytes = 2 * kMaxPutBytes + 12345;
  const auto memory = Memory::anonymous(long_bytes + 4096);
  const WindowId window = open_window(*engine, 1, memory);
  std::vector<std::uint32_t> numbers(long_bytes / 4 + 1);
  std::iota(numbers.begin(), numbers.end(), 1u);
  const auto* source = reinterpret_cast<const unsigned char*>(numbers.data());
  EXPECT_TRUE(channel.try_put(window, 0, nullptr, 0));
  EXPECT_EQ(channel.submitted(), 0u);
  ASSERT_TRUE(channel.try_put(window, 1027, source + 1, long_bytes - 1));
  EXPECT_EQ(channel.submitted(), 3u) << "16 MiB a command";
  ASSERT_TRUE(test::put(channel, window, 17, source + 3, 1));
  ASSERT_TRUE(test::post(channel, window, 8, ~std::uint64_t{0}));
  ASSERT_TRUE(eventually([&] { return read_signal(*memory, 8) == ~std::uint64_t{0}; }));
  EXPECT_EQ(std::memcmp(memory->data() + 1027, source + 1, long_bytes - 1), 0);
  EXPECT_EQ(static_cast<unsigned char>(memory->data()[17]), source[3]);
  EXPECT_EQ(engine->poll_error(), std::nullopt);
  const auto small = make_loopback({.ring_slots = 2});
  const WindowId other = open_window(*small, 1, memory);
  EXPECT_THROW((void)small->channel(0).try_put(other, 0, source, long_bytes), Error) << "can never fit into two slots";
}

TEST_P(NetLoopbackBoth, APostWaitsForPutsToOtherWindowsOfThePeer) {
  const auto engine = make_loopback(config());
  Channel& channel = engine->channel(0);
  const auto rows = Memory::anonymous(1 << 16);
  const auto signals = Memory::anonymous(4096);
  const WindowId rows_window = open_window(*engine, 4, rows);
  const WindowId signals_window = open_window(*engine, 4, signals);
  const std::uint64_t rounds = 500;
  std::vector<std::uint64_t> source(rounds);
  std::thread reader([&] {
    for (std::uint64_t i = 0; i < rounds; ++i) {
      ASSERT_TRUE(eventually([&] { return read_signal(*signals, 0) > i; }));
      std::uint64_t seen = 0;
      std::memcpy(&seen, rows->data() + i * 8, 8);
      ASSERT_EQ(seen, i + 7);
    }
  });
  for (std::uint64_t i = 0; i < rounds; ++i) {
    source[i] = i + 7;
    ASSERT_TRUE(test::put(channel, rows_window, i * 8, &source[i], 8));
    ASSERT_TRUE(test::post(channel, signals_window, 0, i + 1));
  }
  reader.join();
}

TEST_P(NetLoopbackBoth, OutOfRangeBecomesAnErrorAndNoLaterPostLies) {
  std::vector<unsigned char> source(8192, 1);
  struct Case {
    std::uint64_t offset;
    std::size_t bytes;
  };
  for (const Case bad :
       {Case{4096, 1}, Case{4000, 97}, Case{0, 4097}, Case{(1ull << 40) - 1, 1}, Case{1ull << 39, 4096}}) {
    const auto engine = make_loopback(config());
    Channel& channel = engine->channel(0);
    const auto memory = Memory::anonymous(4096);
    const WindowId window = open_window(*engine, 3, memory);
    ASSERT_TRUE(test::put(channel, window, bad.offset, source.data(), bad.bytes));
    ASSERT_TRUE(test::post(channel, window, 8, 9));
    ASSERT_TRUE(all_completed(channel));
    const auto error = engine->poll_error();
    ASSERT_TRUE(error);
    EXPECT_NE(error->what.find("rank 3"), std::string::npos) << error->what;
    EXPECT_NE(error->what.find(std::to_string(bad.offset)), std::string::npos) << error->what;
    EXPECT_EQ(engine->poll_error(), std::nullopt) << "an error is told once";
    EXPECT_EQ(read_signal(*memory, 8), 0u);
    // A window opened afterwards works again.
    const WindowId again = open_window(*engine, 3, memory);
    ASSERT_TRUE(test::post(channel, again, 8, 10));
    EXPECT_TRUE(eventually([&] { return read_signal(*memory, 8) == 10; }));
  }
  const auto engine = make_loopback(config());
  const auto memory = Memory::anonymous(4096);
  const WindowId window = open_window(*engine, 3, memory);
  ASSERT_TRUE(engine->channel(0).try_post(window, memory->size(), 1));
  EXPECT_TRUE(eventually([&] { return engine->poll_error().has_value(); }));
}

TEST(NetLoopback, MisuseIsRefusedAtOnce) {
  const auto engine = make_loopback({});
  Channel& channel = engine->channel(0);
  const auto memory = Memory::anonymous(4096);
  const WindowId window = open_window(*engine, 0, memory);
  const auto refused_argument = [](auto call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.argument.empty() ? name(error.code()) : error.argument;
    }
    return "nothing";
  };
  char byte = 0;
  EXPECT_EQ(refused_argument([&] { (void)channel.try_put(window + 1, 0, &byte, 1); }), "window");
  EXPECT_EQ(refused_argument([&] { (void)channel.try_put(0, 0, &byte, 1); }), "window");
  EXPECT_EQ(refused_argument([&] { (void)channel.try_put(window, 1ull << 40, &byte, 1); }), "offset");
  EXPECT_EQ(refused_argument([&] { (void)channel.try_put(window, 0, nullptr, 1); }), "src");
  EXPECT_EQ(refused_argument([&] { (void)channel.try_put(window, 0, reinterpret_cast<void*>(1ull << 48), 1); }), "src");
  EXPECT_EQ(refused_argument([&] { (void)channel.try_put(window, 8, &byte, (1ull << 40) - 7); }), "bytes");
  EXPECT_EQ(refused_argument([&] { (void)channel.try_post(window, 4, 1); }), "offset");
  EXPECT_EQ(refused_argument([&] { (void)engine->channel(1); }), "index");
  EXPECT_EQ(refused_argument([&] { (void)engine->channel(-1); }), "index");
  EXPECT_EQ(refused_argument([&] { (void)engine->open(-1, engine->describe(memory), memory); }), "peer");
  EXPECT_EQ(refused_argument([&] { (void)engine->open(1, {}, memory); }), "description");
  EXPECT_EQ(refused_argument([&] { (void)engine->open(1, engine->describe(Memory::anonymous(8192)), memory); }),
            "description");
  EXPECT_EQ(refused_argument([&] { (void)engine->open(1, engine->describe(memory), nullptr); }),
            name(ErrorCode::kUnsupported));
  EXPECT_EQ(refused_argument([] { make_loopback({.num_channels = 0}); }), "num_channels");
  EXPECT_EQ(refused_argument([] { make_loopback({.ring_slots = 12}); }), "ring_slots");
  EXPECT_EQ(refused_argument([] { make_loopback({.max_post_delay_ns = -1}); }), "max_post_delay_ns");
  EXPECT_EQ(channel.submitted(), 0u);
}

TEST_P(NetLoopbackBoth, ClosedWindowsKeepTheirMemoryUntilDoneAndTheirIdsDie) {
  const auto engine = make_loopback(config());
  Channel& channel = engine->channel(0);
  auto memory = Memory::anonymous(4096);
  const std::weak_ptr<Memory> watch = memory;
  const WindowId window = open_window(*engine, 1, memory);
  std::uint64_t source = 5;
  ASSERT_TRUE(test::put(channel, window, 0, &source, 8));
  engine->close(window, nullptr);
  memory.reset();
  EXPECT_TRUE(eventually([&] { return watch.expired(); }));
  EXPECT_EQ(channel.completed(), 1u);
  EXPECT_THROW((void)channel.try_put(window, 0, &source, 8), Error);
  EXPECT_THROW(engine->close(window, nullptr), Error);
  const auto next = Memory::anonymous(4096);
  const WindowId reopened = open_window(*engine, 1, next);
  EXPECT_NE(reopened, window);
  EXPECT_EQ(reopened % kMaxWindows, window % kMaxWindows) << "slots are used again";
  EXPECT_THROW((void)channel.try_post(window, 0, 1), Error);
  EXPECT_TRUE(channel.try_post(reopened, 0, 1));
}

TEST_P(NetLoopbackBoth, ClosedWindowsKeepWhatTheirPutsReadUntilDone) {
  EngineConfig delayed = config();
  delayed.max_post_delay_ns = 3'000'000;
  const auto engine = make_loopback(delayed);
  Channel& channel = engine->channel(0);
  const WindowId window = open_window(*engine, 1, Memory::anonymous(4096));
  auto source = Memory::anonymous(4096);
  const std::weak_ptr<Memory> watch = source;
  for (std::uint64_t i = 1; i <= 8; ++i) {
    ASSERT_TRUE(test::put(channel, window, 64, source->data(), 1024));
    ASSERT_TRUE(test::post(channel, window, 0, i));
  }
  const std::uint64_t submitted = channel.submitted();
  engine->close(window, std::move(source));
  EXPECT_TRUE(eventually([&] {
    if (!watch.expired()) return false;
    EXPECT_EQ(channel.completed(), submitted) << "the source went while commands could still read it";
    return true;
  }));
}

TEST(NetLoopback, AsManyWindowsAsSlotsAndNoMore) {
  const auto engine = make_loopback({});
  const auto memory = Memory::anonymous(4096);
  std::vector<WindowId> windows;
  for (std::uint32_t i = 0; i < kMaxWindows; ++i) windows.push_back(open_window(*engine, 0, memory));
  EXPECT_THROW(open_window(*engine, 0, memory), Error);
  engine->close(windows[17], nullptr);
  EXPECT_TRUE(eventually([&] {
    try {
      open_window(*engine, 0, memory);
      return true;
    } catch (const Error&) {
      return false;
    }
  }));
}

TEST_P(NetLoopbackBoth, DestructionDropsPendingCommandsAndTouchesNothingLater) {
  for (int round = 0; round < 20; ++round) {
    const auto memory = Memory::anonymous(1 << 20);
    auto source = std::make_unique<std::vector<unsigned char>>(1 << 20, 1);
    EngineConfig delayed = config();
    delayed.max_post_delay_ns = 1'000'000'000;
    auto engine = make_loopback(delayed);
    const WindowId window = open_window(*engine, 1, memory);
    for (int i = 0; i < 12; ++i) {
      ASSERT_TRUE(test::put(engine->channel(0), window, 64, source->data(), source->size() - 64));
      ASSERT_TRUE(test::post(engine->channel(0), window, 0, static_cast<std::uint64_t>(i) + 1));
    }
    const auto begin = std::chrono::steady_clock::now();
    engine.reset();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(900))
        << "does not wait for delayed posts";
    source.reset();
    std::memset(memory->data(), 0, memory->size());  // a race for ThreadSanitizer if the proxy still wrote
    EXPECT_EQ(memory.use_count(), 1);
  }
}

}  // namespace
}  // namespace ferry::net
