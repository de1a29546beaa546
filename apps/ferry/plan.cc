// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry plan`: what a configuration needs in memory and puts on the links, before anything is allocated.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "ferry/error.h"
#include "ferry/group.h"
#include "json_file.h"
#include "names.h"
#include "options.h"

namespace ferry::app {
namespace {

struct PlanOptions {
  int ranks = 8;
  int nodes = 1;
  GroupLimits limits{.num_experts = 256};
  std::string backend = "host";
  std::int64_t tokens = 0;  ///< of the call whose traffic is planned; 0: max_tokens
  std::string json;
};

/// The plan of one rank, its total, and what differs between ranks.
struct Plan {
  MemoryPlan fullest;
  int fullest_rank = 0;
  std::int64_t all_bytes = 0;
  bool all_equal = true;
};

Plan plan_memory(const GroupConfig& config, const Topology& topology) {
  Plan plan;
  for (int rank = 0; rank < topology.num_ranks(); ++rank) {
    MemoryPlan mine = memory_plan(config, topology, rank);
    plan.all_bytes += mine.total_bytes;
    if (rank > 0 && mine.total_bytes != plan.fullest.total_bytes) plan.all_equal = false;
    if (rank == 0 || mine.total_bytes > plan.fullest.total_bytes) {
      plan.fullest = std::move(mine);
      plan.fullest_rank = rank;
    }
  }
  return plan;
}

std::string human(double bytes) {
  for (const char* unit : {"B", "KB", "MB"}) {
    if (bytes < 1000) return fmt::format("{:.{}f} {}", bytes, unit[0] == 'B' ? 0 : 1, unit);
    bytes /= 1000;
  }
  return fmt::format("{:.1f} GB", bytes);
}

void print_memory(const Plan& plan, int num_ranks) {
  fmt::print("memory of one rank{}\n", plan.all_equal ? "" : fmt::format(" (rank {}, the fullest)", plan.fullest_rank));
  fmt::print("{:<32} {:>16} {:>16} {:>10}\n", "region", "offset", "bytes", "");
  for (const RegionPlan& region : plan.fullest.regions) {
    fmt::print("{:<32} {:>16} {:>16} {:>10}\n", region.name, region.offset_bytes, region.bytes,
               human(static_cast<double>(region.bytes)));
  }
  fmt::print("{:<32} {:>16} {:>16} {:>10}\n", "one rank", "", plan.fullest.total_bytes,
             human(static_cast<double>(plan.fullest.total_bytes)));
  fmt::print("{:<32} {:>16} {:>16} {:>10}\n", fmt::format("all {} ranks", num_ranks), "", plan.all_bytes,
             human(static_cast<double>(plan.all_bytes)));
  fmt::print("rows of the receive window of one flight: {}\n", plan.fullest.recv_rows);
}

nlohmann::json plan_json(const PlanOptions& options, const Topology& topology, const Plan& plan) {
  const GroupLimits& limits = options.limits;
  nlohmann::json regions = nlohmann::json::array();
  for (const RegionPlan& region : plan.fullest.regions) {
    regions.push_back({{"name", region.name}, {"offset_bytes", region.offset_bytes}, {"bytes", region.bytes}});
  }
  return {{"ranks", options.ranks},
          {"node_sizes", topology.describe()},
          {"backend", options.backend},
          {"experts", limits.num_experts},
          {"max_tokens", limits.max_tokens},
          {"max_latency_tokens", limits.max_latency_tokens},
          {"max_top_k", limits.max_top_k},
          {"hidden", limits.hidden},
          {"dtype", name(limits.dtype)},
          {"extra_bytes", limits.extra_bytes},
          {"num_flights", limits.num_flights},
          {"fullest_rank", plan.fullest_rank},
          {"regions", regions},
          {"rank_bytes", plan.fullest.total_bytes},
          {"all_bytes", plan.all_bytes},
          {"recv_rows", plan.fullest.recv_rows},
          {"traffic", nlohmann::json::array()}};
}

/// Prints the traffic of each reduction and adds it to the JSON.
void add_traffic(const GroupConfig& config, const Topology& topology, std::int64_t tokens, nlohmann::json& json) {
  fmt::print("\nbytes that a rank sends on average, {} tokens with uniformly random choices, throughput mode\n",
             tokens);
  fmt::print("{:<12} {:^31} | {:^31}\n", "", "dispatch", "combine");
  fmt::print("{:<12} {:>15} {:>15} | {:>15} {:>15}\n", "reduction", "inside node", "between nodes", "inside node",
             "between nodes");
  for (const auto& [word, reduction] : reduction_words()) {
    const TrafficPlan traffic = traffic_plan(config, topology, reduction, tokens, config.limits.max_top_k);
    fmt::print("{:<12} {:>15} {:>15} | {:>15} {:>15}\n", word, human(traffic.dispatch_node_bytes),
               human(traffic.dispatch_network_bytes), human(traffic.combine_node_bytes),
               human(traffic.combine_network_bytes));
    json["traffic"].push_back({{"reduction", word},
                               {"tokens", tokens},
                               {"dispatch_node_bytes", traffic.dispatch_node_bytes},
                               {"dispatch_network_bytes", traffic.dispatch_network_bytes},
                               {"combine_node_bytes", traffic.combine_node_bytes},
                               {"combine_network_bytes", traffic.combine_network_bytes}});
  }
}

int run_plan(const PlanOptions& options) {
  if (options.limits.max_top_k > options.limits.num_experts) {
    fmt::print(stderr, "ferry plan: --top-k: {} given, expected at most the number of experts, {}\n",
               options.limits.max_top_k, options.limits.num_experts);
    return kExitBadUsage;
  }
  if (options.nodes > options.ranks) {
    fmt::print(stderr, "ferry plan: --nodes: {} given, expected at most the number of ranks, {}\n", options.nodes,
               options.ranks);
    return kExitBadUsage;
  }
  GroupConfig config;
  config.limits = options.limits;
  config.backend = options.backend;
  const Topology topology = Topology::split(options.ranks, options.nodes);
  config.topology = topology;
  Plan plan;
  try {
    plan = plan_memory(config, topology);
  } catch (const Error& error) {
    fmt::print(stderr, "ferry plan: {}\n", error.what());
    const bool asked_wrongly = error.code() == ErrorCode::kInvalidArgument || error.code() == ErrorCode::kUnsupported;
    return asked_wrongly ? kExitBadUsage : kExitFailed;
  }
  const GroupLimits& limits = options.limits;
  const std::int64_t tokens = options.tokens > 0 ? options.tokens : limits.max_tokens;
  fmt::print(
      "{} ranks on nodes {}, {} experts, top-{}, {} tokens ({} in latency mode), hidden {} of {}, {} flights\n\n",
      options.ranks, topology.describe(), limits.num_experts, limits.max_top_k, limits.max_tokens,
      limits.max_latency_tokens, limits.hidden, name(limits.dtype), limits.num_flights);
  print_memory(plan, options.ranks);
  nlohmann::json json = plan_json(options, topology, plan);
  add_traffic(config, topology, tokens, json);
  write_json_file(options.json, json.dump(2));
  return kExitOk;
}

}  // namespace

void add_plan_command(Program& program, int& exit_code) {
  auto options = std::make_shared<PlanOptions>();
  Options plan = program.command("plan", "how much memory a configuration needs and how much it puts on the links",
                                 [options, &exit_code] { exit_code = run_plan(*options); });
  constexpr std::int64_t kMany = 1 << 24;
  GroupLimits& limits = options->limits;
  plan.number("--ranks", options->ranks, 1, 1 << 16, "ranks");
  plan.number("--nodes", options->nodes, 1, 1 << 16, "nodes that the ranks are split over as evenly as possible");
  plan.number("--experts", limits.num_experts, 1, kMany, "experts over all ranks");
  plan.number("--tokens", limits.max_tokens, 1, kMany, "most tokens per rank and call, throughput mode");
  plan.number("--latency-tokens", limits.max_latency_tokens, 0, kMany,
              "most tokens per rank and call, latency mode; 0: without it");
  plan.number("--call-tokens", options->tokens, 0, kMany, "tokens of the call whose traffic is shown; 0: the most");
  plan.number("--top-k", limits.max_top_k, 1, 1024, "most experts per token");
  plan.number("--hidden", limits.hidden, 1, kMany, "width of a row");
  plan.word("--dtype", limits.dtype,
            Words<DType>{{"bf16", DType::kBf16}, {"fp16", DType::kFp16}, {"fp32", DType::kFp32}},
            "widest dtype of rows (default: bf16)");
  plan.number("--extra-bytes", limits.extra_bytes, 0, kMany, "per token, for blocks beyond the row and its scales");
  plan.number("--recv-rows", limits.recv_rows, 0, std::int64_t{1} << 40,
              "rows of the receive window; 0: the worst case");
  plan.number("--owned-rows", limits.owned_rows, -1, std::int64_t{1} << 40,
              "cuda: rows of owned results that peers write; -1: those of one rank-major dispatch");
  plan.number("--slots", limits.max_slots, 0, kMany, "places of experts over all ranks; 0: one per expert");
  plan.number("--flights", limits.num_flights, 1, 64, "calls in flight");
  plan.word("--backend", options->backend, Words<std::string>{{"host", "host"}, {"cuda", "cuda"}},
            "where the rows lie: in host memory, or in a GPU's (default: host)");
  plan.json_file(options->json, "write it to this file as well");
}

}  // namespace ferry::app
