// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// abort() from another thread ends waits on this rank and on its peers, as threads and as processes.
#include <gtest/gtest.h>

#include <thread>
#include <tuple>

#include "fault_support.h"

namespace ferry::test {
namespace {

using Setup = std::tuple<Mode, std::vector<int>, RanksAs>;

class Abort : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    const auto& [mode, nodes, ranks_as] = GetParam();
    if (const std::string why = why_no_setup(mode, nodes, ranks_as); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(Abort, EndsEveryWait) {
  const auto& [mode, nodes, ranks_as] = GetParam();
  const Case c = all_to_all(mode, nodes, ranks_as);
  const Reference reference(c, 0);
  const int absent = c.num_ranks() - 1;
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    round_trip(group, reference, rank.rank);
    board.meet(0, rank.size);
    if (rank.rank == absent) {
      board.wait_for(1, absent);  // in no call while it hears of the abort
      const Outcome later = outcome_of([&] { round_trip(group, reference, rank.rank); });
      require_error(later, {ErrorCode::kAborted}, kSlack, "a call after the abort");
      return;
    }
    std::thread aborter;
    if (rank.rank == 0) {
      aborter = std::thread([&] {
        std::this_thread::sleep_for(Milliseconds(100));
        group.abort();
      });
    }
    const Outcome outcome = outcome_of([&] { round_trip(group, reference, rank.rank); });
    if (aborter.joinable()) aborter.join();
    require_error(outcome, {ErrorCode::kAborted}, kSlack, "while waiting");
    if (on_cuda())
      require(outcome.took < Milliseconds(2000), "the kernel waited for its deadline, not for the abort word");
    require(outcome.text().find("rank 0") != std::string::npos, "it does not say who: " + outcome.text());
    require(outcome_of([&] { group.check(); }).is(ErrorCode::kAborted), "check() does not know of the abort");
    board.arrive(1);
    const Outcome later = outcome_of([&] { round_trip(group, reference, rank.rank); });
    require_error(later, {ErrorCode::kAborted}, kSlack, "a call after the abort");
  });
}

INSTANTIATE_TEST_SUITE_P(Setups, Abort,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(std::vector<int>{3}, std::vector<int>{2, 2}),
                                          testing::Values(RanksAs::kThreads, RanksAs::kProcesses)),
                         [](const auto& setup) {
                           return std::string(name(std::get<0>(setup.param))) + "_" +
                                  nodes_name(std::get<1>(setup.param)) + "_" + name(std::get<2>(setup.param));
                         });

TEST(Abort, WhileWindowsAreOpened) {
  const Case c = all_to_all(Mode::kThroughput, {3});
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    round_trip(group, reference, rank.rank);
    if (rank.rank != 0) {
      board.wait_for(0, 1);
      return;
    }
    group.mask(2);  // rank 1 does not follow
    std::thread aborter([&] {
      std::this_thread::sleep_for(Milliseconds(100));
      group.abort();
    });
    const Outcome outcome = outcome_of([&] { round_trip(group, reference, rank.rank); });
    aborter.join();
    board.arrive(0);
    require_error(outcome, {ErrorCode::kAborted}, kSlack, "while windows are opened");
  });
}

}  // namespace
}  // namespace ferry::test
