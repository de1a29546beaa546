// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Runs one function as several ranks, as threads of this process or as processes, and never hangs: a watchdog ends what is
// not finished by its deadline and says which ranks were still running.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ferry/meeting.h"

namespace ferry::test {

enum class RanksAs { kThreads, kProcesses };
const char* name(RanksAs ranks_as);

/// What a rank's function gets.
struct Rank {
  int rank = 0;
  int size = 1;
  Meeting* meeting = nullptr;
};

/// A rank that finds something wrong throws this (or anything else); the harness reports it with the rank's number. Ranks
/// must not use gtest's macros: in another process nobody would see them.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
void require(bool condition, const std::string& message);

/// Patience for slow machines and instrumented builds is part of it.
inline constexpr std::chrono::seconds kDefaultDeadline{100};

/// Runs `body` on `size` ranks. Throws Failure with the messages of all ranks that failed, in order of rank. Threads that
/// pass the deadline cannot be ended alone: the program then says who they are and exits with status 3.
void run_ranks(int size, RanksAs ranks_as, const std::function<void(Rank)>& body,
               std::chrono::seconds deadline = kDefaultDeadline);

/// Ranks as processes one by one, for tests that stop or kill them. The processes die with the test program.
class RankProcesses {
 public:
  /// What became of a process: the text it returned, or the message of what it threw, or how it was ended.
  struct Outcome {
    bool returned = false;
    std::string text;
    int signal = 0;  ///< that ended it, 0 if none
  };

  /// Forks at once; call it while this program has no other threads.
  RankProcesses(int size, const std::function<std::string(Rank)>& body);
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;
  ~RankProcesses();  ///< kills what still runs

  pid_t pid(int rank) const;
  /// Sends a signal (SIGKILL, SIGSTOP, SIGCONT) to one rank.
  void send_signal(int rank, int signal_number);
  /// Waits for the ranks given (empty: all). What is not over by the deadline is killed and reported as such.
  std::vector<Outcome> wait(std::chrono::seconds deadline = kDefaultDeadline, const std::vector<int>& ranks = {});

 private:
  struct Child;
  std::vector<std::unique_ptr<Child>> children_;
};

/// A TCP port of this machine that was free a moment ago.
std::uint16_t free_port();

}  // namespace ferry::test
