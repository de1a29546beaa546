// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Meeting of ranks that are threads of one process.
#include "bootstrap/hub.h"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "bootstrap/failure.h"
#include "core/check.h"

namespace ferry {
namespace {

using bootstrap::Deadline;
using bootstrap::describe;
using bootstrap::describe_ranks;
using bootstrap::failure;

std::size_t index(int rank) {
  return static_cast<std::size_t>(rank);
}

class InProcessMeeting final : public Meeting {
 public:
  InProcessMeeting(std::shared_ptr<InProcessHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  InProcessMeeting(const InProcessMeeting&) = delete;
  InProcessMeeting& operator=(const InProcessMeeting&) = delete;
  ~InProcessMeeting() override { hub_->leave(rank_); }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return hub_->size(); }
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> mine,
                                                 std::chrono::nanoseconds timeout) override {
    return hub_->all_gather(rank_, mine, timeout);
  }
  std::shared_ptr<InProcessHub> hub() const override { return hub_; }

 private:
  std::shared_ptr<InProcessHub> hub_;
  int rank_;
};

}  // namespace

InProcessHub::InProcessHub(int size)
    : size_(size), arrived_(index(size)), left_(index(size)), boards_taken_(index(size)) {}

std::vector<std::vector<std::byte>> InProcessHub::all_gather(int rank, std::span<const std::byte> mine,
                                                             std::chrono::nanoseconds timeout) {
  const Deadline deadline = Deadline::after(timeout);
  std::unique_lock lock(mutex_);
  throw_if_broken(rank);
  if (arrived_[index(rank)]) {
    throw failure(ErrorCode::kBootstrap,
                  fmt::format("all_gather: rank {} is in this meeting's all_gather already", rank));
  }
  const std::uint64_t round = round_;
  arrived_[index(rank)].emplace(mine.begin(), mine.end());
  if (++num_arrived_ == size_) {
    complete_round();
    return *result_;
  }
  std::vector<int> left;
  for (const int other : absent()) {
    if (left_[index(other)]) left.push_back(other);
  }
  if (!left.empty()) {
    fail({.code = ErrorCode::kBootstrap,
          .missing = left,
          .text = fmt::format("{} left the meeting", describe_ranks(left))});
  }
  while (round_ == round) {
    throw_if_broken(rank);
    if (changed_.wait_until(lock, deadline.at()) == std::cv_status::timeout && round_ == round && !failure_) {
      const std::vector<int> missing = absent();
      fail({.code = ErrorCode::kTimeout,
            .missing = missing,
            .text = fmt::format("{} did not come within {}", describe_ranks(missing), describe(timeout))});
    }
  }
  // Taken under the lock: the next round can only complete after this rank has come again.
  const std::shared_ptr<const std::vector<Bytes>> result = result_;
  lock.unlock();
  return *result;
}

void InProcessHub::leave(int rank) {
  const std::lock_guard lock(mutex_);
  left_[index(rank)] = true;
  if (num_arrived_ > 0 && !arrived_[index(rank)]) {
    fail({.code = ErrorCode::kBootstrap, .missing = {rank}, .text = fmt::format("rank {} left the meeting", rank)});
  }
}

std::shared_ptr<bootstrap::LocalBoard> InProcessHub::next_board(int rank) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t number = boards_taken_[index(rank)]++;
  Board& entry = boards_[number];
  if (!entry.board) entry.board = std::make_shared<bootstrap::LocalBoard>(size_);
  std::shared_ptr<bootstrap::LocalBoard> board = entry.board;
  if (++entry.taken == size_) boards_.erase(number);
  return board;
}

std::vector<int> InProcessHub::absent() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < size_; ++rank) {
    if (!arrived_[index(rank)]) ranks.push_back(rank);
  }
  return ranks;
}

void InProcessHub::complete_round() {
  auto result = std::make_shared<std::vector<Bytes>>();
  result->reserve(index(size_));
  for (std::optional<Bytes>& bytes : arrived_) {
    result->push_back(std::move(*bytes));
    bytes.reset();
  }
  result_ = std::move(result);
  num_arrived_ = 0;
  ++round_;
  changed_.notify_all();
}

void InProcessHub::fail(Failure failure) {
  if (!failure_) failure_ = std::move(failure);
  changed_.notify_all();
}

void InProcessHub::throw_if_broken(int rank) const {
  if (!failure_) return;
  throw failure(failure_->code, fmt::format("all_gather: {} (seen by rank {} of {})", failure_->text, rank, size_),
                failure_->missing);
}

std::vector<std::unique_ptr<Meeting>> meet_in_process(int size) {
  if (size < 1) refuse("ferry::meet_in_process", "size", fmt::format("{}", size), "at least 1");
  const auto hub = std::make_shared<InProcessHub>(size);
  std::vector<std::unique_ptr<Meeting>> meetings;
  meetings.reserve(index(size));
  for (int rank = 0; rank < size; ++rank) meetings.push_back(std::make_unique<InProcessMeeting>(hub, rank));
  return meetings;
}

}  // namespace ferry
