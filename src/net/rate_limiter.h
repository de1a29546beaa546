// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A link of a fixed rate that carries bytes one after the other: says when what is handed to it has passed. It saves nothing up
// while it is idle, so nothing passes faster than the rate. What is rounded off one transfer is kept for the next, so that errors
// do not add up.
#pragma once

#include <cstdint>

namespace ferry::net {

class RateLimiter {
 public:
  static constexpr std::uint64_t kMaxRate = std::uint64_t{1} << 40;

  /// At most kMaxRate; 0: no limit.
  explicit RateLimiter(std::uint64_t bytes_per_second) : rate_(bytes_per_second) {}

  bool is_limited() const noexcept { return rate_ != 0; }

  /// The time at which the last of these bytes has passed, if they are handed over now, behind all that was handed over before.
  std::int64_t pass(std::uint64_t bytes, std::int64_t now_ns) noexcept {
    if (rate_ == 0) return now_ns;
    if (now_ns > free_at_ns_) {
      free_at_ns_ = now_ns;
      rest_ = 0;
    }
    constexpr std::uint64_t kPieceBytes = std::uint64_t{1} << 24;  // products stay below 2^64
    for (; bytes > kPieceBytes; bytes -= kPieceBytes) add(kPieceBytes);
    add(bytes);
    return free_at_ns_;
  }

 private:
  void add(std::uint64_t bytes) noexcept {
    constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
    const std::uint64_t parts = bytes * kNsPerSecond + rest_;
    free_at_ns_ += static_cast<std::int64_t>(parts / rate_);
    rest_ = parts % rate_;
  }

  std::uint64_t rate_;
  std::int64_t free_at_ns_ = 0;
  std::uint64_t rest_ = 0;  ///< of a nanosecond, in parts of 1 / rate
};

}  // namespace ferry::net
