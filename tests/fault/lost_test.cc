// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks that are killed or stopped at every phase: the others get an error in time, leave the rank out and go on with exact
// results; a stopped rank that wakes up harms nobody, hears that it was left out, and can come back.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>
#include <tuple>

#include "fault_support.h"

namespace ferry::test {
namespace {

enum class Phase { kBeforeDispatch, kDispatchSent, kDispatchReceived, kCombineSent, kInTheMiddle };

const char* name(Phase phase) {
  switch (phase) {
    case Phase::kBeforeDispatch:
      return "before_dispatch";
    case Phase::kDispatchSent:
      return "dispatch_sent";
    case Phase::kDispatchReceived:
      return "dispatch_received";
    case Phase::kCombineSent:
      return "combine_sent";
    case Phase::kInTheMiddle:
      return "in_the_middle";
  }
  return "?";
}

constexpr int kVictim = 1;
enum Gate { kAtPhase, kFaulted, kWentOn, kAwake, kVictimIsOver, kTogether };

/// Dispatch and combine by a rank that is hit by `signal_number` at `phase`; in the middle, the test sends the signal.
void be_hit(Group& group, const Reference& reference, int rank, Phase phase, int signal_number, Board& board,
            Milliseconds timeout) {
  const auto hit = [&](Phase here) {
    if (phase != here) return;
    board.arrive(kAtPhase);
    ::kill(::getpid(), signal_number);
  };
  Round round(reference, rank);
  hit(Phase::kBeforeDispatch);
  if (phase == Phase::kInTheMiddle) board.arrive(kAtPhase);
  DispatchArgs args = round.dispatch_args();
  args.timeout = timeout;
  PendingDispatch sent = group.dispatch_send(args);
  hit(Phase::kDispatchSent);
  const DispatchResult arrived = sent.receive();
  round.check(arrived);
  hit(Phase::kDispatchReceived);
  CombineArgs back = round.combine_args(arrived);
  back.timeout = timeout;
  PendingCombine returned = group.combine_send(back);
  hit(Phase::kCombineSent);
  round.check(returned.receive());
}

/// Makes calls until one fails; at least the second must, because the victim was hit in the first.
Outcome fail_soon(Group& group, const Reference& reference, int rank, Milliseconds timeout) {
  Outcome outcome;
  for (int i = 0; i < 3 && !outcome.error; ++i) {
    outcome = outcome_of([&] { round_trip(group, reference, rank, timeout); });
  }
  return outcome;
}

using Setup = std::tuple<Mode, std::vector<int>, Phase, const char*>;

class Lost : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    if (on_cuda()) GTEST_SKIP() << "kernels do not look whether a peer's process lives";
    const std::string network = std::get<3>(GetParam());
    if (network == "auto") return;
    if (const std::string reason = why_no_network(network); !reason.empty()) GTEST_SKIP() << reason;
  }
  Case make_case() const {
    Case c = all_to_all(std::get<0>(GetParam()), std::get<1>(GetParam()), RanksAs::kProcesses);
    c.network = std::get<3>(GetParam());
    if (phase() == Phase::kInTheMiddle) c.max_signal_delay_ns = 4'000'000;
    return c;
  }
  Phase phase() const { return std::get<2>(GetParam()); }
};

TEST_P(Lost, Killed) {
  const Case c = make_case();
  const Phase at = phase();
  const int size = c.num_ranks(), others = size - 1;
  const Reference all(c, 0), fewer(without(c, kVictim), 0);
  constexpr Milliseconds kDeadline{2000};
  Board board;
  RankProcesses ranks(size, [&](Rank rank) -> std::string {
    Group group = make_group(c, rank);
    round_trip(group, all, rank.rank);
    if (rank.rank == kVictim) {
      be_hit(group, all, rank.rank, at, SIGKILL, board, kLong);
      std::this_thread::sleep_for(std::chrono::seconds(50));  // the signal in the middle came after the end
      return "";
    }
    const Outcome outcome = fail_soon(group, all, rank.rank, kDeadline);
    require_error(outcome, {ErrorCode::kTimeout, ErrorCode::kPeerLost}, 3 * kDeadline, "after the kill");
    board.meet(kFaulted, others);
    group.mask(kVictim);
    for (int i = 0; i < 3; ++i) {
      const Outcome next = outcome_of([&] { round_trip(group, fewer, rank.rank); });
      require(!next.error, fmt::format("call {} without the victim: {}", i, next.text()));
    }
    return outcome.text();
  });
  if (at == Phase::kInTheMiddle) {
    board.wait_for(kAtPhase, 1);
    std::this_thread::sleep_for(Milliseconds(5));
    ranks.send_signal(kVictim, SIGKILL);
  }
  report(ranks, size, {kVictim});
}

