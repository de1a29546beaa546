// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks that are left out and taken back.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "support/runner.h"

namespace ferry::test {
namespace {

Case base(Mode mode, std::vector<int> nodes) {
  Case c;
  c.mode = mode;
  c.layout = Layout::kExpertPadded;
  c.nodes = std::move(nodes);
  c.num_experts = 7;
  c.top_k = 3;
  c.tokens = {6, 3, 8, 4, 2, 5};
  c.reduction = Reduction::per_node();
  c.weighting = CombineArgs::Weighting::kFromDispatch;
  c.seed = 91;
  c.rounds = 2;
  return c;
}

class Masks : public testing::TestWithParam<Mode> {};

TEST_P(Masks, LeftOutFromTheStart) {
  for (const auto& nodes : {std::vector<int>{3}, {3, 2, 1}}) {
    const int ranks = Topology::nodes(nodes).num_ranks();
    for (int masked = 0; masked < ranks; ++masked) {
      for (const bool renormalise : {false, true}) {
        Case c = base(GetParam(), nodes);
        c.masked = {masked};
        c.renormalise = renormalise;
        try {
          run_case(c);
        } catch (const Failure& failure) {
          ADD_FAILURE() << failure.what();
        }
      }
    }
  }
}

TEST_P(Masks, SeveralRanksAWholeNodeAndReplicas) {
  Case c = base(GetParam(), {2, 2, 1});
  c.places = {{{0, 0}, {2, 0}}, {{1, 0}}, {{2, 1}, {3, 0}}, {{4, 0}, {0, 1}}, {{3, 1}}};
  c.num_experts = 5;
  for (const auto& masked : {std::vector<int>{2, 3}, {0, 4}, {1, 2, 4}}) {
    for (const RanksAs ranks_as : {RanksAs::kThreads, RanksAs::kProcesses}) {
      c.masked = masked;
      c.ranks_as = ranks_as;
      try {
        run_case(c);
      } catch (const Failure& failure) {
        ADD_FAILURE() << failure.what();
      }
    }
  }
}

TEST_P(Masks, LeftOutAndTakenBack) {
  for (const auto& nodes : {std::vector<int>{3}, {2, 2}}) {
    Case c = base(GetParam(), nodes);
    Case without = c;
    without.masked = {1};
    const Reference all(c, 0), fewer(without, 0);
    const auto round_trip = [](Group& group, const Reference& reference, int rank, const char* when) {
      try {
        Round round(reference, rank);
        const DispatchResult result = group.dispatch(round.dispatch_args());
        round.check(result);
        round.check(group.combine(round.combine_args(result)));
      } catch (const std::exception& error) {
        throw Failure(fmt::format("{}: {}", when, error.what()));
      }
    };
    SCOPED_TRACE(describe(c));
    try {
      run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
        Group group = make_group(c, rank);
        for (int repeat = 0; repeat < 2; ++repeat) {
          round_trip(group, all, rank.rank, "before");
          if (rank.rank != 1) {
            group.mask(1);
            require(group.masked().at(1), "masked() does not know of the mask");
            for (int i = 0; i < 3; ++i) round_trip(group, fewer, rank.rank, "left out");
          }
          group.unmask(1);
          require(!group.masked().at(1), "masked() still has the mask");
          round_trip(group, all, rank.rank, "taken back");
        }
      });
    } catch (const Failure& failure) {
      ADD_FAILURE() << failure.what();
    }
  }
}

// The rows of a dispatch made before somebody was left out can still come back; what it owned is left out of the sums. A
// cached dispatch would need its places and is refused.
TEST_P(Masks, AHandleOfAnOlderMembershipStillCombines) {
  const Case c = base(GetParam(), {3});
  Case without = c;
  without.masked = {2};
  const Reference all(c, 0), fewer(without, 0);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group group = make_group(c, rank);
      Round round(all, rank.rank);
      const DispatchResult old = group.dispatch(round.dispatch_args());
      round.check(old);
      if (rank.rank == 2) return;
      group.mask(2);
      Round next(fewer, rank.rank);
      const DispatchResult result = group.dispatch(next.dispatch_args());
      next.check(result);
      bool refused = false;
      try {
        group.dispatch(round.cached_args(old.handle));
      } catch (const Error& error) {
        require(error.code() == ErrorCode::kInvalidArgument, error.what());
        refused = true;
      }
      require(refused, "dispatch accepted a handle of an older membership");
      next.check(group.combine(round.combine_args(old)));
      next.check(group.combine(next.combine_args(result)));
    });
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
}

TEST_P(Masks, ASleeperThatWakesUpHarmsNobody) {
  // Rank 1 makes its call only when the others have left it out and gone on; it gets an error, they keep exact results.
  for (const auto& nodes : {std::vector<int>{3}, {2, 1}}) {
    Case c = base(GetParam(), nodes);
    c.timeout = std::chrono::seconds(2);
    Case without = c;
    without.masked = {1};
    const Reference all(c, 0), fewer(without, 0);
    std::atomic<bool> others_went_on{false};
    SCOPED_TRACE(describe(c));
    try {
      run_ranks(c.num_ranks(), RanksAs::kThreads, [&](Rank rank) {
        Group group = make_group(c, rank);
        Round first(all, rank.rank);
        first.check(group.dispatch(first.dispatch_args()));
        if (rank.rank == 1) {
          for (int i = 0; i < 5000 && !others_went_on; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          bool refused = false;
          try {
            Round late(all, rank.rank);
            group.dispatch(late.dispatch_args());
          } catch (const Error&) {
            refused = true;
          }
          require(refused, "the call of a rank that was left out went through");
          return;
        }
        group.mask(1);
        for (int i = 0; i < 200; ++i) {
          Round round(fewer, rank.rank);
          const DispatchResult result = group.dispatch(round.dispatch_args());
          round.check(result);
          round.check(group.combine(round.combine_args(result)));
          others_went_on = true;
        }
      });
    } catch (const Failure& failure) {
      ADD_FAILURE() << failure.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, Masks, testing::Values(Mode::kThroughput, Mode::kLatency),
                         [](const auto& mode) { return std::string(name(mode.param)); });

}  // namespace
}  // namespace ferry::test
