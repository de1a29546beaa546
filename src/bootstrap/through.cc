// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Meeting through an all-gather that the caller lends.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "bootstrap/failure.h"
#include "core/check.h"
#include "ferry/meeting.h"

namespace ferry {
namespace {

class LentMeeting final : public Meeting {
 public:
  LentMeeting(int rank, int size, AllGather all_gather)
      : rank_(rank), size_(size), all_gather_(std::move(all_gather)) {}

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }

  /// What the caller's function throws passes through unchanged, and its timeout applies.
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> mine, std::chrono::nanoseconds) override {
    std::vector<std::vector<std::byte>> all = all_gather_(mine);
    if (all.size() != static_cast<std::size_t>(size_)) {
      throw bootstrap::failure(
          ErrorCode::kBootstrap,
          fmt::format("meet_through: the all_gather lent to rank {} returned {} entries, expected {}", rank_,
                      all.size(), size_));
    }
    if (const auto& own = all[static_cast<std::size_t>(rank_)];
        !std::equal(own.begin(), own.end(), mine.begin(), mine.end())) {
      throw bootstrap::failure(
          ErrorCode::kBootstrap,
          fmt::format(
              "meet_through: the all_gather lent to rank {} returned {} bytes as its entry {}, expected the {} bytes "
              "that were given; is the rank right?",
              rank_, own.size(), rank_, mine.size()));
    }
    return all;
  }

 private:
  int rank_;
  int size_;
  AllGather all_gather_;
};

}  // namespace

std::unique_ptr<Meeting> meet_through(int rank, int size, AllGather all_gather) {
  const char* const function = "ferry::meet_through";
  if (size < 1) refuse(function, "size", fmt::format("{}", size), "at least 1");
  if (rank < 0 || rank >= size) {
    refuse(function, "rank", fmt::format("{}", rank), fmt::format("0 to {}", size - 1));
  }
  if (!all_gather) refuse(function, "all_gather", "empty", "a function");
  return std::make_unique<LentMeeting>(rank, size, std::move(all_gather));
}

}  // namespace ferry
