// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Frames and messages of the TCP meeting.
#include "bootstrap/frames.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "bootstrap/bytes.h"

namespace ferry::bootstrap {
namespace {

std::uint64_t to_wire(std::chrono::nanoseconds patience) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, patience.count()));
}

std::chrono::nanoseconds from_wire(std::uint64_t patience) {
  const std::chrono::nanoseconds longest = std::chrono::hours(24 * 365);
  return std::chrono::nanoseconds(
      static_cast<std::int64_t>(std::min(patience, static_cast<std::uint64_t>(longest.count()))));
}

Bytes copy(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

}  // namespace

Bytes encode_frame(FrameKind kind, std::span<const std::byte> payload) {
  ByteWriter writer;
  writer.put(kFrameMagic).put(kProtocolVersion).put(static_cast<std::uint16_t>(kind));
  writer.put(static_cast<std::uint64_t>(payload.size())).put_raw(payload);
  return writer.take();
}

void FrameReader::feed(std::span<const std::byte> bytes) {
  if (!complaint_.empty()) return;
  // What has been handed out goes before more comes in; it is all of the buffer, or little, as ranks speak in turn.
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(begin_));
  begin_ = 0;
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
}

std::optional<Frame> FrameReader::next() {
  const std::span<const std::byte> kept = std::span(buffer_).subspan(begin_);
  ByteReader reader(kept);
  // The magic is judged as it comes: a stranger that sends one wrong byte and then waits is known at once.
  for (std::size_t i = 0; i < std::min(kept.size(), sizeof(kFrameMagic)); ++i) {
    if (kept[i] != static_cast<std::byte>(kFrameMagic >> (8 * i))) {
      complain("it does not speak Ferry's meeting protocol");
      return std::nullopt;
    }
  }
  const auto magic = reader.get<std::uint32_t>();
  const auto version = reader.get<std::uint16_t>();
  if (reader.ok() && magic == kFrameMagic && version != kProtocolVersion) {
    other_version_ = true;
    complain(fmt::format("it speaks version {} of Ferry's meeting protocol, expected version {}", version,
                         kProtocolVersion));
    return std::nullopt;
  }
  const auto kind = reader.get<std::uint16_t>();
  const auto length = reader.get<std::uint64_t>();
  if (!reader.ok()) return std::nullopt;
  if (kind < 1 || kind > 7) {
    complain(fmt::format("it sent a frame of unknown kind {}", kind));
    return std::nullopt;
  }
  if (length > max_payload_bytes_) {
    complain(fmt::format("it announced a frame of {} bytes, expected at most {}", length, max_payload_bytes_));
    return std::nullopt;
  }
  if (reader.rest() < length) return std::nullopt;
  Frame frame{.kind = static_cast<FrameKind>(kind), .payload = copy(reader.get_raw(length))};
  begin_ += kFrameHeaderBytes + length;
  return frame;
}

void FrameReader::complain(std::string text) {
  complaint_ = std::move(text);
  buffer_ = {};
  begin_ = 0;
}

Bytes Hello::encode() const {
  return ByteWriter().put(rank).put(size).put(to_wire(patience)).put_text(token).take();
}

std::optional<Hello> Hello::decode(std::span<const std::byte> payload) {
  ByteReader reader(payload);
  Hello hello;
  hello.rank = reader.get<std::uint32_t>();
  hello.size = reader.get<std::uint32_t>();
  hello.patience = from_wire(reader.get<std::uint64_t>());
  hello.token = reader.get_text();
  if (!reader.finished()) return std::nullopt;
  return hello;
}

Bytes Reason::encode() const {
  ByteWriter writer;
  writer.put(static_cast<std::uint8_t>(code)).put(static_cast<std::uint32_t>(missing.size()));
  for (const int rank : missing) writer.put(static_cast<std::uint32_t>(rank));
  return writer.put_text(std::string_view(text).substr(0, kMaxReasonBytes)).take();
}

std::optional<Reason> Reason::decode(std::span<const std::byte> payload) {
  ByteReader reader(payload);
  Reason reason;
  const auto code = reader.get<std::uint8_t>();
  if (code > static_cast<std::uint8_t>(ErrorCode::kInternal)) return std::nullopt;
  reason.code = static_cast<ErrorCode>(code);
  const auto num_missing = reader.get<std::uint32_t>();
  if (num_missing > reader.rest() / sizeof(std::uint32_t)) return std::nullopt;
  for (std::uint32_t i = 0; i < num_missing; ++i) {
    const auto rank = reader.get<std::uint32_t>();
    if (rank >= static_cast<std::uint32_t>(kMaxRanks)) return std::nullopt;
    reason.missing.push_back(static_cast<int>(rank));
  }
  reason.text = reader.get_text();
  if (!reader.finished() || reason.text.size() > kMaxReasonBytes) return std::nullopt;
  return reason;
}

