// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Making a group: agree on the configuration, link the ranks, choose backend and network, open the windows.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <span>

#include "api/group_state.h"
#include "backend/engine_config.h"
#include "core/check.h"
#include "core/digest.h"
#include "core/environment.h"

namespace ferry {
namespace {

constexpr const char* kFunction = "ferry::Group::create";

/// One node per machine. `machines`: of every rank.
Topology topology_of_machines(const std::vector<int>& machines) {
  std::vector<int> sizes;
  int last = -1;
  for (std::size_t rank = 0; rank < machines.size(); ++rank) {
    const int machine = machines[rank];  // counted in the order of ranks, so a new one has the next number
    if (machine == static_cast<int>(sizes.size())) sizes.push_back(0);
    if (machine < last) {
      refuse_unsupported(
          kFunction, "topology",
          fmt::format("rank {} is on the machine of lower ranks than rank {}; number the ranks machine by machine, "
                      "or give a topology",
                      rank, rank - 1));
    }
    ++sizes[static_cast<std::size_t>(machine)];
    last = machine;
  }
  return Topology::nodes(std::move(sizes));
}

Topology choose_topology(const GroupConfig& config, const std::vector<int>& machines, const Environment& environment) {
  const int num_ranks = static_cast<int>(machines.size());
  if (config.topology) {
    if (config.topology->num_ranks() != num_ranks) {
      refuse(kFunction, "topology",
             fmt::format("{} ({} ranks)", config.topology->describe(), config.topology->num_ranks()),
             fmt::format("{} ranks, as the meeting has", num_ranks));
    }
    return *config.topology;
  }
  if (!environment.node_size) return topology_of_machines(machines);
  std::vector<int> sizes;
  for (int left = num_ranks; left > 0; left -= sizes.back()) sizes.push_back(std::min(left, *environment.node_size));
  return Topology::nodes(std::move(sizes));
}

/// The ranks of a node store into each other's windows.
void check_nodes(const Topology& topology, const std::vector<int>& machines) {
  for (int rank = 1; rank < topology.num_ranks(); ++rank) {
    const int before = rank - 1;
    if (topology.node_of(rank) != topology.node_of(before)) continue;
    if (machines[static_cast<std::size_t>(rank)] == machines[static_cast<std::size_t>(before)]) continue;
    refuse_unsupported(
        kFunction, "topology",
        fmt::format("topology {} puts ranks {} and {} into one node, but they are on different machines (or in "
                    "different network namespaces)",
                    topology.describe(), before, rank));
  }
}

/// What must be equal on all ranks, as lines of text: the first that differs goes into the message.
std::vector<std::pair<std::string, std::string>> agreement(const GroupConfig& config, const Topology& topology,
                                                           const Placement& placement) {
  const GroupLimits& l = config.limits;
  return {{"topology", topology.describe()},
          {"placement digest", fmt::to_string(placement.digest())},
          {"limits.num_experts", fmt::to_string(placement.num_experts())},
          {"limits.max_tokens", fmt::to_string(l.max_tokens)},
          {"limits.max_latency_tokens", fmt::to_string(l.max_latency_tokens)},
          {"limits.max_top_k", fmt::to_string(l.max_top_k)},
          {"limits.hidden", fmt::to_string(l.hidden)},
          {"limits.dtype", name(l.dtype)},
          {"limits.extra_bytes", fmt::to_string(l.extra_bytes)},
          {"limits.recv_rows", fmt::to_string(l.recv_rows)},
          {"limits.owned_rows", fmt::to_string(l.owned_rows)},
          {"limits.max_slots", fmt::to_string(l.max_slots)},
          {"limits.num_flights", fmt::to_string(l.num_flights)},
          {"auto_masks", fmt::to_string(config.auto_masks)},
          {"backend", config.backend},
          {"network", config.network},
          {"network_options.proxy_threads", fmt::to_string(config.network_options.proxy_threads)}};
}

std::vector<std::byte> to_bytes(const std::vector<std::pair<std::string, std::string>>& lines) {
  std::string text;
  for (const auto& [key, value] : lines) text += fmt::format("{}={}\n", key, value);
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

/// Refuses if rank `rank` has other lines than this one; the first that differs goes into the message.
void compare_lines(int rank, const std::string& theirs, int my_rank,
                   const std::vector<std::pair<std::string, std::string>>& mine) {
  std::size_t at = 0;
  for (const auto& [key, value] : mine) {
    const std::size_t end = theirs.find('\n', at);
    const std::string line = theirs.substr(at, end == std::string::npos ? end : end - at);
    if (line != fmt::format("{}={}", key, value)) {
      throw peer_error(
          ErrorCode::kMismatch, "meet", 0, rank,
          fmt::format("{}: rank {} has {}, this rank ({}) has {}={}", kFunction, rank, line, my_rank, key, value));
    }
    at = end == std::string::npos ? theirs.size() : end + 1;
  }
}

/// Ranks compare what must be equal; returns rank 0's random number, by which handles know their group.
std::uint64_t agree(Meeting& meeting, const std::vector<std::pair<std::string, std::string>>& mine,
                    std::chrono::nanoseconds timeout) {
  std::random_device random;
  std::uint64_t number = static_cast<std::uint64_t>(random()) << 32 | random();
  std::vector<std::byte> bytes = to_bytes(mine);
  const auto* begin = reinterpret_cast<const std::byte*>(&number);
  bytes.insert(bytes.begin(), begin, begin + sizeof(number));
  const auto everyone = meeting.all_gather(bytes, timeout);
  for (int rank = 0; rank < meeting.size(); ++rank) {
    const auto& theirs = everyone[static_cast<std::size_t>(rank)];
    const std::size_t text_at = std::min(theirs.size(), sizeof(number));
    compare_lines(rank, {reinterpret_cast<const char*>(theirs.data()) + text_at, theirs.size() - text_at},
                  meeting.rank(), mine);
  }
  std::memcpy(&number, everyone[0].data(), sizeof(number));
  return number;
}

void check_backend(const GroupConfig& config) {
#ifndef FERRY_HAS_CUDA
  if (config.backend == "cuda")
    refuse_unsupported(kFunction, "backend", "backend cuda is not in this build; use backend host or auto");
#endif
  const std::string shuffle = "shuffle+";
  const std::string plain =
      config.network.rfind(shuffle, 0) == 0 ? config.network.substr(shuffle.size()) : config.network;
  for (const char* known : {"loopback", "tcp", "shm", "verbs", "efa"}) {
    if (plain == known) return;
  }
  if (config.network != "auto") refuse(kFunction, "network", config.network, "auto, loopback, tcp, shm, verbs or efa");
}

bool on_one_machine(const std::vector<int>& machines) {
  return machines.back() == 0;
}

/// The best network that every rank can use.
std::string choose_network(Meeting& meeting, std::chrono::nanoseconds timeout) {
  std::string usable, reasons;
  const std::vector<net::Provider> found = net::find_networks();
  for (const net::Provider& one : found) {
    if (one.why_not.empty()) usable += one.name + "\n";
    if (one.name == "tcp") reasons = one.why_not;
  }
  const auto everyone = meeting.all_gather(std::as_bytes(std::span(usable.data(), usable.size())), timeout);
  int without = 0;
  for (const std::string name : {"efa\n", "verbs\n", "tcp\n"}) {
    const auto lacks = [&](const std::vector<std::byte>& theirs) {
      return std::string_view(reinterpret_cast<const char*>(theirs.data()), theirs.size()).find(name) ==
             std::string_view::npos;
    };
    const auto missing = std::find_if(everyone.begin(), everyone.end(), lacks);
    if (missing == everyone.end()) return name.substr(0, name.size() - 1);
    without = static_cast<int>(missing - everyone.begin());
  }
  refuse_unsupported(kFunction, "network",
                     fmt::format("the ranks are on several machines, and rank {} has no network between them{}",
                                 without, reasons.empty() ? "; see ferry doctor there" : ": " + reasons));
}

/// The network that links the nodes. `config.network` was checked.
std::string network_between(const GroupConfig& config, Meeting& meeting, const std::vector<int>& machines) {
  if (config.network == "auto") return on_one_machine(machines) ? "loopback" : choose_network(meeting, config.timeout);
  const std::string plain = config.network.substr(config.network.find('+') + 1);
  if (plain == "shm" && meeting.hub()) {
    refuse_unsupported(
        kFunction, "network",
        "network shm is for ranks that are processes: libfabric's provider shares plain pointers inside one process, "
        "which dangle once a rank has closed its group; use loopback");
  }
  if ((plain == "loopback" || plain == "shm") && !on_one_machine(machines)) {
    const auto elsewhere = std::find(machines.begin(), machines.end(), 1) - machines.begin();
    refuse_unsupported(
        kFunction, "network",
        fmt::format("network {} is for ranks of one machine, and rank {} is on another one than rank 0 (or in another "
                    "network namespace); use tcp, verbs, efa or auto",
                    config.network, elsewhere));
  }
  return config.network;
}

/// Collective: either all ranks have an engine or all throw.
std::shared_ptr<net::Engine> make_engine(const GroupConfig& settings, Meeting& meeting,
                                         const std::vector<int>& machines) {
  if (settings.topology->num_nodes() == 1) return nullptr;  // a group inside one node never touches the network
  net::EngineConfig config = engine_config(settings.network_options, network_between(settings, meeting, machines),
                                           meeting.rank(), on_one_machine(machines));
  config.max_post_delay_ns = settings.test.max_signal_delay_ns;
  config.shuffle_seed = settings.test.max_signal_delay_ns > 0 ? settings.test.seed + 1 : 0;
  std::shared_ptr<net::Engine> engine;
  std::optional<Error> mine;
  try {
#ifdef FERRY_HAS_CUDA
    if (settings.backend == "cuda") config.copy_engines = make_cuda_copy_engines(settings.device);
#endif
    engine = net::make_engine(config);
  } catch (const Error& error) {
    mine = error;
  }
  const std::string text = mine ? mine->what() : "";
  const auto everyone = meeting.all_gather(std::as_bytes(std::span(text.data(), text.size())), settings.timeout);
  if (mine) throw *mine;
  for (int rank = 0; rank < meeting.size(); ++rank) {
    const auto& theirs = everyone[static_cast<std::size_t>(rank)];
    if (theirs.empty()) continue;
    throw peer_error(ErrorCode::kUnsupported, "meet", 0, rank,
                     fmt::format("{}: rank {} has no network: {}", kFunction, rank,
                                 std::string_view(reinterpret_cast<const char*>(theirs.data()), theirs.size())));
  }
  return engine;
}

std::unique_ptr<Backend> make_backend(const GroupConfig& settings, const Placement& placement, Runtime& runtime) {
#ifdef FERRY_HAS_CUDA
  if (settings.backend == "cuda") {
    if (settings.auto_masks > 0 && runtime.topology.num_nodes() > 1) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("ferry::Group::create: auto_masks is {} over {} nodes; the cuda backend masks late ranks "
                              "by itself inside one node only; use auto_masks 0, or backend host",
                              settings.auto_masks, runtime.topology.num_nodes()));
    }
    const std::vector<std::uint8_t> nobody(static_cast<std::size_t>(runtime.topology.num_ranks()), 0);
    const WindowLayout window =
        make_window_layout(settings, runtime.topology, placement, Rails(runtime.topology, nobody));
    RegionList regions(256);
    runtime.device_layout = make_device_layout(settings.limits, runtime.topology, placement, window, regions);
    return make_cuda_backend(runtime, settings, settings.device);
  }
#else
  (void)placement;
  (void)settings;
#endif
  return make_host_backend(runtime);
}

}  // namespace

