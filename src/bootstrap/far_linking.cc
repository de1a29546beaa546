// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Nobody says which of a machine's addresses another machine can reach, so all are tried at once and the first that leads to
// the right rank is kept. What is behind a wrong door is told apart by the nonces from the meeting.
#include "bootstrap/far_linking.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <utility>

#include "bootstrap/bytes.h"
#include "bootstrap/link.h"
#include "bootstrap/tcp_stream.h"

namespace ferry::bootstrap {
namespace {

constexpr std::size_t kMostDoors = 32;
constexpr std::size_t kMostStrangers = 256;  // accepted, but not yet known
constexpr auto kStrangerPatience = std::chrono::seconds(5);
constexpr int kRetryEveryMs = 50;
constexpr int kBacklog = 512;

std::size_t index(int rank) {
  return static_cast<std::size_t>(rank);
}

std::uint16_t port_of(const Fd& listener) {
  sockaddr_storage bound{};
  socklen_t bytes = sizeof(bound);
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound), &bytes) != 0) return 0;
  return ntohs(bound.ss_family == AF_INET ? reinterpret_cast<const sockaddr_in&>(bound).sin_port
                                          : reinterpret_cast<const sockaddr_in6&>(bound).sin6_port);
}

/// Addresses of interfaces that are up and lead elsewhere, as numbers; link-local ones mean nothing to another machine.
std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return addresses;
  for (const ifaddrs* one = list; one != nullptr && addresses.size() < kMostDoors; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || (one->ifa_flags & IFF_UP) == 0 || (one->ifa_flags & IFF_LOOPBACK) != 0) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    const void* address = nullptr;
    if (one->ifa_addr->sa_family == AF_INET) {
      address = &reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr;
    } else if (one->ifa_addr->sa_family == AF_INET6) {
      const in6_addr& v6 = reinterpret_cast<const sockaddr_in6*>(one->ifa_addr)->sin6_addr;
      if (!IN6_IS_ADDR_LINKLOCAL(&v6)) address = &v6;
    }
    if (address != nullptr && inet_ntop(one->ifa_addr->sa_family, address, text.data(), text.size()) != nullptr)
      addresses.emplace_back(text.data());
  }
  freeifaddrs(list);
  return addresses;
}

std::vector<Door> decode_doors(int rank, std::span<const std::byte> bytes) {
  if (bytes.empty())
    throw failure(ErrorCode::kBootstrap,
                  fmt::format("make_mesh: rank {} could not open a door to other machines", rank), {rank});
  ByteReader reader(bytes);
  std::vector<Door> doors(std::min<std::size_t>(reader.get<std::uint32_t>(), kMostDoors));
  for (Door& door : doors) {
    door.address = reader.get_text();
    door.port = reader.get<std::uint16_t>();
  }
  if (!reader.finished())
    throw failure(ErrorCode::kBootstrap, fmt::format("make_mesh: rank {} sent damaged addresses", rank), {rank});
  return doors;
}

}  // namespace

FarLinker::FarLinker(int rank, std::vector<Card> cards) : rank_(rank), cards_(std::move(cards)), peers_(cards_.size()) {
  for (const std::string& address : own_addresses()) {
    const Resolution resolution = resolve(address, 0);
    if (resolution.addresses.empty()) continue;
    Fd listener = listen_on(resolution.addresses.front(), kBacklog);
    if (!listener) continue;
    my_doors_.push_back({address, port_of(listener)});
    listeners_.push_back(std::move(listener));
  }
  if (my_doors_.empty()) {
    throw failure(ErrorCode::kBootstrap,
                  fmt::format("make_mesh: rank {} has no address that other machines could reach: no interface but the "
                              "loopback is up",
                              rank_));
  }
}

std::vector<std::byte> FarLinker::doors() const {
  ByteWriter writer;
  writer.put(static_cast<std::uint32_t>(my_doors_.size()));
  for (const Door& door : my_doors_) writer.put_text(door.address).put(door.port);
  return writer.take();
}

std::vector<PacketSocket> FarLinker::link(const std::vector<std::vector<std::byte>>& doors, Deadline deadline) {
  for (int peer = rank_ - 1; peer >= 0; --peer) {
    if (cards_[index(peer)].is_near(cards_[index(rank_)])) continue;
    for (Door& door : decode_doors(peer, doors[index(peer)])) {
      Knock knock;
      knock.peer = peer;
      knock.door = std::move(door);
      knocks_.push_back(std::move(knock));
    }
  }
  while (!missing().empty()) {
    for (Knock& each : knocks_) {
      if (!each.socket) knock(each);
    }
    wait(deadline);
    for (auto each = knocks_.begin(); each != knocks_.end();) {
      if (each->socket) hear_answer(*each);
      each = peers_[index(each->peer)] ? knocks_.erase(each) : std::next(each);
    }
    if (!missing().empty() && deadline.passed()) {
      throw failure(
          ErrorCode::kTimeout,
          fmt::format("make_mesh: rank {} of {} found no link with {} in time; do firewalls let TCP connections "
                      "between the machines pass, on any port?",
                      rank_, cards_.size(), describe_ranks(missing())),
          missing());
    }
  }
  listeners_.clear();
  return std::move(peers_);
}

