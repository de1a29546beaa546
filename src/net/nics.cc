// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "net/nics.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <numeric>

#include "core/check.h"

namespace ferry::net {
namespace {

constexpr const char* kFunction = "ferry::net::make_engine";
constexpr int kNowhere = std::numeric_limits<int>::max();

std::string list_names(const std::vector<Nic>& found) {
  std::vector<std::string> names;
  for (const Nic& nic : found) names.push_back(nic.name);
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

std::vector<int> choose_by_name(const EngineConfig& config, const std::vector<Nic>& found) {
  std::vector<int> chosen;
  for (const std::string& name : config.nics) {
    const auto nic = std::find_if(found.begin(), found.end(), [&](const Nic& one) { return one.name == name; });
    if (nic == found.end()) {
      refuse(kFunction, "nics", fmt::format("'{}'", name),
             fmt::format("network cards of {}: {}", config.network, list_names(found)));
    }
    const int index = static_cast<int>(nic - found.begin());
    if (std::find(chosen.begin(), chosen.end(), index) != chosen.end())
      refuse(kFunction, "nics", fmt::format("'{}' twice", name), "each card once");
    chosen.push_back(index);
  }
  return chosen;
}

}  // namespace

std::optional<int> pci_distance(const std::string& devices, const std::string& one, const std::string& other) {
  namespace fs = std::filesystem;
  std::error_code missing_one, missing_other;
  const fs::path a = fs::canonical(fs::path(devices) / one, missing_one);
  const fs::path b = fs::canonical(fs::path(devices) / other, missing_other);
  if (missing_one || missing_other) return std::nullopt;
  const auto [left, right] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<int>(std::distance(left, a.end()) + std::distance(right, b.end()));
}

std::vector<int> choose_nics(const EngineConfig& config, const std::vector<Nic>& found, const std::string& devices) {
  if (!config.nics.empty()) return choose_by_name(config, found);
  if (config.num_nics < 1) refuse(kFunction, "num_nics", fmt::format("{}", config.num_nics), "at least 1");
  std::vector<int> order;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i].is_loopback == config.same_machine) order.push_back(static_cast<int>(i));
  }
  // A machine without a loopback interface up, and providers that have none: any card reaches a neighbour, too.
  if (order.empty() && config.same_machine) {
    order.resize(found.size());
    std::iota(order.begin(), order.end(), 0);
  }
  std::vector<int> distance(found.size(), kNowhere);
  if (!config.near_pci.empty()) {
    for (std::size_t i = 0; i < found.size(); ++i)
      distance[i] = pci_distance(devices, config.near_pci, found[i].pci).value_or(kNowhere);
    if (std::all_of(distance.begin(), distance.end(), [](int one) { return one == kNowhere; })) {
      refuse_unsupported(
          kFunction, "near_pci",
          fmt::format("near_pci is {}, but neither that device nor a card of {} ({}) is on this machine's "
                      "PCIe tree; name the cards with nics",
                      config.near_pci, config.network, list_names(found)));
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return distance[static_cast<std::size_t>(a)] < distance[static_cast<std::size_t>(b)];
  });
  if (order.size() < static_cast<std::size_t>(config.num_nics)) {
    refuse_unsupported(kFunction, "num_nics",
                       fmt::format("num_nics is {}, but of {}'s cards ({}) {} reach the other ranks", config.num_nics,
                                   config.network, list_names(found), order.size()));
  }
  // A rank's own turn among the nearest ones.
  const auto nearest = std::find_if(order.begin(), order.end(), [&](int one) {
    return distance[static_cast<std::size_t>(one)] != distance[static_cast<std::size_t>(order.front())];
  });
  // Without distances the provider's order says which is best; ranks then spread over cards only if they ask for several.
  if (!config.near_pci.empty()) {
    std::rotate(order.begin(), order.begin() + config.rank % static_cast<int>(nearest - order.begin()), nearest);
  }
  order.resize(static_cast<std::size_t>(config.num_nics));
  return order;
}

}  // namespace ferry::net
