// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rank 0 of a TCP meeting: the door, the seats, and the all-gathers, all by one thread and one poll().
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "bootstrap/failure.h"
#include "bootstrap/frames.h"
#include "bootstrap/tcp_stream.h"
#include "ferry/meeting.h"

namespace ferry::bootstrap {

class TcpHost final : public Meeting {
 public:
  /// Listens, and returns when everybody has a seat.
  explicit TcpHost(const TcpMeeting& where);

  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return size_; }
  std::vector<Bytes> all_gather(std::span<const std::byte> mine, std::chrono::nanoseconds timeout) override;

 private:
  /// Somebody without a seat.
  struct Visitor {
    FrameStream stream;
    Handshake handshake;
    Deadline deadline;
    bool leaving = false;  // has been told why, and is given time to read it
  };
  struct Member {
    FrameStream stream;
    bool seated = false;
    bool ended = false;  // the connection; what it sent before still counts
    std::optional<Bytes> contribution;
    std::optional<Deadline> deadline;  // after which this guest stops waiting
  };

  void listen(const TcpMeeting& where, Deadline deadline);
  void seat_everybody(const TcpMeeting& where, Deadline deadline);
  /// One poll() over everything, and whatever follows from it.
  void turn(Deadline deadline);
  void accept_all();
  bool hear_visitor(Visitor& visitor);
  void hear_member(int rank);
  void take_contribution(int rank, const Frame& frame);
  /// The deadline of the host or of the guest that waits least, somewhat early so that the reason still reaches the
  /// guest.
  Deadline first_deadline(Deadline mine) const;
  std::vector<int> absent() const;
  void flush_all(Deadline deadline);
  void broadcast(FrameKind kind, std::span<const std::byte> payload);
  [[noreturn]] void fail(ErrorCode code, const std::string& text, const std::vector<int>& missing);

  int size_;
  Doorkeeper door_;
  std::vector<Fd> listeners_;
  std::list<Visitor> visitors_;
  std::vector<Member> members_;  // by rank; the host's own holds its contribution only
  bool started_ = false;
  std::uint64_t round_ = 0;
  std::optional<Error> error_;
};

}  // namespace ferry::bootstrap
