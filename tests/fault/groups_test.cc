// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Several groups, groups that go at the wrong moment, pendings in every order, and nothing left behind.
#include <dirent.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <set>
#include <thread>
#include <tuple>

#include "fault_support.h"

namespace ferry::test {
namespace {

using Setup = std::tuple<Mode, std::vector<int>>;

std::set<std::string> entries(const char* folder) {
  std::set<std::string> names;
  DIR* dir = ::opendir(folder);
  if (dir == nullptr) return names;
  while (const dirent* entry = ::readdir(dir)) names.insert(entry->d_name);
  ::closedir(dir);
  return names;
}

class Groups : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    const auto& [mode, nodes] = GetParam();
    if (const std::string why = why_no_setup(mode, nodes); !why.empty()) GTEST_SKIP() << why;
  }
  Case make_case(RanksAs ranks_as = RanksAs::kThreads) const {
    return all_to_all(std::get<0>(GetParam()), std::get<1>(GetParam()), ranks_as);
  }
};

TEST_P(Groups, TwoAtOnceWithOtherLimits) {
  const Case c = make_case();
  Case wide = c;
  wide.seed = 78;
  wide.blocks = {{DType::kBf16, 264}};
  wide.combine_width = 264;
  wide.num_flights = 1;
  wide.tokens = {1, 9, 4, 2, 3};
  const Reference first(c, 0), second(wide, 0);
  for (const RanksAs ranks_as : ways()) {
    Case run = c;
    run.ranks_as = ranks_as;
    run_and_report(run, [&](Rank rank) {
      Group one = make_group(c, rank);
      Group two = make_group(wide, rank);
      for (int i = 0; i < 3; ++i) {
        Round a(first, rank.rank), b(second, rank.rank);
        PendingDispatch sent_a = one.dispatch_send(a.dispatch_args());
        PendingDispatch sent_b = two.dispatch_send(b.dispatch_args());
        // Rows that hop over a rail peer are handed on while that peer is in a call of the same group, so ranks on several nodes
        // receive in the same order; on one node any order will do.
        DispatchResult in_a, in_b;
        const bool a_first = c.nodes.size() > 1 ? i % 2 == 0 : rank.rank % 2 == 0;
        if (a_first) in_a = sent_a.receive();
        in_b = sent_b.receive();
        if (!a_first) in_a = sent_a.receive();
        a.check(in_a);
        b.check(in_b);
        b.check(two.combine(b.combine_args(in_b)));
        a.check(one.combine(a.combine_args(in_a)));
      }
    });
  }
}

TEST_P(Groups, OneAfterTheOther) {
  const Case c = make_case();
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    for (int i = 0; i < 4; ++i) {
      Group group = make_group(c, rank);
      round_trip(group, reference, rank.rank);
    }
  });
}

TEST_P(Groups, DestroyedWhilePeersAreInACall) {
  for (const RanksAs ranks_as : ways()) {
    const Case c = make_case(ranks_as);
    const Reference reference(c, 0);
    Board board;
    run_and_report(c, [&](Rank rank) {
      Group group = make_group(c, rank);
      round_trip(group, reference, rank.rank);
      if (rank.rank == 1) {
        board.wait_for(0, rank.size - 1);
        std::this_thread::sleep_for(Milliseconds(20));
        const auto start = std::chrono::steady_clock::now();
        { Group gone = std::move(group); }
        require(std::chrono::steady_clock::now() - start < kSlack, "destroying waited");
        board.wait_for(1, rank.size - 1);  // the process lives on
        return;
      }
      board.arrive(0);
      Outcome outcome;
      for (int i = 0; i < 2 && !outcome.error; ++i)
        outcome = outcome_of([&] { round_trip(group, reference, rank.rank, Milliseconds(3000)); });
      board.arrive(1);
      require_error(outcome, {ErrorCode::kPeerLost, ErrorCode::kTimeout}, kLong, "peer destroyed its group");
      board.wait_for(1, rank.size - 1);  // or a second one would be gone before the others are through
    });
  }
}

TEST_P(Groups, DestroyedWithPendingsAlive) {
  const Case c = make_case();
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    PendingDispatch dispatching;
    PendingCombine combining;
    Round round(reference, rank.rank);
    {
      Group group = make_group(c, rank);
      const DispatchResult arrived = group.dispatch(round.dispatch_args());
      combining = group.combine_send(round.combine_args(arrived));
      dispatching = group.dispatch_send(round.dispatch_args());
    }
    require_error(outcome_of([&] { dispatching.receive(); }), {ErrorCode::kInvalidArgument}, kSlack,
                  "receive after the group has gone");
    require_error(outcome_of([&] { combining.receive(); }), {ErrorCode::kInvalidArgument}, kSlack,
                  "receive after the group has gone");
  });
}

TEST_P(Groups, ClosedGroupsRefuse) {
  const Case c = make_case();
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchResult arrived = group.dispatch(round.dispatch_args());
    PendingDispatch pending = group.dispatch_send(round.dispatch_args());
    board.meet(0, rank.size);
    group.close();
    group.close();
    const std::vector<std::function<void()>> calls = {[&] { pending.receive(); },
                                                      [&] { group.dispatch(round.dispatch_args()); },
                                                      [&] { group.combine(round.combine_args(arrived)); },
                                                      [&] { group.mask(0); },
                                                      [&] { group.unmask(0); },
                                                      [&] { group.check(); }};
    for (const auto& call : calls) {
      const Outcome outcome = outcome_of(call);
      require_error(outcome, {ErrorCode::kInvalidArgument}, kSlack, "after close()");
      require(outcome.text().find("closed") != std::string::npos, "it does not say closed: " + outcome.text());
    }
    group.abort();
    static_cast<void>(group.statistics());
    round.check(arrived);  // still mapped
  });
}

