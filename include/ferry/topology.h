// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Which ranks form a node (can load and store in each other's windows). Nodes may have any sizes, also unequal.
#pragma once

#include <string>
#include <vector>

namespace ferry {

class Topology {
 public:
  /// One node that holds all ranks.
  static Topology single_node(int num_ranks);
  /// Nodes of the given sizes; ranks are numbered node by node. Throws Error(invalid_argument) on an empty list or size < 1.
  static Topology nodes(std::vector<int> node_sizes);
  /// `num_ranks` over `num_nodes` as evenly as possible; the first nodes take the remainder.
  static Topology split(int num_ranks, int num_nodes);

  int num_ranks() const noexcept { return static_cast<int>(node_of_.size()); }
  int num_nodes() const noexcept { return static_cast<int>(first_rank_.size()) - 1; }
  int node_of(int rank) const { return node_of_.at(static_cast<std::size_t>(rank)); }
  int local_rank(int rank) const { return rank - first_rank(node_of(rank)); }
  int node_size(int node) const { return first_rank(node + 1) - first_rank(node); }
  /// Lowest rank of a node; `first_rank(num_nodes())` is the number of ranks.
  int first_rank(int node) const { return first_rank_.at(static_cast<std::size_t>(node)); }

  /// "4+4", "3+2+1"
  std::string describe() const;

  friend bool operator==(const Topology&, const Topology&) = default;

 private:
  std::vector<int> node_of_;
  std::vector<int> first_rank_;
};

}  // namespace ferry
