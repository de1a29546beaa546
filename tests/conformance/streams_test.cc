// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls on several streams: they follow each other without a word of the caller, block nothing on the host, and their results
// may be used on any stream that follows. For GPUs: FERRY_TEST_BACKEND=cuda.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>

#include "support/board.h"
#include "support/runner.h"
#include "support/streams.h"

namespace ferry::test {
namespace {

constexpr int kRounds = 8;
constexpr std::chrono::seconds kDeadline{40};
constexpr std::chrono::microseconds kHold{3000};

class Streams : public testing::TestWithParam<std::pair<Mode, Layout>> {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why;
  }
  static Case make_case() {
    Case c;
    c.nodes = {2};
    std::tie(c.mode, c.layout) = GetParam();
    c.default_capacity = true;
    c.tokens = {21, 13};
    c.num_experts = 6;
    c.top_k = 3;
    c.host_counts = false;
    c.rounds = kRounds;
    c.seed = 1300;
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

/// Every call on another stream than the one before, which is held up at times: a call that did not wait for its predecessor would
/// read a handle that is not there yet. Nothing but the library orders the streams.
TEST_P(Streams, CallsOnSeveralFollowEachOther) {
  const Case c = make_case();
  const auto references = make_references(c);
  run(c, [&](Rank rank) {
    use_device(rank.rank % num_devices());
    const std::array<Stream, 3> streams{};
    Group group = make_group(c, rank);
    std::size_t turn = 0;
    const auto next = [&](bool hold) {
      void* stream = streams[turn++ % streams.size()].get();
      if (hold) delay(stream, kHold);
      return stream;
    };
    for (const auto& reference : references) {
      const bool hold = (reference->round() + rank.rank) % 3 != 0;
      Round round(*reference, rank.rank);
      DispatchArgs send = round.dispatch_args();
      send.stream = next(hold);
      const DispatchResult arrived = group.dispatch(send);
      CombineArgs back = round.combine_args(arrived);  // its rows are there when it returns
      back.stream = next(false);
      const CombineResult returned = group.combine(back);
      DispatchArgs cached = round.cached_args(arrived.handle);
      cached.stream = next(false);
      const DispatchResult again = group.dispatch(cached);
      wait_for(cached.stream);  // and so for all of them
      group.check();
      round.check(arrived);
      round.check(returned);
      round.check(again, true);
    }
  });
}

/// The layer's own stream goes on while a dispatch on a stream for communication waits for a peer: that peer does not come before
/// the layer's work is done. Results come back by an event.
TEST_P(Streams, CommunicationBesideTheLayersOwn) {
  const Case c = make_case();
  const auto references = make_references(c);
  Board board;
  run(c, [&](Rank rank) {
    use_device(rank.rank % num_devices());
    const Stream communication;
    Group group = make_group(c, rank);
    for (const auto& reference : references) {
      const int gate = reference->round();
      const bool late = rank.rank == gate % 2;
      Round round(*reference, rank.rank);
      DispatchArgs send = round.dispatch_args();
      void* layer = send.stream;
      send.stream = communication.get();
      if (late) board.wait_for(gate, 1);
      order(layer, communication.get());
      const DispatchResult arrived = group.dispatch(send);
      if (!late) {
        delay(layer, kHold / 3);
        round.wait();  // the layer's stream alone
        require(!is_idle(communication.get()), "a dispatch is over though the peer did not come");
        board.arrive(gate);
      }
      order(communication.get(), layer);
      round.wait();
      group.check();
      round.check(arrived);
      CombineArgs back = round.combine_args(arrived);
      back.stream = communication.get();
      order(layer, communication.get());
      const CombineResult returned = group.combine(back);
      order(communication.get(), layer);
      round.wait();
      group.check();
      round.check(returned);
    }
  });
}

/// Two groups of the same ranks on a stream each: neither waits for the other.
TEST_P(Streams, TwoGroupsEachOnItsOwn) {
  const Case c = make_case();
  const auto references = make_references(c);
  run(c, [&](Rank rank) {
    use_device(rank.rank % num_devices());
    const Stream one, two;
    Group first = make_group(c, rank), second = make_group(c, rank);
    for (const auto& reference : references) {
      Round a(*reference, rank.rank), b(*reference, rank.rank);
      DispatchArgs to_first = a.dispatch_args(), to_second = b.dispatch_args();
      to_first.stream = one.get();
      to_second.stream = two.get();
      // In another order on each rank: on one stream they would wait for each other for ever.
      DispatchResult in_first, in_second;
      if (rank.rank == 0) in_first = first.dispatch(to_first);
      in_second = second.dispatch(to_second);
      if (rank.rank != 0) in_first = first.dispatch(to_first);
      wait_for(one.get());
      wait_for(two.get());
      first.check();
      second.check();
      a.check(in_first);
      b.check(in_second);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, Streams,
                         testing::Values(std::pair{Mode::kThroughput, Layout::kRankMajor},
                                         std::pair{Mode::kThroughput, Layout::kExpertMajor},
                                         std::pair{Mode::kThroughput, Layout::kExpertPadded},
                                         std::pair{Mode::kLatency, Layout::kRankMajor},
                                         std::pair{Mode::kLatency, Layout::kExpertPadded}),
                         [](const auto& setup) {
                           return fmt::format("{}_{}", name(setup.param.first), name(setup.param.second));
                         });

}  // namespace
}  // namespace ferry::test
