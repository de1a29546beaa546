// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The links that stay after ranks have met: each pair of ranks can pass notices (bytes, and memory to map) and see that the
// other is gone. Used when windows are opened and when the membership changes; never while rows move.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "bootstrap/memory.h"
#include "ferry/meeting.h"

namespace ferry {

struct Notice {
  std::vector<std::byte> bytes;
  std::shared_ptr<Memory> memory;  ///< null, or memory that the receiver may map and write
};

class Mesh {
 public:
  virtual ~Mesh() = default;
  /// Memory that send() can hand to every peer.
  virtual std::shared_ptr<Memory> allocate(std::size_t bytes) = 0;
  /// Queues a notice for a peer. Notices of one sender arrive in order. Never waits; a peer that is gone is ignored.
  /// To oneself is allowed.
  virtual void send(int peer, const Notice& notice) = 0;
  /// The next notice from a peer, if one has arrived in full. Never waits.
  virtual std::optional<Notice> poll(int peer) = 0;
  /// True once the peer's process ended or it destroyed its mesh (notices that came before are still handed out).
  /// False negatives for a moment are allowed, false positives are not.
  virtual bool gone(int peer) = 0;
};

/// Collective over the meeting. Ranks that share a hub pass pointers; ranks of other processes on this machine are linked by
/// Unix sockets in the abstract namespace, and both ends check that the other belongs to the same user. Throws
/// Error(unsupported) naming a rank that is on another machine, Error(bootstrap | timeout) otherwise.
std::unique_ptr<Mesh> make_mesh(Meeting& meeting, std::chrono::nanoseconds timeout);

}  // namespace ferry
