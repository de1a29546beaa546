// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Links the pairs of a mesh of processes. One thread, one poll() over everything, so that nobody is kept waiting by a
// stranger that says nothing.
#include "bootstrap/linking.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <utility>

#include "bootstrap/bytes.h"
#include "bootstrap/link.h"

namespace ferry::bootstrap {
namespace {

constexpr std::uint32_t kCardMagic = 0x43505246;  // "FRPC"
constexpr std::size_t kMostStrangers = 256;       // accepted, but not yet known
constexpr auto kStrangerPatience = std::chrono::seconds(5);
constexpr auto kRetryEvery = std::chrono::milliseconds(5);

std::size_t index(int rank) {
  return static_cast<std::size_t>(rank);
}

void fill_random(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t filled = getrandom(bytes.data(), bytes.size(), 0);
    if (filled < 0 && errno == EINTR) continue;
    if (filled <= 0)
      throw failure(ErrorCode::kBootstrap, fmt::format("make_mesh: getrandom: {}", describe_errno(errno)));
    bytes = bytes.subspan(static_cast<std::size_t>(filled));
  }
}

std::string random_name() {
  std::array<std::byte, 16> random;
  fill_random(random);
  std::string name = "ferry-";
  for (const std::byte value : random) name += fmt::format("{:02x}", static_cast<unsigned>(value));
  return name;
}

std::string read_boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string line;
  std::getline(file, line);
  return line;
}

std::uint64_t network_namespace() {
  struct stat file {};
  return stat("/proc/self/ns/net", &file) == 0 ? static_cast<std::uint64_t>(file.st_ino) : 0;
}

std::vector<std::byte> hello_packet(int rank, const Card::Nonce& proof) {
  ByteWriter payload;
  payload.put(Card::kVersion).put(static_cast<std::uint32_t>(rank)).put_raw(proof);
  PacketHeader header;
  header.kind = PacketHeader::Kind::kHello;
  return header.packet(payload.take());
}

std::vector<std::byte> welcome_packet(const Card::Nonce& proof) {
  PacketHeader header;
  header.kind = PacketHeader::Kind::kWelcome;
  return header.packet(proof);
}

/// The payload of a packet of this kind; empty if it is anything else.
std::optional<std::span<const std::byte>> payload_of(PacketHeader::Kind kind, const Received& received,
                                                     std::span<const std::byte> packet) {
  const std::optional<PacketHeader> header = PacketHeader::parse(packet);
  if (!header || header->kind != kind || !received.fds.empty()) return std::nullopt;
  return packet.subspan(PacketHeader::kBytes);
}

}  // namespace

std::vector<std::byte> Card::encode() const {
  ByteWriter writer;
  writer.put(kCardMagic).put(kVersion).put_text(boot_id).put(network).put(uid).put_text(name).put_raw(nonce);
  return writer.take();
}

Card Card::decode(int rank, std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  const auto magic = reader.get<std::uint32_t>();
  const auto version = reader.get<std::uint16_t>();
  if (!reader.ok() || magic != kCardMagic) {
    throw failure(ErrorCode::kBootstrap,
                  fmt::format("make_mesh: rank {} sent something else; is it in another call?", rank), {rank});
  }
  if (version != kVersion) {
    throw failure(
        ErrorCode::kBootstrap,
        fmt::format("make_mesh: rank {} speaks version {} of the mesh protocol, expected {}", rank, version, kVersion),
        {rank});
  }
  Card card;
  card.boot_id = reader.get_text();
  card.network = reader.get<std::uint64_t>();
  card.uid = reader.get<std::uint32_t>();
  card.name = reader.get_text();
  const std::span<const std::byte> nonce = reader.get_raw(card.nonce.size());
  std::copy(nonce.begin(), nonce.end(), card.nonce.begin());
  if (!reader.finished() || card.name.empty()) {
    throw failure(ErrorCode::kBootstrap, fmt::format("make_mesh: rank {} sent a damaged card", rank), {rank});
  }
  return card;
}

