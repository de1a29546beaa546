// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Sizes before anything is allocated, and bytes before anything is sent.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "api/group_state.h"
#include "core/check.h"
#include "wire/row_format.h"

namespace ferry {
namespace {

constexpr int kMostDeviceNodes = 32;  // a lane of a warp keeps an eye on each

constexpr const char* kFunction = "ferry::memory_plan";
constexpr std::int64_t kMaxCount = std::int64_t{1} << 24;  // a signal's count has 24 bits
constexpr std::int64_t kMaxRows = std::int64_t{1} << 31;   // rows are 32-bit

void check_range(const char* what, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most)
    refuse(kFunction, fmt::format("limits.{}", what), fmt::to_string(value), fmt::format("{} to {}", least, most));
}

Placement placement_of(const GroupConfig& config, const Topology& topology) {
  return config.placement ? *config.placement : Placement::contiguous(config.limits.num_experts, topology.num_ranks());
}

/// Probability that a token with K distinct experts out of E, drawn uniformly, wants none of `held` given experts.
double miss(int num_experts, int held, int top_k) {
  double probability = 1;
  for (int k = 0; k < top_k; ++k)
    probability *= std::max(0.0, static_cast<double>(num_experts - held - k) / static_cast<double>(num_experts - k));
  return probability;
}

}  // namespace

namespace {

/// Refuses limits whose regions together could not be counted in 64 bits, let alone mapped: above 2^46 bytes.
void check_size(const GroupConfig& config, int num_ranks) {
  const GroupLimits& limits = config.limits;
  const int placed = config.placement ? config.placement->num_slots() : limits.num_experts;
  const double row =
      static_cast<double>(limits.hidden) * static_cast<double>(std::max<std::size_t>(2, dtype_bytes(limits.dtype))) +
      static_cast<double>(limits.extra_bytes) + 16.0 * limits.max_top_k + 64.0;
  const double tokens = static_cast<double>(std::max(limits.max_tokens, limits.max_latency_tokens)) * num_ranks;
  const double rows = static_cast<double>(limits.recv_rows) + tokens * limits.max_top_k * 4.0 +
                      tokens * static_cast<double>(std::max(placed, limits.max_slots)) +
                      static_cast<double>(placed) * kPlannedAlignment;
  const double owned = static_cast<double>(std::max<std::int64_t>(0, limits.owned_rows));
  const double bytes = (rows * limits.num_flights + owned) * row;
  constexpr double kMost = 70368744177664.0;  // 2^46
  if (bytes > kMost)
    refuse(kFunction, "limits", fmt::format("about {:.3g} bytes", bytes), fmt::format("at most {:.3g}", kMost));
}

}  // namespace

void check_limits(const GroupConfig& config, const Topology& topology) {
  const GroupLimits& limits = config.limits;
  if (config.backend != "auto" && config.backend != "host" && config.backend != "cuda")
    refuse(kFunction, "backend", config.backend, "auto, host or cuda");
  if (!config.placement) check_range("num_experts", limits.num_experts, 1, 1 << 20);
  check_range("max_tokens", limits.max_tokens, 1, kMaxCount - 1);
  check_range("max_latency_tokens", limits.max_latency_tokens, 0, kMaxCount - 1);
  check_range("max_top_k", limits.max_top_k, 1, 1024);
  check_range("hidden", limits.hidden, 1, std::int64_t{1} << 24);
  check_range("extra_bytes", limits.extra_bytes, 0, std::int64_t{1} << 24);
  check_range("recv_rows", limits.recv_rows, 0, kMaxRows - 1);
  check_range("owned_rows", limits.owned_rows, -1, kMaxRows - 1);
  check_range("max_slots", limits.max_slots, 0, 1 << 20);
  check_range("auto_masks", config.auto_masks, 0, 15);
  check_range("num_flights", limits.num_flights, 1, 64);
  const std::int64_t worst = static_cast<std::int64_t>(topology.num_ranks()) * limits.max_tokens * limits.max_top_k;
  check_range("max_tokens x ranks x max_top_k", worst, 1, kMaxRows - 1);
  check_size(config, topology.num_ranks());
  if (config.backend == "cuda" && topology.num_nodes() > kMostDeviceNodes)
    refuse_unsupported(kFunction, "topology",
                       fmt::format("the cuda backend spans at most {} nodes, not {}; use backend host",
                                   kMostDeviceNodes, topology.num_nodes()));
  const int num_ranks = topology.num_ranks();
  if (config.placement && config.placement->num_ranks() != num_ranks) {
    refuse(kFunction, "placement", fmt::format("for {} ranks", config.placement->num_ranks()),
           fmt::format("for {}", num_ranks));
  }
  check_timeout(kFunction, config.timeout);
}

