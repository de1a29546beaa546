// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// libfabric's tcp and shm against the contract, two engines each, also shuffled: the same streams as over the loopback. The
// names hold "Process" because ThreadSanitizer, which leaves those out, does not see what a provider inside libfabric stores.
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>
#include <vector>

#include "ferry/error.h"
#include "net_support.h"
#include "support/proxies.h"

namespace ferry::net {
namespace {

using ferry::test::kProxyStall;
using ferry::test::stall_proxies;
using ferry::test::stalled_proxies;
using test::all_completed;
using test::eventually;
using test::kRowsPerPost;
using test::kSanitized;
using test::open_window;
using test::read_signal;
using test::Stream;

EngineConfig config_of(const std::string& network, int rank) {
  EngineConfig config;
  config.network = network;
  config.rank = rank;
  config.same_machine = true;
  return config;
}

std::string why_not(const std::string& network) {
  const std::string plain = network.substr(network.find('+') + 1);
  for (const Provider& one : find_networks()) {
    if (one.name == plain) return one.why_not;
  }
  return "unknown";
}

class NetFabricProcess : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const std::string reason = why_not(GetParam()); !reason.empty()) GTEST_SKIP() << reason;
  }
  EngineConfig config(int rank) const { return config_of(GetParam(), rank); }
};

INSTANTIATE_TEST_SUITE_P(Networks, NetFabricProcess, testing::Values("tcp", "shm", "shuffle+tcp", "shuffle+shm"),
                         [](const auto& network) {
                           std::string name = network.param;
                           for (char& letter : name) letter = letter == '+' ? '_' : letter;
                           return name;
                         });

/// One sender, `peers` readers with an engine each.
void run_streams(const EngineConfig& sender_config, int peers, std::uint64_t commands, bool mergeable) {
  const auto sender = make_engine(sender_config);
  std::vector<std::unique_ptr<Engine>> readers;
  std::vector<std::unique_ptr<Stream>> streams;
  for (int peer = 1; peer <= peers; ++peer) {
    EngineConfig reader = sender_config;
    reader.rank = peer;
    readers.push_back(make_engine(reader));
    streams.push_back(std::make_unique<Stream>(*sender, *readers.back(), sender->channel(0), peer, mergeable));
  }
  const std::uint64_t batches = commands / (kRowsPerPost + 1) / static_cast<std::uint64_t>(peers);
  std::vector<std::thread> threads;
  for (const auto& stream : streams)
    threads.emplace_back([&stream, batches] { EXPECT_EQ(stream->read_all(batches), 0u); });
  bool sent = true;
  for (std::uint64_t batch = 0; batch < batches && sent; ++batch) {
    for (const auto& stream : streams) sent = sent && stream->send(batch);
  }
  EXPECT_TRUE(sent);
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(all_completed(sender->channel(0)));
  if (const auto failure = sender->poll_error()) ADD_FAILURE() << failure->what;
}

TEST_P(NetFabricProcess, EveryPostGuardsItsRows) {
  run_streams(config(0), 1, kSanitized ? 5'000 : 25'000, false);
}

/// FERRY_TEST_COMMANDS=1000000: as many commands, shuffled or not, a payload check at each post.
TEST_P(NetFabricProcess, AsManyCommandsAsAskedFor) {
  const char* wanted = std::getenv("FERRY_TEST_COMMANDS");
  if (wanted == nullptr) GTEST_SKIP() << "set FERRY_TEST_COMMANDS to a number of commands";
  run_streams(config(0), 1, static_cast<std::uint64_t>(std::atoll(wanted)), false);
}

