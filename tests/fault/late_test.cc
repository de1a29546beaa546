// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A rank that comes late: within the deadline nobody minds; after it the others get an error, and all of them go on together.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <thread>
#include <tuple>

#include "fault_support.h"

namespace ferry::test {
namespace {

using Setup = std::tuple<Mode, std::vector<int>>;

class Late : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    const auto& [mode, nodes] = GetParam();
    if (const std::string why = why_no_setup(mode, nodes); !why.empty()) GTEST_SKIP() << why;
  }
  Case make_case() const { return all_to_all(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

TEST_P(Late, WithinTheDeadlineIsFine) {
  const Case c = make_case();
  const Reference reference(c, 0);
  const int late = c.num_ranks() - 1;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (int i = 0; i < 3; ++i) {
      if (rank.rank == late) std::this_thread::sleep_for(Milliseconds(60));
      round_trip(group, reference, rank.rank);
    }
    require(group.statistics().wait_ns.size() == static_cast<std::size_t>(rank.size), "no waiting times");
    if (rank.rank == 0 && !on_cuda())  // there kernels wait, and nobody asks them how long
      require(group.statistics().wait_ns[static_cast<std::size_t>(late)] > 30'000'000,
              "time spent waiting for the late rank is not counted");
  });
}

/// The late rank begins `missed` calls only after all others have given up on all of them.
void miss_dispatches(Case c, int missed) {
  c.rounds = missed + 1;  // other rows and counts each time: what is left of another call would be seen
  const auto references = make_references(c);
  const Reference& reference = *references.back();
  const int late = c.num_ranks() - 1, others = late;
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    round_trip(group, reference, rank.rank);
    if (rank.rank == late) board.wait_for(0, others);
    for (int i = 0; i < missed; ++i) {
      const Outcome outcome = outcome_of([&] {
        Round round(*references[static_cast<std::size_t>(i)], rank.rank);
        DispatchArgs args = round.dispatch_args();
        args.timeout = kShort;
        round.check(dispatch(group, round, args));  // if the late rank has everything, it must be right
      });
      const std::string when = fmt::format("call {} without the late rank", i);
      if (rank.rank == late) {
        if (outcome.error) require_error(outcome, {ErrorCode::kTimeout, ErrorCode::kMismatch}, kShort, "late");
      } else {
        require_error(outcome, {ErrorCode::kTimeout}, kShort, when);
        require_waited_for(outcome, late, when);
        require(outcome.took >= kShort, when + ": gave up before its deadline: " + outcome.text());
        const PeerWait* wait = nullptr;
        for (const PeerWait& one : outcome.error->peers) {
          if (one.rank == late) wait = &one;
        }
        require(wait != nullptr && wait->seen < wait->wanted, when + ": counters make no sense: " + outcome.text());
        require(outcome.error->epoch == static_cast<std::uint64_t>(3 + i), when + ": wrong epoch: " + outcome.text());
        require(wait->activity.find("call 2 combine") != std::string::npos,
                when + ": wrong activity: " + wait->activity);
      }
    }
    if (rank.rank != late) board.arrive(0);
    for (int i = 0; i < 4; ++i) {
      const Outcome outcome = outcome_of([&] { round_trip(group, reference, rank.rank); });
      require(!outcome.error, fmt::format("call {} after the late one: {}", i, outcome.text()));
    }
  });
}

TEST_P(Late, AfterTheDeadline) {
  miss_dispatches(make_case(), 1);
}
TEST_P(Late, ThreeCallsBehind) {
#if defined(__SANITIZE_THREAD__)
  if (std::get<0>(GetParam()) == Mode::kThroughput)
    GTEST_SKIP() << "who has given up overwrites counts that a late rank may be reading (docs/memory_model.md)";
#endif
  miss_dispatches(make_case(), 3);
}

TEST_P(Late, InCombine) {
  const Case c = make_case();
  const Reference reference(c, 0);
  const int late = c.num_ranks() - 1, others = late;
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    DispatchResult arrived = group.dispatch(round.dispatch_args());
    if (rank.rank == late) board.wait_for(0, others);
    for (int i = 0; i < 3; ++i) {
      const Outcome outcome = outcome_of([&] {
        CombineArgs args = round.combine_args(arrived);
        args.timeout = kShort;
        round.check(combine(group, round, args));
      });
      if (rank.rank == late) {
        if (outcome.error) require_error(outcome, {ErrorCode::kTimeout, ErrorCode::kMismatch}, kShort, "late");
      } else {
        require_error(outcome, {ErrorCode::kTimeout}, kShort, "combine without the late rank");
        require(!outcome.error->peers.empty() && !outcome.error->step.empty(), outcome.text());
      }
    }
    if (rank.rank != late) board.arrive(0);
    for (int i = 0; i < 4; ++i) {
      const Outcome outcome = outcome_of([&] { round_trip(group, reference, rank.rank); });
      require(!outcome.error, fmt::format("call {} after the late one: {}", i, outcome.text()));
    }
  });
}

/// The handle is that of a dispatch that went well: rows can still come back by it.
TEST_P(Late, ACachedDispatchThatFailsLeavesItsHandle) {
  const Case c = make_case();
  const Reference reference(c, 0);
  const int late = c.num_ranks() - 1, others = late;
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchResult arrived = dispatch(group, round, round.dispatch_args());
    const CombineArgs back = round.combine_args(arrived);
    DispatchArgs again = round.cached_args(arrived.handle);
    again.topk_weights = Tensor{};  // or it would get a handle of its own
    again.timeout = kShort;
    if (rank.rank == late) board.wait_for(0, others);
    const Outcome outcome = outcome_of([&] { dispatch(group, round, again); });
    if (rank.rank != late) {
      require_error(outcome, {ErrorCode::kTimeout}, kShort, "without the late rank");
      board.arrive(0);
    } else if (outcome.error) {
      require_error(outcome, {ErrorCode::kTimeout, ErrorCode::kMismatch}, kShort, "late");
    }
    round.check(combine(group, round, back));
  });
}

INSTANTIATE_TEST_SUITE_P(Setups, Late,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(std::vector<int>{3}, std::vector<int>{2, 2})),
                         [](const auto& setup) {
                           return std::string(name(std::get<0>(setup.param))) + "_" +
                                  nodes_name(std::get<1>(setup.param));
                         });

}  // namespace
}  // namespace ferry::test
