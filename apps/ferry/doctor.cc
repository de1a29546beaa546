// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry doctor`: what this machine can do.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "commands.h"
#include "ferry/capability.h"

namespace ferry::app {
namespace {

void print_capabilities(const std::vector<Capability>& found) {
  for (const Capability& one : found) {
    fmt::print("{:<6} {:<26} {}\n", one.usable ? "pass" : "no", one.name, one.detail);
    if (!one.usable && !one.fix.empty()) fmt::print("{:<6} {:<26} fix: {}\n", "", "", one.fix);
  }
}

void write_json(const std::string& path, const std::vector<Capability>& found) {
  nlohmann::json json = nlohmann::json::array();
  for (const Capability& one : found)
    json.push_back({{"name", one.name}, {"usable", one.usable}, {"detail", one.detail}, {"fix", one.fix}});
  std::ofstream file(path);
  file << json.dump(2) << '\n';
  file.close();
  if (!file)
    throw std::runtime_error(fmt::format("--json: cannot write '{}'; expected a file that can be written", path));
}

int run_doctor(const std::string& json) {
  const std::vector<Capability> found = capabilities();
  fmt::print("ferry {} on this machine\n", version());
  print_capabilities(found);
  if (!json.empty()) write_json(json, found);
  bool host_usable = false;
  for (const Capability& one : found) host_usable = host_usable || (one.name == "backend host" && one.usable);
  fmt::print("{}\n", host_usable ? "the host backend is usable" : "the host backend cannot be used here");
  return host_usable ? kExitOk : kExitFailed;
}

}  // namespace

void add_doctor_command(CLI::App& app, int& exit_code) {
  CLI::App* doctor = app.add_subcommand("doctor", "what this machine can do, and what would help where it cannot");
  auto json = std::make_shared<std::string>();
  doctor->add_option("--json", *json, "write it to this file as well")->type_name("FILE");
  doctor->callback([json, &exit_code] { exit_code = run_doctor(*json); });
}

}  // namespace ferry::app
