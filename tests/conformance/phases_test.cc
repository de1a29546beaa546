// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Split phases: sends now, receives later and in any order, pendings that are dropped.
#include <gtest/gtest.h>

#include <functional>

#include "support/runner.h"

namespace ferry::test {
namespace {

Case base(Mode mode, std::vector<int> nodes, RanksAs ranks_as = RanksAs::kThreads) {
  Case c;
  c.mode = mode;
  c.layout = Layout::kExpertPadded;
  c.nodes = std::move(nodes);
  c.ranks_as = ranks_as;
  c.num_experts = 9;
  c.top_k = 3;
  c.tokens = {7, 4, 0, 9, 3, 5};
  c.reduction = Reduction::per_node();
  c.bias0 = DType::kFp32;
  c.rounds = 4;
  c.seed = 31;
  return c;
}

using References = std::vector<std::unique_ptr<Reference>>;
using Body = std::function<void(Group&, const References&, int rank)>;

void on_ranks(const Case& c, const Body& body) {
  const References references = make_references(c);
  run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
    Group group = make_group(c, rank);
    body(group, references, rank.rank);
  });
}

class Phases : public testing::TestWithParam<Mode> {
 protected:
  /// On one node and on several, as threads and as processes.
  void everywhere(const Body& body) {
    for (const auto& [nodes, ranks_as] : {std::pair{std::vector<int>{3}, RanksAs::kThreads},
                                          {std::vector<int>{3, 2, 1}, RanksAs::kThreads},
                                          {std::vector<int>{2, 2}, RanksAs::kProcesses}}) {
      const Case c = base(GetParam(), nodes, ranks_as);
      SCOPED_TRACE(describe(c));
      try {
        on_ranks(c, body);
      } catch (const Failure& failure) {
        ADD_FAILURE() << failure.what();
      }
    }
  }
};

TEST_P(Phases, TwoFlightsInTheAirReceivedInAnyOrder) {
  everywhere([](Group& group, const References& references, int rank) {
    Round first(*references[0], rank), second(*references[1], rank);
    PendingDispatch a = group.dispatch_send(first.dispatch_args());
    PendingDispatch b = group.dispatch_send(second.dispatch_args());
    // Every rank has an order of its own.
    DispatchResult one, two;
    if (rank % 2 == 0) {
      two = b.receive();
      one = a.receive();
    } else {
      one = a.receive();
      two = b.receive();
    }
    first.check(one);
    second.check(two);
    PendingCombine c = group.combine_send(first.combine_args(one));
    PendingCombine d = group.combine_send(second.combine_args(two));
    if (rank % 3 == 0) {
      first.check(c.receive());
      second.check(d.receive());
    } else {
      second.check(d.receive());
      first.check(c.receive());
    }
  });
}

TEST_P(Phases, DispatchAndCombineOverlap) {
  everywhere([](Group& group, const References& references, int rank) {
    Round before(*references[0], rank);
    DispatchResult result = group.dispatch(before.dispatch_args());
    before.check(result);
    for (std::size_t round = 1; round < references.size(); ++round) {
      Round next(*references[round], rank);
      Round current(*references[round - 1], rank);
      PendingCombine combining = group.combine_send(current.combine_args(result));
      PendingDispatch dispatching = group.dispatch_send(next.dispatch_args());
      if (rank % 2 == 0) {
        current.check(combining.receive());
        result = dispatching.receive();
      } else {
        result = dispatching.receive();
        current.check(combining.receive());
      }
      next.check(result);
    }
  });
}

TEST_P(Phases, DroppedPendingsHarmNobody) {
  everywhere([](Group& group, const References& references, int rank) {
    for (std::size_t round = 0; round < references.size(); ++round) {
      Round dropped(*references[round], rank);
      PendingDispatch pending = group.dispatch_send(dropped.dispatch_args());
      if (rank % 2 == 0) {
        pending = PendingDispatch();  // this rank does not want its rows
      } else {
        dropped.check(pending.receive());
      }
      Round kept(*references[round], rank);
      const DispatchResult result = group.dispatch(kept.dispatch_args());
      kept.check(result);
      {
        PendingCombine unwanted = group.combine_send(kept.combine_args(result));
        if (rank % 3 == 1) kept.check(unwanted.receive());
      }
      kept.check(group.combine(kept.combine_args(result)));
    }
  });
}

TEST_P(Phases, PendingsMoveAndReceiveOnce) {
  everywhere([](Group& group, const References& references, int rank) {
    Round round(*references[0], rank);
    PendingDispatch pending;
    require(!pending.valid(), "an empty pending is valid");
    pending = group.dispatch_send(round.dispatch_args());
    PendingDispatch moved = std::move(pending);
    require(moved.valid(), "a moved pending is not valid");
    require(!pending.valid(), "a pending that was moved from is valid");
    const DispatchResult result = moved.receive();
    require(!moved.valid(), "a pending that was received is valid");
    round.check(result);
    try {
      moved.receive();
      throw Failure("a second receive did not throw");
    } catch (const Error& error) {
      require(error.code() == ErrorCode::kInvalidArgument, std::string("second receive: ") + error.what());
    }
    PendingCombine combining = group.combine_send(round.combine_args(result));
    require(combining.valid(), "a combine that was sent is not valid");
    round.check(combining.receive());
    require(!combining.valid(), "a combine that was received is valid");
    try {
      combining.receive();
      throw Failure("a second receive did not throw");
    } catch (const Error& error) {
      require(error.code() == ErrorCode::kInvalidArgument, std::string("second receive: ") + error.what());
    }
  });
}

TEST_P(Phases, GroupMayGoBeforeItsPendings) {
  everywhere([](Group& group, const References& references, int rank) {
    Round round(*references[0], rank);
    PendingDispatch pending = group.dispatch_send(round.dispatch_args());
    Group gone = std::move(group);
    { const Group end = std::move(gone); }
    // Dropping it afterwards must be safe; nobody receives.
  });
}

INSTANTIATE_TEST_SUITE_P(Modes, Phases, testing::Values(Mode::kThroughput, Mode::kLatency),
                         [](const auto& mode) { return std::string(name(mode.param)); });

}  // namespace
}  // namespace ferry::test
