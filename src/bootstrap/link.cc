// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// One pair's link in the mesh of processes.
#include "bootstrap/link.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <utility>

#include "bootstrap/bytes.h"
#include "bootstrap/failure.h"
#include "core/check.h"

namespace ferry::bootstrap {

namespace {

// What the descriptors of a packet are, in this order.
constexpr int kCarriesMemory = 1;
constexpr int kCarriesDevice = 2;

}  // namespace

std::vector<std::byte> PacketHeader::packet(std::span<const std::byte> payload) const {
  ByteWriter writer;
  const int carries = (has_memory ? kCarriesMemory : 0) | (has_device ? kCarriesDevice : 0);
  writer.put(kMagic).put(static_cast<std::uint16_t>(kind)).put(static_cast<std::uint16_t>(carries));
  writer.put(total_bytes).put(memory_bytes).put_raw(payload);
  return writer.take();
}

std::optional<PacketHeader> PacketHeader::parse(std::span<const std::byte> packet) {
  ByteReader reader(packet);
  PacketHeader header;
  const auto magic = reader.get<std::uint32_t>();
  const auto kind = reader.get<std::uint16_t>();
  const auto carries = reader.get<std::uint16_t>();
  header.total_bytes = reader.get<std::uint64_t>();
  header.memory_bytes = reader.get<std::uint64_t>();
  if (!reader.ok() || magic != kMagic || kind < 1 || kind > 4 || carries > (kCarriesMemory | kCarriesDevice))
    return std::nullopt;
  header.kind = static_cast<Kind>(kind);
  header.has_memory = (carries & kCarriesMemory) != 0;
  header.has_device = (carries & kCarriesDevice) != 0;
  return header;
}

std::vector<int> Link::Queued::fds() const {
  std::vector<int> list;
  if (memory) list.push_back(memory->fd());
  if (device) list.push_back(device->fd());
  return list;
}

void Link::send(const Notice& notice) {
  if (ended_) return;
  const std::span<const std::byte> bytes(notice.bytes);
  PacketHeader header;
  header.total_bytes = bytes.size();
  header.has_memory = notice.memory != nullptr;
  header.memory_bytes = notice.memory ? notice.memory->size() : 0;
  header.has_device = notice.device != nullptr;
  const std::size_t first_bytes = std::min(bytes.size(), kMaxChunkBytes);
  outgoing_.push_back(
      {.packet = header.packet(bytes.first(first_bytes)), .memory = notice.memory, .device = notice.device});
  for (std::size_t at = first_bytes; at < bytes.size(); at += kMaxChunkBytes) {
    PacketHeader more;
    more.kind = PacketHeader::Kind::kMore;
    more.total_bytes = bytes.size();
    outgoing_.push_back({.packet = more.packet(bytes.subspan(at, std::min(kMaxChunkBytes, bytes.size() - at)))});
  }
  flush();
}

bool Link::flush() {
  socket_.flush();
  while (!outgoing_.empty()) {
    const Queued& next = outgoing_.front();
    switch (socket_.send(next.packet, next.fds())) {
      case SendStatus::kSent:
        outgoing_.pop_front();
        break;
      case SendStatus::kFull:
        return false;
      case SendStatus::kBroken:  // what the peer sent before may still be waiting to be read
        outgoing_.clear();
        break;
    }
  }
  return true;
}

std::optional<Notice> Link::poll() {
  if (complete_.empty() && !receive()) return std::nullopt;
  std::optional<Notice> notice(std::move(complete_.front()));
  complete_.pop_front();
  return notice;
}

bool Link::gone() {
  if (!complete_.empty()) return false;
  if (ended_) return true;
  std::array<pollfd, 2> watched{{{socket_.fd(), POLLIN, 0}, {process_.get(), POLLIN, 0}}};  // negative ones are skipped
  if (::poll(watched.data(), watched.size(), 0) <= 0) return false;
  // Asked before reading: what a process sent before it ended is in the socket by now.
  const bool process_ended = (watched[1].revents & POLLIN) != 0;
  if (receive()) return false;
  // A forked child of the peer may hold the socket open; the process that made the link is gone all the same.
  if (process_ended) end();
  return ended_;
}

void Link::shut_down() {
  socket_.shut_down();
}

bool Link::receive() {
  std::array<std::byte, kMaxPacketBytes> buffer;
  while (!ended_) {
    Received received = socket_.receive(buffer);
    if (received.status == Received::Status::kNothing) return false;
    const std::span<const std::byte> packet(buffer.data(), received.num_bytes);
    if (received.status != Received::Status::kPacket) {
      end();
    } else if (accept(std::move(received), packet)) {
      return true;
    }
  }
  return false;
}

bool Link::accept(Received received, std::span<const std::byte> packet) {
  const std::optional<PacketHeader> header = PacketHeader::parse(packet);
  const bool opens = header && header->kind == PacketHeader::Kind::kNotice && !partial_ &&
                     header->total_bytes <= kMaxNoticeBytes && header->num_fds() == received.fds.size();
  const bool continues = header && header->kind == PacketHeader::Kind::kMore && partial_ && received.fds.empty();
  if (!opens && !continues) {
    end();  // no member of this group speaks so
    return false;
  }
  const std::span<const std::byte> payload = packet.subspan(PacketHeader::kBytes);
  if (opens) partial_ = Partial{.notice = {}, .total_bytes = header->total_bytes};
  std::vector<std::byte>& bytes = partial_->notice.bytes;
  if (payload.size() > partial_->total_bytes - bytes.size()) {
    end();
    return false;
  }
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  if (opens && header->has_device) partial_->notice.device = std::make_shared<SharedFd>(std::move(received.fds.back()));
  if (opens && header->has_memory) {
    try {
      partial_->notice.memory = map(std::move(received.fds.front()), header->memory_bytes);
    } catch (...) {
      end();  // a window that cannot be mapped cannot be made up for by later notices
      throw;
    }
  }
  if (bytes.size() < partial_->total_bytes) return false;
  complete_.push_back(std::move(partial_->notice));
  partial_.reset();
  return true;
}

std::shared_ptr<Memory> Link::map(Fd fd, std::uint64_t num_bytes) const {
  try {
    return Memory::map(fd.release(), num_bytes);
  } catch (const Error& error) {
    const ErrorCode code = error.code() == ErrorCode::kInvalidArgument ? ErrorCode::kBootstrap : error.code();
    throw failure(code, fmt::format("Mesh::poll: memory from rank {} cannot be used: {}", peer_, error.what()),
                  {peer_});
  }
}

void Link::end() {
  ended_ = true;
  outgoing_.clear();
  partial_.reset();
  shut_down();
  socket_.reset();
  process_.reset();
}

}  // namespace ferry::bootstrap
