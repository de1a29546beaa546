// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Reading and checking the demo's options.
#include "demo_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "names.h"

namespace ferry::app {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> message, Args&&... args) {
  throw std::invalid_argument(fmt::format(message, std::forward<Args>(args)...));
}

/// Eight groups if that goes, else the most below that divide the experts and hold at least two each.
int default_groups(int experts) {
  for (int groups = 8; groups > 1; --groups) {
    if (experts % groups == 0 && experts / groups >= 2) return groups;
  }
  return 1;
}

constexpr int kMostLatencyTopK = 32;  ///< of the cuda backend

/// Why a case cannot be run; empty if it can.
std::string why_not(const DemoOptions& options, const DemoCase& run) {
  if (run.mode == Mode::kLatency && options.on_gpus() && options.top_k > kMostLatencyTopK) {
    return fmt::format("latency mode on GPUs takes --top-k up to {}; use --mode throughput, or --backend host",
                       kMostLatencyTopK);
  }
  if (run.mode == Mode::kLatency && run.layout == Layout::kExpertMajor) {
    return "latency mode has fixed slots, and expert_major needs counts before rows move; use rank_major or "
           "expert_padded, "
           "or --mode throughput";
  }
  if (run.layout == Layout::kRankMajor && options.reduction.group == Reduction::Group::kChoice) {
    return "flat sums single choices, and a rank_major row is already a sum over the choices of a rank; use "
           "expert_major or "
           "expert_padded, or --reduction per_rank";
  }
  return "";
}

}  // namespace

std::string DemoCase::name() const {
  return fmt::format("{} {}", ferry::name(mode), ferry::name(layout));
}

GateShape DemoOptions::gate_shape() const {
  return {.hidden = hidden, .num_experts = experts, .num_groups = groups, .num_top_groups = top_groups, .top_k = top_k};
}

GroupConfig DemoOptions::group_config() const {
  GroupConfig config;
  config.limits.num_experts = experts;
  config.limits.max_tokens = tokens;
  config.limits.max_latency_tokens = tokens;
  config.limits.max_top_k = top_k;
  config.limits.hidden = hidden;
  config.limits.dtype = wire.dtype;
  config.topology = Topology::split(ranks, nodes);
  config.backend = backend;
  config.network = network;
  config.network_options = network_options;
  config.timeout = timeout();
  return config;
}

std::size_t DemoOptions::lent_bytes(int rank) const {
  const std::int64_t recv_rows = memory_plan(group_config(), Topology::split(ranks, nodes), rank).recv_rows;
  const std::int64_t row = hidden * static_cast<std::int64_t>(dtype_bytes(wire.dtype)), x = tokens * row;
  const std::int64_t choices = 4 * tokens * top_k;  // of an id or a weight
  // In latency mode each local expert has room for every token, and combine takes rows of any memory: these.
  const std::int64_t padded_rows = std::int64_t{(experts + ranks - 1) / ranks} * ranks * tokens;
  const std::int64_t latency_rows = mode.value_or(Mode::kLatency) == Mode::kLatency ? padded_rows : 0;
  // Of weights, in the layout that arrived.
  const std::int64_t gradients = std::max({ranks * choices, 4 * recv_rows, 4 * latency_rows});
  constexpr std::int64_t kRounding = 1 << 16;
  return static_cast<std::size_t>(x + std::max(2 * choices, gradients) + latency_rows * row + kRounding);
}

void add_demo_options(Options& command, DemoOptions& options) {
  constexpr std::int64_t kMany = 1 << 20;
  command.number("--ranks", options.ranks, 1, 256, "ranks");
  command.number("--nodes", options.nodes, 0, 256,
                 "nodes that the ranks are split over as evenly as possible; 0: two, or one for one rank or on GPUs");
  command.number("--tokens", options.tokens, 1, kMany, "tokens per rank");
  command.number("--hidden", options.hidden, 8, kMany, "width of a row; rows must be a multiple of 16 bytes");
  command.number("--experts", options.experts, 1, kMany, "experts over all ranks");
  command.number("--top-k", options.top_k, 1, 64, "experts per token");
  command.number("--groups", options.groups, 0, kMany,
                 "expert groups of the gate; 0: eight if that divides the experts");
  command.number("--top-groups", options.top_groups, 0, kMany, "groups a token may use; 0: half of them");
  command.word("--mode", options.mode, mode_words(), "only this mode (default: both)");
  command.word("--layout", options.layout, layout_words(), "only this layout (default: every legal one)");
  command.word(
      "--codec", options.wire, wire_words(),
      "rows on the wire (default: bf16): bf16, fp16 or fp32 as they are; fp8_f32 and fp8_ue8m0 code bf16 rows in "
      "dispatch");
  command.word("--reduction", options.reduction, reduction_words(), "order of the sums in combine (default: per_rank)");
  command.word(
      "--backend", options.backend, Words<std::string>{{"auto", "auto"}, {"host", "host"}, {"cuda", "cuda"}},
      "where the tokens lie and who moves them: host memory, or GPUs (rank r on GPU r modulo their number); auto "
      "is host (default: auto)");
  add_network_options(command, options.network, options.network_options, options.netns);
  command.word("--ranks-as", options.ranks_as, ranks_as_words(), "how ranks run (default: processes)");
  command.file("--text", options.text, "file whose bytes are the tokens");
  command.json_file(options.json, "write everything to this file as well");
  command.number("--seed", options.seed, 0, std::int64_t{1} << 62, "of embedding and weights");
  command.seconds("--timeout", options.timeout_s, "seconds that any wait may take");
}

