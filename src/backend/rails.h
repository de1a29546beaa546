// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Which rank of a node receives from the network for a source in another node. Masked ranks serve nobody: the rail of local
// rank i towards node n is live local rank number (i mod live ranks of n).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/topology.h"

namespace ferry {

class Rails {
 public:
  Rails(const Topology& topology, std::span<const std::uint8_t> masked);

  /// The rank of `node` that receives for `source`; -1 if no rank of the node is live. For the source's own node: the source.
  int rail(int source, int node) const;
  /// Live sources of other nodes that `rank` receives for, ascending.
  const std::vector<int>& sources_of(int rank) const { return sources_of_[static_cast<std::size_t>(rank)]; }
  /// Position of `source` among them; -1 if `rank` does not receive for it.
  int source_index(int rank, int source) const;
  int max_sources() const noexcept { return max_sources_; }
  std::uint64_t digest() const noexcept { return digest_; }

 private:
  const Topology topology_;
  std::vector<std::vector<int>> live_;        // per node
  std::vector<std::vector<int>> sources_of_;  // per rank
  int max_sources_ = 0;
  std::uint64_t digest_ = 0;
};

}  // namespace ferry
