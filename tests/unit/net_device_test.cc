// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The engine as a GPU sees it, without one: threads command it through the ring of kernels, copy engines that take their time carry
// windows "on a device". And the limited link.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "ferry/error.h"
#include "net/device_ring.h"
#include "net/engine.h"
#include "net/rate_limiter.h"
#include "net/window_table.h"

namespace ferry::net {
namespace {

using namespace std::chrono_literals;

/// Carries orders out one after the other, each some time after it was given.
class SlowEngines final : public CopyEngines {
 public:
  SlowEngines() : thread_([this] { work(); }) {}
  ~SlowEngines() override {
    give([this] { stop_ = true; });
    thread_.join();
  }
  std::shared_ptr<std::byte> pinned(std::size_t bytes) override {
    auto memory = Memory::anonymous(bytes);
    return {memory, memory->data()};
  }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    give([=] { std::memcpy(to, from, bytes); });
  }
  void write(std::byte* to, std::uint64_t value) override {
    give([=] { std::atomic_ref(*reinterpret_cast<std::uint64_t*>(to)).store(value, std::memory_order_release); });
  }
  std::uint64_t mark() override {
    const std::uint64_t mark = ++marks_;
    give([this, mark] { reached_.store(mark, std::memory_order_release); });
    return mark;
  }
  std::uint64_t reached() override { return reached_.load(std::memory_order_acquire); }

 private:
  void give(std::function<void()> order) {
    const std::lock_guard lock(mutex_);
    orders_.push_back(std::move(order));
    given_.notify_one();
  }
  void work() {
    while (!stop_) {
      std::unique_lock lock(mutex_);
      given_.wait(lock, [this] { return !orders_.empty(); });
      const std::function<void()> order = std::move(orders_.front());
      orders_.pop_front();
      lock.unlock();
      order();
    }
  }
  std::mutex mutex_;
  std::condition_variable given_;
  std::deque<std::function<void()>> orders_;
  bool stop_ = false;
  std::uint64_t marks_ = 0;
  std::atomic<std::uint64_t> reached_{0};
  std::thread thread_;
};

/// What a kernel does by instructions of its own.
struct HostOps {
  std::uint64_t load_acquire(const std::uint64_t* at) const {
    return std::atomic_ref(*const_cast<std::uint64_t*>(at)).load(std::memory_order_acquire);
  }
  void store_release(std::uint64_t* at, std::uint64_t value) const {
    std::atomic_ref(*at).store(value, std::memory_order_release);
  }
  std::uint64_t compare_and_swap(std::uint64_t* at, std::uint64_t expected, std::uint64_t value) const {
    std::atomic_ref(*at).compare_exchange_strong(expected, value, std::memory_order_relaxed);
    return expected;
  }
  void publish(CommandWords* slot, const CommandWords& words) const {
    std::atomic_ref(slot->second).store(words.second, std::memory_order_relaxed);
    std::atomic_ref(slot->first).store(words.first, std::memory_order_release);
  }
};

struct Device {
  explicit Device(EngineConfig config) {
    config.copy_engines = std::make_shared<SlowEngines>();
    engine = make_loopback(config);
    ring = engine->device_ring();
    state = {ring.first_index, ring.first_index};
  }
  bool push(CommandWords words) {
    return push_command(ring, &state, words, HostOps{}, [] {
      std::this_thread::yield();
      return false;
    });
  }
  std::shared_ptr<Memory> memory(std::size_t bytes) {
    auto pages = Memory::anonymous(bytes);
    return Memory::on_device(pages->data(), bytes, pages);
  }
  WindowId open(int peer, const std::shared_ptr<Memory>& memory) {
    return engine->open(peer, engine->describe(memory), memory);
  }
  std::unique_ptr<Engine> engine;
  DeviceRing ring;
  DeviceRingState state;
};

std::uint64_t word_at(const std::shared_ptr<Memory>& memory, std::size_t offset) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory->data() + offset)).load(std::memory_order_acquire);
}

