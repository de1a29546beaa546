// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Unix sockets that keep packets apart and carry descriptors, named in the abstract namespace: the kernel forgets a
// name with its last socket, so nothing is left behind after a crash. Nothing here ever waits.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bootstrap/fd.h"

namespace ferry::bootstrap {

enum class SendStatus { kSent, kFull, kBroken };

struct Received {
  enum class Status {
    kPacket,
    kNothing,  ///< nothing yet
    kEnd,      ///< the other end closed, and everything it sent has been read
    kBad,      ///< a packet longer than the buffer, or more descriptors than anyone sends
  };
  Status status = Status::kNothing;
  std::size_t num_bytes = 0;
  std::vector<Fd> fds;  ///< that the packet brought, at most kMaxPacketFds
};

/// Most descriptors one packet carries.
constexpr std::size_t kMaxPacketFds = 2;

/// Listens at an abstract name. Throws Error(bootstrap).
Fd listen_at(const std::string& name, int backlog);

/// Connects to an abstract name; empty with errno set (EAGAIN: the listener's queue is full; ECONNREFUSED: nobody
/// listens).
Fd connect_to(const std::string& name);

/// The next connection; empty with errno set.
Fd accept_from(const Fd& listener);

struct PeerProcess {
  uid_t uid = static_cast<uid_t>(-1);
  pid_t pid = 0;
};
/// Who is at the other end, as the kernel says; empty if it does not.
std::optional<PeerProcess> peer_process(const Fd& socket);

/// Sends one packet with the descriptors given.
SendStatus send_packet(const Fd& socket, std::span<const std::byte> packet, std::span<const int> fds = {});

/// Receives one packet; descriptors nobody asked for are closed.
Received receive_packet(const Fd& socket, std::span<std::byte> buffer);

/// Becomes readable when the process ends; empty where the kernel cannot do that.
Fd open_process(pid_t pid);

}  // namespace ferry::bootstrap
