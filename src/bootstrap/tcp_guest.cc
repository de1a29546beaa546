// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Any other rank of a TCP meeting.
#include "bootstrap/tcp_guest.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "core/check.h"

namespace ferry::bootstrap {
namespace {

// Rank 0 answers a hello at once; an address where nobody does for so long is tried again later, and others before.
constexpr auto kAnswerPatience = std::chrono::seconds(10);
constexpr auto kFirstPause = std::chrono::milliseconds(5);
constexpr auto kLongestPause = std::chrono::milliseconds(200);

}  // namespace

TcpGuest::TcpGuest(const TcpMeeting& where) : rank_(where.rank), size_(where.size) {
  const Deadline deadline = Deadline::after(where.timeout);
  take_seat(where, deadline);
  if (!await(FrameKind::kStart, deadline)) {
    if (ended_) fail(ErrorCode::kBootstrap, "rank 0 left the meeting", {0});
    fail(ErrorCode::kTimeout, "rank 0 did not say in time that everybody is there", {0});
  }
  started_ = true;
}

void TcpGuest::take_seat(const TcpMeeting& where, Deadline deadline) {
  std::chrono::nanoseconds pause = kFirstPause;
  while (true) {
    const Resolution resolution = resolve(where.address, where.port);
    if (resolution.addresses.empty()) {
      last_complaint_ = resolution.complaint;
      if (!resolution.may_change) {
        fail(ErrorCode::kBootstrap, fmt::format("{} has no address: {}", where.address, resolution.complaint), {0});
      }
    }
    for (const SocketAddress& address : resolution.addresses) {
      if (try_address(where, address, deadline)) return;
      if (deadline.passed()) break;
    }
    if (deadline.passed()) {
      fail(ErrorCode::kTimeout,
           fmt::format("rank {} did not reach rank 0 at {} port {} within {}: {}", rank_, where.address, where.port,
                       describe(where.timeout), last_complaint_),
           {0});
    }
    std::this_thread::sleep_for(std::min(pause, deadline.remaining()));
    pause = std::min<std::chrono::nanoseconds>(pause * 2, kLongestPause);
  }
}

bool TcpGuest::try_address(const TcpMeeting& where, const SocketAddress& address, Deadline deadline) {
  const Deadline patience = Deadline::earlier(deadline, Deadline::after(kAnswerPatience));
  Fd socket = begin_connect(address);
  if (!socket) {
    last_complaint_ = describe_errno(errno);
    return false;
  }
  pollfd watched{socket.get(), POLLOUT, 0};
  while (::poll(&watched, 1, patience.remaining_ms()) <= 0) {
    if (!patience.passed()) continue;
    last_complaint_ = "it did not answer";
    return false;
  }
  if (const int error_number = connect_outcome(socket); error_number != 0) {
    last_complaint_ = describe_errno(error_number);
    return false;
  }
  ended_ = false;
  stream_ = FrameStream(std::move(socket), kMaxResultBytes);
  const Hello hello{.rank = static_cast<std::uint32_t>(rank_),
                    .size = static_cast<std::uint32_t>(size_),
                    .patience = deadline.remaining(),
                    .token = where.token};
  stream_.send(FrameKind::kHello, hello.encode());
  if (await(FrameKind::kWelcome, patience)) return true;
  last_complaint_ = ended_ ? "it hung up" : "it accepted the connection but did not answer";
  stream_.close();
  return false;
}

std::vector<Bytes> TcpGuest::all_gather(std::span<const std::byte> mine, std::chrono::nanoseconds timeout) {
  if (mine.size() > kMaxContributionBytes) {
    refuse("ferry::Meeting::all_gather", "mine", fmt::format("{} bytes", mine.size()),
           fmt::format("at most {} bytes", kMaxContributionBytes));
  }
  if (error_) throw *error_;
  const Deadline deadline = Deadline::after(timeout);
  stream_.send(FrameKind::kContribute, Contribution::encode(round_, deadline.remaining(), mine));
  const std::optional<Frame> frame = await(FrameKind::kResult, deadline);
  if (!frame && ended_) fail(ErrorCode::kBootstrap, "rank 0 left the meeting", {0});
  if (!frame) fail(ErrorCode::kTimeout, fmt::format("rank 0 did not answer within {}", describe(timeout)), {0});
  std::optional<Result> result = Result::decode(frame->payload);
  if (!result || result->round != round_ || result->all.size() != static_cast<std::size_t>(size_)) {
    fail(ErrorCode::kBootstrap, "rank 0 sent a result that makes no sense", {0});
  }
  ++round_;
  return std::move(result->all);
}

std::optional<Frame> TcpGuest::await(FrameKind kind, Deadline deadline) {
  while (true) {
    std::optional<Frame> frame = stream_.reader().next();
    if (!stream_.reader().complaint().empty()) {
      fail(ErrorCode::kBootstrap,
           fmt::format("what answers in place of rank 0 is something else: {}", stream_.reader().complaint()), {0});
    }
    if (frame && frame->kind == kind) return frame;
    if (frame) fail_as_told(*frame);
    if (ended_ || deadline.passed()) return std::nullopt;
    pollfd watched{stream_.fd(), stream_.events(), 0};
    ::poll(&watched, 1, deadline.remaining_ms());
    stream_.flush();
    ended_ = !stream_.fill();
  }
}

void TcpGuest::fail_as_told(const Frame& frame) {
  const bool tells = frame.kind == FrameKind::kRefusal || frame.kind == FrameKind::kFailure;
  const std::optional<Reason> reason = tells ? Reason::decode(frame.payload) : std::nullopt;
  if (!reason) fail(ErrorCode::kBootstrap, "rank 0 sent a frame out of turn", {0});
  if (frame.kind == FrameKind::kRefusal) {
    fail(ErrorCode::kBootstrap, fmt::format("rank 0 turned rank {} of {} away: {}", rank_, size_, reason->text), {});
  }
  fail(reason->code, reason->text, reason->missing);
}

void TcpGuest::fail(ErrorCode code, const std::string& text, const std::vector<int>& missing) {
  error_ = failure(
      code, fmt::format("{}: {} (seen by rank {})", started_ ? "all_gather" : "meet_over_tcp", text, rank_), missing);
  stream_.close();  // so that rank 0 knows at once
  throw *error_;
}

}  // namespace ferry::bootstrap
