// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The links that stay after ranks have met: each pair of ranks can pass notices (bytes, and memory to map) and see
// that the other is gone. Used when windows are opened and when the membership changes; never while rows move.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bootstrap/fd.h"
#include "bootstrap/memory.h"
#include "ferry/meeting.h"

namespace ferry {

/// Something beside host memory that a peer may open, known by a descriptor: memory of a device.
class Shareable {
 public:
  virtual ~Shareable() = default;
  virtual int fd() const noexcept = 0;
};

/// What arrives at another process: the descriptor, to be opened by whoever knows what it is.
class SharedFd final : public Shareable {
 public:
  explicit SharedFd(bootstrap::Fd fd) : fd_(std::move(fd)) {}
  int fd() const noexcept override { return fd_.get(); }

 private:
  bootstrap::Fd fd_;
};

struct Notice {
  std::vector<std::byte> bytes;
  std::shared_ptr<Memory> memory{};     ///< null, or memory that the receiver may map and write
  std::shared_ptr<Shareable> device{};  ///< null, or what the sender shares beside it; threads get the object itself
};

/// All methods may be called from any thread of the rank; none waits. Belongs to the process that made it: a forked
/// child may drop its copy, not use it.
class Mesh {
 public:
  virtual ~Mesh() = default;
  /// Memory that send() can hand to every peer.
  virtual std::shared_ptr<Memory> allocate(std::size_t bytes) = 0;
  /// Queues a notice (of at most 64 MiB) for a peer. Notices of one sender arrive in order. Never waits; a peer that
  /// is gone is ignored. To oneself is allowed. Between processes, what the socket does not take now goes out with
  /// later calls of send(), poll() or gone(), for whichever peer: who has sent a lot must go on calling one of them
  /// until the peers have answered.
  virtual void send(int peer, const Notice& notice) = 0;
  /// The next notice from a peer, if one has arrived in full. Never waits. Throws Error(bootstrap | internal) if its
  /// memory cannot be mapped; the peer counts as gone then.
  virtual std::optional<Notice> poll(int peer) = 0;
  /// True once the peer's process ended or it destroyed its mesh (on another machine: once its kernel or ours has said so, which
  /// a link that is cut does not), and every notice that came before has been polled:
  /// poll() until it is empty before asking. False negatives for a moment are allowed, false positives are not.
  virtual bool gone(int peer) = 0;
};

/// Collective over the meeting: the machine of every rank, counted from 0 in the order of ranks. A network namespace counts as a
/// machine: its processes see no other's abstract sockets.
std::vector<int> find_machines(Meeting& meeting, std::chrono::nanoseconds timeout);

/// Collective over the meeting. Ranks that share a hub pass pointers; ranks of other processes on this machine are
/// linked by Unix sockets in the abstract namespace, and both ends check that the other belongs to the same user; ranks of other
/// machines are linked by TCP and cannot be sent memory. Throws Error(bootstrap | timeout).
std::unique_ptr<Mesh> make_mesh(Meeting& meeting, std::chrono::nanoseconds timeout);

}  // namespace ferry
