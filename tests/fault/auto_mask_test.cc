// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Groups that mask by themselves who misses a deadline: the call completes without it, it can come back, and what it still writes
// harms nobody. Ranks that are killed and stopped: lost_test.cc.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <thread>
#include <tuple>

#include "fault_support.h"

namespace ferry::test {
namespace {

constexpr int kLate = 0;  // the lowest: without it, rows of the others have other places
enum Gate { kOthersWentOn, kLateIsOver, kSent, kLateHasWritten, kTogether };

using Setup = std::tuple<Mode, std::vector<int>>;

class AutoMask : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    const auto& [mode, nodes] = GetParam();
    if (const std::string why = why_no_setup(mode, nodes); !why.empty()) GTEST_SKIP() << why;
    if (on_cuda() && mode == Mode::kThroughput) GTEST_SKIP() << "see AThroughputCallIsMadeAgain";
    if (on_cuda() && nodes.size() > 1) GTEST_SKIP() << "the cuda backend masks by itself inside one node only";
  }
  Case make_case() const { return all_to_all(std::get<0>(GetParam()), std::get<1>(GetParam())); }
  bool is_latency() const { return std::get<0>(GetParam()) == Mode::kLatency; }
  static Group make(const Case& c, Rank rank, int auto_masks = 2) {
    GroupConfig config = group_config(c);
    config.auto_masks = auto_masks;
    return make_group(c, rank, config);
  }
};

/// On a device, results do not say who was masked in their call: the host has not waited for it.
void require_late(const Group& group, const std::vector<int>& late) {
  require(group.masked().at(kLate), "masked() does not have the late rank");
  require(on_cuda() || late == std::vector<int>{kLate}, "the result does not name the late rank");
}

/// A rank that others have masked hears it in one of its next calls.
void hear_of_it(Group& group, const Reference& all, int rank) {
  Outcome outcome;
  for (int i = 0; i < 3 && !outcome.error; ++i) outcome = outcome_of([&] { round_trip(group, all, rank); });
  require_error(outcome, {ErrorCode::kMismatch}, kLong, "after it was left out");
  require(outcome.text().find("out") != std::string::npos, "it does not say left out: " + outcome.text());
}

void together_again(Group& group, const Reference& all, int rank, int size, Board& board) {
  board.meet(kTogether, size);
  group.unmask(kLate);
  for (int i = 0; i < 4; ++i) {
    const Outcome outcome = outcome_of([&] { round_trip(group, all, rank); });
    require(!outcome.error, fmt::format("call {} together again: {}", i, outcome.text()));
  }
  require(!group.masked().at(kLate), "masked() still has the mask");
}

TEST_P(AutoMask, WhoMissesADispatch) {
  const Case c = make_case();
  const Reference all(c, 0), fewer(without(c, kLate), 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make(c, rank);
    round_trip(group, all, rank.rank);
    if (rank.rank == kLate) {
      board.wait_for(kOthersWentOn, rank.size - 1);
      hear_of_it(group, all, rank.rank);
    } else {
      Round round(fewer, rank.rank);
      DispatchArgs args = round.dispatch_args();
      args.timeout = kShort;
      const DispatchResult arrived = dispatch(group, round, args);
      if (is_latency()) require_late(group, arrived.late);
      require(group.masked().at(kLate), "masked() does not have the late rank");
      round.check(arrived);
      round.check(combine(group, round, round.combine_args(arrived)));
      for (int i = 0; i < 5; ++i) round_trip(group, fewer, rank.rank);
      board.arrive(kOthersWentOn);
    }
    together_again(group, all, rank.rank, rank.size, board);
  });
}

TEST_P(AutoMask, WhoMissesACombine) {
  const Case c = make_case();
  const Reference all(c, 0), fewer(without(c, kLate), 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make(c, rank);
    round_trip(group, all, rank.rank);
    Round round(all, rank.rank), left(fewer, rank.rank);
    const DispatchResult arrived = dispatch(group, round, round.dispatch_args());
    round.check(arrived);
    CombineArgs args = round.combine_args(arrived);
    if (rank.rank == kLate) {
      board.wait_for(kOthersWentOn, rank.size - 1);
      outcome_of([&] { combine(group, round, args); });  // rows of the others may all be here
      hear_of_it(group, all, rank.rank);
    } else {
      args.timeout = kShort;
      const CombineResult out = combine(group, round, args);
      require_late(group, out.late);
      left.check(out);
      for (int i = 0; i < 5; ++i) round_trip(group, fewer, rank.rank);
      board.arrive(kOthersWentOn);
    }
    together_again(group, all, rank.rank, rank.size, board);
  });
}