Card Card::of_this_process() {
  Card card{
      .boot_id = read_boot_id(), .network = network_namespace(), .uid = geteuid(), .name = random_name(), .nonce = {}};
  fill_random(card.nonce);
  return card;
}

void check_cards(const std::vector<Card>& cards, int rank) {
  const Card& mine = cards[index(rank)];
  for (int peer = 0; peer < static_cast<int>(cards.size()); ++peer) {
    const Card& card = cards[index(peer)];
    if (!card.is_near(mine)) continue;
    if (card.uid != mine.uid) {
      throw failure(
          ErrorCode::kBootstrap,
          fmt::format(
              "make_mesh: rank {} belongs to user {}, rank {} to user {}; memory is shared with the same user only",
              peer, card.uid, rank, mine.uid),
          {peer});
    }
  }
}

Linker::Linker(int rank, int size, const Card& card)
    : rank_(rank),
      size_(size),
      uid_(card.uid),
      listener_(listen_at(card.name, size + 16)),
      peers_(index(size)),
      num_missing_(0) {}

std::vector<Peer> Linker::link(const std::vector<Card>& cards, Deadline deadline) {
  cards_ = &cards;
  num_missing_ = static_cast<int>(missing().size());
  // Begin with the neighbour, so that 64 ranks do not all knock at rank 0 first.
  for (int peer = rank_ - 1; peer >= 0; --peer) {
    if (cards[index(peer)].is_near(cards[index(rank_)])) calls_.push_back({.peer = peer, .socket = Fd()});
  }
  while (num_missing_ > 0) {
    for (Call& each : calls_) {
      if (!each.socket) call(each);
    }
    wait(deadline);
    for (auto each = calls_.begin(); each != calls_.end();) {
      if (each->socket) hear_answer(*each);
      each = peers_[index(each->peer)].socket ? calls_.erase(each) : std::next(each);
    }
    if (num_missing_ > 0 && deadline.passed()) {
      throw failure(ErrorCode::kTimeout,
                    fmt::format("make_mesh: rank {} of {} found no link with {} in time", rank_, size_,
                                describe_ranks(missing())),
                    missing());
    }
  }
  listener_.reset();
  return std::move(peers_);
}

void Linker::call(Call& call) {
  const Card& card = (*cards_)[index(call.peer)];
  Fd socket = connect_to(card.name);
  if (!socket) {
    if (errno == EAGAIN || errno == EINTR) return;  // its queue is full: later
    const std::string reason = errno == ECONNREFUSED ? "it does not listen any more" : describe_errno(errno);
    throw failure(ErrorCode::kBootstrap,
                  fmt::format("make_mesh: rank {} cannot link with rank {}: {}", rank_, call.peer, reason),
                  {call.peer});
  }
  if (PeerProcess process; !belongs_to_us(socket, process)) {
    throw failure(
        ErrorCode::kBootstrap,
        fmt::format(
            "make_mesh: rank {} belongs to user {}, rank {} to user {}; memory is shared with the same user only",
            call.peer, process.uid, rank_, uid_),
        {call.peer});
  }
  if (send_packet(socket, hello_packet(rank_, card.nonce)) == SendStatus::kSent) call.socket = std::move(socket);
}

void Linker::hear_answer(Call& call) {
  std::array<std::byte, 256> buffer;
  const Received received = receive_packet(call.socket, buffer);
  if (received.status == Received::Status::kNothing) return;
  PeerProcess process;
  if (received.status == Received::Status::kPacket && belongs_to_us(call.socket, process)) {
    const auto proof = payload_of(PacketHeader::Kind::kWelcome, received, std::span(buffer).first(received.num_bytes));
    if (proof && equal_secrets(*proof, (*cards_)[index(rank_)].nonce)) {
      adopt(call.peer, std::move(call.socket), process);
      return;
    }
  }
  call.socket.reset();  // it had no time for us: again
}