TEST_P(NetFabricProcess, ThreePeersInASmallRingThatWraps) {
  EngineConfig small = config(0);
  small.ring_slots = 8;
  small.first_index = (1ull << 63) - 9;
  run_streams(small, 3, 6'000, true);
  small.first_index = (1ull << 32) - 9;
  run_streams(small, 2, 3'000, false);
}

TEST_P(NetFabricProcess, ThreeProxies) {
  EngineConfig several = config(0);
  several.num_proxies = 3;
  several.proxy_cores = {0};
  run_streams(several, 4, 4'000, false);
}

TEST_P(NetFabricProcess, LargePutsArriveWhole) {
  const auto a = make_engine(config(0));
  const auto b = make_engine(config(1));
  const auto window = Memory::anonymous(40 << 20);
  const auto source = Memory::anonymous(40 << 20);
  static_cast<void>(a->describe(source));
  for (std::size_t i = 0; i < source->size(); ++i) source->data()[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  const WindowId id = open_window(*a, *b, 1, window);
  const std::size_t bytes = (37 << 20) + 13;
  ASSERT_TRUE(test::put(a->channel(0), id, 4099, source->data() + 7, bytes));
  ASSERT_TRUE(test::post(a->channel(0), id, 8, 5));
  ASSERT_TRUE(eventually([&] { return read_signal(*window, 8) == 5; }));
  EXPECT_EQ(std::memcmp(window->data() + 4099, source->data() + 7, bytes), 0);
  EXPECT_EQ(window->data()[4098], std::byte{0});
  EXPECT_EQ(window->data()[4099 + bytes], std::byte{0});
  EXPECT_TRUE(all_completed(a->channel(0)));
}

TEST_P(NetFabricProcess, ProxiesThatStandStillAreBackPressureAndLoseNothing) {
  EngineConfig small = config(0);
  small.ring_slots = 64;
  const auto sender = make_engine(small);
  const auto reader = make_engine(config(1));
  Stream stream(*sender, *reader, sender->channel(0), 1, false);
  constexpr std::uint64_t kBatches = 50;
  std::thread reading([&] { EXPECT_EQ(stream.read_all(kBatches), 0u); });
  EXPECT_TRUE(stream.send(0));
  const auto start = std::chrono::steady_clock::now();
  const int proxies = stall_proxies();
  for (std::uint64_t batch = 1; batch < kBatches; ++batch) EXPECT_TRUE(stream.send(batch));
  reading.join();
  EXPECT_TRUE(all_completed(sender->channel(0)));
  EXPECT_EQ(proxies, 2);
  EXPECT_EQ(stalled_proxies(), 2);
  EXPECT_GT(std::chrono::steady_clock::now() - start, kProxyStall - std::chrono::milliseconds(200));
  EXPECT_GT(sender->statistics().stalls, 0u) << "the ring was never full";
}

TEST_P(NetFabricProcess, APeerThatIsGivenUpHoldsNothingBackAndMayComeBack) {
  if (std::string(GetParam()).find("shm") != std::string::npos)
    GTEST_SKIP() << "inside one process shm writes through a pointer into its peer; fault_tests has it as processes";
  const auto a = make_engine(config(0));
  const auto c = make_engine(config(2));
  const auto window = Memory::anonymous(1 << 20);
  const auto source = Memory::anonymous(1 << 20);
  static_cast<void>(a->describe(source));
  auto b = make_engine(config(1));
  const WindowId to_b = open_window(*a, *b, 1, window);
  const WindowId to_c = open_window(*a, *c, 2, window);
  ASSERT_TRUE(test::post(a->channel(0), to_b, 8, 1));
  ASSERT_TRUE(eventually([&] { return read_signal(*window, 8) == 1; }));
  b = nullptr;
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(test::put(a->channel(0), to_b, 4096, source->data(), 65536));
    ASSERT_TRUE(test::post(a->channel(0), to_b, 16, static_cast<std::uint64_t>(i) + 1));
    ASSERT_TRUE(test::post(a->channel(0), to_c, 24, static_cast<std::uint64_t>(i) + 1));
  }
  ASSERT_TRUE(eventually([&] { return read_signal(*window, 24) == 20; })) << "others go on";
  a->give_up(1);
  ASSERT_TRUE(all_completed(a->channel(0)));
  while (const auto failure = a->poll_error()) EXPECT_EQ(failure->peer, 1) << failure->what;
  a->close(to_b, source);
  b = make_engine(config(1));
  const WindowId again = open_window(*a, *b, 1, window);
  ASSERT_TRUE(test::put(a->channel(0), again, 4096, source->data(), 65536));
  ASSERT_TRUE(test::post(a->channel(0), again, 8, 3));
  EXPECT_TRUE(eventually([&] { return read_signal(*window, 8) == 3; }));
  EXPECT_TRUE(all_completed(a->channel(0)));
  if (const auto failure = a->poll_error()) ADD_FAILURE() << failure->what;
}

std::string message_of(const EngineConfig& config) {
  try {
    static_cast<void>(make_engine(config));
  } catch (const Error& error) {
    return error.what();
  }
  return "made";
}

TEST_P(NetFabricProcess, OptionsThatCannotBeHonouredAreRefused) {
  EngineConfig wrong = config(0);
  wrong.traffic_class = "fast";
  EXPECT_NE(message_of(wrong).find("low_latency"), std::string::npos) << message_of(wrong);
  wrong.traffic_class = "dscp:64";
  EXPECT_NE(message_of(wrong).find("dscp:0 to dscp:63"), std::string::npos) << message_of(wrong);
  wrong.traffic_class = "low_latency";
  EXPECT_NE(message_of(wrong).find("does not take a traffic class"), std::string::npos) << message_of(wrong);
  wrong = config(0);
  wrong.nics = {"no_such_card"};
  EXPECT_NE(message_of(wrong).find("no_such_card"), std::string::npos) << message_of(wrong);
  wrong = config(0);
  wrong.num_proxies = 17;
  EXPECT_NE(message_of(wrong).find("1 to 16"), std::string::npos) << message_of(wrong);
  wrong = config(0);
  wrong.proxy_cores = {4095};
  EXPECT_NE(message_of(wrong).find("4095"), std::string::npos) << message_of(wrong);
  wrong = config(0);
  wrong.near_pci = "ffff:ff:1f.7";
  EXPECT_NE(message_of(wrong).find("ffff:ff:1f.7"), std::string::npos) << message_of(wrong);
}

TEST(NetNetworks, UnknownNamesAndMisplacedOptions) {
  EXPECT_NE(message_of(config_of("token-ring", 0)).find("token-ring"), std::string::npos);
  EngineConfig loopback = config_of("loopback", 0);
  loopback.nics = {"eth0"};
  EXPECT_NE(message_of(loopback).find("nics"), std::string::npos);
  EXPECT_EQ(find_networks().size(), 5u);
}

}  // namespace
}  // namespace ferry::net
