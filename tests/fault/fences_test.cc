// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// One test per class of signal, credit and wait: each fails if the fence it is named after is taken out of a step
// (tools/mutate_fences.py takes them out one by one, docs/design/fences.md lists them). Under ThreadSanitizer a missing
// edge is a report even where the timing was kind.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>
#include <tuple>

#include "fault_support.h"

namespace ferry::test {
namespace {

using Weighting = CombineArgs::Weighting;

/// Every rank has rows for every other, one flight, random delays before every signal and a shuffled network.
Case busy_case(Mode mode, std::vector<int> nodes) {
  Case c = all_to_all(mode, std::move(nodes));
  c.num_flights = 1;
  c.rounds = 4;
  c.timeout = std::chrono::seconds(10);
  c.max_signal_delay_ns = 200'000;
  return c;
}

using Setup = std::tuple<Mode, std::vector<int>>;
std::string label(const testing::TestParamInfo<Setup>& setup) {
  return std::string(name(std::get<0>(setup.param))) + "_" + nodes_name(std::get<1>(setup.param));
}

class Fences : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    const auto& [mode, nodes] = GetParam();
    if (const std::string why = why_no_setup(mode, nodes); !why.empty()) GTEST_SKIP() << why;
  }
  Case make_case() const { return busy_case(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

/// Rounds of all steps, back to back.
void run_rounds(const Case& c) {
  const auto references = make_references(c);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (const auto& reference : references) round_trip(group, *reference, rank.rank);
  });
}

/// One dispatch whose rows come back several times, back to back.
void combine_again_and_again(const Case& c) {
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchResult arrived = group.dispatch(round.dispatch_args());
    for (int i = 0; i < 4; ++i) round.check(group.combine(round.combine_args(arrived)));
  });
}

TEST_P(Fences, RowsComeBeforeTheirSignal) {
  Case c = make_case();
  run_rounds(c);
  c.max_signal_delay_ns = 0;  // a network in order: what is posted too early also arrives too early
  run_rounds(c);
}

TEST_P(Fences, WeightsAheadComeBeforeTheirSignal) {
  Case c = make_case();
  c.weighting = Weighting::kGiven;
  c.combine_weights = true;
  run_rounds(c);
}

TEST_P(Fences, ChoicesReturnedOneByOneComeBeforeTheirSignal) {
  Case c = make_case();
  c.reduction = Reduction::flat();
  run_rounds(c);
}

/// A combine waits for nobody's next call, so a fast rank would write slots that a slow one still reads: the credit stops it.
TEST_P(Fences, CombineSlotsAreReadBeforeTheyAreWrittenAgain) {
  Case c = make_case();
  if (on_cuda() && c.mode == Mode::kLatency && c.nodes.size() > 1)
    GTEST_SKIP() << "the cuda backend sends no weights ahead across nodes in latency mode";
  c.weighting = Weighting::kGiven;  // weights ahead are regions of the flight as well
  combine_again_and_again(c);
}

/// The same with a rank that has no tokens: it waits for nobody's rows, only for the credit.
TEST_P(Fences, CombineCreditHoldsBackARankThatAwaitsNothing) {
  Case c = make_case();
  c.tokens.assign(static_cast<std::size_t>(c.num_ranks()), 9);
  c.tokens[0] = 0;
  combine_again_and_again(c);
}

/// Dispatches alone. Who receives nothing runs ahead as far as counts (throughput) and credits (latency) let it.
TEST_P(Fences, DispatchesAloneKeepStep) {
  for (const Traffic traffic : {Traffic::kUniform, Traffic::kAllToOne, Traffic::kNowhere}) {
    Case c = make_case();
    c.traffic = traffic;
    c.top_k = 2;
    c.rounds = 8;
    const auto references = make_references(c);
    run_and_report(c, [&](Rank rank) {
      Group group = make_group(c, rank);
      for (const auto& reference : references) {
        Round round(*reference, rank.rank);
        round.check(group.dispatch(round.dispatch_args()));
      }
    });
  }
}

