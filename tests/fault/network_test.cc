// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Faults that only a network has: a proxy thread that stands still for seconds, and peers that leave while others still have
// signals on their way to them. Links that are cut need namespaces: tools/netns.sh.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "fault_support.h"

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
constexpr std::chrono::seconds kStall{2};

std::atomic<int> stalled{0};

/// Makes this process's network proxies stand still for kStall, as a thread does that gets no core. SIGPROF is one of the few
/// signals that they take.
void stall_proxies() {
  struct sigaction action {};
  action.sa_handler = [](int) {
    ++stalled;
    timespec time{.tv_sec = kStall.count(), .tv_nsec = 0};
    ::nanosleep(&time, nullptr);
  };
  ::sigaction(SIGPROF, &action, nullptr);
  int found = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    file >> name;
    if (name != "ferry-proxy") continue;
    ::syscall(SYS_tgkill, ::getpid(), std::stoi(task.path().filename()), SIGPROF);
    ++found;
  }
  require(found > 0, "this rank has no network proxy");
}

TEST_P(NetworkFault, AProxyThatStandsStillDelaysAndLosesNothing) {
  const Case c = make_case({2, 2});
  const Reference all(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    round_trip(group, all, rank.rank);
    board.meet(kTogether, rank.size);
    if (rank.rank == 1) stall_proxies();
    const Outcome outcome = outcome_of([&] {
      for (int i = 0; i < 3; ++i) round_trip(group, all, rank.rank);
    });
    require(!outcome.error, outcome.text());
    // A rank that waits does the proxy's work (Engine::help), so it may go on all the same.
    require(rank.rank != 1 || stalled > 0, "no proxy stood still: nothing was tested");
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
