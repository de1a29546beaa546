// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What ranks that are threads of one process share while they meet: the rounds of their all-gathers, and the boards on
// which their in-process meshes pass notices.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "bootstrap/local_mesh.h"
#include "ferry/error.h"
#include "ferry/meeting.h"

namespace ferry {

class InProcessHub {
 public:
  explicit InProcessHub(int size);

  int size() const noexcept { return size_; }

  /// The collective of Meeting. A rank that times out or leaves breaks the hub: the others fail at once, and so does
  /// every later round.
  std::vector<std::vector<std::byte>> all_gather(int rank, std::span<const std::byte> mine,
                                                 std::chrono::nanoseconds timeout);

  /// The rank's meeting is gone; rounds that are complete are not harmed.
  void leave(int rank);

  /// The n-th call of every rank gets the n-th board.
  std::shared_ptr<bootstrap::LocalBoard> next_board(int rank);

 private:
  using Bytes = std::vector<std::byte>;
  struct Failure {
    ErrorCode code = ErrorCode::kBootstrap;
    std::vector<int> missing;
    std::string text;
  };
  struct Board {
    std::shared_ptr<bootstrap::LocalBoard> board;
    int taken = 0;
  };

  std::vector<int> absent() const;
  void complete_round();
  void fail(Failure failure);
  void throw_if_broken(int rank) const;

  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t round_ = 0;  // the round that is being filled
  std::vector<std::optional<Bytes>> arrived_;
  int num_arrived_ = 0;
  // Of the round before: at most one can still be unread, because nobody completes a round that he has not returned
  // from.
  std::shared_ptr<const std::vector<Bytes>> result_;
  std::vector<bool> left_;
  std::optional<Failure> failure_;
  std::map<std::uint64_t, Board> boards_;
  std::vector<std::uint64_t> boards_taken_;  // by rank
};

}  // namespace ferry
