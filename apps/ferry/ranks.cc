// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Chooses how ranks run, and puts failures into words.
#include "ranks.h"

#include <fmt/format.h>

#include <stdexcept>

#include "ferry/error.h"
#include "ferry/topology.h"
#include "ranks_internal.h"

namespace ferry::app {

const char* name(RanksAs as) noexcept {
  return as == RanksAs::kProcesses ? "processes" : "threads";
}

BlamedFailure describe_exception(int rank, std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    const bool victim = error.code() == ErrorCode::kTimeout || error.code() == ErrorCode::kPeerLost ||
                        error.code() == ErrorCode::kAborted || error.code() == ErrorCode::kBootstrap;
    return {{.rank = rank, .reason = fmt::format("rank {}: {}", rank, error.what())},
            victim ? Blame::kVictim : Blame::kOwnError};
  } catch (const std::exception& error) {
    return {{.rank = rank, .reason = fmt::format("rank {}: {}", rank, error.what())}, Blame::kOwnError};
  } catch (...) {
    return {{.rank = rank, .reason = fmt::format("rank {}: an exception of unknown type", rank)}, Blame::kOwnError};
  }
}

std::vector<std::string> netns_of_ranks(const std::vector<std::string>& netns_of_nodes, int ranks, int nodes) {
  if (netns_of_nodes.empty()) return {};
  if (static_cast<int>(netns_of_nodes.size()) != nodes) {
    throw std::invalid_argument(fmt::format("--netns: {} names given, expected one per node, of which there are {}",
                                            netns_of_nodes.size(), nodes));
  }
  const Topology topology = Topology::split(ranks, nodes);
  std::vector<std::string> names;
  for (int rank = 0; rank < ranks; ++rank)
    names.push_back(netns_of_nodes[static_cast<std::size_t>(topology.node_of(rank))]);
  return names;
}

std::optional<RunFailure> run_ranks(const Launch& launch, const std::function<void(RankPort&)>& body) {
  return launch.as == RanksAs::kProcesses ? run_as_processes(launch, body) : run_as_threads(launch, body);
}

}  // namespace ferry::app
