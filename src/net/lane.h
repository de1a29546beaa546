// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The commands of one (channel, peer) between the ring and the provider: merges puts, holds posts back until they may
// go, remembers what is not complete. Used by the proxy's thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "net/carrier.h"

namespace ferry::net {

/// A put (perhaps several commands merged) or a post on its way.
struct Order {
  class Lane* lane;
  RemoteWindow* window;
  bool is_post;
  std::uint64_t number;  ///< of its oldest command in the channel, counted from 0
  std::uint64_t offset;
  const std::byte* source;      ///< put
  std::uint64_t bytes;          ///< put
  std::uint64_t total;          ///< post
  std::uint64_t started_bytes;  ///< put: handed to the provider
  std::uint32_t unfinished;     ///< pieces that the provider has not completed
  bool started;                 ///< handed over in full, or dropped

  bool done() const noexcept { return started && unfinished == 0; }
};

/// What a lane may do before it is another lane's turn.
struct Budget {
  std::uint64_t bytes;
  std::uint64_t orders;
};

class Lane {
 public:
  static constexpr std::size_t kMaxOrders = 1024;
  static constexpr std::uint64_t kMaxMergedBytes = std::uint64_t{4} << 20;

  Lane(Carrier& carrier, int channel, int peer)
      : carrier_(carrier), channel_(channel), peer_(peer), ordered_(carrier.provider().ordered) {}

  int peer() const noexcept { return peer_; }
  bool full() const noexcept { return orders_.size() >= kMaxOrders; }
  bool empty() const noexcept { return orders_.empty(); }
  /// The oldest command that is not complete; the lane must not be empty.
  std::uint64_t oldest() const noexcept { return orders_.front().number; }

  /// True: merged with the put before it.
  bool add_put(RemoteWindow* window, std::uint64_t number, std::uint64_t offset, const std::byte* source,
               std::uint64_t bytes);
  void add_post(RemoteWindow* window, std::uint64_t number, std::uint64_t offset, std::uint64_t total);

  /// Hands over what may go now. True: something moved. Passes the provider's exceptions on.
  bool run(Budget budget);
  /// A piece of `order` was completed by the provider.
  void finish(Order& order) noexcept;

  /// Drops what was not handed over, and from now on all commands for windows opened until `last_serial`: a post must
  /// not go out when a put before it did not.
  void fail(std::uint64_t last_serial) noexcept;
  bool refuses(std::uint64_t window_serial) const noexcept { return window_serial <= failed_serial_; }

 private:
  enum class Step : std::uint8_t { kBusy, kMoved, kOutOfBudget };

  Step start_put(Order& order, Budget& budget);
  bool start_post(Order& order);
  void retire() noexcept;

  Carrier& carrier_;
  int channel_;
  int peer_;
  bool ordered_;
  std::uint64_t failed_serial_ = 0;
  std::deque<Order> orders_;  // oldest first; references stay valid at both ends
  std::size_t cursor_ = 0;    // orders before it were handed over, or are posts that wait to become the oldest
};

}  // namespace ferry::net
