// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How ranks find each other: in one process, over TCP, or through an all-gather that the caller lends.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ferry {

class InProcessHub;

/// A meeting place of `size` ranks. Used while a group is made, not afterwards. All methods are collective and end within
/// the deadline given, with Error(bootstrap | timeout) naming the ranks that did not come.
class Meeting {
 public:
  virtual ~Meeting() = default;
  virtual int rank() const noexcept = 0;
  virtual int size() const noexcept = 0;
  /// Everybody's bytes, by rank. Sizes may differ.
  virtual std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> mine,
                                                         std::chrono::nanoseconds timeout) = 0;
  /// Ranks that are threads of one process share memory directly through their hub; null for everybody else.
  virtual std::shared_ptr<InProcessHub> hub() const { return nullptr; }
};

/// Meeting places for `size` ranks that are threads of this process: element r belongs to rank r.
std::vector<std::unique_ptr<Meeting>> meet_in_process(int size);

struct TcpMeeting {
  int rank = 0;
  int size = 1;
  std::string address = "127.0.0.1";  ///< where rank 0 listens; name, IPv4 or IPv6
  std::uint16_t port = 0;
  std::string token;  ///< shared secret of the job; strangers without it are turned away. May be empty.
  std::chrono::nanoseconds timeout = std::chrono::seconds(60);
};
/// Rank 0 listens, the others connect (and retry until the timeout).
std::unique_ptr<Meeting> meet_over_tcp(const TcpMeeting& where);

/// Reads RANK, WORLD_SIZE, MASTER_ADDR and FERRY_PORT (default: MASTER_PORT + 1), FERRY_TOKEN. Without RANK and WORLD_SIZE:
/// one rank alone.
std::unique_ptr<Meeting> meet_from_environment();

using AllGather = std::function<std::vector<std::vector<std::byte>>(std::span<const std::byte>)>;
/// Uses an all-gather of bytes that the caller has (a torch process group, MPI, ...). The caller's own timeout applies.
std::unique_ptr<Meeting> meet_through(int rank, int size, AllGather all_gather);

}  // namespace ferry
