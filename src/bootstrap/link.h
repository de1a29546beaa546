// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// One pair's link in the mesh of processes: notices cut into packets, a queue for what the socket does not take yet,
// and the end of the peer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "bootstrap/fd.h"
#include "bootstrap/mesh.h"
#include "bootstrap/packet_socket.h"
#include "bootstrap/stream_packets.h"

namespace ferry::bootstrap {

/// Every packet begins with this header. A notice is one kNotice packet and as many kMore packets as it takes.
struct PacketHeader {
  enum class Kind : std::uint16_t { kHello = 1, kWelcome = 2, kNotice = 3, kMore = 4 };
  static constexpr std::uint32_t kMagic = 0x4b505246;  // "FRPK"
  static constexpr std::size_t kBytes = 24;

  std::size_t num_fds() const { return static_cast<std::size_t>(has_memory) + static_cast<std::size_t>(has_device); }

  Kind kind = Kind::kNotice;
  bool has_memory = false;
  bool has_device = false;
  std::uint64_t total_bytes = 0;   ///< of the notice
  std::uint64_t memory_bytes = 0;  ///< of the memory whose descriptor comes with this packet

  std::vector<std::byte> packet(std::span<const std::byte> payload) const;
  /// Empty unless the bytes begin with a header that makes sense.
  static std::optional<PacketHeader> parse(std::span<const std::byte> packet);
};

constexpr std::size_t kMaxChunkBytes = std::size_t{32} << 10;
constexpr std::size_t kMaxPacketBytes = PacketHeader::kBytes + kMaxChunkBytes;
constexpr std::size_t kMaxNoticeBytes = std::size_t{64} << 20;

class Link {
 public:
  /// A socket whose other end is known to be `peer`. `process` may be empty: where it runs on another machine.
  Link(int peer, PacketSocket socket, Fd process)
      : peer_(peer), socket_(std::move(socket)), process_(std::move(process)) {}

  void send(const Notice& notice);
  /// Hands queued packets to the socket as far as it takes them. True if nothing is left.
  bool flush();
  std::optional<Notice> poll();
  bool gone();
  /// Ends the link for both sides, also where a forked child still holds the socket.
  void shut_down();

 private:
  struct Queued {
    std::vector<std::byte> packet;
    std::shared_ptr<Memory> memory = nullptr;  // keep the descriptors open until they are sent
    std::shared_ptr<Shareable> device = nullptr;

    std::vector<int> fds() const;
  };
  struct Partial {
    Notice notice;
    std::size_t total_bytes;
  };

  /// Reads until a notice is complete (true) or nothing more can be read (false).
  bool receive();
  bool accept(Received received, std::span<const std::byte> packet);
  std::shared_ptr<Memory> map(Fd fd, std::uint64_t num_bytes) const;
  void end();

  int peer_;
  PacketSocket socket_;
  Fd process_;
  bool ended_ = false;
  std::deque<Queued> outgoing_;
  std::optional<Partial> partial_;
  std::deque<Notice> complete_;
};

}  // namespace ferry::bootstrap