WindowLayout make_window_layout(const GroupConfig& config, const Topology& topology, const Placement& placement,
                                const Rails& rails) {
  return {config.limits,
          topology,
          placement,
          rails.max_sources(),
          config.backend == "cuda" ? RowPlace::kDevice : RowPlace::kHost,
          config.auto_masks + 1};
}

MemoryPlan memory_plan(const GroupConfig& config, const Topology& topology, int rank) {
  check_limits(config, topology);
  if (rank < 0 || rank >= topology.num_ranks())
    refuse(kFunction, "rank", fmt::to_string(rank), fmt::format("0 to {}", topology.num_ranks() - 1));
  const std::vector<std::uint8_t> nobody(static_cast<std::size_t>(topology.num_ranks()), 0);
  const Placement placement = placement_of(config, topology);
  const WindowLayout layout = make_window_layout(config, topology, placement, Rails(topology, nobody));
  MemoryPlan plan;
  for (const Region& region : layout.list().regions())
    plan.regions.push_back({region.name, region.offset, region.bytes});
  plan.total_bytes = layout.total_bytes();
  if (config.backend == "cuda") {
    RegionList device(256);
    const DeviceLayout windows = make_device_layout(config.limits, topology, placement, layout, device);
    const std::int64_t num_slots = std::max(placement.num_slots(), config.limits.max_slots);
    for (const Region& region : device.regions()) plan.regions.push_back({region.name, region.offset, region.bytes});
    const std::int64_t results = device_result_bytes(config.limits, num_slots, windows);
    plan.regions.push_back({"device results", 0, results});
    plan.total_bytes += device.total_bytes() + results;
  }
  plan.recv_rows = layout.recv_rows();
  return plan;
}

TrafficPlan traffic_plan(const GroupConfig& config, const Topology& topology, Reduction reduction, std::int64_t tokens,
                         int top_k) {
  check_limits(config, topology);
  const Placement placement = placement_of(config, topology);
  if (tokens < 0) refuse("ferry::traffic_plan", "tokens", fmt::to_string(tokens), "0 or more");
  if (top_k < 1 || top_k > placement.num_experts()) {
    refuse("ferry::traffic_plan", "top_k", fmt::to_string(top_k),
           fmt::format("1 to {} (distinct experts)", placement.num_experts()));
  }
  const std::vector<std::uint8_t> nobody(static_cast<std::size_t>(topology.num_ranks()), 0);
  const Rails rails(topology, nobody);
  const int num_experts = placement.num_slots();  // a replica takes its share of an expert's tokens
  const auto held_by_node = [&](int node) {
    return placement.first_slot(topology.first_rank(node + 1)) - placement.first_slot(topology.first_rank(node));
  };
  double dispatch_node = 0, dispatch_network = 0, combine_node = 0, combine_network = 0;  // rows
  for (int source = 0; source < topology.num_ranks(); ++source) {
    for (int node = 0; node < topology.num_nodes(); ++node) {
      const bool own = node == topology.node_of(source);
      const double hits_node = 1 - miss(num_experts, held_by_node(node), top_k);
      if (!own) {
        dispatch_network += hits_node;
        if (reduction.group == Reduction::Group::kNode) combine_network += hits_node;
      }
      for (int rank = topology.first_rank(node); rank < topology.first_rank(node + 1); ++rank) {
        const double hits_rank = 1 - miss(num_experts, placement.num_local_experts(rank), top_k);
        const double choices = static_cast<double>(top_k) * placement.num_local_experts(rank) / num_experts;
        const double returned = reduction.group == Reduction::Group::kChoice ? choices : hits_rank;
        if (rank != rails.rail(source, node)) {  // the source itself in its own node
          dispatch_node += hits_rank;
          combine_node += returned;
        }
        if (!own && reduction.group != Reduction::Group::kNode) combine_network += returned;
      }
    }
  }
  const double row_bytes = static_cast<double>(
      wire::padded(config.limits.hidden * static_cast<std::int64_t>(dtype_bytes(config.limits.dtype))));
  const double scale = static_cast<double>(tokens) * row_bytes / topology.num_ranks();
  return {dispatch_node * scale, dispatch_network * scale, combine_node * scale, combine_network * scale};
}

}  // namespace ferry
