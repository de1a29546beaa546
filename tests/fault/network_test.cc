// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Faults that only a network has: a proxy thread that stands still for seconds, and peers that leave while others still have
// signals on their way to them. Links that are cut need namespaces: tools/netns.sh.
#include <gtest/gtest.h>

#include <string>

#include "fault_support.h"
#include "support/proxies.h"

namespace ferry::test {
namespace {

class NetworkFault : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (on_cuda()) GTEST_SKIP() << "the host backend alone spans nodes";
    if (const std::string reason = why_no_network(GetParam()); !reason.empty()) GTEST_SKIP() << reason;
  }
  Case make_case(std::vector<int> nodes) const {
    Case c = all_to_all(Mode::kThroughput, std::move(nodes), RanksAs::kProcesses);
    c.network = GetParam();
    return c;
  }
};

enum Gate { kTogether, kOver };

TEST_P(NetworkFault, AProxyThatStandsStillDelaysAndLosesNothing) {
  const Case c = make_case({2, 2});
  const Reference all(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    round_trip(group, all, rank.rank);
    board.meet(kTogether, rank.size);
    if (rank.rank == 1) require(stall_proxies() > 0, "this rank has no network proxy");
    const Outcome outcome = outcome_of([&] {
      for (int i = 0; i < 3; ++i) round_trip(group, all, rank.rank);
    });
    require(!outcome.error, outcome.text());
    // A rank that waits does the proxy's work (Engine::help), so it may go on all the same.
    require(rank.rank != 1 || stalled_proxies() > 0, "no proxy stood still: nothing was tested");
  });
}

/// The last signals to a rank that has left fail; that is not the business of calls that others are still in.
TEST_P(NetworkFault, ARankThatLeavesDisturbsNobodyWhoDoesNotNeedIt) {
  const Case c = make_case({1, 1, 1});
  const Reference all(c, 0), fewer(without(c, 1), 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    round_trip(group, all, rank.rank);
    if (rank.rank == 1) return;
    group.mask(1);
    const Outcome outcome = outcome_of([&] {
      for (int i = 0; i < 20; ++i) round_trip(group, fewer, rank.rank);
    });
    require(!outcome.error, outcome.text());
    board.meet(kOver, 2);
  });
}

INSTANTIATE_TEST_SUITE_P(NetworksProcess, NetworkFault, testing::Values("tcp", "shm", "shuffle+tcp"),
                         [](const auto& network) {
                           std::string name = network.param;
                           for (char& letter : name) letter = letter == '+' ? '_' : letter;
                           return name;
                         });

}  // namespace
}  // namespace ferry::test
