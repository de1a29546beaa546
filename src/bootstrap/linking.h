// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How the pairs of a mesh of processes on one machine find each other: every rank tells the group where it listens, the higher rank
// of a pair connects to the lower one, and both prove that they were at the meeting.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bootstrap/failure.h"
#include "bootstrap/fd.h"
#include "bootstrap/packet_socket.h"

namespace ferry::bootstrap {

/// What a rank tells the others before they link.
struct Card {
  static constexpr std::uint16_t kVersion = 1;
  using Nonce = std::array<std::byte, 32>;

  std::string boot_id;        ///< of the running kernel: equal only on one machine
  std::uint64_t network = 0;  ///< the network namespace: abstract names are seen inside one only
  std::uint32_t uid = 0;
  std::string name;  ///< abstract socket name, random
  Nonce nonce{};     ///< known to those who were at the meeting

  std::vector<std::byte> encode() const;
  /// Throws Error(bootstrap) that names the rank.
  static Card decode(int rank, std::span<const std::byte> bytes);
  static Card of_this_process();

  /// True for ranks of one machine and network namespace: they see each other's abstract names and can pass memory.
  bool is_near(const Card& other) const { return boot_id == other.boot_id && network == other.network; }
};

/// Refuses groups that cannot be linked: Error(bootstrap) where a rank of this machine belongs to another user.
void check_cards(const std::vector<Card>& cards, int rank);

struct Peer {
  Fd socket;
  Fd process;
};

class Linker {
 public:
  /// Listens from now on; `card.name` is where.
  Linker(int rank, int size, const Card& card);

  /// Links with everybody else who is near; element `rank` and those of ranks elsewhere stay empty. Throws
  /// Error(bootstrap | timeout) naming the ranks that are missing.
  std::vector<Peer> link(const std::vector<Card>& cards, Deadline deadline);

 private:
  struct Stranger {
    Fd socket;
    Deadline deadline;
  };
  struct Call {
    int peer;
    Fd socket;  // empty: to be tried (again)
  };

  void call(Call& call);
  void hear_answer(Call& call);
  void accept_all();
  bool hear_stranger(Stranger& stranger);
  void wait(Deadline deadline);
  void adopt(int peer, Fd socket, const PeerProcess& process);
  bool belongs_to_us(const Fd& socket, PeerProcess& process) const;
  std::vector<int> missing() const;

  int rank_;
  int size_;
  std::uint32_t uid_;
  const std::vector<Card>* cards_ = nullptr;
  Fd listener_;
  std::list<Stranger> strangers_;
  std::list<Call> calls_;
  std::vector<Peer> peers_;
  int num_missing_;
};

}  // namespace ferry::bootstrap