TEST_P(Groups, TooManyInFlight) {
  const Case c = make_case();
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    PendingDispatch one = group.dispatch_send(round.dispatch_args());
    PendingDispatch two = group.dispatch_send(round.dispatch_args());
    require_error(outcome_of([&] { group.dispatch_send(round.dispatch_args()); }), {ErrorCode::kInvalidArgument},
                  kSlack, "a third dispatch");
    const DispatchResult first = one.receive();
    round.check(first);
    round.check(two.receive());
    PendingCombine back = group.combine_send(round.combine_args(first));
    PendingCombine again = group.combine_send(round.combine_args(first));
    require_error(outcome_of([&] { group.combine_send(round.combine_args(first)); }), {ErrorCode::kInvalidArgument},
                  kSlack, "a third combine");
    round.check(again.receive());
    round.check(back.receive());
    require_error(outcome_of([&] { back.receive(); }), {ErrorCode::kInvalidArgument}, kSlack, "a second receive");
    for (int i = 0; i < 3; ++i) round_trip(group, reference, rank.rank);
  });
}

TEST_P(Groups, DroppedPendingsOnOneRank) {
  for (const RanksAs ranks_as : ways()) {
    const Case c = make_case(ranks_as);
    const Reference reference(c, 0);
    run_and_report(c, [&](Rank rank) {
      Group group = make_group(c, rank);
      for (int i = 0; i < 4; ++i) {
        Round round(reference, rank.rank);
        if (rank.rank == 0) {
          group.dispatch_send(round.dispatch_args());
          group.dispatch_send(round.dispatch_args());
        } else {
          round.check(group.dispatch(round.dispatch_args()));
          round.check(group.dispatch(round.dispatch_args()));
        }
        round_trip(group, reference, rank.rank);
      }
      group.check();
    });
  }
}

TEST_P(Groups, ADroppedCallThatFailsIsRaisedByCheck) {
  const Case c = make_case();
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    round_trip(group, reference, rank.rank);
    if (rank.rank == 0) {
      board.wait_for(0, rank.size - 1);
      return;
    }
    Outcome raised;
    for (int i = 0; i < 5 && !raised.error; ++i) {
      raised = outcome_of([&] {
        Round round(reference, rank.rank);
        DispatchArgs args = round.dispatch_args();
        args.timeout = kShort;
        try {
          group.dispatch_send(args);
        } catch (const Error& error) {  // throughput: the counts are missing already
          require(error.code() == ErrorCode::kTimeout, error.what());
          throw;
        }
        group.check();
      });
    }
    board.arrive(0);
    require_error(raised, {ErrorCode::kTimeout}, 6 * kShort, "dropped calls without rank 0");
    board.wait_for(0, rank.size - 1);
  });
}

TEST(TwoThreads, AreRefusedInOneGroup) {
  const Case c = all_to_all(Mode::kThroughput, {2});
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    if (rank.rank == 0) {
      std::thread second([&] {
        board.wait_for(0, 1);
        std::this_thread::sleep_for(Milliseconds(50));  // rank 0 waits for rank 1 now
        for (int i = 0; i < 2; ++i) {
          const Outcome outcome = outcome_of([&] {
            if (i == 0) group.mask(1);
            if (i == 1) group.check();
          });
          if (outcome.is(ErrorCode::kInvalidArgument) && outcome.text().find("another thread") != std::string::npos)
            board.arrive(2);
        }
        board.arrive(1);
      });
      board.arrive(0);
      const Outcome mine = outcome_of([&] { round_trip(group, reference, rank.rank); });
      second.join();
      require(!mine.error, "the first thread: " + mine.text());
      require(board.arrived(2) == 2, "a second thread was let in");
      return;
    }
    board.wait_for(1, 1);
    round_trip(group, reference, rank.rank);
  });
}

TEST_P(Groups, LeaveNothingBehind) {
  if (on_cuda()) GTEST_SKIP() << "the driver keeps files and threads";
  const Case c = make_case();
  const Reference reference(c, 0);
  const auto once = [&](RanksAs ranks_as, bool fail) {
    run_ranks(
        c.num_ranks(), ranks_as,
        [&](Rank rank) {
          Group group = make_group(c, rank);
          round_trip(group, reference, rank.rank);
          if (rank.rank == 0 || !fail) return;
          Round round(reference, rank.rank);
          DispatchArgs args = round.dispatch_args();
          args.timeout = Milliseconds(50);
          PendingDispatch pending;
          static_cast<void>(outcome_of([&] { pending = group.dispatch_send(args); }));
        },
        kWatchdog);
  };
  once(RanksAs::kThreads, false);  // whatever a process opens once
  const auto shared_memory = entries("/dev/shm");
  const auto files = entries("/proc/self/fd").size(), threads = entries("/proc/self/task").size();
  for (int i = 0; i < 3; ++i) {
    once(RanksAs::kThreads, i == 1);
    once(RanksAs::kProcesses, i == 1);
  }
  for (const std::string& file : entries("/dev/shm")) {
    // Other programs may make files of their own meanwhile.
    EXPECT_TRUE(file.find("ferry") == std::string::npos || shared_memory.contains(file))
        << file << " was left in /dev/shm";
  }
  EXPECT_EQ(entries("/proc/self/fd").size(), files);
  EXPECT_EQ(entries("/proc/self/task").size(), threads);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD) << "a child was left behind";
}

INSTANTIATE_TEST_SUITE_P(Setups, Groups,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(std::vector<int>{3}, std::vector<int>{2, 2})),
                         [](const auto& setup) {
                           return std::string(name(std::get<0>(setup.param))) + "_" +
                                  nodes_name(std::get<1>(setup.param));
                         });

}  // namespace
}  // namespace ferry::test
