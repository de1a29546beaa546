// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Runs what looks at GPUs in processes, and tries a small group over all of them.
#include "gpu_doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "ferry/group.h"
#include "gpu_memory.h"
#include "ranks.h"

namespace ferry::app {
namespace {

constexpr std::chrono::seconds kSilence{60};

std::vector<std::byte> to_bytes(const nlohmann::json& json) {
  const std::string text = json.dump();
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

nlohmann::json to_json(const GpuFinding& finding) {
  const Capability& one = finding.capability;
  return {
      {"name", one.name}, {"usable", one.usable}, {"detail", one.detail}, {"fix", one.fix}, {"needed", finding.needed}};
}

GpuFinding to_finding(const nlohmann::json& json) {
  return {.capability = {.name = json["name"], .usable = json["usable"], .detail = json["detail"], .fix = json["fix"]},
          .needed = json["needed"]};
}

/// The examination, in a process of its own.
GpuFindings examine_apart() {
  GpuFindings found;
  Launch launch{.num_ranks = 1, .as = RanksAs::kProcesses, .silence_limit = kSilence};
  launch.on_message = [&](int, std::span<const std::byte> message) {
    const auto json = nlohmann::json::parse(reinterpret_cast<const char*>(message.data()),
                                            reinterpret_cast<const char*>(message.data()) + message.size());
    if (json.contains("num_gpus")) {
      found.num_gpus = json["num_gpus"];
    } else {
      found.list.push_back(to_finding(json));
    }
  };
  const auto failure = run_ranks(launch, [](RankPort& port) {
    const int num_gpus = examine_gpus([&](const GpuFinding& finding) { port.send(to_bytes(to_json(finding))); });
    port.send(to_bytes({{"num_gpus", num_gpus}}));
  });
  if (failure) {
    const std::string after = found.list.empty() ? "" : fmt::format(", after '{}'", found.list.back().capability.name);
    found.list.push_back(
        {.capability = {.name = "looking at GPUs",
                        .usable = false,
                        .detail = fmt::format("did not come to its end{}: {}", after, failure->reason),
                        .fix = "see the kernel's log for NVRM and Xid lines; reset the GPU, or restart "
                               "the machine"}});
  }
  return found;
}

constexpr std::int64_t kTokens = 4, kHidden = 128;

float value_of(int rank, std::int64_t token) {
  return static_cast<float>(rank * 100 + token + 1);
}

void require(bool right, const char* what) {
  if (!right) throw std::runtime_error(fmt::format("{} is not what it should be", what));
}

/// Every token goes to every rank and comes back: the sum of what all ranks sent back is its row times their number.
void go_round(Group& group, RankMemory& memory) {
  const int ranks = group.size();
  std::vector<float> x(kTokens * kHidden);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    std::fill_n(x.begin() + t * kHidden, kHidden, value_of(group.rank(), t));
    for (int k = 0; k < ranks; ++k) ids.push_back(k);
  }
  DispatchArgs send;
  send.payload = {memory.lend(Tensor::contiguous(x.data(), DType::kFp32, {kTokens, kHidden}))};
  send.topk_ids = memory.lend(Tensor::contiguous(ids.data(), DType::kInt32, {kTokens, ranks}));
  memory.configure(send);
  const DispatchResult arrived = group.dispatch(send);
  memory.finish(group);
  const Tensor rows = memory.read(arrived.payload.at(0));
  require(rows.shape[0] == ranks * kTokens, "the number of rows that a dispatch brought");
  const auto* row = static_cast<const float*>(rows.data);
  for (std::int64_t n = 0; n < rows.shape[0]; ++n) {
    const float wanted = value_of(static_cast<int>(n / kTokens), n % kTokens);
    for (std::int64_t h = 0; h < kHidden; ++h)
      require(row[n * rows.strides[0] + h] == wanted, "a row that a dispatch brought");
  }
  CombineArgs back;
  back.handle = &arrived.handle;
  back.x = memory.lend_rows(group, arrived.handle, Tensor::contiguous(row, DType::kFp32, {rows.shape[0], kHidden}));
  memory.configure(back);
  const CombineResult combined = group.combine(back);
  memory.finish(group);
  const Tensor out = memory.read(combined.out);
  for (std::size_t i = 0; i < x.size(); ++i) {
    require(static_cast<const float*>(out.data)[i] == static_cast<float>(ranks) * x[i],
            "a row that a combine brought back");
  }
}

void run_trial_rank(RankPort& port) {
  constexpr std::chrono::seconds kTimeout{20};  // processes on one GPU take turns
  const auto memory = make_gpu_memory({.rank = port.rank(),
                                       .num_ranks = port.size(),
                                       .ranks_as = RanksAs::kProcesses,
                                       .lent_bytes = 1 << 20,
                                       .patience = 2 * kTimeout});
  GroupConfig config;
  config.backend = "cuda";
  config.timeout = kTimeout;
  config.topology = Topology::single_node(port.size());
  config.limits = {.num_experts = port.size(),
                   .max_tokens = kTokens,
                   .max_latency_tokens = 0,
                   .max_top_k = port.size(),
                   .hidden = kHidden,
                   .dtype = DType::kFp32};
  memory->configure(config);
  Group group = Group::create(config, port.meeting());
  go_round(group, *memory);
}

/// A rank per GPU, at least two of them, as processes: windows handed over, rows and signals between all pairs, every wait with a
/// deadline.
GpuFinding try_group(int num_gpus) {
  const int ranks = std::clamp(num_gpus, 2, 16);
  Launch launch{.num_ranks = ranks, .as = RanksAs::kProcesses, .silence_limit = kSilence};
  const auto begin = std::chrono::steady_clock::now();
  std::optional<RunFailure> failure;
  failure = run_ranks(launch, run_trial_rank);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  GpuFinding finding;
  finding.capability.name = "a small cuda group";
  finding.capability.usable = !failure;
  finding.capability.detail =
      failure ? failure->reason
              : fmt::format(
                    "{} ranks as processes on {} GPU{}: dispatch and combine between all of them, right, in {:.1f} s "
                    "with its setting up",
                    ranks, std::min(ranks, num_gpus), num_gpus == 1 ? "" : "s", took.count());
  if (failure) {
    finding.capability.fix =
        "mend what is marked above; if all is well there, `ferry demo --backend cuda --ranks-as threads` tells whether "
        "it is "
        "the way between processes";
  }
  return finding;
}

}  // namespace

GpuFindings look_at_gpus() {
  prepare_for_gpus();
  GpuFindings found = examine_apart();
  if (found.num_gpus > 0) found.list.push_back(try_group(found.num_gpus));
  return found;
}

}  // namespace ferry::app
