// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/stream_packets.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "bootstrap/bytes.h"
#include "bootstrap/failure.h"
#include "ferry/error.h"

namespace ferry::bootstrap {
namespace {

constexpr std::size_t kLengthBytes = sizeof(std::uint32_t);
constexpr std::size_t kReadBytes = std::size_t{64} << 10;

}  // namespace

PacketSocket PacketSocket::over_tcp(Fd socket) {
  PacketSocket packets(std::move(socket));
  packets.stream_.emplace();
  return packets;
}

SendStatus PacketSocket::send(std::span<const std::byte> packet, std::span<const int> fds) {
  if (!stream_) return send_packet(socket_, packet, fds);
  if (!fds.empty()) throw failure(ErrorCode::kInternal, "Mesh::send: memory cannot be handed to another machine");
  if (!flush()) return SendStatus::kFull;
  if (!socket_) return SendStatus::kBroken;
  ByteWriter writer;
  writer.put(static_cast<std::uint32_t>(packet.size())).put_raw(packet);
  stream_->outgoing = writer.take();
  flush();
  return SendStatus::kSent;
}

bool PacketSocket::flush() {
  if (!stream_) return true;
  std::vector<std::byte>& rest = stream_->outgoing;
  while (socket_ && !rest.empty()) {
    const ssize_t sent = ::send(socket_.get(), rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) return false;
    if (sent < 0) rest.clear();  // broken: the reader learns it too
    if (sent > 0) rest.erase(rest.begin(), rest.begin() + sent);
  }
  return true;
}

Received PacketSocket::receive(std::span<std::byte> buffer) {
  if (!stream_) return receive_packet(socket_, buffer);
  std::array<std::byte, kReadBytes> arrived;
  while (true) {
    Received packet = next_packet(buffer);
    if (packet.status != Received::Status::kNothing) return packet;
    const ssize_t num_bytes = ::recv(socket_.get(), arrived.data(), arrived.size(), MSG_DONTWAIT);
    if (num_bytes < 0 && errno == EINTR) continue;
    if (num_bytes < 0 && errno == EAGAIN) return packet;
    if (num_bytes <= 0) {
      packet.status = Received::Status::kEnd;
      return packet;
    }
    stream_->incoming.insert(stream_->incoming.end(), arrived.begin(), arrived.begin() + num_bytes);
  }
}

Received PacketSocket::next_packet(std::span<std::byte> buffer) {
  std::vector<std::byte>& incoming = stream_->incoming;
  Received packet;
  if (incoming.size() < kLengthBytes) return packet;
  const std::size_t length = ByteReader(incoming).get<std::uint32_t>();
  if (length == 0 || length > buffer.size()) {
    packet.status = Received::Status::kBad;
    return packet;
  }
  if (incoming.size() < kLengthBytes + length) return packet;
  std::memcpy(buffer.data(), incoming.data() + kLengthBytes, length);
  incoming.erase(incoming.begin(), incoming.begin() + static_cast<std::ptrdiff_t>(kLengthBytes + length));
  packet.status = Received::Status::kPacket;
  packet.num_bytes = length;
  return packet;
}

void PacketSocket::shut_down() {
  if (socket_) shutdown(socket_.get(), SHUT_RDWR);
}

void PacketSocket::reset() {
  socket_.reset();
  if (stream_) stream_.emplace();
}

}  // namespace ferry::bootstrap
