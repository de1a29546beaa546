// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ferry without libfabric's headers: networks between machines say what is missing.
#include <fmt/format.h>

#include "core/check.h"
#include "net/fabric.h"

namespace ferry::net {
namespace {

constexpr const char* kWhyNot =
    "built without libfabric's headers (Debian: libfabric-dev); build Ferry where they are, with FERRY_LIBFABRIC=ON";

}  // namespace

std::unique_ptr<Carrier> make_fabric_carrier(const EngineConfig& config) {
  refuse_unsupported("ferry::net::make_engine", "network", fmt::format("network {}: {}", config.network, kWhyNot));
}

std::vector<Provider> find_fabric_networks() {
  std::vector<Provider> found;
  for (const char* name : {"tcp", "shm", "verbs", "efa"}) {
    Provider provider;
    provider.name = name;
    provider.why_not = kWhyNot;
    found.push_back(std::move(provider));
  }
  return found;
}

std::string network_library(std::string& why_not) {
  why_not = kWhyNot;
  return {};
}

}  // namespace ferry::net