TEST_P(Fences, DroppedCallsAreFinishedBeforeTheirFlightIsTakenAgain) {
  const Case c = make_case();
  const auto references = make_references(c);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (const auto& reference : references) {
      Round round(*reference, rank.rank);
      if (rank.rank % 2 == 0) {
        group.dispatch_send(round.dispatch_args());
      } else {
        round.check(group.dispatch(round.dispatch_args()));
      }
      const DispatchResult arrived = group.dispatch(round.dispatch_args());
      round.check(arrived);
      if (rank.rank % 2 == 1) {
        group.combine_send(round.combine_args(arrived));
      } else {
        round.check(group.combine(round.combine_args(arrived)));
      }
      round.check(group.combine(round.combine_args(arrived)));
    }
    group.check();
  });
}

/// While a rank waits for one call it hands on the rows of others: no order of receives blocks.
TEST_P(Fences, ReceivesComeInAnyOrder) {
  Case c = make_case();
  c.num_flights = 2;
  c.timeout = std::chrono::seconds(5);
  const auto references = make_references(c);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round first(*references[0], rank.rank), second(*references[1], rank.rank);
    PendingDispatch a = group.dispatch_send(first.dispatch_args());
    PendingDispatch b = group.dispatch_send(second.dispatch_args());
    const bool backwards = rank.rank % 2 == 0;
    DispatchResult one = backwards ? DispatchResult() : a.receive();
    const DispatchResult two = b.receive();
    if (backwards) one = a.receive();
    first.check(one);
    second.check(two);
  });
}

/// What was sent before a group is closed belongs to calls that peers are still in.
TEST_P(Fences, WhatWasSentArrivesThoughItsGroupIsClosed) {
  if (std::get<0>(GetParam()) == Mode::kThroughput) GTEST_SKIP() << "a rail peer that leaves hands nothing on";
  Case c = make_case();
  c.max_signal_delay_ns = 3'000'000;
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    if (rank.rank == 0) {
      group.dispatch_send(round.dispatch_args());
      group.close();
      return;
    }
    round.check(group.dispatch(round.dispatch_args()));
  });
}

INSTANTIATE_TEST_SUITE_P(Setups, Fences,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(std::vector<int>{3}, std::vector<int>{2, 2})),
                         label);

constexpr std::chrono::nanoseconds kHold = Milliseconds(30);

/// The engine holds every signal back for milliseconds while rank 0's own thread goes on at once: with this seed the thread's
/// random delays (Runtime::delay_signal) are all zero.
void hold_back_the_engine(Case& c) {
  c.seed = 0xe217c1e66c88cc3u;
  c.max_signal_delay_ns = kHold.count();
}

/// Rank 0 comes so late that its peer has given up on `missed` calls; rank 0 then sends its part of them and drops it at
/// once. What its engine still has to read of them must stay as it is: the peer's credits came without the rows.
class GivenUp : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    if (on_cuda()) GTEST_SKIP() << "the cuda backend has no engine that reads later";
  }
  static constexpr int kTokens = 20;
  Case make_case(std::vector<int> nodes, int num_flights) const {
    Case c = busy_case(GetParam(), std::move(nodes));
    c.num_experts = c.num_ranks();
    c.top_k = c.num_ranks();
    c.num_flights = num_flights;
    hold_back_the_engine(c);
    return c;
  }
  /// The engine has read what it was given, or will soon; its signals are still held back.
  static void let_the_engine_read() { std::this_thread::sleep_for(kHold / 15); }
  /// The credits of a call that was given up have left this rank's engine, and the late rank may come.
  static void let_the_late_rank_come(Board& board) {
    std::this_thread::sleep_for(3 * kHold);
    board.arrive(0);
  }
};

