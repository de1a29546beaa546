// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The system calls behind packet sockets.
#include "bootstrap/packet_socket.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "bootstrap/failure.h"

namespace ferry::bootstrap {
namespace {

constexpr std::size_t kMostFds =
    8;  // enough to receive and close what a confused peer sends; the kernel drops the rest

struct AbstractAddress {
  sockaddr_un address{};
  socklen_t num_bytes = 0;
};

AbstractAddress abstract_address(const std::string& name) {
  AbstractAddress result;
  result.address.sun_family = AF_UNIX;
  const std::size_t length = std::min(name.size(), sizeof(result.address.sun_path) - 1);
  std::memcpy(result.address.sun_path + 1, name.data(), length);  // the leading zero makes it abstract
  result.num_bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return result;
}

Fd packet_socket() {
  return Fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

/// Takes every descriptor out of the control data.
std::vector<Fd> take_fds(msghdr& message) {
  std::vector<Fd> fds;
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control != nullptr; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof(int));
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Fd listen_at(const std::string& name, int backlog) {
  Fd listener = packet_socket();
  const AbstractAddress at = abstract_address(name);
  if (!listener || bind(listener.get(), reinterpret_cast<const sockaddr*>(&at.address), at.num_bytes) != 0 ||
      listen(listener.get(), backlog) != 0) {
    throw failure(ErrorCode::kBootstrap,
                  fmt::format("make_mesh: cannot open a Unix socket: {}", describe_errno(errno)));
  }
  return listener;
}

Fd connect_to(const std::string& name) {
  Fd socket = packet_socket();
  if (!socket) return socket;
  const AbstractAddress at = abstract_address(name);
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&at.address), at.num_bytes) == 0) return socket;
  const int error_number = errno;
  socket.reset();
  errno = error_number;
  return socket;
}

Fd accept_from(const Fd& listener) {
  return Fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

std::optional<PeerProcess> peer_process(const Fd& socket) {
  ucred credentials{};
  socklen_t num_bytes = sizeof(credentials);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &num_bytes) != 0) return std::nullopt;
  return PeerProcess{.uid = credentials.uid, .pid = credentials.pid};
}

SendStatus send_packet(const Fd& socket, std::span<const std::byte> packet, std::span<const int> fds) {
  iovec piece{const_cast<std::byte*>(packet.data()), packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMostFds * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  while (sendmsg(socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    switch (errno) {
      case EINTR:
        continue;
      case EAGAIN:
      case ENOBUFS:
      case ENOMEM:
      case ETOOMANYREFS:  // too many descriptors of this user are on their way: later, when peers have taken some
        return SendStatus::kFull;
      default:
        return SendStatus::kBroken;
    }
  }
  return SendStatus::kSent;
}

Received receive_packet(const Fd& socket, std::span<std::byte> buffer) {
  iovec piece{buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMostFds * sizeof(int))];
  Received received;
  while (true) {
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t num_bytes = recvmsg(socket.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (num_bytes < 0) {
      // A peer that closed without reading everything makes itself known by one ECONNRESET, which may come before
      // packets that are still to be read; the end itself follows.
      if (errno == EINTR || errno == ECONNRESET) continue;
      received.status = errno == EAGAIN ? Received::Status::kNothing : Received::Status::kEnd;
      return received;
    }
    received.fds = take_fds(message);
    received.num_bytes = static_cast<std::size_t>(num_bytes);
    if (received.fds.size() > kMaxPacketFds || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
      received.fds.clear();
      received.status = Received::Status::kBad;
    } else {
      received.status =
          num_bytes == 0 ? Received::Status::kEnd : Received::Status::kPacket;  // nobody sends empty packets
    }
    return received;
  }
}

Fd open_process(pid_t pid) {
#ifdef SYS_pidfd_open
  if (pid > 0) return Fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));  // always close-on-exec
#endif
  return Fd();
}

}  // namespace ferry::bootstrap
