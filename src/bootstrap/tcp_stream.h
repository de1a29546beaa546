// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// TCP sockets that never wait, and a stream of frames over one of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "bootstrap/fd.h"
#include "bootstrap/frames.h"

namespace ferry::bootstrap {

struct SocketAddress {
  std::vector<std::byte> bytes;  ///< a sockaddr of any family
  int family = 0;
};

struct Resolution {
  std::vector<SocketAddress> addresses;
  std::string complaint;    ///< why there are none
  bool may_change = false;  ///< the name service was not there; asking again may help
};
Resolution resolve(const std::string& address, std::uint16_t port);

/// Empty with errno set.
Fd listen_on(const SocketAddress& address, int backlog);
Fd accept_tcp(const Fd& listener);
/// Begins to connect; the socket becomes writable when it is decided. Empty with errno set.
Fd begin_connect(const SocketAddress& address);
/// 0 once connected, else the errno of the failure.
int connect_outcome(const Fd& socket);

/// Frames in both directions. Writes what the socket takes, keeps the rest.
class FrameStream {
 public:
  FrameStream() : reader_(0) {}
  FrameStream(Fd socket, std::uint64_t max_payload_bytes) : socket_(std::move(socket)), reader_(max_payload_bytes) {}

  int fd() const noexcept { return socket_.get(); }
  bool open() const noexcept { return static_cast<bool>(socket_); }
  bool has_unsent() const noexcept { return !outgoing_.empty(); }
  /// What poll(2) should watch for.
  short events() const noexcept;
  FrameReader& reader() noexcept { return reader_; }

  void send(FrameKind kind, std::span<const std::byte> payload);
  void send(std::shared_ptr<const Bytes> frame);
  /// Writes as much as possible. A connection that breaks loses what was not sent; what came in stays readable.
  void flush();
  /// Reads a share of what has arrived into the reader. False once the other side has ended the connection.
  bool fill();
  /// Reads a share of what has arrived as it is; -1 at the end of the connection, 0 if there is nothing.
  std::ptrdiff_t read_raw(std::span<std::byte> buffer);
  void close() { socket_.reset(), outgoing_.clear(); }
  /// Says that nothing more will be sent.
  void finish_sending();

 private:
  Fd socket_;
  FrameReader reader_;
  std::deque<std::shared_ptr<const Bytes>> outgoing_;
  std::size_t sent_bytes_ = 0;  // of the first
};

}  // namespace ferry::bootstrap