TEST_P(GivenUp, DispatchStagingStaysUntilTheEngineHasReadThem) {
  Case c = make_case({1, 1}, 1);
  c.tokens = {kTokens, 0};
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round given_up(reference, rank.rank), kept(reference, rank.rank);
    DispatchArgs args = given_up.dispatch_args();
    if (rank.rank == 0) {
      board.wait_for(0, 1);
      group.dispatch_send(args);
      let_the_engine_read();
    } else {
      args.timeout = kShort;
      require_error(outcome_of([&] { group.dispatch(args); }), {ErrorCode::kTimeout}, kShort, "without rank 0");
      let_the_late_rank_come(board);
    }
    kept.check(group.dispatch(kept.dispatch_args()));
  });
}

TEST_P(GivenUp, CountsStayUntilTheEngineHasReadThem) {
  if (GetParam() == Mode::kLatency) GTEST_SKIP() << "latency mode exchanges no counts";
  Case c = make_case({1, 1}, 3);
  c.tokens = {kTokens, 0};
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    std::vector<std::unique_ptr<Round>> rounds;
    for (int i = 0; i < 3; ++i) rounds.push_back(std::make_unique<Round>(reference, rank.rank));
    for (int i = 0; i < 2; ++i) {
      DispatchArgs args = rounds[static_cast<std::size_t>(i)]->dispatch_args();
      if (rank.rank == 0) {
        board.wait_for(0, 1);
        group.dispatch_send(args);
        let_the_engine_read();
        if (i == 0) board.arrive(1);
        continue;
      }
      args.timeout = kShort;
      require_error(outcome_of([&] { group.dispatch(args); }), {ErrorCode::kTimeout}, kShort, "without rank 0");
      if (i == 0) continue;
      let_the_late_rank_come(board);
      board.wait_for(1, 1);  // the third call's counts lie where the first one's do
    }
    rounds[2]->check(group.dispatch(rounds[2]->dispatch_args()));
  });
}

TEST_P(GivenUp, CombineStagingStaysUntilTheEngineHasReadIt) {
  Case c = make_case({1, 1}, 1);
  c.tokens = {kTokens, kTokens};
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchResult arrived = group.dispatch(round.dispatch_args());
    CombineArgs args = round.combine_args(arrived);
    const CombineArgs again = round.combine_args(arrived);
    if (rank.rank == 0) {
      board.wait_for(0, 1);
      group.combine_send(args);
      let_the_engine_read();
    } else {
      args.timeout = kShort;
      require_error(outcome_of([&] { group.combine(args); }), {ErrorCode::kTimeout}, kShort, "without rank 0");
      let_the_late_rank_come(board);
    }
    round.check(group.combine(again));
  });
}

/// The forward region belongs to the rail peer, its mate writes it: only the rail peer's credit says that the engine is done.
TEST_P(GivenUp, TheForwardRegionStaysUntilTheEngineHasReadIt) {
  if (GetParam() == Mode::kLatency) GTEST_SKIP() << "latency mode forwards nothing";
  Case c = make_case({2, 1}, 1);
  c.tokens = {2, 2, kTokens};
  c.reduction = Reduction::per_rank();
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchResult arrived = group.dispatch(round.dispatch_args());
    CombineArgs args = round.combine_args(arrived);
    const CombineArgs again = round.combine_args(arrived);
    if (rank.rank == 2) {
      args.timeout = kShort;
      require_error(outcome_of([&] { group.combine(args); }), {ErrorCode::kTimeout}, kShort, "without ranks 0 and 1");
      let_the_late_rank_come(board);
    } else {
      board.wait_for(0, 1);
      round.check(group.combine(args));
    }
    round.check(group.combine(again));
  });
}

/// A send half that fails says so: peers could not use the flight again otherwise.
TEST_P(GivenUp, ASendThatFailsPostsItsCredit) {
  Case c = make_case({1, 1}, 1);
  c.weighting = Weighting::kGiven;  // the send half waits for the peer's weights
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchResult arrived = group.dispatch(round.dispatch_args());
    CombineArgs args = round.combine_args(arrived);
    const CombineArgs again = round.combine_args(arrived);
    args.timeout = kShort;
    if (rank.rank == 0) board.wait_for(0, 1);
    require_error(outcome_of([&] { group.combine(args); }), {ErrorCode::kTimeout}, kShort, "one without the other");
    board.arrive(0);
    round.check(group.combine(again));
  });
}

