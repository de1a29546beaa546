// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The two kinds of sockets that links use, under one interface: Unix sockets keep packets apart and carry descriptors; TCP
// between machines does neither, so packets get their length in front and descriptors cannot come along.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "bootstrap/fd.h"
#include "bootstrap/packet_socket.h"

namespace ferry::bootstrap {

class PacketSocket {
 public:
  PacketSocket() = default;
  /// A Unix socket.
  PacketSocket(Fd socket) : socket_(std::move(socket)) {}  // NOLINT(google-explicit-constructor): the usual kind
  static PacketSocket over_tcp(Fd socket);

  explicit operator bool() const noexcept { return static_cast<bool>(socket_); }
  int fd() const noexcept { return socket_.get(); }

  SendStatus send(std::span<const std::byte> packet, std::span<const int> fds = {});
  /// Hands over what send() has taken and the socket had no room for. False: some is left.
  bool flush();
  Received receive(std::span<std::byte> buffer);
  /// Ends the connection for both sides, also where a forked child still holds the socket.
  void shut_down();
  void reset();

 private:
  /// What TCP leaves to us: the rest of a packet that is going out, the beginning of one that is coming in.
  struct Stream {
    std::vector<std::byte> outgoing;
    std::vector<std::byte> incoming;
  };
  Received next_packet(std::span<std::byte> buffer);

  Fd socket_;
  std::optional<Stream> stream_;  // TCP
};

}  // namespace ferry::bootstrap
