// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The language of the TCP meeting: frames, the messages in them, and the door at which strangers are turned away. Pure
// functions over bytes, so that a fuzzer can reach all of it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/error.h"

namespace ferry::bootstrap {

using Bytes = std::vector<std::byte>;

enum class FrameKind : std::uint16_t {
  kHello = 1,       ///< guest: who I am
  kWelcome = 2,     ///< host: you have a seat
  kStart = 3,       ///< host: everybody is here
  kRefusal = 4,     ///< host: no seat, and why
  kFailure = 5,     ///< host: the group failed, and why
  kContribute = 6,  ///< guest: my bytes of one all-gather
  kResult = 7,      ///< host: everybody's bytes
};

struct Frame {
  FrameKind kind = FrameKind::kHello;
  Bytes payload;
};

/// magic, version, kind, length of the payload: 16 bytes. Magic and version stay where they are in every future
/// version.
constexpr std::uint32_t kFrameMagic = 0x4d595246;  // "FRYM"
constexpr std::uint16_t kProtocolVersion = 1;
constexpr std::size_t kFrameHeaderBytes = 16;
constexpr std::size_t kMaxTokenBytes = 512;
constexpr std::size_t kMaxHelloBytes = 1024;  ///< all that a stranger can make us keep
constexpr std::size_t kMaxReasonBytes = 1024;
constexpr std::uint64_t kMaxContributionBytes = std::uint64_t{64} << 20;
constexpr std::uint64_t kMaxResultBytes = std::uint64_t{1} << 30;
constexpr int kMaxRanks = 65536;

Bytes encode_frame(FrameKind kind, std::span<const std::byte> payload);

/// Cuts a stream of bytes into frames. Keeps what has arrived, never what was merely announced.
class FrameReader {
 public:
  explicit FrameReader(std::uint64_t max_payload_bytes) : max_payload_bytes_(max_payload_bytes) {}

  void set_limit(std::uint64_t max_payload_bytes) { max_payload_bytes_ = max_payload_bytes; }
  void feed(std::span<const std::byte> bytes);
  /// The next whole frame. Empty if more is needed, or if the stream is broken.
  std::optional<Frame> next();
  /// Why the stream cannot be read any further; empty while it can.
  const std::string& complaint() const noexcept { return complaint_; }
  /// The other side speaks this protocol in another version.
  bool other_version() const noexcept { return other_version_; }
  std::size_t kept_bytes() const noexcept { return buffer_.size() - begin_; }

 private:
  void complain(std::string text);

  std::uint64_t max_payload_bytes_;
  Bytes buffer_;
  std::size_t begin_ = 0;
  std::string complaint_;
  bool other_version_ = false;
};

struct Hello {
  std::uint32_t rank = 0;
  std::uint32_t size = 0;
  std::chrono::nanoseconds patience{};  ///< how long this guest will wait for the others
  std::string token;

  Bytes encode() const;
  static std::optional<Hello> decode(std::span<const std::byte> payload);
};

/// Payload of kRefusal and kFailure.
struct Reason {
  ErrorCode code = ErrorCode::kBootstrap;
  std::vector<int> missing;
  std::string text;

  Bytes encode() const;
  static std::optional<Reason> decode(std::span<const std::byte> payload);
};

struct Contribution {
  std::uint64_t round = 0;
  std::chrono::nanoseconds patience{};
  Bytes bytes;

  static Bytes encode(std::uint64_t round, std::chrono::nanoseconds patience, std::span<const std::byte> bytes);
  static std::optional<Contribution> decode(std::span<const std::byte> payload);
};

struct Result {
  std::uint64_t round = 0;
  std::vector<Bytes> all;

  Bytes encode() const;
  static std::optional<Result> decode(std::span<const std::byte> payload);
};

/// Knows who may come in. Rank 0 is the host itself.
class Doorkeeper {
 public:
  Doorkeeper(int size, std::string token);

  /// Why this hello gets no seat; empty if it may have one.
  std::optional<std::string> objection(const Hello& hello) const;
  void seat(int rank);
  void free(int rank);
  bool full() const noexcept { return num_seated_ == static_cast<int>(seated_.size()); }
  std::vector<int> missing() const;

 private:
  std::vector<bool> seated_;
  int num_seated_ = 1;
  std::string token_;
};

/// What the host knows of a connection before it has a seat.
class Handshake {
 public:
  enum class Status { kMore, kAdmit, kRefuse, kHangUp };

  /// Takes more bytes of the stream. After anything but kMore the handshake is over and further bytes change nothing.
  Status feed(std::span<const std::byte> bytes, const Doorkeeper& door);
  const Hello& hello() const noexcept { return hello_; }          ///< after kAdmit
  const std::string& reason() const noexcept { return reason_; }  ///< after kRefuse
  std::size_t kept_bytes() const noexcept { return reader_.kept_bytes(); }

 private:
  FrameReader reader_{kMaxHelloBytes};
  Status status_ = Status::kMore;
  Hello hello_;
  std::string reason_;
};

}  // namespace ferry::bootstrap
