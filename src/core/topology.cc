// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Lists of nodes of any sizes.
#include "ferry/topology.h"

#include <fmt/format.h>

#include "core/check.h"

namespace ferry {

Topology Topology::single_node(int num_ranks) {
  return nodes({num_ranks});
}

Topology Topology::nodes(std::vector<int> node_sizes) {
  if (node_sizes.empty()) refuse("ferry::Topology::nodes", "node_sizes", "empty", "at least one node");
  constexpr int kMaxRanks = 1 << 20;
  Topology topology;
  topology.first_rank_.push_back(0);
  for (std::size_t node = 0; node < node_sizes.size(); ++node) {
    if (node_sizes[node] < 1) {
      refuse("ferry::Topology::nodes", fmt::format("node_sizes[{}]", node), fmt::to_string(node_sizes[node]),
             "at least 1");
    }
    if (node_sizes[node] > kMaxRanks - topology.first_rank_.back()) {
      refuse("ferry::Topology::nodes", "node_sizes", fmt::format("more than {} ranks", kMaxRanks),
             fmt::format("at most {}", kMaxRanks));
    }
    topology.first_rank_.push_back(topology.first_rank_.back() + node_sizes[node]);
    topology.node_of_.insert(topology.node_of_.end(), static_cast<std::size_t>(node_sizes[node]),
                             static_cast<int>(node));
  }
  return topology;
}

Topology Topology::split(int num_ranks, int num_nodes) {
  if (num_ranks < 1) refuse("ferry::Topology::split", "num_ranks", fmt::to_string(num_ranks), "at least 1");
  if (num_nodes < 1 || num_nodes > num_ranks) {
    refuse("ferry::Topology::split", "num_nodes", fmt::to_string(num_nodes),
           fmt::format("1 to {} (the number of ranks)", num_ranks));
  }
  std::vector<int> sizes(static_cast<std::size_t>(num_nodes), num_ranks / num_nodes);
  for (int node = 0; node < num_ranks % num_nodes; ++node) ++sizes[static_cast<std::size_t>(node)];
  return nodes(std::move(sizes));
}

std::string Topology::describe() const {
  std::string text;
  for (int node = 0; node < num_nodes(); ++node) text += fmt::format("{}{}", node > 0 ? "+" : "", node_size(node));
  return text;
}

}  // namespace ferry
