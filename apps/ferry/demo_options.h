// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The options of `ferry demo` and what follows from them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ferry/group.h"
#include "gate.h"
#include "ranks.h"
#include "wire.h"

namespace ferry::app {

class Options;

struct DemoOptions {
  int ranks = 8;
  int nodes = 0;              ///< 0: two, or one for one rank or on GPUs
  std::int64_t tokens = 256;  ///< per rank
  std::int64_t hidden = 256;
  int experts = 64;
  int top_k = 8;
  int groups = 0;      ///< 0: chosen by complete()
  int top_groups = 0;  ///< 0: chosen by complete()
  std::optional<Mode> mode{};
  std::optional<Layout> layout{};
  Wire wire{};
  Reduction reduction = Reduction::per_rank();
  std::string backend = "auto";
  std::string network = "auto";
  NetworkOptions network_options{};
  std::vector<std::string> netns{};  ///< network namespaces by node; empty: all ranks in this program's
  RanksAs ranks_as = RanksAs::kProcesses;
  std::string text = "/usr/share/common-licenses/GPL-3";
  std::string json;
  std::uint64_t seed = 1;
  double timeout_s = 30;  ///< of every wait

  bool on_gpus() const { return backend == "cuda"; }
  std::chrono::nanoseconds timeout() const {
    return std::chrono::nanoseconds(static_cast<std::int64_t>(timeout_s * 1e9));
  }
  std::int64_t inner() const { return (hidden / 2 + 15) / 16 * 16; }
  GateShape gate_shape() const;
  GroupConfig group_config() const;
  /// Most that the layer lends to the calls of one direction on a rank; rows of combine in latency mode only, for others the group
  /// has room.
  std::size_t lent_bytes(int rank) const;
};

/// One run of the layer.
struct DemoCase {
  Mode mode = Mode::kThroughput;
  Layout layout = Layout::kRankMajor;
  std::string name() const;
};

/// Shared with `ferry bench` and `ferry netcheck`.
void add_network_card_options(Options& command, NetworkOptions& options, std::vector<std::string>& netns);
void add_network_options(Options& command, std::string& network, NetworkOptions& options,
                         std::vector<std::string>& netns);
void add_demo_options(Options& command, DemoOptions& options);
/// Fills in what was left open. Throws std::invalid_argument naming option, seen and expected.
void complete(DemoOptions& options);
/// The legal cases among those asked for, at least one; `skipped` says what was left out and why.
std::vector<DemoCase> demo_cases(const DemoOptions& options, std::vector<std::string>& skipped);

}  // namespace ferry::app
