// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry netcheck`: two machines, one command each; pass or fail per network, and how fast it is.
#include "ferry/netcheck.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "demo_options.h"
#include "ferry/capability.h"
#include "json_file.h"
#include "options.h"
#include "ranks.h"

namespace ferry::app {
namespace {

struct NetcheckOptions {
  int rank = -1;  ///< -1: both ranks here, as processes
  std::string address = "127.0.0.1";
  int port = 18515;
  std::string token = "ferry netcheck";
  std::vector<std::string> networks{};
  NetworkOptions network_options{};
  std::vector<std::string> netns{};
  std::string json;
  double timeout_s = 30;

  std::chrono::nanoseconds timeout() const {
    return std::chrono::nanoseconds(static_cast<std::int64_t>(timeout_s * 1e9));
  }
};

nlohmann::json to_json(const NetworkReport& report) {
  nlohmann::json checks = nlohmann::json::array();
  for (const NetworkCheck& check : report.checks) checks.push_back({{"name", check.name}, {"failure", check.failure}});
  return {{"network", report.network},
          {"passed", report.passed()},
          {"why_not", report.why_not},
          {"detail", report.detail},
          {"checks", checks},
          {"latency_us", report.latency_us},
          {"messages_per_s", report.messages_per_s},
          {"bandwidth_gbps", report.bandwidth_gbps},
          {"both_ways_gbps", report.both_ways_gbps},
          {"proxy_share", report.proxy_share}};
}

void print_report(const NetworkReport& report) {
  if (!report.why_not.empty()) {
    fmt::print("no     {:<10} {}\n", report.network, report.why_not);
    return;
  }
  fmt::print("{:<6} {:<10} {}\n", report.passed() ? "pass" : "FAIL", report.network, report.detail);
  for (const NetworkCheck& check : report.checks) {
    fmt::print("{:<6} {:<10} {}{}{}\n", "", "", check.name, check.failure.empty() ? "" : ": ", check.failure);
  }
  if (!report.passed()) return;
  fmt::print(
      "{:<6} {:<10} latency {:.1f} us, {:.0f} messages/s, {:.2f} GB/s one way, {:.2f} GB/s both ways, proxy {:.0f} % "
      "of a core\n",
      "", "", report.latency_us, report.messages_per_s, report.bandwidth_gbps, report.both_ways_gbps,
      report.proxy_share * 100);
}

/// One network after the other; both ranks in the same order.
std::string check_all(const NetcheckOptions& options, Meeting& meeting, bool prints) {
  nlohmann::json all = nlohmann::json::array();
  for (const std::string& network : options.networks) {
    const NetworkReport report = check_network(meeting, network, options.network_options, options.timeout());
    if (prints) print_report(report);
    std::fflush(stdout);
    all.push_back(to_json(report));
  }
  return all.dump();
}

/// Both ranks on this machine, each a process, perhaps in a network namespace of its own.
std::string check_here(const NetcheckOptions& options) {
  std::string text;
  Launch launch{.num_ranks = 2, .as = RanksAs::kProcesses};
  launch.silence_limit = std::chrono::minutes(5);
  launch.netns = netns_of_ranks(options.netns, 2, 2);
  launch.on_message = [&](int, std::span<const std::byte> message) {
    text.assign(reinterpret_cast<const char*>(message.data()), message.size());
  };
  const auto failure = run_ranks(launch, [&](RankPort& port) {
    const std::string mine = check_all(options, port.meeting(), port.rank() == 0);
    if (port.rank() == 0) port.send(std::as_bytes(std::span(mine.data(), mine.size())));
  });
  if (failure) throw std::runtime_error(failure->reason);
  return text;
}

int run_netcheck(NetcheckOptions options) {
  if (options.networks.empty()) {
    for (const Capability& one : capabilities()) {
      const std::string prefix = "network ";
      if (one.name.rfind(prefix, 0) != 0 || one.name == "network loopback") continue;
      if (one.name == "network shm" && options.rank >= 0) continue;  // of one machine
      if (one.usable) options.networks.push_back(one.name.substr(prefix.size()));
    }
  }
  if (options.networks.empty()) {
    fmt::print("FAILED: no network that could be checked; see ferry doctor\n");
    return kExitFailed;
  }
  fmt::print("ferry {} netcheck: {}\n", version(), fmt::join(options.networks, ", "));
  nlohmann::json all;
  try {
    if (options.rank < 0) {
      all = nlohmann::json::parse(check_here(options));
    } else {
      const auto meeting = meet_over_tcp({.rank = options.rank,
                                          .size = 2,
                                          .address = options.address,
                                          .port = static_cast<std::uint16_t>(options.port),
                                          .token = options.token,
                                          .timeout = options.timeout()});
      all = nlohmann::json::parse(check_all(options, *meeting, true));
    }
    write_json_file(options.json, all.dump(2));
  } catch (const std::exception& error) {
    fmt::print("FAILED: {}\n", error.what());
    return kExitFailed;
  }
  bool passed = true;
  for (const auto& one : all) passed = passed && one["passed"].get<bool>();
  fmt::print("{}\n", passed ? "passed" : "FAILED: a network could not be opened or did not keep its contract");
  return passed ? kExitOk : kExitFailed;
}

}  // namespace

void add_netcheck_command(Program& program, int& exit_code) {
  auto options = std::make_shared<NetcheckOptions>();
  Options netcheck = program.command(
      "netcheck",
      "whether networks between two machines keep their contract, and how fast they are; one command on each",
      [options, &exit_code] { exit_code = run_netcheck(*options); });
  netcheck.number("--rank", options->rank, -1, 1,
                  "0 on the first machine, 1 on the second; -1: both ranks here (default: -1)");
  netcheck.value("--address", options->address, "where rank 0 listens, as both machines know it");
  netcheck.number("--port", options->port, 1, 65535, "its TCP port");
  netcheck.value("--token", options->token, "shared secret of the two commands");
  netcheck.values("--networks", options->networks,
                  "what to check: tcp, verbs, efa (default: all that this machine can use)");
  add_network_card_options(netcheck, options->network_options, options->netns);
  netcheck.json_file(options->json, "write the findings to this file as well");
  netcheck.seconds("--timeout", options->timeout_s, "seconds that any wait may take");
}

}  // namespace ferry::app
