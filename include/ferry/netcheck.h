// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Does a network keep what Ferry's engine promises, and how fast is it? For the owner of a network card: `ferry netcheck`.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "ferry/group.h"
#include "ferry/meeting.h"

namespace ferry {

struct NetworkCheck {
  std::string name;     ///< "a post guards its rows", ...
  std::string failure;  ///< empty: passed
};

/// Between two ranks, as rank 0 saw them; both ranks get the same report.
struct NetworkReport {
  std::string network;               ///< "verbs"
  std::string why_not;               ///< why it could not be opened; nothing else is filled in then
  std::string detail;                ///< network cards, kind of posts, registration
  std::vector<NetworkCheck> checks;  ///< on either rank
  double latency_us = 0;  ///< from a put of 8 bytes with its post to the peer that sees it: half a round trip, median
  double messages_per_s = 0;  ///< puts of 64 bytes with a post each, one way
  double bandwidth_gbps = 0;  ///< GB/s of puts of 1 MiB, one way
  double both_ways_gbps = 0;  ///< the same in both directions at once, the sum
  double proxy_share = 0;     ///< of one core that rank 0's proxy used while it sent at full bandwidth

  bool passed() const;
};

/// Collective over a meeting of two ranks, best on two machines; takes some seconds. `network` is a name that GroupConfig::network
/// takes, but for "auto". Throws Error(invalid_argument) for options that make no sense, Error(timeout | bootstrap) if the other
/// rank is not there.
NetworkReport check_network(Meeting& meeting, const std::string& network, const NetworkOptions& options,
                            std::chrono::nanoseconds timeout);

}  // namespace ferry
