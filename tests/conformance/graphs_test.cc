// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls captured in CUDA graphs and replayed with other ids, weights and rows in the same memory: every replay gives the bits of
// the reference, alone or between direct calls. For GPUs: FERRY_TEST_BACKEND=cuda.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>

#include "support/board.h"
#include "support/runner.h"
#include "support/streams.h"

namespace ferry::test {
namespace {

constexpr int kReplays = 18;
constexpr std::chrono::seconds kDeadline{40};

struct Setup {
  Layout layout;
  Reduction reduction;
  CombineArgs::Weighting weighting;
  int num_ranks;
  Mode mode = Mode::kThroughput;
  std::vector<int> nodes{};  ///< empty: one
};
std::string name(const Setup& setup) {
  return fmt::format("{}_{}_{}_ranks{}", name(setup.mode), name(setup.layout), setup.num_ranks,
                     setup.nodes.empty() ? "" : fmt::format("_{}_nodes", setup.nodes.size()));
}
std::ostream& operator<<(std::ostream& out, const Setup& setup) {
  return out << name(setup);
}

/// The same shapes each time, with other traffic, ids, weights and rows. Token numbers cannot change: a graph holds them.
Case numbered(Case c, int number) {
  constexpr Traffic kTraffic[] = {Traffic::kUniform,  Traffic::kZipf,     Traffic::kAllToOne,
                                  Traffic::kRepeated, Traffic::kBalanced, Traffic::kNowhere};
  c.seed += static_cast<std::uint64_t>(number);
  c.traffic = kTraffic[number % 6];
  c.dropped = number % 4 == 3 ? 0.5 : 0;
  return c;
}

class Graphs : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why;
  }
  static Case make_case() {
    const auto& setup = GetParam();
    Case c;
    c.nodes = setup.nodes.empty() ? std::vector<int>{setup.num_ranks} : setup.nodes;
    c.mode = setup.mode;
    c.layout = setup.layout;
    c.reduction = setup.reduction;
    c.weighting = setup.weighting;
    c.default_capacity = true;  // the capacity that a graph holds must do for every replay
    c.num_experts = 8;
    c.top_k = 3;
    c.tokens = {9, 17, 0};
    c.blocks = {{DType::kBf16, 136}};
    c.combine_width = 136;
    c.host_counts = false;
    c.max_signal_delay_ns = 20'000;
    c.bias0 = DType::kBf16;
    c.zero_padding = setup.layout == Layout::kExpertMajor;
    c.seed = 1200;
    return adapted(c);
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

std::vector<std::unique_ptr<Reference>> references(const Case& c, int count) {
  std::vector<std::unique_ptr<Reference>> all;
  for (int i = 0; i < count; ++i) all.push_back(std::make_unique<Reference>(numbered(c, i), 0));
  return all;
}

/// Dispatch and combine of one rank with their arguments and results where graphs find them.
struct Calls {
  Calls(Group& of, const Reference& reference, int rank)
      : group(of), first(reference, rank), send(first.dispatch_args()) {
    dispatch();  // direct: the shapes of its result are those of every other
    first.wait();
    first.check(arrived);
    back = first.combine_args(arrived);
    combine();
    check(first);
  }

  void* stream() const { return send.stream; }
  void dispatch() { arrived = group.dispatch(send); }
  void combine() {
    back.handle = &arrived.handle;
    returned = group.combine(back);
  }
  void refill(Round& round) const {
    round.refill(send);
    round.refill(back, arrived);
  }
  void check(Round& round) {
    round.wait();
    group.check();
    round.check(arrived);
    round.check(returned);
  }

  Group& group;
  Round first;
  DispatchArgs send;
  DispatchResult arrived;
  CombineArgs back;
  CombineResult returned;
};

/// What a rank throws in a round, with the number of the round.
void numbered_round(std::size_t number, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    throw Failure(fmt::format("replay {}: {}", number, error.what()));
  }
}

TEST_P(Graphs, DispatchAndCombineInOne) {
  const Case c = make_case();
  const auto all = references(c, kReplays);
  Board board;
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Calls calls(group, *all[0], rank.rank);
    const Graph graph(calls.stream(), [&] {
      calls.dispatch();
      calls.combine();
    });
    board.meet(0, rank.size);  // whoever makes a graph may have to wait for kernels
    for (std::size_t i = 0; i < all.size(); ++i) {
      numbered_round(i, [&] {
        Round round(*all[i], rank.rank);
        calls.refill(round);
        for (std::size_t again = 0; again <= i % 3; ++again) graph.replay(calls.stream());
        calls.check(round);
      });
    }
  });
}

TEST_P(Graphs, DispatchAndCombineInTwo) {
  const Case c = make_case();
  const auto all = references(c, kReplays);
  const bool in_place =
      c.mode == Mode::kThroughput && (c.layout == Layout::kRankMajor || c.reduction == Reduction::flat());
  Board board;
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Calls calls(group, *all[0], rank.rank);
    const Graph dispatch(calls.stream(), [&] { calls.dispatch(); });
    // Where combine reads the rows in place, "the experts" write there between the two graphs.
    if (in_place) calls.back.x = group.combine_input(calls.arrived.handle, c.combine_dtype, c.combine_width);
    const Graph combine(calls.stream(), [&] { calls.combine(); });
    board.meet(0, rank.size);
    for (std::size_t i = 0; i < all.size(); ++i) {
      numbered_round(i, [&] {
        Round round(*all[i], rank.rank);
        round.refill(calls.send);
        for (std::size_t again = 0; again <= i % 2; ++again) dispatch.replay(calls.stream());
        round.refill(calls.back, calls.arrived);
        for (std::size_t again = 0; again <= i % 3; ++again) combine.replay(calls.stream());
        calls.check(round);
      });
    }
  });
}

