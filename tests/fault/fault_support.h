// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the fault tests share: a case where every rank has rows for every other, a board in shared memory on which ranks (also
// as processes) and the test meet, and checks of errors and of the time they took.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/board.h"
#include "support/runner.h"

namespace ferry::test {

using Milliseconds = std::chrono::milliseconds;

/// Of calls that are expected to fail.
inline constexpr Milliseconds kShort{300};
/// Of calls that are expected to succeed, also on a loaded machine.
inline constexpr Milliseconds kLong{30000};
/// What an error may come late on a loaded machine.
inline constexpr Milliseconds kSlack{5000};
/// Ends a test that hangs.
inline constexpr std::chrono::seconds kWatchdog{60};

/// Every token has a choice on every rank, so that everybody waits for everybody in every step. For the backend that
/// FERRY_TEST_BACKEND names, as adapted() does it.
Case all_to_all(Mode mode, std::vector<int> nodes, RanksAs ranks_as = RanksAs::kThreads);
/// The same without `rank`.
Case without(Case c, int rank);

/// A test of the parameters given has no place in a run for another backend: see why_not_here().
std::string why_no_setup(Mode mode, const std::vector<int>& nodes, RanksAs ranks_as = RanksAs::kThreads);
bool on_cuda();

/// A call whose error is here when it returns: on a device the stream must have come to it.
DispatchResult dispatch(Group& group, Round& round, const DispatchArgs& args);
CombineResult combine(Group& group, Round& round, const CombineArgs& args);

/// Dispatch and combine, both compared with the reference.
void round_trip(Group& group, const Reference& reference, int rank, Milliseconds timeout = kLong);

/// The Error that `call` ended in, if any, and how long it took.
struct Outcome {
  std::optional<Error> error;
  Milliseconds took{0};
  std::string text() const { return error ? error->what() : "no error"; }
  bool is(ErrorCode code) const { return error && error->code() == code; }
};
Outcome outcome_of(const std::function<void()>& call);

/// Throws Failure unless the outcome is one of `codes` and came within `deadline` plus slack.
void require_error(const Outcome& outcome, const std::vector<ErrorCode>& codes, Milliseconds deadline,
                   const std::string& when);
/// ... and has `peer` among those waited for, a step and the call's number.
void require_waited_for(const Outcome& outcome, int peer, const std::string& when);

/// "two_nodes" and the like, for names of tests.
std::string nodes_name(const std::vector<int>& nodes);

/// Runs the ranks of a case as it says, with the watchdog, and reports what failed as a gtest failure.
void run_and_report(const Case& c, const std::function<void(Rank)>& body);

/// Waits for ranks as processes; those in `ended` must have been ended by SIGKILL, all others must have returned.
void report(RankProcesses& ranks, int size, const std::vector<int>& ended);

}  // namespace ferry::test
