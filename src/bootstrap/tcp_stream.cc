// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The system calls behind the TCP meeting.
#include "bootstrap/tcp_stream.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "bootstrap/failure.h"

namespace ferry::bootstrap {
namespace {

constexpr std::size_t kReadBytes = std::size_t{64} << 10;
constexpr int kReadsPerTurn = 16;  // so that one busy connection does not keep the others waiting

const sockaddr* as_sockaddr(const SocketAddress& address) {
  return reinterpret_cast<const sockaddr*>(address.bytes.data());
}

socklen_t length(const SocketAddress& address) {
  return static_cast<socklen_t>(address.bytes.size());
}

void set_option(const Fd& socket, int level, int option) {
  const int on = 1;
  setsockopt(socket.get(), level, option, &on, sizeof(on));
}

Fd tcp_socket(int family) {
  return Fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

bool connected_with_itself(const Fd& socket) {
  sockaddr_storage here{};
  sockaddr_storage there{};
  socklen_t here_bytes = sizeof(here);
  socklen_t there_bytes = sizeof(there);
  return getsockname(socket.get(), reinterpret_cast<sockaddr*>(&here), &here_bytes) == 0 &&
         getpeername(socket.get(), reinterpret_cast<sockaddr*>(&there), &there_bytes) == 0 &&
         here_bytes == there_bytes && std::memcmp(&here, &there, here_bytes) == 0;
}

Fd give_up(Fd socket) {
  const int error_number = errno;
  socket.reset();
  errno = error_number;
  return socket;
}

}  // namespace

Resolution resolve(const std::string& address, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  Resolution resolution;
  if (const int status = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found); status != 0) {
    resolution.complaint = status == EAI_SYSTEM ? describe_errno(errno) : gai_strerror(status);
    resolution.may_change = status == EAI_AGAIN;
    return resolution;
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    SocketAddress each;
    each.family = entry->ai_family;
    const auto* raw = reinterpret_cast<const std::byte*>(entry->ai_addr);
    each.bytes.assign(raw, raw + entry->ai_addrlen);
    const auto same = [&](const SocketAddress& other) { return other.bytes == each.bytes; };
    if (std::none_of(resolution.addresses.begin(), resolution.addresses.end(), same)) {
      resolution.addresses.push_back(std::move(each));
    }
  }
  if (resolution.addresses.empty()) resolution.complaint = "the name has no address";
  return resolution;
}

Fd listen_on(const SocketAddress& address, int backlog) {
  Fd listener = tcp_socket(address.family);
  if (!listener) return listener;
  set_option(listener, SOL_SOCKET, SO_REUSEADDR);  // connections of the job before may still be in TIME_WAIT
  if (address.family == AF_INET6) set_option(listener, IPPROTO_IPV6, IPV6_V6ONLY);
  if (bind(listener.get(), as_sockaddr(address), length(address)) != 0) return give_up(std::move(listener));
  if (listen(listener.get(), backlog) != 0) return give_up(std::move(listener));
  return listener;
}

Fd accept_tcp(const Fd& listener) {
  Fd socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket) set_option(socket, IPPROTO_TCP, TCP_NODELAY);
  return socket;
}

Fd begin_connect(const SocketAddress& address) {
  Fd socket = tcp_socket(address.family);
  if (!socket) return socket;
  set_option(socket, IPPROTO_TCP, TCP_NODELAY);
  if (connect(socket.get(), as_sockaddr(address), length(address)) != 0 && errno != EINPROGRESS) {
    return give_up(std::move(socket));
  }
  return socket;
}

int connect_outcome(const Fd& socket) {
  int error_number = 0;
  socklen_t num_bytes = sizeof(error_number);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error_number, &num_bytes) != 0) return errno;
  // Where nobody listens at a port of the ephemeral range, the kernel may connect a socket with itself.
  if (error_number == 0 && connected_with_itself(socket)) return ECONNREFUSED;
  return error_number;
}

short FrameStream::events() const noexcept {
  return static_cast<short>(POLLIN | (has_unsent() ? POLLOUT : 0));
}

void FrameStream::send(FrameKind kind, std::span<const std::byte> payload) {
  send(std::make_shared<const Bytes>(encode_frame(kind, payload)));
}

void FrameStream::send(std::shared_ptr<const Bytes> frame) {
  if (!open()) return;
  outgoing_.push_back(std::move(frame));
  flush();
}

void FrameStream::flush() {
  while (open() && !outgoing_.empty()) {
    const Bytes& frame = *outgoing_.front();
    const ssize_t sent =
        ::send(socket_.get(), frame.data() + sent_bytes_, frame.size() - sent_bytes_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) return;
    if (sent < 0) {
      outgoing_.clear();
      sent_bytes_ = 0;
      return;
    }
    sent_bytes_ += static_cast<std::size_t>(sent);
    if (sent_bytes_ == frame.size()) {
      outgoing_.pop_front();
      sent_bytes_ = 0;
    }
  }
}

bool FrameStream::fill() {
  std::array<std::byte, kReadBytes> buffer;
  for (int turn = 0; turn < kReadsPerTurn; ++turn) {
    const std::ptrdiff_t num_bytes = read_raw(buffer);
    if (num_bytes < 0) return false;
    if (num_bytes == 0) return true;
    reader_.feed(std::span(buffer).first(static_cast<std::size_t>(num_bytes)));
  }
  return true;
}

std::ptrdiff_t FrameStream::read_raw(std::span<std::byte> buffer) {
  while (open()) {
    const ssize_t num_bytes = recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (num_bytes > 0) return num_bytes;
    if (num_bytes < 0 && errno == EINTR) continue;
    if (num_bytes < 0 && errno == EAGAIN) return 0;
    break;
  }
  return -1;
}

void FrameStream::finish_sending() {
  if (open()) shutdown(socket_.get(), SHUT_WR);
}

}  // namespace ferry::bootstrap