void add_network_options(Options& command, std::string& network, NetworkOptions& options,
                         std::vector<std::string>& netns) {
  command.value("--network", network, "what links the nodes: auto, loopback, tcp, shm, verbs or efa (default: auto)");
  add_network_card_options(command, options, netns);
}

void add_network_card_options(Options& command, NetworkOptions& options, std::vector<std::string>& netns) {
  command.values("--nics", options.nics, "network cards that every rank uses, by the provider's names");
  command.value("--traffic-class", options.traffic_class,
                "low_latency, bulk_data, dscp:26, ... where the provider can");
  command.word(
      "--posts", options.gated_posts, Words<bool>{{"ordered", false}, {"gated", true}},
      "gated: signals wait for acknowledgements, for fabrics with adaptive routing; ordered: as the provider can");
  command.number("--proxy-threads", options.proxy_threads, 1, 16, "threads that drive the network for a rank");
  command.values("--proxy-cores", options.proxy_cores, "cores that these threads are bound to, in turn");
  command.number("--link-bytes-per-second", options.link_bytes_per_second, 0, std::int64_t{1} << 40,
                 "loopback: what a rank seems to send with at most; 0: as fast as it goes");
  command.values("--netns", netns, "network namespaces, one per node: ranks enter theirs first (needs root)");
}

void complete(DemoOptions& options) {
  const std::int64_t element = static_cast<std::int64_t>(dtype_bytes(options.wire.dtype));
  if (options.hidden * element % 16 != 0) {
    refuse("--hidden: {} given, expected a multiple of {} (rows of {} are whole 16-byte pieces)", options.hidden,
           16 / element, ferry::name(options.wire.dtype));
  }
  if (options.nodes == 0) options.nodes = options.on_gpus() ? 1 : std::min(2, options.ranks);
  if (options.on_gpus() && options.nodes != 1) {
    refuse(
        "--nodes: {} given, expected 1 with --backend cuda, for which the demo has one node; use --backend host for "
        "more",
        options.nodes);
  }
  if (!options.netns.empty() && options.ranks_as != RanksAs::kProcesses)
    refuse("--netns: {} names given, expected none with --ranks-as threads: a namespace is a process's",
           options.netns.size());
  if (options.nodes > options.ranks) {
    refuse("--nodes: {} given, expected at most the number of ranks, {}", options.nodes, options.ranks);
  }
  if (options.top_k > options.experts) {
    refuse("--top-k: {} given, expected at most the number of experts, {}", options.top_k, options.experts);
  }
  if (options.groups == 0) options.groups = default_groups(options.experts);
  if (options.experts % options.groups != 0) {
    refuse("--groups: {} given, expected a divisor of the number of experts, {}", options.groups, options.experts);
  }
  const int group_size = options.experts / options.groups;
  const int needed = (options.top_k + group_size - 1) / group_size;
  if (options.top_groups == 0) options.top_groups = std::max((options.groups + 1) / 2, needed);
  if (options.top_groups > options.groups || options.top_groups < needed) {
    refuse("--top-groups: {} given, expected {} to {} (top-{} out of groups of {})", options.top_groups, needed,
           options.groups, options.top_k, group_size);
  }
}

std::vector<DemoCase> demo_cases(const DemoOptions& options, std::vector<std::string>& skipped) {
  std::vector<DemoCase> cases;
  std::string last_reason;
  for (const auto& [mode_word, mode] : mode_words()) {
    if (options.mode && *options.mode != mode) continue;
    for (const auto& [layout_word, layout] : layout_words()) {
      if (options.layout && *options.layout != layout) continue;
      const DemoCase run{.mode = mode, .layout = layout};
      const std::string reason = why_not(options, run);
      if (reason.empty()) {
        cases.push_back(run);
        continue;
      }
      last_reason = reason;
      // Nobody needs to hear that what does not exist was not run, unless they asked for one of the two words.
      const bool asked = options.mode || options.layout || options.reduction.group == Reduction::Group::kChoice ||
                         (options.on_gpus() && layout == Layout::kRankMajor);  // once for the whole mode
      if (asked && !(layout == Layout::kExpertMajor && mode == Mode::kLatency && !options.layout)) {
        skipped.push_back(fmt::format("{}: {}", run.name(), reason));
      }
    }
  }
  if (cases.empty() && options.mode && !options.layout) {
    refuse("--mode: {} given, cannot be run with these options: {}", ferry::name(*options.mode), last_reason);
  }
  if (cases.empty()) {
    refuse("--layout: {} given, cannot be run with these options: {}",
           ferry::name(options.layout.value_or(Layout::kRankMajor)), last_reason);
  }
  return cases;
}

}  // namespace ferry::app
