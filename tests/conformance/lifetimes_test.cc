// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How long results stay what they are, with peers that run ahead; results that outlive their group; several groups.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>

#include <chrono>
#include <cstring>
#include <deque>
#include <thread>

#include "support/runner.h"

namespace ferry::test {
namespace {

struct Setup {
  Mode mode;
  Layout layout;
};
std::ostream& operator<<(std::ostream& out, const Setup& setup) {
  return out << name(setup.mode) << "_" << name(setup.layout);
}

Case base(const Setup& setup, std::vector<int> nodes, int num_flights) {
  Case c;
  c.mode = setup.mode;
  c.layout = setup.layout;
  c.nodes = std::move(nodes);
  c.num_flights = num_flights;
  c.num_experts = 8;
  c.top_k = 3;
  c.tokens = {9, 9, 9, 9};
  c.rounds = 8;
  c.seed = 41;
  c = adapted(c);
  // On a device peers run ahead of a rank that sleeps no further than of one that does not; signals that come at random do it.
  if (c.backend == "cuda") c.max_signal_delay_ns = 300'000;
  return c;
}

class Lifetimes : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    if (const std::string why = why_not_here({.mode = GetParam().mode}); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(Lifetimes, WindowViewsStayUntilNumFlightsLater) {
  for (const auto& nodes : {std::vector<int>{3}, {2, 2}}) {
    for (const int num_flights : {1, 2, 3}) {
      const Case c = base(GetParam(), nodes, num_flights);
      SCOPED_TRACE(describe(c));
      const auto references = make_references(c);
      try {
        run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
          Group group = make_group(c, rank);
          struct Kept {
            std::unique_ptr<Round> round;
            DispatchResult result;
          };
          std::deque<Kept> kept;
          for (const auto& reference : references) {
            auto round = std::make_unique<Round>(*reference, rank.rank);
            const DispatchArgs args = round->dispatch_args();
            if (static_cast<int>(kept.size()) == num_flights) kept.pop_front();  // ends with the send that follows
            kept.push_back({std::move(round), group.dispatch(args)});
            // A slow rank: the others run as far ahead as they may and must not write into these views.
            if (rank.rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
            for (std::size_t i = 0; i < kept.size(); ++i) {
              try {
                kept[i].round->check(kept[i].result);
              } catch (const Failure& failure) {
                throw Failure(fmt::format("round {}, view of {} calls ago: {}", reference->round(), kept.size() - 1 - i,
                                          failure.what()));
              }
            }
          }
        });
      } catch (const Failure& failure) {
        ADD_FAILURE() << failure.what();
      }
    }
  }
}

TEST_P(Lifetimes, OwnedResultsStayForever) {
  Case c = base(GetParam(), {2, 1}, 1);
  c.output = Output::kOwned;
  const auto references = make_references(c);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      std::vector<std::unique_ptr<Round>> rounds;
      std::vector<DispatchResult> results;
      std::vector<CombineResult> combined;
      {
        Group group = make_group(c, rank);
        for (const auto& reference : references) {
          rounds.push_back(std::make_unique<Round>(*reference, rank.rank));
          results.push_back(group.dispatch(rounds.back()->dispatch_args()));
          combined.push_back(group.combine(rounds.back()->combine_args(results.back())));
        }
      }
      for (std::size_t i = 0; i < rounds.size(); ++i) {
        rounds[i]->check(results[i]);
        rounds[i]->check(combined[i]);
      }
    });
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }
}

TEST_P(Lifetimes, TheResultMayLieOverTheRowsThatComeBack) {
  const Case c = base(GetParam(), {2, 1}, 2);
  const Reference reference(c, 0);
  std::atomic<int> tried{0};
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group group = make_group(c, rank);
      const std::int64_t tokens = c.tokens[static_cast<std::size_t>(rank.rank)];
      const auto over_x = [&](bool in_combine_input) {
        Round round(reference, rank.rank);
        const DispatchResult result = group.dispatch(round.dispatch_args());
        CombineArgs args = round.combine_args(result);
        if (in_combine_input) round.use_combine_input(group, args);
        if (args.x.ndim == 2 && args.x.shape[0] >= tokens) {  // padded layouts have rows of three dimensions
          args.out = args.x;
          args.out.shape[0] = tokens;
          ++tried;
        }
        round.check(group.combine(args));
      };
      over_x(false);
      over_x(true);
    });
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }
  if (c.ranks_as == RanksAs::kThreads && GetParam().layout == Layout::kRankMajor) {
    EXPECT_GT(tried, 0);
  }
}

TEST_P(Lifetimes, WindowViewsOutliveTheGroupMapped) {
  const Case c = base(GetParam(), {2, 1}, 2);
  const Reference reference(c, 0);
  for (const RanksAs ranks_as : ways()) {
    try {
      run_ranks(c.num_ranks(), ranks_as, [&](Rank rank) {
        Round round(reference, rank.rank);
        DispatchResult result;
        {
          Group group = make_group(c, rank);
          result = group.dispatch(round.dispatch_args());
        }
        round.check(result);  // nobody writes any more
      });
    } catch (const Failure& failure) {
      ADD_FAILURE() << failure.what();
    }
  }
}

TEST_P(Lifetimes, InputsMayChangeAsSoonAsTheSendReturns) {
  const Case c = base(GetParam(), {2, 2}, 2);
  if (c.backend == "cuda") GTEST_SKIP() << "on a device the inputs follow the stream";
  const auto references = make_references(c);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group group = make_group(c, rank);
      for (const auto& reference : references) {
        Round round(*reference, rank.rank);
        const DispatchArgs args = round.dispatch_args();
        PendingDispatch pending = group.dispatch_send(args);
        for (const Tensor& block : args.payload) {
          if (block.num_elements() > 0)
            std::memset(block.data, 0x99, static_cast<std::size_t>(block.num_elements()) * dtype_bytes(block.dtype));
        }
        if (rank.rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        const DispatchResult result = pending.receive();
        round.check(result);
        const CombineArgs combine = round.combine_args(result);
        PendingCombine combining = group.combine_send(combine);
        round.check(combining.receive());
      }
    });
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }
}

TEST_P(Lifetimes, TwoGroupsOfTheSameRanks) {
  const Case c = base(GetParam(), {2, 1}, 2);
  Case other = c;
  other.seed = 4141;
  other.nodes = {3};
  other = adapted(other);
  const Reference mine(c, 0), others(other, 0);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group first = make_group(c, rank);
      Group second = make_group(other, rank);
      Round a(mine, rank.rank), b(others, rank.rank);
      PendingDispatch pending = first.dispatch_send(a.dispatch_args());
      const DispatchResult in_second = second.dispatch(b.dispatch_args());
      const DispatchResult in_first = pending.receive();
      a.check(in_first);
      b.check(in_second);
      b.check(second.combine(b.combine_args(in_second)));
      a.check(first.combine(a.combine_args(in_first)));
    });
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Setups, Lifetimes,
    testing::Values(Setup{Mode::kThroughput, Layout::kRankMajor}, Setup{Mode::kThroughput, Layout::kExpertMajor},
                    Setup{Mode::kLatency, Layout::kRankMajor}, Setup{Mode::kLatency, Layout::kExpertPadded}),
    [](const auto& setup) { return std::string(name(setup.param.mode)) + "_" + name(setup.param.layout); });

}  // namespace
}  // namespace ferry::test
