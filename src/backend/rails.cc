// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/rails.h"

#include <algorithm>

#include "core/digest.h"

namespace ferry {

Rails::Rails(const Topology& topology, std::span<const std::uint8_t> masked)
    : topology_(topology),
      live_(static_cast<std::size_t>(topology.num_nodes())),
      sources_of_(static_cast<std::size_t>(topology.num_ranks())) {
  for (int rank = 0; rank < topology.num_ranks(); ++rank) {
    if (masked[static_cast<std::size_t>(rank)] == 0)
      live_[static_cast<std::size_t>(topology.node_of(rank))].push_back(rank);
  }
  Digest digest;
  for (int source = 0; source < topology.num_ranks(); ++source) {
    for (int node = 0; node < topology.num_nodes(); ++node) {
      const int receiver = rail(source, node);
      digest.add(receiver);
      if (receiver < 0 || node == topology.node_of(source) || masked[static_cast<std::size_t>(source)] != 0) continue;
      auto& sources = sources_of_[static_cast<std::size_t>(receiver)];
      sources.push_back(source);
      max_sources_ = std::max(max_sources_, static_cast<int>(sources.size()));
    }
  }
  digest_ = digest.value();
}

int Rails::rail(int source, int node) const {
  if (node == topology_.node_of(source)) return source;
  const auto& live = live_[static_cast<std::size_t>(node)];
  if (live.empty()) return -1;
  return live[static_cast<std::size_t>(topology_.local_rank(source)) % live.size()];
}

int Rails::source_index(int rank, int source) const {
  const auto& sources = sources_of(rank);
  const auto found = std::find(sources.begin(), sources.end(), source);
  return found == sources.end() ? -1 : static_cast<int>(found - sources.begin());
}

}  // namespace ferry
