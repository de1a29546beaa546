// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the benchmarks on GPUs measure: their settings, how tokens choose experts, and what the links then have to carry.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ferry/placement.h"

namespace ferry::bench {

struct Settings {
  std::vector<std::int64_t> tokens{4096};
  std::vector<int> sms{16};
  std::vector<std::string> ops{"dispatch-bf16",  "dispatch-fp8", "dispatch-expert", "dispatch-owned",
                               "combine-window", "combine-any",  "combine-flat",    "combine-node"};
  std::string routing = "uniform", launch = "direct";
  int ranks = 0, nodes = 1, experts = 256, top_k = 8, iterations = 30, sets = 3;
  int link_gbps = 0;  ///< of the link by which a rank seems to send to other nodes; 0: as fast as it goes
  std::int64_t hidden = 7168;
  std::string layout = "expert_padded", codec = "fp8_f32", combine_codec = "none";  ///< latency mode
  std::string json, commit = "unknown", date;
};

inline std::vector<std::int64_t> make_routing(const Settings& o, std::int64_t tokens, int rank, int set) {
  std::mt19937_64 random(static_cast<std::uint64_t>(rank * 1000 + set * 7 + 1));
  std::vector<double> weight(static_cast<std::size_t>(o.experts), 1.0);
  if (o.routing == "zipf") {
    for (int e = 0; e < o.experts; ++e) weight[static_cast<std::size_t>(e)] = 1.0 / (1 + e);
  }
  std::vector<std::int64_t> ids;
  for (std::int64_t t = 0; t < tokens; ++t) {
    // K distinct experts: the largest keys log(u) / w.
    std::vector<std::pair<double, int>> keys;
    for (int e = 0; e < o.experts; ++e) {
      const double u = (static_cast<double>(random() >> 11) + 1) * 0x1p-53;
      keys.push_back({std::log(u) / weight[static_cast<std::size_t>(e)], e});
    }
    std::partial_sort(keys.begin(), keys.begin() + o.top_k, keys.end(), std::greater<>());
    for (int k = 0; k < o.top_k; ++k) ids.push_back(keys[static_cast<std::size_t>(k)].second);
  }
  return ids;
}

/// Bit r: the token needs rank r.
inline std::vector<unsigned> ranks_needed(const Settings& o, const std::vector<std::int64_t>& ids, int ranks) {
  const Placement placement = Placement::contiguous(o.experts, ranks);
  std::vector<unsigned> needed(ids.size() / static_cast<std::size_t>(o.top_k), 0);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const int slot = placement.slots_of(static_cast<int>(ids[i]))[0];
    needed[i / static_cast<std::size_t>(o.top_k)] |= 1u << placement.rank_of_slot(slot);
  }
  return needed;
}

/// What crosses a link once: a token for each rank that it needs, or each of its choices.
enum class Unit { kToken, kChoice };

/// Nodes of equal size; the ranks of one follow each other.
inline int node_of(const Settings& o, int ranks, int rank) {
  return rank / (ranks / o.nodes);
}

/// What goes to another node, or comes back from it, per token of the busiest rank: a row per node, per rank there, or per choice.
enum class Across { kNode, kRank, kChoice };
inline double busiest_across(const Settings& o, std::int64_t tokens, int ranks, int set, Across unit) {
  const Placement placement = Placement::contiguous(o.experts, ranks);
  double most = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto ids = make_routing(o, tokens, rank, set);
    double rows = 0;
    for (std::size_t t = 0; t < static_cast<std::size_t>(tokens); ++t) {
      std::uint64_t seen = 0;
      for (int k = 0; k < o.top_k; ++k) {
        const auto id = static_cast<int>(ids[t * static_cast<std::size_t>(o.top_k) + static_cast<std::size_t>(k)]);
        const int owner = placement.rank_of_slot(placement.slots_of(id)[0]);
        if (node_of(o, ranks, owner) == node_of(o, ranks, rank)) continue;
        const int what = unit == Across::kChoice ? k : unit == Across::kRank ? owner : node_of(o, ranks, owner);
        rows += (seen >> what & 1) == 0 ? 1 : 0;
        seen |= std::uint64_t{1} << what;
      }
    }
    most = std::max(most, rows);
  }
  return most;
}

/// How many of them the busiest link carries, per set: the larger of egress and ingress over ranks.
inline double busiest(const Settings& o, std::int64_t tokens, int ranks, int set, Unit unit) {
  const Placement placement = Placement::contiguous(o.experts, ranks);
  std::vector<double> egress(static_cast<std::size_t>(ranks)), ingress(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const auto ids = make_routing(o, tokens, rank, set);
    for (std::size_t t = 0; t < static_cast<std::size_t>(tokens); ++t) {
      std::vector<int> count(static_cast<std::size_t>(ranks));
      for (int k = 0; k < o.top_k; ++k) {
        const auto id = static_cast<int>(ids[t * static_cast<std::size_t>(o.top_k) + static_cast<std::size_t>(k)]);
        ++count[static_cast<std::size_t>(placement.rank_of_slot(placement.slots_of(id)[0]))];
      }
      for (int peer = 0; peer < ranks; ++peer) {
        const int choices = count[static_cast<std::size_t>(peer)];
        if (peer == rank || choices == 0) continue;
        egress[static_cast<std::size_t>(rank)] += unit == Unit::kChoice ? choices : 1;
        ingress[static_cast<std::size_t>(peer)] += unit == Unit::kChoice ? choices : 1;
      }
    }
  }
  return std::max(*std::max_element(egress.begin(), egress.end()), *std::max_element(ingress.begin(), ingress.end()));
}

}  // namespace ferry::bench
