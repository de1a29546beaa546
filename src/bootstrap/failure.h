// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How the bootstrap says that something went wrong, and the deadline that every wait of it carries.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "ferry/error.h"

namespace ferry::bootstrap {

/// An Error of step "meet"; `missing` are the ranks that were waited for.
Error failure(ErrorCode code, const std::string& message, const std::vector<int>& missing = {});

/// "rank 3", "ranks 1 and 3", "ranks 1-7, 9 and 12": ascending ranks for a message.
std::string describe_ranks(const std::vector<int>& ranks);

/// The text of an errno value.
std::string describe_errno(int error_number);

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  /// Negative timeouts count as 0, enormous ones as a year.
  static Deadline after(std::chrono::nanoseconds timeout);
  static Deadline earlier(Deadline a, Deadline b) { return a.at_ < b.at_ ? a : b; }

  bool passed() const { return Clock::now() >= at_; }
  Clock::time_point at() const { return at_; }
  std::chrono::nanoseconds remaining() const;
  /// What is left, for poll(2): milliseconds, rounded up so that a loop does not spin, and at most `most_ms`.
  int remaining_ms(int most_ms = 1000) const;

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

/// "1.5 s", "20 ms"
std::string describe(std::chrono::nanoseconds duration);

}  // namespace ferry::bootstrap