INSTANTIATE_TEST_SUITE_P(Modes, GivenUp, testing::Values(Mode::kThroughput, Mode::kLatency),
                         [](const auto& mode) { return std::string(name(mode.param)); });

/// A call that returns has been carried out: the process may end at once.
TEST(GoneAfterItsCall, AProcessOwesNobodyAnything) {
  if (on_cuda()) GTEST_SKIP() << "holds the host backend's engine back";
  Case c = busy_case(Mode::kLatency, {1, 1});
  c.num_experts = 2;
  c.top_k = 1;
  c.tokens = {20, 0};
  c.traffic = Traffic::kOneExpert;  // at rank 1
  hold_back_the_engine(c);
  const Reference reference(c, 0);
  SCOPED_TRACE(describe(c));
  for (int i = 0; i < 3; ++i) {
    RankProcesses ranks(2, [&](Rank rank) -> std::string {
      Group group = make_group(c, rank);
      Round round(reference, rank.rank);
      const DispatchArgs args = round.dispatch_args();
      if (rank.rank == 0)
        std::this_thread::sleep_for(Milliseconds(50));  // rank 1's signal is there: nothing to wait for
      const DispatchResult arrived = group.dispatch(args);
      if (rank.rank == 0) ::kill(::getpid(), SIGKILL);
      round.check(arrived);
      return {};
    });
    report(ranks, 2, {0});
  }
}

/// A group is used by one thread at a time, but by which one may change without any other synchronisation.
TEST(OneAfterTheOther, ThreadsThatTakeTurnsSeeEachOthersWrites) {
  Case c = busy_case(Mode::kThroughput, {1});
  c.max_signal_delay_ns = 0;
  c.output = Output::kOwned;  // the other thread's next dispatch must not end this one's result
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    const auto take_turns = [&](std::string& wrong) {
      try {
        for (int turns = 0; turns < 30;) {
          Round round(reference, rank.rank);
          DispatchResult result;
          const Outcome outcome = outcome_of([&] { result = group.dispatch(round.dispatch_args()); });
          if (outcome.is(ErrorCode::kInvalidArgument) && outcome.error->argument == "group") {  // the other's turn
            std::this_thread::yield();
            continue;
          }
          require(!outcome.error, outcome.text());
          round.check(result);
          ++turns;
        }
      } catch (const Failure& failure) {
        wrong = failure.what();
      }
    };
    std::string first, second;
    std::thread other([&] { take_turns(second); });
    take_turns(first);
    other.join();
    require(first.empty() && second.empty(), first + second);
  });
}

/// abort() may come from any thread, also while the group's windows are exchanged for those of another membership.
TEST(AbortFromOutside, WhileWindowsChange) {
  Case c = busy_case(Mode::kThroughput, {3});
  c.max_signal_delay_ns = 0;
  const Reference reference(without(c, 2), 0);
  for (int i = 0; i < 5; ++i) {
    Board board;
    run_and_report(c, [&](Rank rank) {
      Group group = make_group(c, rank);
      if (rank.rank == 2) return board.wait_for(1, 2);
      std::thread aborter;
      if (rank.rank == 0) {
        aborter = std::thread([&] {
          board.wait_for(0, 1);
          std::this_thread::sleep_for(std::chrono::microseconds(300 * i));
          group.abort();
        });
        board.arrive(0);
      }
      group.mask(2);
      const Outcome outcome = outcome_of([&] {
        for (int turn = 0; turn < 1000; ++turn) round_trip(group, reference, rank.rank);
      });
      if (aborter.joinable()) aborter.join();
      board.arrive(1);
      require_error(outcome, {ErrorCode::kAborted, ErrorCode::kPeerLost}, kLong, "after abort()");
    });
  }
}

}  // namespace
}  // namespace ferry::test
