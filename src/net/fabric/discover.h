// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What libfabric offers under the names of Ferry's networks, and what it promises.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "net/fabric/library.h"
#include "net/nics.h"

namespace ferry::net::fabric {

/// One network card under one provider. `info` is what an endpoint is opened with.
struct Offer {
  Nic nic;
  Info info;
  bool ordered = false;              ///< write after write holds on one endpoint, for every size we use
  std::uint64_t delivered_flag = 0;  ///< asks for a completion that means delivery at the peer
};

struct Found {
  std::vector<Offer> offers;
  std::string why_not;  ///< why there are none
};

/// Largest put handed over in one piece; an ordered provider promises its order at least that far.
constexpr std::size_t kMaxPieceBytes = std::size_t{256} << 10;

/// `traffic_class` as libfabric counts them, 0 for none.
Found discover(const Library& library, const std::string& network, std::uint32_t traffic_class);

/// The number of a word or "dscp:N"; throws Error(invalid_argument) listing what there is.
std::uint32_t parse_traffic_class(const std::string& text);

/// "ordered posts", what is registered and how, for `ferry doctor`.
std::string describe(const Offer& offer, bool ordered);

}  // namespace ferry::net::fabric