/// All ranks, the victim among them, take it back and call together.
void together_again(Group& group, const Reference& all, int rank, int size, Board& board) {
  board.meet(kTogether, size);
  group.unmask(kVictim);
  for (int i = 0; i < 2; ++i) {
    const Outcome next = outcome_of([&] { round_trip(group, all, rank); });
    require(!next.error, fmt::format("call {} together again: {}", i, next.text()));
  }
}

/// The victim is stopped where it does not stop itself, and goes on when the others have gone on without it.
void stop_and_wake(RankProcesses& ranks, Phase at, int others, Board& board) {
  try {
    board.wait_for(kAtPhase, 1);
    if (at == Phase::kInTheMiddle) {
      std::this_thread::sleep_for(Milliseconds(5));
      ranks.send_signal(kVictim, SIGSTOP);
    }
    board.wait_for(kWentOn, others);
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
  ranks.send_signal(kVictim, SIGCONT);
}

TEST_P(Lost, StoppedAndTakenBack) {
  const Case c = make_case();
  const Phase at = phase();
  const int size = c.num_ranks(), others = size - 1;
  const Reference all(c, 0), fewer(without(c, kVictim), 0);
  constexpr Milliseconds kDeadline{300};
  Board board;
  RankProcesses ranks(size, [&](Rank rank) -> std::string {
    Group group = make_group(c, rank);
    round_trip(group, all, rank.rank);
    if (rank.rank == kVictim) {
      // Wherever it wakes up, one of its calls says that it was left out; or, if all its rows were there, the next does.
      Outcome woken = outcome_of([&] { be_hit(group, all, rank.rank, at, SIGSTOP, board, kLong); });
      board.arrive(kAwake);
      if (!woken.error) woken = outcome_of([&] { round_trip(group, all, rank.rank); });
      require_error(woken, {ErrorCode::kMismatch}, kLong, "woken up");
      require(woken.text().find("out") != std::string::npos, "it does not say left out: " + woken.text());
      board.arrive(kVictimIsOver);
    } else {
      const Outcome outcome = fail_soon(group, all, rank.rank, kDeadline);
      require_error(outcome, {ErrorCode::kTimeout}, 3 * kDeadline, "after the stop");
      board.meet(kFaulted, others);
      group.mask(kVictim);
      // Across its waking up: every result is compared bit by bit.
      for (int i = 0; i < 4; ++i) {
        const Outcome next = outcome_of([&] { round_trip(group, fewer, rank.rank); });
        require(!next.error, fmt::format("call {} without the victim: {}", i, next.text()));
        if (i == 1) board.arrive(kWentOn);
        if (i == 2) board.wait_for(kVictimIsOver, 1);
      }
    }
    together_again(group, all, rank.rank, size, board);
    return "";
  });
  stop_and_wake(ranks, at, others, board);
  report(ranks, size, {});
}

/// Throughput mode: what happens to rows that pass through a rank, or that it was about to store, is not what these tests expect.
std::string why_not_masked(const Case& c) {
  if (c.mode == Mode::kThroughput && c.nodes.size() > 1) return "rows that pass through the victim are lost with it";
  if (c.mode == Mode::kThroughput && c.max_signal_delay_ns != 0) return "the victim's rows may be holes in results";
  return "";
}

/// Dispatch and combine by a rank whose group masks who does not come, compared with what is left of it at each moment.
void live_on(Group& group, const Reference& all, const Reference& fewer, int rank, Milliseconds timeout) {
  Round with(all, rank), without_it(fewer, rank);
  const auto now = [&]() -> Round& { return group.masked().at(kVictim) ? without_it : with; };
  DispatchArgs args = with.dispatch_args();
  args.timeout = timeout;
  const DispatchResult arrived = group.dispatch(args);
  Round& dispatched = now();
  dispatched.check(arrived);
  CombineArgs back = dispatched.combine_args(arrived);
  back.timeout = timeout;
  const CombineResult out = group.combine(back);
  now().check(out);
}

TEST_P(Lost, KilledAndMaskedAutomatically) {
  Case c = make_case();
  if (const std::string why = why_not_masked(c); !why.empty()) GTEST_SKIP() << why;
  c.default_capacity = true;  // the same with the victim and without
  const Phase at = phase();
  const int size = c.num_ranks();
  const Reference all(c, 0), fewer(without(c, kVictim), 0);
  constexpr Milliseconds kDeadline{2000};
  Board board;
  RankProcesses ranks(size, [&](Rank rank) -> std::string {
    GroupConfig config = group_config(c);
    config.auto_masks = 2;
    Group group = make_group(c, rank, config);
    round_trip(group, all, rank.rank);
    if (rank.rank == kVictim) {
      be_hit(group, all, rank.rank, at, SIGKILL, board, kLong);
      std::this_thread::sleep_for(std::chrono::seconds(50));  // the signal in the middle came after the end
      return "";
    }
    for (int i = 0; i < 6; ++i) {
      const Outcome next = outcome_of([&] { live_on(group, all, fewer, rank.rank, kDeadline); });
      require(!next.error, fmt::format("call {}: {}", i, next.text()));
    }
    require(group.masked().at(kVictim), "the victim is not masked");
    return "";
  });
  if (at == Phase::kInTheMiddle) {
    board.wait_for(kAtPhase, 1);
    std::this_thread::sleep_for(Milliseconds(5));
    ranks.send_signal(kVictim, SIGKILL);
  }
  report(ranks, size, {kVictim});
}

TEST_P(Lost, StoppedMaskedAutomaticallyAndTakenBack) {
  Case c = make_case();
  if (const std::string why = why_not_masked(c); !why.empty()) GTEST_SKIP() << why;
  c.default_capacity = true;  // the same with the victim and without
  const Phase at = phase();
  const int size = c.num_ranks(), others = size - 1;
  const Reference all(c, 0), fewer(without(c, kVictim), 0);
  constexpr Milliseconds kDeadline{500};
  Board board;
  RankProcesses ranks(size, [&](Rank rank) -> std::string {
    GroupConfig config = group_config(c);
    config.auto_masks = 2;
    Group group = make_group(c, rank, config);
    round_trip(group, all, rank.rank);
    if (rank.rank == kVictim) {
      Outcome woken = outcome_of([&] { be_hit(group, all, rank.rank, at, SIGSTOP, board, kLong); });
      for (int i = 0; i < 3 && !woken.error; ++i)
        woken = outcome_of([&] { live_on(group, all, fewer, rank.rank, kLong); });
      require_error(woken, {ErrorCode::kMismatch}, kLong, "woken up");
      require(woken.text().find("out") != std::string::npos, "it does not say left out: " + woken.text());
      board.arrive(kVictimIsOver);
    } else {
      // Across its waking up: every result is compared bit by bit.
      for (int i = 0; i < 7; ++i) {
        const Outcome next = outcome_of([&] { live_on(group, all, fewer, rank.rank, i < 3 ? kDeadline : kLong); });
        require(!next.error, fmt::format("call {}: {}", i, next.text()));
        if (i == 3) board.arrive(kWentOn);
        if (i == 5) board.wait_for(kVictimIsOver, 1);
      }
      require(group.masked().at(kVictim), "the victim is not masked");
    }
    together_again(group, all, rank.rank, size, board);
    return "";
  });
  stop_and_wake(ranks, at, others, board);
  report(ranks, size, {});
}

const auto kPhases = testing::Values(Phase::kBeforeDispatch, Phase::kDispatchSent, Phase::kDispatchReceived,
                                     Phase::kCombineSent, Phase::kInTheMiddle);

std::string name_of(const testing::TestParamInfo<Setup>& setup) {
  const auto& [mode, nodes, phase, network] = setup.param;
  std::string text = std::string(ferry::name(mode)) + "_" + nodes_name(nodes) + "_" + name(phase);
  if (network != std::string("auto")) text += std::string("_") + network;
  return text;
}

INSTANTIATE_TEST_SUITE_P(Setups, Lost,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(std::vector<int>{3}, std::vector<int>{2, 2}), kPhases,
                                          testing::Values("auto")),
                         name_of);

// "Process": ThreadSanitizer does not see what libfabric stores.
INSTANTIATE_TEST_SUITE_P(TcpProcess, Lost,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(std::vector<int>{2, 2}), kPhases, testing::Values("tcp")),
                         name_of);

// Not over shm: libfabric's provider keeps spinlocks in memory that processes share, and one that is killed or stopped inside it
// takes its peers' proxies along (docs/network_engine.md).

}  // namespace
}  // namespace ferry::test