Group Group::create(const GroupConfig& config, Meeting& meeting) {
  const Environment environment = Environment::read();
  check_backend(config);
  const std::vector<int> machines = find_machines(meeting, config.timeout);
  const Topology topology = choose_topology(config, machines, environment);
  check_nodes(topology, machines);
  check_limits(config, topology);
  auto placement = std::make_shared<const Placement>(
      config.placement ? *config.placement : Placement::contiguous(config.limits.num_experts, meeting.size()));
  const auto lines = agreement(config, topology, *placement);
  const std::uint64_t group = agree(meeting, lines, config.timeout);
  Digest digest;
  for (std::byte byte : to_bytes(lines)) digest.add(static_cast<std::uint8_t>(byte));

  GroupConfig settings = config;
  settings.topology = topology;
  if (settings.test.max_signal_delay_ns == 0) settings.test.max_signal_delay_ns = environment.test_delay_ns.value_or(0);
  std::shared_ptr<net::Engine> engine = make_engine(settings, meeting, machines);
  auto runtime = std::make_unique<Runtime>(meeting.rank(), topology, make_mesh(meeting, config.timeout),
                                           std::move(engine), settings.test);
  runtime->group = group;
  auto backend = make_backend(settings, *placement, *runtime);
  auto state = std::make_shared<GroupState>(std::move(settings), std::move(placement), std::move(runtime),
                                            std::move(backend), digest.value());
  state->open();
  // Making and mapping memory may wait for kernels of other ranks on the same device, so nobody launches one before all are done.
  if (state->runtime->device_memories) {
    const std::vector<std::byte> mine = state->backend->device_identity();
    const auto devices = meeting.all_gather(mine, config.timeout);
    state->backend->share_device(static_cast<int>(std::count(devices.begin(), devices.end(), mine)));
  }
  return Group(std::move(state));
}

}  // namespace ferry
