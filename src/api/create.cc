// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Making a group: agree on the configuration, link the ranks, choose backend and network, open the windows.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "api/group_state.h"
#include "core/check.h"
#include "core/digest.h"
#include "core/environment.h"

namespace ferry {
namespace {

constexpr const char* kFunction = "ferry::Group::create";

Topology choose_topology(const GroupConfig& config, int num_ranks, const Environment& environment) {
  if (config.topology) {
    if (config.topology->num_ranks() != num_ranks) {
      refuse(kFunction, "topology",
             fmt::format("{} ({} ranks)", config.topology->describe(), config.topology->num_ranks()),
             fmt::format("{} ranks, as the meeting has", num_ranks));
    }
    return *config.topology;
  }
  if (!environment.node_size) return Topology::single_node(num_ranks);
  std::vector<int> sizes;
  for (int left = num_ranks; left > 0; left -= sizes.back()) sizes.push_back(std::min(left, *environment.node_size));
  return Topology::nodes(std::move(sizes));
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
          {"backend", config.backend},
          {"network", config.network}};
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
  if (config.network == "auto" || config.network == "loopback") return;
  if (config.network == "tcp" || config.network == "shm" || config.network == "verbs" || config.network == "efa") {
    refuse_unsupported(
        kFunction, "network",
        fmt::format("network {} is not in this build; use loopback (ranks of one machine) or auto", config.network));
  }
  refuse(kFunction, "network", config.network, "auto, loopback, tcp, shm, verbs or efa");
}

std::shared_ptr<net::Engine> make_engine(const Topology& topology, const TestOptions& test) {
  if (topology.num_nodes() == 1) return nullptr;  // a group inside one node never touches the network
  net::EngineConfig config;
  config.max_post_delay_ns = test.max_signal_delay_ns;
  config.shuffle_seed = test.max_signal_delay_ns > 0 ? test.seed + 1 : 0;
  return net::make_loopback(config);
}

std::unique_ptr<Backend> make_backend(const GroupConfig& settings, const Placement& placement, Runtime& runtime) {
#ifdef FERRY_HAS_CUDA
  if (settings.backend == "cuda") {
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
  const Topology topology = choose_topology(config, meeting.size(), environment);
  check_backend(config);
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
  auto runtime = std::make_unique<Runtime>(meeting.rank(), topology, make_mesh(meeting, config.timeout),
                                           make_engine(topology, settings.test), settings.test);
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
