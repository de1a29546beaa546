// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Any other rank of a TCP meeting: one connection to rank 0.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bootstrap/failure.h"
#include "bootstrap/frames.h"
#include "bootstrap/tcp_stream.h"
#include "ferry/meeting.h"

namespace ferry::bootstrap {

class TcpGuest final : public Meeting {
 public:
  /// Connects, and returns when everybody has a seat.
  explicit TcpGuest(const TcpMeeting& where);

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  std::vector<Bytes> all_gather(std::span<const std::byte> mine, std::chrono::nanoseconds timeout) override;

 private:
  void take_seat(const TcpMeeting& where, Deadline deadline);
  /// True once rank 0 has said welcome; false if it is worth trying again.
  bool try_address(const TcpMeeting& where, const SocketAddress& address, Deadline deadline);
  /// The next frame of this kind. Empty if the deadline passed or the connection ended; throws what rank 0 reports.
  std::optional<Frame> await(FrameKind kind, Deadline deadline);
  [[noreturn]] void fail(ErrorCode code, const std::string& text, const std::vector<int>& missing);
  [[noreturn]] void fail_as_told(const Frame& frame);

  int rank_;
  int size_;
  FrameStream stream_;
  bool ended_ = false;
  bool started_ = false;
  std::string last_complaint_ = "no attempt was made";
  std::uint64_t round_ = 0;
  std::optional<Error> error_;
};

}  // namespace ferry::bootstrap
