// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The suite's generated cases between nodes that only a network links: tcp and shm of libfabric, each also shuffled. Ranks are
// processes, and "Process" in the names keeps ThreadSanitizer away, which does not see what libfabric stores.
// FERRY_TEST_NETWORK_CASES=N draws N cases per network instead of the few that CI has time for.
#include <gtest/gtest.h>

#include <cstdlib>

#include "support/runner.h"

namespace ferry::test {
namespace {

class NetworkProcesses : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const std::string reason = why_no_network(GetParam()); !reason.empty()) GTEST_SKIP() << reason;
    if (adapted(Case{}).backend != "host") GTEST_SKIP() << "the host backend alone spans nodes";
  }
};

std::string name_of(const testing::TestParamInfo<const char*>& network) {
  std::string name = network.param;
  for (char& letter : name) letter = letter == '+' ? '_' : letter;
  return name;
}

int num_cases() {
  const char* wanted = std::getenv("FERRY_TEST_NETWORK_CASES");
  return wanted == nullptr ? 8 : std::atoi(wanted);
}

void run(const Case& c) {
  try {
    run_case(c);
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }
}

TEST_P(NetworkProcesses, GeneratedCasesMatchTheReference) {
  const int cases = num_cases();
  ASSERT_GT(cases, 0);
  for (int i = 0; i < cases && !HasFatalFailure(); ++i)
    run(draw_network_case(1000 + static_cast<std::uint64_t>(i), GetParam()));
}

/// Every shape of nodes with every mode and reduction, once.
TEST_P(NetworkProcesses, NodesOfAnySize) {
  int number = 0;
  for (const std::vector<int>& nodes : {std::vector{2, 2}, {1, 1, 1, 1}, {2, 1}, {1, 3}}) {
    Case c;
    c.seed = 500 + static_cast<std::uint64_t>(number);
    c.nodes = nodes;
    c.network = GetParam();
    c.ranks_as = RanksAs::kProcesses;
    c.mode = number % 2 == 0 ? Mode::kThroughput : Mode::kLatency;
    c.layout = Layout::kExpertPadded;
    c.num_experts = 3 * c.num_ranks() + 1;
    c.top_k = 4;
    c.tokens = {33, 7, 60, 18};
    c.reduction = number % 2 == 0 ? Reduction::per_node() : Reduction::flat();
    c.rounds = 3;
    run(c);
    if (HasFatalFailure()) return;
    ++number;
  }
}

INSTANTIATE_TEST_SUITE_P(Networks, NetworkProcesses, testing::Values("tcp", "shm", "shuffle+tcp", "shuffle+shm"),
                         name_of);

/// Threads of one process over a real network: pretend nodes.
TEST(NetworkProcess, RanksAsThreadsOverTcp) {
  if (const std::string reason = why_no_network("tcp"); !reason.empty()) GTEST_SKIP() << reason;
  if (adapted(Case{}).backend != "host") GTEST_SKIP() << "the host backend alone spans nodes";
  Case c = draw_network_case(77, "tcp");
  c.ranks_as = RanksAs::kThreads;
  run(c);
}

std::string refusal(GroupConfig config) {
  std::string text = "made";
  config.limits.num_experts = 4;
  config.limits.hidden = 16;
  config.limits.max_tokens = config.limits.max_latency_tokens = 4;
  config.topology = Topology::nodes({1, 1});
  config.timeout = std::chrono::seconds(20);
  run_ranks(2, RanksAs::kThreads, [&](Rank rank) {
    try {
      const Group group = Group::create(config, *rank.meeting);
    } catch (const Error& error) {
      if (rank.rank == 0) text = error.what();
    }
  });
  return text;
}

TEST(NetworkProcess, WhatAProviderCannotHonourIsRefusedOnAllRanks) {
  if (adapted(Case{}).backend != "host") GTEST_SKIP() << "the host backend alone spans nodes";
  GroupConfig config;
  config.network_options.nics = {"eth7"};
  EXPECT_NE(refusal(config).find("nics is for network cards"), std::string::npos) << refusal(config);
  config.network = "tcp";
  if (!why_no_network("tcp").empty()) return;
  EXPECT_NE(refusal(config).find("eth7"), std::string::npos) << refusal(config);
  config.network_options = {};
  config.network_options.traffic_class = "bulk_data";
  EXPECT_NE(refusal(config).find("traffic class"), std::string::npos) << refusal(config);
  config.network_options = {};
  config.network_options.proxy_threads = 0;
  EXPECT_NE(refusal(config).find("proxy_threads is 0"), std::string::npos) << refusal(config);
  config.network_options.proxy_threads = 2;
  EXPECT_EQ(refusal(config), "made");
}

}  // namespace
}  // namespace ferry::test
