// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry doctor`: what this machine can do.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "ferry/capability.h"
#include "json_file.h"
#include "options.h"

namespace ferry::app {
namespace {

void print_capabilities(const std::vector<Capability>& found) {
  for (const Capability& one : found) {
    fmt::print("{:<6} {:<26} {}\n", one.usable ? "pass" : "no", one.name, one.detail);
    if (!one.usable && !one.fix.empty()) fmt::print("{:<6} {:<26} fix: {}\n", "", "", one.fix);
  }
}

std::string to_json(const std::vector<Capability>& found) {
  nlohmann::json json = nlohmann::json::array();
  for (const Capability& one : found)
    json.push_back({{"name", one.name}, {"usable", one.usable}, {"detail", one.detail}, {"fix", one.fix}});
  return json.dump(2);
}

int run_doctor(const std::string& json) {
  const std::vector<Capability> found = capabilities();
  fmt::print("ferry {} on this machine\n", version());
  print_capabilities(found);
  write_json_file(json, to_json(found));
  bool host_usable = false;
  for (const Capability& one : found) host_usable = host_usable || (one.name == "backend host" && one.usable);
  fmt::print("{}\n", host_usable ? "the host backend is usable" : "the host backend cannot be used here");
  return host_usable ? kExitOk : kExitFailed;
}

}  // namespace

void add_doctor_command(Program& program, int& exit_code) {
  auto json = std::make_shared<std::string>();
  Options doctor = program.command("doctor", "what this machine can do, and what would help where it cannot",
                                   [json, &exit_code] { exit_code = run_doctor(*json); });
  doctor.json_file(*json, "write it to this file as well");
}

}  // namespace ferry::app
