// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Peers that run ahead: one rank is held up in the middle of its call while the others go on to calls that use the same memory.
// Without the credits that hold them back, the slow rank would read what belongs to a later call.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <thread>
#include <tuple>

#include "support/runner.h"

namespace ferry::test {
namespace {

constexpr int kSlow = 1;
constexpr std::chrono::milliseconds kHold{5};
constexpr std::chrono::seconds kDeadline{40};

/// One flight, so that the next call takes the memory of this one.
Case base(Layout layout, int num_ranks) {
  Case c;
  c.nodes = {num_ranks};
  c.layout = layout;
  c.reduction = layout == Layout::kRankMajor ? Reduction::per_rank() : Reduction::flat();
  c.num_flights = 1;
  c.num_experts = 6;
  c.top_k = 3;
  c.tokens = {40, 40, 40};
  c.blocks = {{DType::kBf16, 512}};
  c.combine_width = 512;
  c.rounds = 6;
  c.seed = 1400;
  return adapted(c);
}

class Ahead : public testing::TestWithParam<std::tuple<Mode, Layout, int>> {
 protected:
  void SetUp() override {
    if (const std::string why = why_not_here({.ranks_as = RanksAs::kThreads}); !why.empty()) GTEST_SKIP() << why;
    if (const std::string why = make_case().why_not(); !why.empty()) GTEST_SKIP() << why;
  }
  static Case make_case() {
    const auto& [mode, layout, num_ranks] = GetParam();
    Case c = base(layout, num_ranks);
    c.mode = mode;
    return c;
  }

  static void run(const Case& c, const std::function<void(Rank)>& body) {
    SCOPED_TRACE(describe(c));
    try {
      run_ranks(c.num_ranks(), c.ranks_as, body, kDeadline);
    } catch (const Failure& failure) {
      ADD_FAILURE() << failure.what();
    }
  }
};

TEST_P(Ahead, CombineRowsStayUntilEverybodyHasReadThem) {
  const Case c = make_case();
  const auto references = make_references(c);
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (const auto& reference : references) {
      Round round(*reference, rank.rank);
      const DispatchResult arrived = group.dispatch(round.dispatch_args());
      const CombineArgs good = round.combine_args(arrived);
      CombineArgs bad = good;
      bad.x = round.spoiled(good.x);
      PendingCombine sent = group.combine_send(good);
      if (rank.rank == kSlow) round.hold_up(kHold);
      const CombineResult returned = sent.receive();
      static_cast<void>(group.combine(bad));
      round.wait();
      group.check();
      round.check(returned);
    }
  });
}

TEST_P(Ahead, ACombineInputIsNotHandedOutWhileItIsRead) {
  if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why;
  const Case c = make_case();
  const auto references = make_references(c);
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (const auto& reference : references) {
      Round round(*reference, rank.rank);
      const DispatchResult arrived = group.dispatch(round.dispatch_args());
      CombineArgs good = round.combine_args(arrived);
      const Tensor bad = round.spoiled(good.x);
      round.use_combine_input(group, good);
      const DispatchArgs next = round.dispatch_args();
      PendingCombine back = group.combine_send(good);
      PendingDispatch there;
      CombineResult returned;
      if (rank.rank == kSlow) {
        there = group.dispatch_send(next);  // or the others would wait for its counts
        round.hold_up(kHold);
        returned = back.receive();
      } else {
        returned = back.receive();
        there = group.dispatch_send(next);
      }
      const DispatchResult again = there.receive();
      CombineArgs spoil = good;
      spoil.handle = &again.handle;
      spoil.x = bad;
      round.use_combine_input(group, spoil);  // writes at once into what it was handed out
      round.wait();
      group.check();
      round.check(returned);
      round.check(again);
    }
  });
}

/// Rows of a dispatch lie in a window that the next one writes to: the slow rank has not looked at them yet.
TEST_P(Ahead, ReceivedRowsStayUntilTheNextCallBegins) {
  const Case c = make_case();
  const auto references = make_references(c);
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (const auto& reference : references) {
      Round round(*reference, rank.rank);
      PendingDispatch sent = group.dispatch_send(round.dispatch_args());
      if (rank.rank == kSlow) round.hold_up(kHold);
      const DispatchResult arrived = sent.receive();
      if (rank.rank == kSlow) std::this_thread::sleep_for(kHold);
      round.check(arrived);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Setups, Ahead,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(Layout::kRankMajor, Layout::kExpertMajor,
                                                          Layout::kExpertPadded),
                                          testing::Values(2, 3)),
                         [](const auto& setup) {
                           return fmt::format("{}_{}_{}_ranks", name(std::get<0>(setup.param)),
                                              name(std::get<1>(setup.param)), std::get<2>(setup.param));
                         });

}  // namespace
}  // namespace ferry::test
