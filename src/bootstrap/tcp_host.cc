// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rank 0 of a TCP meeting.
#include "bootstrap/tcp_host.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>
#include <string>
#include <thread>
#include <utility>

#include "core/check.h"

namespace ferry::bootstrap {
namespace {

constexpr std::size_t kMostVisitors = 256;
constexpr auto kVisitorPatience = std::chrono::seconds(5);
constexpr auto kLeavingPatience = std::chrono::seconds(1);
constexpr auto kPortPatience = std::chrono::seconds(1);
constexpr auto kPortPause = std::chrono::milliseconds(20);
constexpr int kMostAcceptedPerTurn = 64;  // so that a flood of strangers does not keep the members waiting

std::size_t index(int rank) {
  return static_cast<std::size_t>(rank);
}

/// When a guest that waits this long from now on must be told that it waited in vain.
Deadline guest_deadline(std::chrono::nanoseconds patience) {
  const std::chrono::nanoseconds way = std::chrono::milliseconds(250);
  return Deadline::after(patience - std::min(patience / 4, way));
}

}  // namespace

TcpHost::TcpHost(const TcpMeeting& where)
    : size_(where.size), door_(where.size, where.token), members_(index(where.size)) {
  const Deadline deadline = Deadline::after(where.timeout);
  listen(where, deadline);
  seat_everybody(where, deadline);
}

void TcpHost::listen(const TcpMeeting& where, Deadline deadline) {
  // A port may be taken for a moment: by the job before, or by a guest's first attempt that met itself.
  const Deadline patience = Deadline::earlier(deadline, Deadline::after(kPortPatience));
  while (true) {
    const Resolution resolution = resolve(where.address, where.port);
    std::string complaint = resolution.complaint;
    bool taken = false;
    for (const SocketAddress& address : resolution.addresses) {
      if (Fd listener = listen_on(address, size_ + 64)) {
        listeners_.push_back(std::move(listener));
        continue;
      }
      // An address that this machine has not may be one of several; a port that is taken would lead guests to
      // somebody else.
      taken = taken || errno == EADDRINUSE;
      complaint = describe_errno(errno);
    }
    if (!listeners_.empty() && !taken) return;
    listeners_.clear();
    if (!(taken || resolution.may_change) || patience.passed()) {
      throw failure(ErrorCode::kBootstrap, fmt::format("meet_over_tcp: rank 0 cannot listen at {} port {}: {}",
                                                       where.address, where.port, complaint));
    }
    std::this_thread::sleep_for(kPortPause);
  }
}

void TcpHost::seat_everybody(const TcpMeeting& where, Deadline deadline) {
  while (!door_.full()) {
    if (first_deadline(deadline).passed()) {
      const std::vector<int> missing = door_.missing();
      fail(ErrorCode::kTimeout,
           fmt::format("{} of {} did not come to {} port {} within {}", describe_ranks(missing), size_, where.address,
                       where.port, describe(where.timeout)),
           missing);
    }
    turn(first_deadline(deadline));
  }
  started_ = true;
  for (Member& member : members_) member.deadline.reset();
  broadcast(FrameKind::kStart, {});
  flush_all(deadline);
}

std::vector<Bytes> TcpHost::all_gather(std::span<const std::byte> mine, std::chrono::nanoseconds timeout) {
  if (mine.size() > kMaxContributionBytes) {
    refuse("ferry::Meeting::all_gather", "mine", fmt::format("{} bytes", mine.size()),
           fmt::format("at most {} bytes", kMaxContributionBytes));
  }
  if (error_) throw *error_;
  const Deadline deadline = Deadline::after(timeout);
  members_[0].contribution.emplace(mine.begin(), mine.end());
  for (std::vector<int> missing = absent(); !missing.empty(); missing = absent()) {
    std::vector<int> left;
    std::copy_if(missing.begin(), missing.end(), std::back_inserter(left),
                 [&](int rank) { return members_[index(rank)].ended; });
    if (!left.empty()) fail(ErrorCode::kBootstrap, fmt::format("{} left the meeting", describe_ranks(left)), left);
    if (first_deadline(deadline).passed()) {
      fail(ErrorCode::kTimeout, fmt::format("{} did not come in time", describe_ranks(missing)), missing);
    }
    turn(first_deadline(deadline));
  }
  Result result{.round = round_++, .all = {}};
  std::uint64_t num_bytes = 0;
  for (Member& member : members_) {
    num_bytes += member.contribution->size();
    result.all.push_back(std::move(*member.contribution));
    member.contribution.reset();
    member.deadline.reset();
  }
  if (num_bytes > kMaxResultBytes / 2) {
    fail(ErrorCode::kBootstrap,
         fmt::format("the ranks brought {} bytes, expected at most {}", num_bytes, kMaxResultBytes / 2), {});
  }
  broadcast(FrameKind::kResult, result.encode());
  flush_all(deadline);
  return std::move(result.all);
}

void TcpHost::turn(Deadline deadline) {
  std::vector<pollfd> watched;
  for (const Fd& listener : listeners_) watched.push_back({listener.get(), POLLIN, 0});
  for (const Visitor& visitor : visitors_) watched.push_back({visitor.stream.fd(), visitor.stream.events(), 0});
  for (const Member& member : members_) {
    if (member.stream.open()) watched.push_back({member.stream.fd(), member.stream.events(), 0});
  }
  ::poll(watched.data(), watched.size(), deadline.remaining_ms());
  accept_all();
  for (auto visitor = visitors_.begin(); visitor != visitors_.end();) {
    visitor = hear_visitor(*visitor) ? std::next(visitor) : visitors_.erase(visitor);
  }
  for (int rank = 1; rank < size_; ++rank) {
    if (members_[index(rank)].stream.open()) hear_member(rank);
  }
}

void TcpHost::accept_all() {
  for (const Fd& listener : listeners_) {
    for (int i = 0; i < kMostAcceptedPerTurn; ++i) {
      Fd socket = accept_tcp(listener);
      if (!socket && (errno == EMFILE || errno == ENFILE)) {
        fail(ErrorCode::kBootstrap,
             fmt::format("rank 0 cannot accept more connections: {}; raise ulimit -n", describe_errno(errno)), {});
      }
      if (!socket) break;
      // The newest are kept: a rank speaks as it connects, so what stays silent for long is none.
      if (visitors_.size() == kMostVisitors) visitors_.pop_front();
      visitors_.push_back({.stream = FrameStream(std::move(socket), kMaxHelloBytes),
                           .handshake = {},
                           .deadline = Deadline::after(kVisitorPatience)});
    }
  }
}

/// True while the visitor stays one.
bool TcpHost::hear_visitor(Visitor& visitor) {
  visitor.stream.flush();
  std::array<std::byte, kMaxHelloBytes + kFrameHeaderBytes> buffer;
  const std::ptrdiff_t num_bytes = visitor.stream.read_raw(buffer);
  if (num_bytes < 0) return false;
  if (num_bytes == 0 || visitor.leaving) return !visitor.deadline.passed();
  switch (visitor.handshake.feed(std::span(buffer).first(static_cast<std::size_t>(num_bytes)), door_)) {
    case Handshake::Status::kMore:
      return !visitor.deadline.passed();
    case Handshake::Status::kHangUp:
      return false;
    case Handshake::Status::kRefuse:
      visitor.stream.send(FrameKind::kRefusal, Reason{.missing = {}, .text = visitor.handshake.reason()}.encode());
      visitor.stream.finish_sending();
      visitor.leaving = true;  // closing now could take the reason away before it is read
      visitor.deadline = Deadline::after(kLeavingPatience);
      return true;
    case Handshake::Status::kAdmit:
      break;
  }
  const Hello& hello = visitor.handshake.hello();
  Member& member = members_[hello.rank];
  member.stream = std::move(visitor.stream);
  member.stream.reader().set_limit(kMaxContributionBytes + 64);
  member.seated = true;
  member.deadline = guest_deadline(hello.patience);
  door_.seat(static_cast<int>(hello.rank));
  member.stream.send(FrameKind::kWelcome, {});
  return false;
}

void TcpHost::hear_member(int rank) {
  Member& member = members_[index(rank)];
  member.stream.flush();
  const bool goes_on = member.stream.fill();
  while (const std::optional<Frame> frame = member.stream.reader().next()) take_contribution(rank, *frame);
  if (!member.stream.reader().complaint().empty()) {
    fail(ErrorCode::kBootstrap,
         fmt::format("rank {} sent something else: {}", rank, member.stream.reader().complaint()), {rank});
  }
  if (goes_on) return;
  member.stream.close();
  if (started_) {
    member.ended = true;
  } else {  // it may come again, or another process in its place
    member = Member();
    door_.free(rank);
  }
}

void TcpHost::take_contribution(int rank, const Frame& frame) {
  Member& member = members_[index(rank)];
  std::optional<Contribution> contribution;
  if (started_ && frame.kind == FrameKind::kContribute) contribution = Contribution::decode(frame.payload);
  if (!contribution || contribution->round != round_ || member.contribution) {
    fail(ErrorCode::kBootstrap, fmt::format("rank {} sent a frame out of turn", rank), {rank});
  }
  member.contribution = std::move(contribution->bytes);
  member.deadline = guest_deadline(contribution->patience);
}

Deadline TcpHost::first_deadline(Deadline mine) const {
  Deadline first = mine;
  for (const Member& member : members_) {
    if (member.deadline && !member.ended) first = Deadline::earlier(first, *member.deadline);
  }
  return first;
}

std::vector<int> TcpHost::absent() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < size_; ++rank) {
    if (!members_[index(rank)].contribution) ranks.push_back(rank);
  }
  return ranks;
}

