// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// After every kind of fault the group can be closed, the device is well, and a new group of the same ranks works.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <thread>

#include "fault_support.h"
#include "support/streams.h"

namespace ferry::test {
namespace {

constexpr Milliseconds kDeadline{300};

/// What goes wrong on one rank, and what all ranks it concerns are told. `hit` makes the calls of a rank in `round`.
struct Trouble {
  const char* name;
  std::vector<ErrorCode> codes;
  std::function<void(Group&, Round&, int rank)> hit;
  bool absent_is_told = true;  ///< the last rank gets an error, too
};

bool is_last(const Group& group, int rank) {
  return rank == group.size() - 1;
}

std::vector<Trouble> troubles() {
  const auto never_comes = [](Group& group, Round& round, int rank) {
    if (is_last(group, rank)) return;
    DispatchArgs args = round.dispatch_args();
    args.timeout = kDeadline;
    dispatch(group, round, args);
  };
  const auto never_combines = [](Group& group, Round& round, int rank) {
    const DispatchResult arrived = dispatch(group, round, round.dispatch_args());
    if (is_last(group, rank)) return;
    CombineArgs args = round.combine_args(arrived);
    args.timeout = kDeadline;
    combine(group, round, args);
  };
  const auto bad_id = [](Group& group, Round& round, int rank) {
    const DispatchArgs args = round.dispatch_args();
    if (is_last(group, rank)) round.set_id(args, 1, 1, 99);
    dispatch(group, round, args);
  };
  const auto bad_id_without_host_counts = [](Group& group, Round& round, int rank) {
    DispatchArgs args = round.dispatch_args();
    args.host_counts = false;
    if (is_last(group, rank)) round.set_id(args, 1, 1, 99);
    const DispatchResult arrived = group.dispatch(args);
    CombineArgs back = round.combine_args(arrived);  // of a call that has failed: does nothing, harms nobody
    back.timeout = kDeadline;
    combine(group, round, back);
  };
  const auto overflow = [](Group& group, Round& round, int) {
    DispatchArgs args = round.dispatch_args();
    args.expert_capacity = 1;
    dispatch(group, round, args);
  };
  const auto other_arguments = [](Group& group, Round& round, int rank) {
    DispatchArgs args = round.dispatch_args();
    if (is_last(group, rank)) args.payload[0].shape[1] -= 8;
    args.timeout = kDeadline;
    dispatch(group, round, args);
  };
  const auto aborted = [](Group& group, Round& round, int rank) {
    if (is_last(group, rank)) {
      std::this_thread::sleep_for(Milliseconds(50));
      group.abort();
    }
    dispatch(group, round, round.dispatch_args());
  };
  return {{"a rank never comes", {ErrorCode::kTimeout}, never_comes, false},
          {"a rank never combines", {ErrorCode::kTimeout}, never_combines, false},
          {"a bad id", {ErrorCode::kInvalidArgument}, bad_id},
          {"a bad id that the host does not wait for", {ErrorCode::kInvalidArgument}, bad_id_without_host_counts},
          {"too many rows for an expert", {ErrorCode::kOverflow}, overflow},
          {"other arguments on one rank", {ErrorCode::kMismatch}, other_arguments},
          {"abort()", {ErrorCode::kAborted}, aborted}};
}

TEST(NewGroup, WorksAfterEveryKindOfFault) {
  if (const std::string why = why_no_setup(Mode::kThroughput, {3}, ways()[0]); !why.empty()) GTEST_SKIP() << why;
  const Case c = all_to_all(Mode::kThroughput, {3}, ways()[0]);
  const Reference reference(c, 0);
  const auto all = troubles();
  Board board;
  run_and_report(c, [&](Rank rank) {
    int gate = 0;
    for (const Trouble& trouble : all) {
      {
        Group group = make_group(c, rank);
        round_trip(group, reference, rank.rank);
        Round round(reference, rank.rank);
        const Outcome outcome = outcome_of([&] { trouble.hit(group, round, rank.rank); });
        if (rank.rank != rank.size - 1 || trouble.absent_is_told) {
          require_error(outcome, trouble.codes, kDeadline, trouble.name);
          require(!outcome.error->step.empty(), "no step in: " + outcome.text());
        }
        if (!trouble.absent_is_told && rank.rank != rank.size - 1)
          require_waited_for(outcome, rank.size - 1, trouble.name);
        board.meet(gate++, rank.size);
        const auto start = std::chrono::steady_clock::now();
        group.close();
        require(std::chrono::steady_clock::now() - start < kSlack, "close() waited");
      }
      Group group = make_group(c, rank);
      const Outcome outcome = outcome_of([&] { round_trip(group, reference, rank.rank); });
      require(!outcome.error, fmt::format("a new group after {}: {}", trouble.name, outcome.text()));
      board.meet(gate++, rank.size);
    }
  });
}

/// Replays report as direct calls do: by check(), and the next replay works.
class ReplayFaults : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why;
  }
  static Case make_case() {
    Case c = all_to_all(Mode::kThroughput, {2});
    c.default_capacity = true;
    c.host_counts = false;
    return c;
  }
};

TEST_F(ReplayFaults, ABadIdIsNamedAndTheNextReplayWorks) {
  const Case c = make_case();
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchArgs args = round.dispatch_args();
    DispatchResult arrived = dispatch(group, round, args);
    const Graph graph(args.stream, [&] { arrived = group.dispatch(args); });
    board.meet(0, rank.size);
    for (int i = 0; i < 3; ++i) {
      if (rank.rank == 1) round.set_id(args, 2, 0, 4711);
      graph.replay(args.stream);
      round.wait();
      const Outcome outcome = outcome_of([&] { group.check(); });
      require_error(outcome, {ErrorCode::kInvalidArgument}, kLong, "a bad id in a replay");
      for (const char* part : {"rank 1", "row 2", "4711"})
        require(outcome.text().find(part) != std::string::npos, fmt::format("no '{}' in: {}", part, outcome.text()));
      board.meet(1 + i, rank.size);
      round.refill(args);
      graph.replay(args.stream);
      round.wait();
      group.check();
      round.check(arrived);
    }
  });
}

TEST_F(ReplayFaults, ARankThatDoesNotReplayIsNamed) {
  const Case c = make_case();
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    DispatchArgs args = round.dispatch_args();
    args.timeout = kDeadline;
    DispatchResult arrived = dispatch(group, round, args);
    const Graph graph(args.stream, [&] { arrived = group.dispatch(args); });
    board.meet(0, rank.size);
    if (rank.rank == 0) {
      graph.replay(args.stream);
      round.wait();
      const Outcome outcome = outcome_of([&] { group.check(); });
      require_error(outcome, {ErrorCode::kTimeout}, kDeadline, "a replay alone");
      require_waited_for(outcome, 1, "a replay alone");
    }
    board.meet(1, rank.size);
    if (rank.rank == 1) {  // late: what the other gave up on is no result
      graph.replay(args.stream);
      round.wait();
      const Outcome outcome = outcome_of([&] { group.check(); });
      require_error(outcome, {ErrorCode::kMismatch}, kDeadline, "a late replay");
    }
    board.meet(2, rank.size);
    graph.replay(args.stream);
    round.wait();
    group.check();
    round.check(arrived);
  });
}

}  // namespace
}  // namespace ferry::test
