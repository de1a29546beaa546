// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How the pairs of a mesh that are on different machines (or in different network namespaces of one) find each other: every
// rank listens at the addresses of its interfaces and tells the group where; the higher rank of a pair knocks at all doors of
// the lower one, and both prove that they were at the meeting.
#pragma once

#include <list>
#include <string>
#include <vector>

#include "bootstrap/linking.h"
#include "bootstrap/stream_packets.h"

namespace ferry::bootstrap {

/// Where a rank listens.
struct Door {
  std::string address;  ///< IPv4 or IPv6, as numbers
  std::uint16_t port = 0;
};

class FarLinker {
 public:
  /// Opens doors at every address of this machine that others may reach. Throws Error(bootstrap) if there is none.
  FarLinker(int rank, std::vector<Card> cards);

  std::vector<std::byte> doors() const;  ///< for the other ranks
  /// Links with every rank that is elsewhere; the others stay empty. `doors` by rank. Throws Error(bootstrap | timeout) naming
  /// the ranks that are missing.
  std::vector<PacketSocket> link(const std::vector<std::vector<std::byte>>& doors, Deadline deadline);

 private:
  struct Stranger {
    PacketSocket socket;
    Deadline deadline;
  };
  /// One door of one rank that we knock at.
  struct Knock {
    int peer;
    Door door;
    PacketSocket socket;  // empty: to be tried (again)
    bool asked = false;
  };

  void knock(Knock& knock);
  void hear_answer(Knock& knock);
  void accept_all();
  bool hear_stranger(Stranger& stranger);
  void wait(Deadline deadline);
  std::vector<int> missing() const;

  int rank_;
  std::vector<Card> cards_;
  std::vector<Door> my_doors_;
  std::vector<Fd> listeners_;
  std::list<Stranger> strangers_;
  std::list<Knock> knocks_;
  std::vector<PacketSocket> peers_;
};

}  // namespace ferry::bootstrap