void TcpHost::flush_all(Deadline deadline) {
  while (true) {
    std::vector<pollfd> watched;
    std::vector<int> slow;
    for (int rank = 1; rank < size_; ++rank) {
      FrameStream& stream = members_[index(rank)].stream;
      stream.flush();
      if (!stream.open() || !stream.has_unsent()) continue;
      slow.push_back(rank);
      watched.push_back({stream.fd(), POLLOUT, 0});
    }
    if (slow.empty()) return;
    if (deadline.passed())
      fail(ErrorCode::kTimeout, fmt::format("{} did not listen in time", describe_ranks(slow)), slow);
    ::poll(watched.data(), watched.size(), deadline.remaining_ms());
  }
}

void TcpHost::broadcast(FrameKind kind, std::span<const std::byte> payload) {
  const auto frame = std::make_shared<const Bytes>(encode_frame(kind, payload));
  for (Member& member : members_) member.stream.send(frame);
}

void TcpHost::fail(ErrorCode code, const std::string& text, const std::vector<int>& missing) {
  error_ =
      failure(code, fmt::format("{}: {} (seen by rank 0)", started_ ? "all_gather" : "meet_over_tcp", text), missing);
  const Bytes payload = Reason{.code = code, .missing = missing, .text = text}.encode();
  broadcast(FrameKind::kFailure, payload);
  for (Member& member : members_) member.stream.finish_sending();
  throw *error_;
}

}  // namespace ferry::bootstrap
