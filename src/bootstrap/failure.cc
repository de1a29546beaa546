// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Messages and deadlines of the bootstrap.
#include "bootstrap/failure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <system_error>

namespace ferry::bootstrap {

Error failure(ErrorCode code, const std::string& message, const std::vector<int>& missing) {
  Error error(code, message);
  error.step = "meet";
  for (const int rank : missing) {
    PeerWait wait;
    wait.rank = rank;
    wait.activity = "meet";
    error.peers.push_back(std::move(wait));
  }
  return error;
}

std::string describe_ranks(const std::vector<int>& ranks) {
  if (ranks.empty()) return "no rank";
  std::vector<std::string> runs;
  for (std::size_t first = 0; first < ranks.size();) {
    std::size_t last = first;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    if (last >= first + 2) {
      runs.push_back(fmt::format("{}-{}", ranks[first], ranks[last]));
    } else {
      for (std::size_t i = first; i <= last; ++i) runs.push_back(fmt::format("{}", ranks[i]));
    }
    first = last + 1;
  }
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (i > 0) text += i + 1 == runs.size() ? " and " : ", ";
    text += runs[i];
  }
  return text;
}

std::string describe_errno(int error_number) {
  return fmt::format("{} (errno {})", std::generic_category().message(error_number), error_number);
}

Deadline Deadline::after(std::chrono::nanoseconds timeout) {
  const std::chrono::nanoseconds longest = std::chrono::hours(24 * 365);
  return Deadline(Clock::now() + std::clamp(timeout, std::chrono::nanoseconds(0), longest));
}

std::chrono::nanoseconds Deadline::remaining() const {
  return std::max(std::chrono::nanoseconds(0), std::chrono::nanoseconds(at_ - Clock::now()));
}

int Deadline::remaining_ms(int most_ms) const {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(remaining()).count();
  return static_cast<int>(std::min<std::int64_t>(left, most_ms));
}

std::string describe(std::chrono::nanoseconds duration) {
  const double seconds = std::chrono::duration<double>(duration).count();
  return seconds < 1 ? fmt::format("{:.4g} ms", seconds * 1e3) : fmt::format("{:.4g} s", seconds);
}

}  // namespace ferry::bootstrap
