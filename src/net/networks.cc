// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// From a network's name to an engine.
#include <fmt/format.h>

#include <utility>

#include "core/check.h"
#include "net/fabric.h"
#include "net/loopback.h"
#include "net/proxy_engine.h"
#include "net/rate_limiter.h"
#include "net/split_engine.h"

namespace ferry::net {
namespace {

constexpr const char* kFunction = "ferry::net::make_engine";
constexpr const char* kShuffle = "shuffle+";
constexpr int kMaxProxies = 16;

/// "Shuffled" is a way of testing a network, not a network.
EngineConfig without_shuffle(EngineConfig config) {
  const std::string prefix = kShuffle;
  if (config.network.rfind(prefix, 0) != 0) return config;
  config.network.erase(0, prefix.size());
  if (config.shuffle_seed == 0) config.shuffle_seed = static_cast<std::uint64_t>(config.rank) + 1;
  return config;
}

std::unique_ptr<Carrier> make_carrier(const EngineConfig& config) {
  if (config.link_bytes_per_second > RateLimiter::kMaxRate) {
    refuse(kFunction, "link_bytes_per_second", fmt::format("{}", config.link_bytes_per_second),
           fmt::format("at most {}", RateLimiter::kMaxRate));
  }
  if (is_fabric_network(config.network)) {
    if (config.copy_engines)
      refuse_unsupported(kFunction, "network",
                         fmt::format("network {} does not reach GPU memory yet; use loopback", config.network));
    if (config.link_bytes_per_second != 0)
      refuse_unsupported(kFunction, "link_bytes_per_second", "only the loopback network emulates a slower link");
    return make_fabric_carrier(config);
  }
  if (config.network != "loopback") refuse(kFunction, "network", config.network, "loopback, tcp, shm, verbs or efa");
  const auto refuse_option = [](const char* option) {
    refuse_unsupported(kFunction, option,
                       fmt::format("{} is for network cards; the loopback network copies inside this machine", option));
  };
  if (!config.nics.empty()) refuse_option("nics");
  if (config.num_nics != 1) refuse_option("num_nics");
  if (!config.near_pci.empty()) refuse_option("near_pci");
  if (!config.traffic_class.empty()) refuse_option("traffic_class");
  if (config.gated_posts) refuse_option("gated_posts");
  return make_loopback_carrier(config.copy_engines, config.link_bytes_per_second);
}

}  // namespace

bool is_fabric_network(const std::string& network) {
  return network == "tcp" || network == "shm" || network == "verbs" || network == "efa";
}

std::unique_ptr<Engine> make_engine(const EngineConfig& wanted) {
  const EngineConfig config = without_shuffle(wanted);
  if (config.num_proxies < 1 || config.num_proxies > kMaxProxies)
    refuse(kFunction, "proxy_threads", fmt::format("{}", config.num_proxies), fmt::format("1 to {}", kMaxProxies));
  if (config.copy_engines && config.num_proxies != 1)
    refuse_unsupported(kFunction, "proxy_threads",
                       "kernels command one proxy; with backend cuda proxy_threads must be 1");
  std::vector<std::unique_ptr<Engine>> engines;
  for (int i = 0; i < config.num_proxies; ++i) {
    EngineConfig one = config;
    one.num_proxies = 1;
    if (!config.proxy_cores.empty())
      one.proxy_cores = {config.proxy_cores[static_cast<std::size_t>(i) % config.proxy_cores.size()]};
    if (one.shuffle_seed != 0) one.shuffle_seed += static_cast<std::uint64_t>(i) << 32;
    engines.push_back(make_proxy_engine(one, make_carrier(one)));
  }
  if (engines.size() == 1) return std::move(engines.front());
  return make_split_engine(config, std::move(engines));
}

std::vector<Provider> find_networks() {
  std::vector<Provider> found = find_fabric_networks();
  found.insert(found.begin(), make_loopback_carrier()->provider());
  return found;
}

}  // namespace ferry::net
