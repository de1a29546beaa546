// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Gates in shared memory and checks of errors.
#include "fault_support.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <thread>

namespace ferry::test {
namespace {

using Clock = std::chrono::steady_clock;

/// GPUs are lent by the minute: what hangs there shall not hang long.
constexpr Milliseconds kLongOnGpu{4000};
constexpr std::chrono::seconds kWatchdogOnGpu{20};

}  // namespace

Case all_to_all(Mode mode, std::vector<int> nodes, RanksAs ranks_as) {
  Case c;
  c.mode = mode;
  c.nodes = std::move(nodes);
  c.ranks_as = ranks_as;
  c.layout = Layout::kExpertPadded;
  c.num_experts = 2 * c.num_ranks();
  c.top_k = c.num_experts - 1;
  c.tokens = {5, 3, 7, 4, 2};
  c.reduction = Reduction::per_node();
  c.weighting = CombineArgs::Weighting::kFromDispatch;
  c.timeout = std::chrono::duration_cast<std::chrono::seconds>(kLong);
  c.seed = 77;
  return adapted(c);
}

std::string why_no_setup(Mode mode, const std::vector<int>& nodes, RanksAs ranks_as) {
  return why_not_here({.ranks_as = ranks_as, .nodes = nodes, .mode = mode});
}

bool on_cuda() {
  return adapted(Case{}).backend == "cuda";
}

DispatchResult dispatch(Group& group, Round& round, const DispatchArgs& args) {
  DispatchResult result = group.dispatch(args);
  round.wait();
  if (on_cuda()) group.check();
  return result;
}

CombineResult combine(Group& group, Round& round, const CombineArgs& args) {
  CombineResult result = group.combine(args);
  round.wait();
  if (on_cuda()) group.check();
  return result;
}

Case without(Case c, int rank) {
  c.masked.push_back(rank);
  return c;
}

void round_trip(Group& group, const Reference& reference, int rank, Milliseconds timeout) {
  Round round(reference, rank);
  if (on_cuda()) timeout = std::min(timeout, kLongOnGpu);
  DispatchArgs send = round.dispatch_args();
  send.timeout = timeout;
  const DispatchResult arrived = dispatch(group, round, send);
  round.check(arrived);
  CombineArgs back = round.combine_args(arrived);
  back.timeout = timeout;
  round.check(combine(group, round, back));
}

Outcome outcome_of(const std::function<void()>& call) {
  Outcome outcome;
  const auto start = Clock::now();
  try {
    call();
  } catch (const Error& error) {
    outcome.error = error;
  }
  outcome.took = std::chrono::duration_cast<Milliseconds>(Clock::now() - start);
  return outcome;
}

void require_error(const Outcome& outcome, const std::vector<ErrorCode>& codes, Milliseconds deadline,
                   const std::string& when) {
  require(outcome.error.has_value(), when + ": no error");
  const bool expected = std::find(codes.begin(), codes.end(), outcome.error->code()) != codes.end();
  require(expected, fmt::format("{}: unexpected error ({}): {}", when, name(outcome.error->code()), outcome.text()));
  require(outcome.took <= deadline + kSlack,
          fmt::format("{}: took {} ms: {}", when, outcome.took.count(), outcome.text()));
}

void require_waited_for(const Outcome& outcome, int peer, const std::string& when) {
  require(outcome.error.has_value(), when + ": no error");
  const Error& error = *outcome.error;
  const bool named =
      std::any_of(error.peers.begin(), error.peers.end(), [&](const PeerWait& wait) { return wait.rank == peer; });
  require(named, fmt::format("{}: rank {} is not among the peers of: {}", when, peer, outcome.text()));
  require(outcome.text().find(fmt::format("rank {}", peer)) != std::string::npos,
          fmt::format("{}: rank {} is not named: {}", when, peer, outcome.text()));
  require(!error.step.empty() && error.epoch > 0, fmt::format("{}: no step or epoch: {}", when, outcome.text()));
}

std::string nodes_name(const std::vector<int>& nodes) {
  std::string name = "nodes";
  for (const int size : nodes) name += "_" + std::to_string(size);
  return name;
}

void run_and_report(const Case& c, const std::function<void(Rank)>& body) {
  SCOPED_TRACE(describe(c));
  try {
    run_ranks(c.num_ranks(), c.ranks_as, body, on_cuda() ? kWatchdogOnGpu : kWatchdog);
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
}

void report(RankProcesses& ranks, int size, const std::vector<int>& ended) {
  const auto outcomes = ranks.wait(kWatchdog);
  for (int rank = 0; rank < size; ++rank) {
    const auto& outcome = outcomes[static_cast<std::size_t>(rank)];
    if (std::find(ended.begin(), ended.end(), rank) != ended.end()) {
      EXPECT_EQ(outcome.signal, SIGKILL) << "rank " << rank << ": " << outcome.text;
    } else {
      EXPECT_TRUE(outcome.returned) << "rank " << rank << ": " << outcome.text;
    }
  }
}

}  // namespace ferry::test