/// Several threads put and post at once; each reader sees its writer's row whole behind every total.
void run_producers(const EngineConfig& config) {
  constexpr int kProducers = 4;
  constexpr std::size_t kRowBytes = 512;
  constexpr std::uint64_t kRounds = 2000, kRows = 16;
  Device device(config);
  const auto window = device.memory(kProducers * kRows * kRowBytes + kProducers * 8);
  const WindowId id = device.open(1, window);
  const std::size_t signals = kProducers * kRows * kRowBytes;
  std::vector<std::vector<std::uint64_t>> sources(kProducers, std::vector<std::uint64_t>(kRows * kRowBytes / 8));
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (int p = 0; p < kProducers; ++p) {
    threads.emplace_back([&, p] {
      const auto row_at = [&](std::uint64_t row) { return (static_cast<std::size_t>(p) * kRows + row) * kRowBytes; };
      std::uint64_t read = 0;
      for (std::uint64_t round = 1; round <= kRounds; ++round) {
        // A row is written again when its reader, this thread, has seen the round kRows before.
        const std::uint64_t row = round % kRows;
        while (round > read + kRows) {
          const std::uint64_t seen = word_at(window, signals + static_cast<std::size_t>(p) * 8);
          for (; read < seen; ++read) {
            const auto* words = reinterpret_cast<const std::uint64_t*>(window->data() + row_at((read + 1) % kRows));
            if (words[0] != read + 1 || words[kRowBytes / 8 - 1] != read + 1) ++wrong;
          }
        }
        std::uint64_t* source = sources[static_cast<std::size_t>(p)].data() + row * kRowBytes / 8;
        std::fill_n(source, kRowBytes / 8, round);
        device.push(pack_put(slot_of(id), row_at(row), reinterpret_cast<std::uintptr_t>(source), kRowBytes));
        device.push(pack_post(slot_of(id), signals + static_cast<std::size_t>(p) * 8, round));
      }
      while (word_at(window, signals + static_cast<std::size_t>(p) * 8) < kRounds) std::this_thread::yield();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_EQ(device.state.head - device.ring.first_index, kProducers * kRounds * 2);
  while (HostOps{}.load_acquire(device.ring.completed) < kProducers * kRounds * 2) std::this_thread::yield();
  EXPECT_EQ(device.engine->poll_error(), std::nullopt);
}

TEST(NetDevice, ProducersAtOnceEveryPostGuardsItsRow) {
  run_producers({});
}
TEST(NetDevice, ProducersAtOnceInASmallRingNearTheEndOfTheIndex) {
  run_producers({.ring_slots = 4, .first_index = (1ull << 63) - 3});
}
TEST(NetDevice, ProducersAtOnceShuffled) {
  run_producers({.ring_slots = 16, .first_index = (1ull << 32) - 5, .shuffle_seed = 5});
}

TEST(NetDevice, AFullRingPublishesNothingForWhoGivesUp) {
  std::vector<CommandWords> slots(4);
  std::uint64_t tail = 0;
  const DeviceRing ring{.slots = slots.data(), .num_slots = 4, .slots_log2 = 2, .tail = &tail};
  DeviceRingState state;
  const auto never = [] { return true; };
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(push_command(ring, &state, pack_post(1, 8, i), HostOps{}, never));
  EXPECT_FALSE(push_command(ring, &state, pack_post(1, 8, 4), HostOps{}, never));
  EXPECT_EQ(state.head, 4u);
  tail = 1;
  EXPECT_TRUE(push_command(ring, &state, pack_post(1, 8, 5), HostOps{}, never));
  Command command;
  ASSERT_TRUE(unpack(slots[0], command));
  EXPECT_EQ(command.total, 5u);
  EXPECT_EQ(lap_of(slots[0].first), lap_of_index(4, 2));
  EXPECT_FALSE(push_command(ring, &state, pack_post(1, 8, 6), HostOps{}, never));
}

TEST(NetDevice, AStaleHeadAheadOfWhichTheTailHasGoneIsNoEndlessWait) {
  std::vector<CommandWords> slots(4);
  std::uint64_t tail = 40;
  const DeviceRing ring{.slots = slots.data(), .num_slots = 4, .slots_log2 = 2, .tail = &tail};
  DeviceRingState state{.head = 42, .cached_tail = 30};
  EXPECT_TRUE(push_command(ring, &state, pack_post(1, 8, 1), HostOps{}, [] { return true; }));
  EXPECT_EQ(state.head, 43u);
  EXPECT_EQ(state.cached_tail, 40u);
}

TEST(NetDevice, AHostSignalWaitsForWhatTheCopyEnginesHave) {
  Device device({});
  const auto on_device = device.memory(1 << 20);
  const auto on_host = Memory::anonymous(4096);
  const WindowId rows = device.open(1, on_device);
  const WindowId signals = device.engine->open(1, device.engine->describe(on_host), on_host);
  std::vector<std::uint64_t> source((1 << 20) / 8);
  Channel& channel = device.engine->channel(0);
  for (std::uint64_t round = 1; round <= 200; ++round) {
    std::fill(source.begin(), source.end(), round);
    while (!channel.try_put(rows, 0, source.data(), 1 << 20)) std::this_thread::yield();
    while (!channel.try_post(signals, 8, round)) std::this_thread::yield();
    while (word_at(on_host, 8) < round) std::this_thread::yield();
    const auto* words = reinterpret_cast<const std::uint64_t*>(on_device->data());
    ASSERT_EQ(words[0], round);
    ASSERT_EQ(words[(1 << 20) / 8 - 1], round);
  }
}

TEST(NetDevice, TheChannelOfKernelsTakesNoCallsAndWindowsOnDevicesNeedCopyEngines) {
  Device device({});
  const auto memory = device.memory(64);
  const WindowId id = device.open(1, memory);
  EXPECT_EQ(device.engine->num_channels(), 2);
  EXPECT_THROW(static_cast<void>(device.engine->channel(1).try_post(id, 0, 1)), Error);
  const auto plain = make_loopback({});
  EXPECT_THROW(plain->open(1, plain->describe(memory), memory), Error);
  EXPECT_EQ(plain->device_ring().slots, nullptr);
}

/// Over every 100 us in which it has work, a link passes what it should within 1 %, whatever the pieces.
TEST(RateLimiter, PassesItsRateInEveryWindow) {
  constexpr std::uint64_t kRate = 50'000'000'000;  // bytes a second
  constexpr std::int64_t kWindow = 100'000;        // ns
  RateLimiter link(kRate);
  std::mt19937_64 random(1);
  std::vector<std::pair<std::int64_t, std::uint64_t>> passed;  // when so many bytes had passed
  std::uint64_t bytes = 0;
  std::int64_t now = 1'000'000;
  passed.emplace_back(now, 0);
  while (passed.back().first < 20'000'000) {
    const std::uint64_t piece = 1 + random() % 40'000;  // what a signal announces
    bytes += piece;
    const std::int64_t at = link.pass(piece, now);
    ASSERT_GE(at, passed.back().first);
    passed.emplace_back(at, bytes);
    now = std::max(now, at - static_cast<std::int64_t>(random() % 5'000));  // always a little ahead: never idle
  }
  std::size_t end = 0;
  for (std::size_t begin = 0; end + 1 < passed.size(); ++begin) {
    while (end + 1 < passed.size() && passed[end].first < passed[begin].first + kWindow) ++end;
    const double ns = static_cast<double>(passed[end].first - passed[begin].first);
    const double rate = static_cast<double>(passed[end].second - passed[begin].second) / ns * 1e9;
    ASSERT_NEAR(rate / static_cast<double>(kRate), 1.0, 0.01);
  }
}

TEST(RateLimiter, SavesNothingUpAndLosesNothing) {
  RateLimiter link(3);  // a byte takes a third of a second, which is no whole number of nanoseconds
  std::int64_t at = 0;
  for (int i = 0; i < 3'000'000; ++i) at = link.pass(1, 0);
  EXPECT_EQ(at, 1'000'000'000'000'000);
  EXPECT_EQ(link.pass(3, at + 500), at + 500 + 1'000'000'000);  // idle for 500 ns: not a byte earlier for that
  EXPECT_EQ(RateLimiter(0).pass(1 << 30, 7), 7);
  RateLimiter fast(RateLimiter::kMaxRate);
  EXPECT_EQ(fast.pass(std::uint64_t{1} << 40, 0), 1'000'000'000);
}

/// Signals over a limited link are never earlier than the link would have them, on host windows and on devices.
TEST(NetDevice, ALimitedLinkHoldsSignalsBack) {
  constexpr std::uint64_t kRate = 100'000'000;
  constexpr std::size_t kBytes = 1'000'000;  // 10 ms
  for (const bool on_device : {false, true}) {
    Device device({.link_bytes_per_second = kRate});
    const auto window = on_device ? device.memory(kBytes + 8) : Memory::anonymous(kBytes + 8);
    const WindowId id = device.open(1, window);
    const std::vector<std::byte> source(kBytes);
    Channel& channel = device.engine->channel(0);
    const auto start = std::chrono::steady_clock::now();
    for (std::uint64_t round = 1; round <= 5; ++round) {
      while (!channel.try_put(id, 0, source.data(), kBytes)) std::this_thread::yield();
      while (!channel.try_post(id, kBytes, round)) std::this_thread::yield();
    }
    for (std::uint64_t round = 1; round <= 5; ++round) {
      while (word_at(window, kBytes) < round) std::this_thread::yield();
      EXPECT_GE(std::chrono::steady_clock::now() - start, static_cast<std::int64_t>(round) * 10ms);
    }
    while (channel.completed() < channel.submitted()) std::this_thread::yield();
  }
}

}  // namespace
}  // namespace ferry::net