/// The late rank returns its rows while the others are in a later combine of the same flight, between sending and receiving.
TEST_P(AutoMask, LateRowsHarmNobody) {
  if (!is_latency()) GTEST_SKIP() << "there the next call has windows of its own";
  Case c = make_case();
  c.num_flights = 1;
  const Reference all(c, 0), fewer(without(c, kLate), 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make(c, rank);
    round_trip(group, all, rank.rank);
    Round round(all, rank.rank), left(fewer, rank.rank);
    const DispatchResult arrived = dispatch(group, round, round.dispatch_args());
    CombineArgs args = round.combine_args(arrived);
    if (rank.rank == kLate) {
      board.wait_for(kSent, rank.size - 1);
      outcome_of([&] { combine(group, round, args); });
      board.arrive(kLateHasWritten);
      return;
    }
    args.timeout = kShort;
    left.check(combine(group, round, args));
    const DispatchResult next = dispatch(group, left, left.dispatch_args());
    left.check(next);
    PendingCombine returned = group.combine_send(left.combine_args(next));
    left.wait();
    board.arrive(kSent);
    board.wait_for(kLateHasWritten, 1);
    const CombineResult out = returned.receive();
    left.wait();
    left.check(out);
    if (on_cuda()) group.check();
  });
}

/// One after the other may be masked as often as the group was told, then calls fail as they do without.
TEST_P(AutoMask, NoMoreThanAsked) {
  if (!is_latency()) GTEST_SKIP() << "there every mask brings new windows";
  const Case c = make_case();
  Case two_left = without(without(c, 0), 1);
  const Reference all(c, 0), fewer(without(c, 0), 0), fewest(two_left, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make(c, rank, 1);
    round_trip(group, all, rank.rank);
    if (rank.rank == 0) return board.wait_for(kOthersWentOn, rank.size - 2);
    round_trip(group, fewer, rank.rank, kShort);
    if (rank.rank == 1) return board.wait_for(kOthersWentOn, rank.size - 2);
    Round round(fewer, rank.rank);
    DispatchArgs args = round.dispatch_args();
    args.timeout = kShort;
    const Outcome outcome = outcome_of([&] { dispatch(group, round, args); });
    board.arrive(kOthersWentOn);
    require_error(outcome, {ErrorCode::kTimeout}, kShort, "the second late rank");
    require_waited_for(outcome, 1, "the second late rank");
  });
}

INSTANTIATE_TEST_SUITE_P(Setups, AutoMask,
                         testing::Values(Setup{Mode::kLatency, {3}}, Setup{Mode::kLatency, {2, 2}},
                                         Setup{Mode::kThroughput, {3}}),
                         [](const auto& setup) {
                           return std::string(name(std::get<0>(setup.param))) + "_" +
                                  nodes_name(std::get<1>(setup.param));
                         });

/// The counts of a rank do not come: the others agree on new windows and make the call again, however many nodes there are.
TEST(AutoMaskThroughput, AThroughputCallIsMadeAgain) {
  for (const auto& nodes : {std::vector<int>{3}, {2, 2}}) {
    if (const std::string why = why_no_setup(Mode::kThroughput, nodes); !why.empty()) continue;
    if (on_cuda() && nodes.size() > 1) continue;  // refused, see Setups
    const Case c = all_to_all(Mode::kThroughput, nodes);
    const Reference all(c, 0), fewer(without(c, kLate), 0);
    Board board;
    run_and_report(c, [&](Rank rank) {
      GroupConfig config = group_config(c);
      config.auto_masks = 1;
      Group group = make_group(c, rank, config);
      round_trip(group, all, rank.rank);
      if (rank.rank == kLate) return board.wait_for(kOthersWentOn, rank.size - 1);
      // They come to the call one after the other, and the last when the first has given the late rank up.
      if (rank.rank == rank.size - 1) std::this_thread::sleep_for(kShort / 2);
      round_trip(group, fewer, rank.rank, kShort);
      for (int i = 0; i < 3; ++i) round_trip(group, fewer, rank.rank);
      require(group.masked().at(kLate), "masked() does not have the late rank");
      board.arrive(kOthersWentOn);
    });
  }
}

}  // namespace
}  // namespace ferry::test