void FarLinker::knock(Knock& knock) {
  const Resolution resolution = resolve(knock.door.address, knock.door.port);
  if (resolution.addresses.empty()) return;
  if (Fd socket = begin_connect(resolution.addresses.front())) knock.socket = PacketSocket::over_tcp(std::move(socket));
  knock.asked = false;
}

void FarLinker::hear_answer(Knock& knock) {
  if (!knock.asked) {
    pollfd decided{knock.socket.fd(), POLLOUT, 0};
    if (::poll(&decided, 1, 0) <= 0) return;
    int status = 0;
    socklen_t bytes = sizeof(status);
    const bool known = getsockopt(knock.socket.fd(), SOL_SOCKET, SO_ERROR, &status, &bytes) == 0;
    if (!known || status != 0) return knock.socket.reset();  // nobody here, or not yet: again
    ByteWriter payload;
    payload.put(Card::kVersion).put(static_cast<std::uint32_t>(rank_)).put_raw(cards_[index(knock.peer)].nonce);
    PacketHeader header;
    header.kind = PacketHeader::Kind::kHello;
    knock.asked = knock.socket.send(header.packet(payload.take())) == SendStatus::kSent;
    if (!knock.asked) return knock.socket.reset();
  }
  std::array<std::byte, 256> buffer;
  const Received received = knock.socket.receive(buffer);
  if (received.status == Received::Status::kNothing) return;
  if (received.status == Received::Status::kPacket) {
    const auto packet = std::span<const std::byte>(buffer).first(received.num_bytes);
    const auto header = PacketHeader::parse(packet);
    if (header && header->kind == PacketHeader::Kind::kWelcome &&
        equal_secrets(packet.subspan(PacketHeader::kBytes), cards_[index(rank_)].nonce)) {
      peers_[index(knock.peer)] = std::move(knock.socket);
      return;
    }
  }
  knock.socket.reset();  // another rank's door, or one that had no time for us: again
}

void FarLinker::accept_all() {
  for (const Fd& listener : listeners_) {
    while (Fd socket = accept_tcp(listener)) {
      if (strangers_.size() == kMostStrangers) strangers_.pop_front();  // a peer speaks as it connects
      strangers_.push_back(
          {.socket = PacketSocket::over_tcp(std::move(socket)), .deadline = Deadline::after(kStrangerPatience)});
    }
    if (errno == EMFILE || errno == ENFILE) {
      throw failure(ErrorCode::kBootstrap,
                    fmt::format("make_mesh: rank {} cannot accept more links: {}; raise ulimit -n", rank_,
                                describe_errno(errno)));
    }
  }
}

/// True while it may still turn out to be a peer.
bool FarLinker::hear_stranger(Stranger& stranger) {
  std::array<std::byte, 256> buffer;
  const Received received = stranger.socket.receive(buffer);
  if (received.status == Received::Status::kNothing) return !stranger.deadline.passed();
  if (received.status != Received::Status::kPacket) return false;
  const auto packet = std::span<const std::byte>(buffer).first(received.num_bytes);
  const auto header = PacketHeader::parse(packet);
  if (!header || header->kind != PacketHeader::Kind::kHello) return false;
  ByteReader reader(packet.subspan(PacketHeader::kBytes));
  const auto version = reader.get<std::uint16_t>();
  const auto peer = reader.get<std::uint32_t>();
  const std::span<const std::byte> proof = reader.get_raw(sizeof(Card::Nonce));
  const Card& mine = cards_[index(rank_)];
  if (!reader.finished() || version != Card::kVersion || !equal_secrets(proof, mine.nonce)) return false;
  if (peer <= static_cast<std::uint32_t>(rank_) || peer >= cards_.size() || peers_[peer] || cards_[peer].is_near(mine))
    return false;
  PacketHeader welcome;
  welcome.kind = PacketHeader::Kind::kWelcome;
  if (stranger.socket.send(welcome.packet(cards_[peer].nonce)) != SendStatus::kSent) return false;
  peers_[peer] = std::move(stranger.socket);
  return false;
}

void FarLinker::wait(Deadline deadline) {
  std::vector<pollfd> watched;
  for (const Fd& each : listeners_) watched.push_back({each.get(), POLLIN, 0});
  for (const Stranger& each : strangers_) watched.push_back({each.socket.fd(), POLLIN, 0});
  for (const Knock& each : knocks_)
    watched.push_back({each.socket.fd(), static_cast<short>(each.asked ? POLLIN : POLLOUT), 0});  // -1 is skipped
  ::poll(watched.data(), watched.size(), deadline.remaining_ms(kRetryEveryMs));
  accept_all();
  for (auto each = strangers_.begin(); each != strangers_.end();) {
    each = hear_stranger(*each) ? std::next(each) : strangers_.erase(each);
  }
}

std::vector<int> FarLinker::missing() const {
  std::vector<int> ranks;
  for (int peer = 0; peer < static_cast<int>(cards_.size()); ++peer) {
    if (!cards_[index(peer)].is_near(cards_[index(rank_)]) && !peers_[index(peer)]) ranks.push_back(peer);
  }
  return ranks;
}

}  // namespace ferry::bootstrap
