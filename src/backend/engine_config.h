// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// From a group's network options to the engine's.
#pragma once

#include <string>

#include "ferry/group.h"
#include "net/engine.h"

namespace ferry {

inline net::EngineConfig engine_config(const NetworkOptions& options, const std::string& network, int rank,
                                       bool same_machine) {
  net::EngineConfig config;
  config.network = network;
  config.rank = rank;
  config.nics = options.nics;
  config.num_nics = options.num_nics;
  config.near_pci = options.near_pci;
  config.traffic_class = options.traffic_class;
  config.gated_posts = options.gated_posts;
  config.num_proxies = options.proxy_threads;
  config.proxy_cores = options.proxy_cores;
  config.same_machine = same_machine;
  config.link_bytes_per_second = static_cast<std::uint64_t>(options.link_bytes_per_second);
  return config;
}

}  // namespace ferry
