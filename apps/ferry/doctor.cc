// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry doctor`: what this machine can do.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "ferry/capability.h"
#include "gpu_doctor.h"
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

bool is_usable(const std::vector<Capability>& found, const std::string& name) {
  return std::any_of(found.begin(), found.end(), [&](const Capability& one) { return one.name == name && one.usable; });
}

/// What keeps the cuda backend from working over all GPUs.
std::vector<std::string> missing_for_cuda(const GpuFindings& gpus) {
  std::vector<std::string> missing;
  for (const GpuFinding& one : gpus.list) {
    if (one.needed && !one.capability.usable) missing.push_back(one.capability.name);
  }
  return missing;
}

struct Verdict {
  bool usable = false;
  std::string sentence;
};

Verdict judge_host(const std::vector<Capability>& found) {
  const bool usable = is_usable(found, "backend host");
  return {usable, usable ? "the host backend is usable" : "the host backend cannot be used here"};
}

Verdict judge_cuda(const GpuFindings& gpus) {
  const std::vector<std::string> missing = missing_for_cuda(gpus);
  if (missing.empty())
    return {true, fmt::format("the cuda backend is usable on {} GPU{}", gpus.num_gpus, gpus.num_gpus == 1 ? "" : "s")};
  return {false, fmt::format("the cuda backend cannot be used here, see: {}", fmt::join(missing, ", "))};
}

struct DoctorOptions {
  std::string json;
  std::string backend = "host";
};

int run_doctor(const DoctorOptions& options) {
  const GpuFindings gpus = look_at_gpus();
  std::vector<Capability> found = capabilities();
  for (const GpuFinding& one : gpus.list) found.push_back(one.capability);
  fmt::print("ferry {} on this machine\n", version());
  print_capabilities(found);
  write_json_file(options.json, to_json(found));
  const Verdict host = judge_host(found), cuda = judge_cuda(gpus);
  const bool about_cuda = options.backend == "cuda";
  // One finding alone is that there is no GPU to speak of.
  if (about_cuda || gpus.list.size() > 1) fmt::print("{}\n", about_cuda ? host.sentence : cuda.sentence);
  const Verdict& asked = about_cuda ? cuda : host;
  fmt::print("{}\n", asked.sentence);
  return asked.usable ? kExitOk : kExitFailed;
}

}  // namespace

void add_doctor_command(Program& program, int& exit_code) {
  auto options = std::make_shared<DoctorOptions>();
  Options doctor = program.command("doctor", "what this machine can do, and what would help where it cannot",
                                   [options, &exit_code] { exit_code = run_doctor(*options); });
  doctor.word("--backend", options->backend, Words<std::string>{{"host", "host"}, {"cuda", "cuda"}},
              "whose usability the exit code and the last line tell (default: host)");
  doctor.json_file(options->json, "write it to this file as well");
}

}  // namespace ferry::app