Bytes Contribution::encode(std::uint64_t round, std::chrono::nanoseconds patience, std::span<const std::byte> bytes) {
  return ByteWriter().put(round).put(to_wire(patience)).put_raw(bytes).take();
}

std::optional<Contribution> Contribution::decode(std::span<const std::byte> payload) {
  ByteReader reader(payload);
  Contribution contribution;
  contribution.round = reader.get<std::uint64_t>();
  contribution.patience = from_wire(reader.get<std::uint64_t>());
  if (!reader.ok()) return std::nullopt;
  contribution.bytes = copy(reader.get_raw(reader.rest()));
  return contribution;
}

Bytes Result::encode() const {
  ByteWriter writer;
  writer.put(round).put(static_cast<std::uint32_t>(all.size()));
  for (const Bytes& bytes : all) writer.put(static_cast<std::uint64_t>(bytes.size()));
  for (const Bytes& bytes : all) writer.put_raw(bytes);
  return writer.take();
}

std::optional<Result> Result::decode(std::span<const std::byte> payload) {
  ByteReader reader(payload);
  Result result;
  result.round = reader.get<std::uint64_t>();
  const auto count = reader.get<std::uint32_t>();
  if (!reader.ok() || count > reader.rest() / sizeof(std::uint64_t)) return std::nullopt;
  std::vector<std::uint64_t> lengths(count);
  for (std::uint64_t& length : lengths) length = reader.get<std::uint64_t>();
  for (const std::uint64_t length : lengths) {
    if (length > reader.rest()) return std::nullopt;
    result.all.push_back(copy(reader.get_raw(length)));
  }
  if (!reader.finished()) return std::nullopt;
  return result;
}

Doorkeeper::Doorkeeper(int size, std::string token)
    : seated_(static_cast<std::size_t>(size)), token_(std::move(token)) {
  seated_[0] = true;
}

std::optional<std::string> Doorkeeper::objection(const Hello& hello) const {
  // The token first: who does not have it learns nothing else.
  if (!equal_secrets(std::as_bytes(std::span(hello.token)), std::as_bytes(std::span(token_)))) {
    return "the token is not the one of this job";
  }
  if (hello.size != seated_.size()) return fmt::format("the group has {} ranks, not {}", seated_.size(), hello.size);
  if (hello.rank >= hello.size) return fmt::format("rank {} is not one of 0 to {}", hello.rank, hello.size - 1);
  if (seated_[hello.rank]) return fmt::format("rank {} is here already", hello.rank);
  return std::nullopt;
}

void Doorkeeper::seat(int rank) {
  seated_[static_cast<std::size_t>(rank)] = true;
  ++num_seated_;
}

void Doorkeeper::free(int rank) {
  seated_[static_cast<std::size_t>(rank)] = false;
  --num_seated_;
}

std::vector<int> Doorkeeper::missing() const {
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < seated_.size(); ++rank) {
    if (!seated_[rank]) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

Handshake::Status Handshake::feed(std::span<const std::byte> bytes, const Doorkeeper& door) {
  if (status_ != Status::kMore) return status_;
  reader_.feed(bytes);
  const std::optional<Frame> frame = reader_.next();
  if (!reader_.complaint().empty()) {
    // Who speaks our protocol is told why; to others our words would mean nothing.
    reason_ = reader_.complaint();
    status_ = reader_.other_version() ? Status::kRefuse : Status::kHangUp;
  } else if (frame) {
    const std::optional<Hello> hello = frame->kind == FrameKind::kHello ? Hello::decode(frame->payload) : std::nullopt;
    const std::optional<std::string> objection = hello ? door.objection(*hello) : "it did not introduce itself";
    status_ = objection || reader_.kept_bytes() > 0 ? Status::kRefuse : Status::kAdmit;
    reason_ = objection.value_or(status_ == Status::kRefuse ? "it spoke before it was welcome" : "");
    if (status_ == Status::kAdmit) hello_ = *hello;
  }
  return status_;
}

}  // namespace ferry::bootstrap