TEST_P(Graphs, BetweenDirectCalls) {
  const Case c = make_case();
  const auto all = references(c, kReplays);
  Board board;
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Calls direct(group, *all[0], rank.rank), replayed(group, *all[1], rank.rank);
    const Graph graph(replayed.stream(), [&] {
      replayed.dispatch();
      replayed.combine();
    });
    board.meet(0, rank.size);
    for (std::size_t i = 0; i < all.size(); ++i) {
      numbered_round(i, [&] {
        Round round(*all[i], rank.rank), other(*all[(i + 5) % all.size()], rank.rank);
        replayed.refill(round);
        direct.refill(other);
        const bool inside =
            i % 3 == 0;  // the direct combine comes after a replay, which takes other flights or the same
        direct.dispatch();
        direct.first.wait();
        other.check(direct.arrived);
        if (!inside) direct.combine();
        graph.replay(replayed.stream());
        if (inside) direct.combine();
        other.wait();
        other.check(direct.returned);
        replayed.check(round);
      });
    }
  });
}

/// The handle that a captured dispatch makes routes another one in the same graph.
TEST_P(Graphs, CachedDispatchOfAHandleFromTheSameGraph) {
  const Case c = make_case();
  const auto all = references(c, kReplays);
  Board board;
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Calls calls(group, *all[0], rank.rank);
    DispatchArgs again = calls.send;
    again.topk_ids = Tensor{};
    DispatchResult second;
    const Graph graph(calls.stream(), [&] {
      calls.dispatch();
      again.handle = &calls.arrived.handle;
      second = group.dispatch(again);
      calls.combine();
    });
    board.meet(0, rank.size);
    for (std::size_t i = 0; i < all.size(); ++i) {
      numbered_round(i, [&] {
        Round round(*all[i], rank.rank);
        calls.refill(round);
        graph.replay(calls.stream());
        calls.check(round);
        round.check(second, true);
      });
    }
  });
}

/// A capture of more calls than memory was reserved for asks the driver for more; the results of all of them stay apart.
TEST_P(Graphs, ManyCallsInOneAskForMemory) {
  Case c = make_case();
  c.output = Output::kOwned;
  constexpr std::size_t kCalls = 12;
  const auto all = references(c, 4);
  Board board;
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    std::vector<std::unique_ptr<Calls>> calls;
    for (std::size_t i = 0; i < kCalls; ++i) calls.push_back(std::make_unique<Calls>(group, *all[i % 4], rank.rank));
    const Graph graph(calls[0]->stream(), [&] {
      for (auto& call : calls) call->dispatch();
      for (auto& call : calls) call->combine();
    });
    board.meet(0, rank.size);
    for (std::size_t turn = 0; turn < 3; ++turn) {
      numbered_round(turn, [&] {
        std::vector<std::unique_ptr<Round>> rounds;
        for (std::size_t i = 0; i < kCalls; ++i) {
          rounds.push_back(std::make_unique<Round>(*all[(turn + i) % 4], rank.rank));
          calls[i]->refill(*rounds[i]);
        }
        graph.replay(calls[0]->stream());
        for (std::size_t i = 0; i < kCalls; ++i) calls[i]->check(*rounds[i]);
      });
    }
  });
}

TEST_P(Graphs, HostCountsAreRefusedInACapture) {
  const Case c = make_case();
  const Reference reference(c, 0);
  run(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Calls calls(group, reference, rank.rank);
    DispatchArgs args = calls.send;
    args.host_counts = true;
    bool refused = false;
    try {
      const Graph graph(calls.stream(), [&] { calls.arrived = group.dispatch(args); });
    } catch (const Error& error) {
      refused =
          error.code() == ErrorCode::kUnsupported && std::string(error.what()).find("host_counts") != std::string::npos;
    }
    require(refused, "host_counts in a capture were not refused");
    calls.dispatch();  // as if nothing had been
    calls.first.wait();
    calls.combine();
    calls.check(calls.first);
  });
}

using Weighting = CombineArgs::Weighting;
INSTANTIATE_TEST_SUITE_P(
    Setups, Graphs,
    testing::Values(
        Setup{Layout::kRankMajor, Reduction::per_rank(), Weighting::kNone, 2},
        Setup{Layout::kRankMajor, Reduction::per_node(), Weighting::kNone, 3},
        Setup{Layout::kExpertMajor, Reduction::per_rank(), Weighting::kFromDispatch, 2},
        Setup{Layout::kExpertMajor, Reduction::flat(), Weighting::kGiven, 3},
        Setup{Layout::kExpertPadded, Reduction::per_rank(), Weighting::kGiven, 2},
        Setup{Layout::kRankMajor, Reduction::per_node(), Weighting::kNone, 3, Mode::kThroughput, {2, 1}},
        Setup{Layout::kExpertMajor, Reduction::flat(), Weighting::kGiven, 3, Mode::kThroughput, {1, 2}},
        Setup{Layout::kExpertPadded, Reduction::per_rank(), Weighting::kGiven, 3, Mode::kThroughput, {1, 1, 1}},
        Setup{Layout::kRankMajor, Reduction::per_rank(), Weighting::kNone, 3, Mode::kLatency},
        Setup{Layout::kExpertPadded, Reduction::per_rank(), Weighting::kFromDispatch, 2, Mode::kLatency},
        Setup{Layout::kExpertPadded, Reduction::flat(), Weighting::kGiven, 3, Mode::kLatency}),
    [](const auto& setup) { return fmt::format("{}_{}", setup.index, name(setup.param)); });

}  // namespace
}  // namespace ferry::test
