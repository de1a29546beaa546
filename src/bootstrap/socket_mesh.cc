// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The mesh of ranks that are processes, of one machine or of several.
#include "bootstrap/socket_mesh.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "bootstrap/bytes.h"
#include "bootstrap/failure.h"
#include "bootstrap/far_linking.h"
#include "bootstrap/link.h"
#include "bootstrap/linking.h"
#include "core/check.h"

namespace ferry::bootstrap {
namespace {

std::size_t index(int rank) {
  return static_cast<std::size_t>(rank);
}

class SocketMesh final : public Mesh {
 public:
  /// By rank: those of this machine, and those elsewhere. Where one is empty the other is not, but for this rank itself.
  SocketMesh(int rank, std::vector<Peer> near, std::vector<PacketSocket> far) : rank_(rank), process_(getpid()) {
    for (std::size_t peer = 0; peer < near.size(); ++peer) {
      PacketSocket socket =
          near[peer].socket || far.empty() ? PacketSocket(std::move(near[peer].socket)) : std::move(far[peer]);
      links_.push_back(
          std::make_unique<Link>(static_cast<int>(peer), std::move(socket), std::move(near[peer].process)));
    }
  }
  SocketMesh(const SocketMesh&) = delete;
  SocketMesh& operator=(const SocketMesh&) = delete;
  ~SocketMesh() override {
    if (getpid() != process_) return;  // a forked child drops its copies; the links are its parent's
    flush();
    for (const auto& link : links_) link->shut_down();
  }

  std::shared_ptr<Memory> allocate(std::size_t bytes) override { return Memory::shareable(bytes); }

  void send(int peer, const Notice& notice) override {
    const char* const function = "ferry::Mesh::send";
    check(function, peer);
    if (notice.bytes.size() > kMaxNoticeBytes) {
      refuse(function, "notice", fmt::format("{} bytes", notice.bytes.size()),
             fmt::format("at most {} bytes", kMaxNoticeBytes));
    }
    if (notice.memory && notice.memory->fd() < 0) {
      refuse(function, "notice.memory", "memory of this process alone", "memory from Mesh::allocate");
    }
    const std::lock_guard lock(mutex_);
    if (peer == rank_) {
      to_myself_.push_back(notice);
      return;
    }
    links_[index(peer)]->send(notice);
    flush();
  }

  std::optional<Notice> poll(int peer) override {
    check("ferry::Mesh::poll", peer);
    const std::lock_guard lock(mutex_);
    flush();
    if (peer != rank_) return links_[index(peer)]->poll();
    if (to_myself_.empty()) return std::nullopt;
    std::optional<Notice> notice(std::move(to_myself_.front()));
    to_myself_.pop_front();
    return notice;
  }

  bool gone(int peer) override {
    check("ferry::Mesh::gone", peer);
    const std::lock_guard lock(mutex_);
    flush();
    return peer != rank_ && links_[index(peer)]->gone();
  }

 private:
  void check(const char* function, int peer) const {
    const auto size = static_cast<int>(links_.size());
    if (peer < 0 || peer >= size) refuse(function, "peer", fmt::format("{}", peer), fmt::format("0 to {}", size - 1));
  }

  void flush() {
    for (const auto& link : links_) link->flush();
  }

  const int rank_;
  const pid_t process_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Link>> links_;  // by rank; this rank's own is never used
  std::deque<Notice> to_myself_;
};

/// Everybody learns how it went for everybody, so that either all have a mesh or all throw.
void tell_outcome(Meeting& meeting, const std::optional<Error>& mine, Deadline deadline) {
  ByteWriter writer;
  if (mine) writer.put(static_cast<std::uint8_t>(mine->code())).put_raw(std::string_view(mine->what()));
  std::vector<std::vector<std::byte>> outcomes;
  try {
    outcomes = meeting.all_gather(writer.take(), deadline.remaining());
  } catch (...) {
    if (!mine) throw;
  }
  if (mine) throw *mine;
  for (int rank = 0; rank < meeting.size(); ++rank) {
    ByteReader reader(outcomes[index(rank)]);
    if (reader.rest() == 0) continue;
    const bool timeout = reader.get<std::uint8_t>() == static_cast<std::uint8_t>(ErrorCode::kTimeout);
    const auto text = reader.get_raw(reader.rest());
    throw failure(timeout ? ErrorCode::kTimeout : ErrorCode::kBootstrap,
                  fmt::format("make_mesh: rank {} failed: {}", rank,
                              std::string_view(reinterpret_cast<const char*>(text.data()), text.size())),
                  {rank});
  }
}

}  // namespace

std::vector<int> find_machines_of_processes(Meeting& meeting, std::chrono::nanoseconds timeout) {
  const auto encoded = meeting.all_gather(Card::of_this_process().encode(), timeout);
  std::vector<Card> machines;
  std::vector<int> machine_of;
  for (int rank = 0; rank < meeting.size(); ++rank) {
    const Card card = Card::decode(rank, encoded[index(rank)]);
    const auto found =
        std::find_if(machines.begin(), machines.end(), [&](const Card& one) { return one.is_near(card); });
    machine_of.push_back(static_cast<int>(found - machines.begin()));
    if (found == machines.end()) machines.push_back(card);
  }
  return machine_of;
}

std::unique_ptr<Mesh> make_socket_mesh(Meeting& meeting, std::chrono::nanoseconds timeout) {
  const Deadline deadline = Deadline::after(timeout);
  const Deadline link_deadline =
      Deadline::after(timeout - timeout / 10);  // the rest is for telling each other the outcome
  const int rank = meeting.rank();
  const Card card = Card::of_this_process();
  Linker linker(rank, meeting.size(), card);
  const auto encoded = meeting.all_gather(card.encode(), deadline.remaining());
  std::vector<Card> cards;
  for (int peer = 0; peer < meeting.size(); ++peer) cards.push_back(Card::decode(peer, encoded[index(peer)]));
  const auto is_elsewhere = [&](const Card& other) { return !other.is_near(cards.front()); };
  const bool has_far = std::any_of(cards.begin(), cards.end(), is_elsewhere);  // everybody sees the same cards
  std::optional<Error> error;
  std::vector<Peer> near;
  std::vector<PacketSocket> far;
  std::unique_ptr<FarLinker> far_linker;
  std::vector<std::vector<std::byte>> doors;
  try {
    check_cards(cards, rank);
    if (has_far) far_linker = std::make_unique<FarLinker>(rank, cards);
  } catch (const Error& seen) {
    error = seen;
  }
  if (has_far)
    doors = meeting.all_gather(far_linker ? far_linker->doors() : std::vector<std::byte>{}, deadline.remaining());
  try {
    if (!error) near = linker.link(cards, link_deadline);
    if (!error && far_linker) far = far_linker->link(doors, link_deadline);
  } catch (const Error& seen) {
    error = seen;
  }
  tell_outcome(meeting, error, deadline);
  return std::make_unique<SocketMesh>(rank, std::move(near), std::move(far));
}

}  // namespace ferry::bootstrap