void Linker::accept_all() {
  while (Fd socket = accept_from(listener_)) {
    if (PeerProcess process; !belongs_to_us(socket, process)) continue;
    // The newest are kept: a peer speaks as it connects, so what stays silent for long is none.
    if (strangers_.size() == kMostStrangers) strangers_.pop_front();
    strangers_.push_back({.socket = std::move(socket), .deadline = Deadline::after(kStrangerPatience)});
  }
  if (errno == EMFILE || errno == ENFILE) {
    throw failure(ErrorCode::kBootstrap, fmt::format("make_mesh: rank {} cannot accept more links: {}; raise ulimit -n",
                                                     rank_, describe_errno(errno)));
  }
}

/// True while it may still turn out to be a peer.
bool Linker::hear_stranger(Stranger& stranger) {
  std::array<std::byte, 256> buffer;
  const Received received = receive_packet(stranger.socket, buffer);
  if (received.status == Received::Status::kNothing) return !stranger.deadline.passed();
  if (received.status != Received::Status::kPacket) return false;
  const auto payload = payload_of(PacketHeader::Kind::kHello, received, std::span(buffer).first(received.num_bytes));
  if (!payload) return false;
  ByteReader reader(*payload);
  const auto version = reader.get<std::uint16_t>();
  const auto peer = reader.get<std::uint32_t>();
  const std::span<const std::byte> proof = reader.get_raw(sizeof(Card::Nonce));
  if (!reader.finished() || version != Card::kVersion || !equal_secrets(proof, (*cards_)[index(rank_)].nonce))
    return false;
  if (peer <= static_cast<std::uint32_t>(rank_) || peer >= static_cast<std::uint32_t>(size_) || peers_[peer].socket)
    return false;
  PeerProcess process;
  if (!belongs_to_us(stranger.socket, process)) return false;
  if (send_packet(stranger.socket, welcome_packet((*cards_)[peer].nonce)) != SendStatus::kSent) return false;
  adopt(static_cast<int>(peer), std::move(stranger.socket), process);
  return false;
}

void Linker::wait(Deadline deadline) {
  std::vector<pollfd> watched{{listener_.get(), POLLIN, 0}};
  bool retry = false;
  for (const Stranger& each : strangers_) watched.push_back({each.socket.get(), POLLIN, 0});
  for (const Call& each : calls_) {
    watched.push_back({each.socket.get(), POLLIN, 0});
    retry = retry || !each.socket;
  }
  const auto patience = retry ? std::chrono::milliseconds(kRetryEvery) : std::chrono::milliseconds(1000);
  ::poll(watched.data(), watched.size(), deadline.remaining_ms(static_cast<int>(patience.count())));
  accept_all();
  for (auto each = strangers_.begin(); each != strangers_.end();) {
    each = hear_stranger(*each) ? std::next(each) : strangers_.erase(each);
  }
}

void Linker::adopt(int peer, Fd socket, const PeerProcess& process) {
  Peer& entry = peers_[index(peer)];
  entry.socket = std::move(socket);
  if (process.pid != getpid()) entry.process = open_process(process.pid);
  --num_missing_;
}

bool Linker::belongs_to_us(const Fd& socket, PeerProcess& process) const {
  const std::optional<PeerProcess> other = peer_process(socket);
  if (other) process = *other;
  return other && other->uid == uid_;
}

std::vector<int> Linker::missing() const {
  std::vector<int> ranks;
  for (int peer = 0; peer < size_; ++peer) {
    const bool is_near = (*cards_)[index(peer)].is_near((*cards_)[index(rank_)]);
    if (peer != rank_ && is_near && !peers_[index(peer)].socket) ranks.push_back(peer);
  }
  return ranks;
}

}  // namespace ferry::bootstrap
