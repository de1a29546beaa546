// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Printing of the demo's results.
#include "report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "ferry/capability.h"

namespace ferry::app {
namespace {

constexpr std::array<const char*, 7> kSteps = {"route",        "dispatch_send",   "dispatch_forward", "dispatch_recv",
                                               "combine_send", "combine_forward", "combine_recv"};

struct StepTotal {
  bool ran = false;
  std::int64_t rows = 0;
  std::int64_t bytes = 0;
  double seconds = 0;  ///< of the slowest rank
  double gbps() const { return seconds > 0 ? static_cast<double>(bytes) / seconds / 1e9 : 0; }
};

std::map<std::string, StepTotal> total_steps(const CaseRun& run, std::vector<StepTrace> LayerResult::*way) {
  std::map<std::string, StepTotal> totals;
  for (const LayerResult& rank : run.ranks) {
    for (const StepTrace& step : rank.*way) {
      StepTotal& total = totals[step.step];
      total.ran = true;
      total.rows += step.rows;
      total.bytes += step.bytes;
      total.seconds = std::max(total.seconds, step.seconds);
    }
  }
  return totals;
}

std::string step_columns(const StepTotal& total) {
  if (!total.ran) return fmt::format("{:>8} {:>9} {:>9} {:>7}", "-", "-", "-", "-");
  const std::string rate = total.bytes > 0 && total.seconds > 0 ? fmt::format("{:.2f}", total.gbps()) : "-";
  return fmt::format("{:>8} {:>9.3f} {:>9.3f} {:>7}", total.rows, static_cast<double>(total.bytes) / 1e6,
                     total.seconds * 1e3, rate);
}

double expert_seconds(const CaseRun& run) {
  double slowest = 0;
  for (const LayerResult& rank : run.ranks) slowest = std::max(slowest, rank.expert_seconds);
  return slowest;
}

/// One character, an eighth of a line per step.
const char* bar(std::int64_t value, std::int64_t most) {
  static constexpr std::array<const char*, 9> kBars = {"·", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  if (value <= 0 || most <= 0) return kBars[0];
  return kBars[static_cast<std::size_t>(std::max<std::int64_t>(1, (value * 8 + most / 2) / most))];
}

void add_distance(Difference& difference, float seen, float wanted) {
  ++difference.count;
  if (std::isnan(seen) && std::isnan(wanted)) return;
  if (std::bit_cast<std::uint32_t>(seen) == std::bit_cast<std::uint32_t>(wanted)) return;
  ++difference.unequal;
  const double distance = std::fabs(static_cast<double>(seen) - static_cast<double>(wanted));
  difference.largest =
      std::max(difference.largest, std::isnan(distance) ? std::numeric_limits<double>::infinity() : distance);
}

Difference compare_values(const std::string& what, const CaseRun& run, std::vector<float> LayerResult::*mine,
                          const std::vector<float>& reference, const std::vector<double>& exact) {
  Difference difference{.what = what};
  double error = 0;
  double norm = 0;
  std::size_t at = 0;
  for (const LayerResult& rank : run.ranks) {
    for (const float value : rank.*mine) {
      if (at >= reference.size()) break;
      add_distance(difference, value, reference[at]);
      const double distance = std::fabs(static_cast<double>(value) - exact[at]);
      difference.to_exact =
          std::isnan(distance) ? std::numeric_limits<double>::infinity() : std::max(difference.to_exact, distance);
      error += distance * distance;
      norm += exact[at] * exact[at];
      ++at;
    }
  }
  const auto missing = static_cast<std::int64_t>(reference.size() - at);
  difference.unequal += missing;
  if (missing > 0) difference.largest = std::numeric_limits<double>::infinity();
  difference.to_exact_relative = norm > 0 ? std::sqrt(error / norm) : 0;
  return difference;
}

/// Digests are equal or not; how far apart the values are cannot be said.
Difference compare_digests(const std::string& what, const std::vector<std::uint64_t>& mine,
                           const std::vector<std::uint64_t>& reference) {
  Difference difference{.what = what, .has_exact = false};
  difference.count = static_cast<std::int64_t>(reference.size());
  for (std::size_t i = 0; i < reference.size(); ++i) {
    if (i >= mine.size() || mine[i] != reference[i]) ++difference.unequal;
  }
  if (difference.unequal > 0) difference.largest = std::numeric_limits<double>::quiet_NaN();
  return difference;
}

std::vector<std::int64_t> expert_load(const CaseRun& run) {
  std::vector<std::int64_t> load;
  for (const LayerResult& rank : run.ranks) load.insert(load.end(), rank.expert_rows.begin(), rank.expert_rows.end());
  return load;
}

nlohmann::json steps_json(const CaseRun& run, std::vector<StepTrace> LayerResult::*way) {
  nlohmann::json steps = nlohmann::json::array();
  const auto totals = total_steps(run, way);
  for (const char* step : kSteps) {
    const auto found = totals.find(step);
    if (found == totals.end()) continue;
    steps.push_back({{"step", step},
                     {"rows", found->second.rows},
                     {"bytes", found->second.bytes},
                     {"time_us", found->second.seconds * 1e6},
                     {"gbps", found->second.gbps()}});
  }
  return steps;
}

}  // namespace

std::vector<Difference> compare(const CaseRun& run, const ReferenceResult& reference, const ExactResult& exact) {
  std::vector<Difference> differences;
  differences.push_back(compare_values("output", run, &LayerResult::out, reference.out, exact.out));
  differences.push_back(
      compare_values("input gradients", run, &LayerResult::x_gradients, reference.x_gradients, exact.x_gradients));
  differences.push_back(compare_values("routing-weight gradients", run, &LayerResult::weight_gradients,
                                       reference.weight_gradients, exact.weight_gradients));
  std::vector<std::uint64_t> experts, gates;
  for (const LayerResult& rank : run.ranks) {
    experts.insert(experts.end(), rank.expert_digests.begin(), rank.expert_digests.end());
    gates.push_back(rank.gate_digest);
  }
  differences.push_back(compare_digests("expert-weight gradients (digests)", experts, reference.expert_digests));
  differences.push_back(compare_digests("gate gradients (digests)", gates, reference.gate_digests));
  return differences;
}

std::string first_difference(const DemoCase& run, const std::vector<Difference>& differences) {
  for (const Difference& difference : differences) {
    if (difference.unequal == 0) continue;
    return fmt::format("{}: {} differ from the computation in one process in {} of {} values, by up to {:g}",
                       run.name(), difference.what, difference.unequal, difference.count, difference.largest);
  }
  return "";
}

void print_header(const DemoReport& report) {
  const DemoOptions& o = report.options;
  fmt::print("ferry {} demo: a mixture-of-experts layer, forward and backward, on a text\n", version());
  fmt::print("  ranks   {} as {}, {} {} ({})\n", o.ranks, name(o.ranks_as), o.nodes, o.nodes == 1 ? "node" : "nodes",
             Topology::split(o.ranks, o.nodes).describe());
  fmt::print("  text    {}: {} tokens of {} bytes, {} per rank\n", o.text, o.ranks * o.tokens, report.text_bytes,
             o.tokens);
  fmt::print("  layer   hidden {}, inner {}, {} experts in {} groups (best {}), top-{}\n", o.hidden, o.inner(),
             o.experts, o.groups, o.top_groups, o.top_k);
  fmt::print("  wire    backend {}, network {}, rows {}, reduction {}\n", o.backend, o.nodes == 1 ? "none" : o.network,
             o.wire.name, name(o.reduction));
  if (o.on_gpus()) {
    fmt::print(
        "  GPUs    rank r on GPU r modulo their number; dispatch and combine read and write device memory there\n");
    fmt::print("          the experts compute on the host, rows are copied for them; times are those of the host\n");
  }
  for (const std::string& skipped : report.skipped) fmt::print("  left out  {}\n", skipped);
  std::fflush(stdout);
}

void print_steps(const CaseRun& run) {
  const auto forward = total_steps(run, &LayerResult::forward);
  const auto backward = total_steps(run, &LayerResult::backward);
  fmt::print("\n{}   (rows and bytes of all ranks, time of the slowest; experts {:.0f} ms)\n", run.run.name(),
             expert_seconds(run) * 1e3);
  fmt::print("{:<17} {:^36} | {:^36}\n", "", "forward", "backward");
  const std::string columns = fmt::format("{:>8} {:>9} {:>9} {:>7}", "rows", "MB", "ms", "GB/s");
  fmt::print("{:<17} {} | {}\n", "step", columns, columns);
  const auto find = [](const auto& totals, const char* step) {
    const auto found = totals.find(step);
    return found == totals.end() ? StepTotal{} : found->second;
  };
  for (const char* step : kSteps)
    fmt::print("{:<17} {} | {}\n", step, step_columns(find(forward, step)), step_columns(find(backward, step)));
  std::fflush(stdout);
}

void print_load(const DemoReport& report) {
  constexpr std::size_t kBarsPerLine = 64;
  const CaseRun& run = report.cases.front();
  const std::vector<std::int64_t> load = expert_load(run);
  const std::int64_t most = *std::max_element(load.begin(), load.end());
  const std::int64_t least = *std::min_element(load.begin(), load.end());
  const std::int64_t total = std::accumulate(load.begin(), load.end(), std::int64_t{0});
  fmt::print("\nload per expert: {} choices, {} to {}, {:.0f} on average (a full bar is {})\n", total, least, most,
             static_cast<double>(total) / static_cast<double>(load.size()), most);
  std::size_t expert = 0;
  for (std::size_t r = 0; r < run.ranks.size(); ++r) {
    const auto& rows = run.ranks[r].expert_rows;
    if (rows.empty()) fmt::print("  rank {:<3} no experts\n", r);
    for (std::size_t first = 0; first < rows.size(); first += kBarsPerLine) {
      const std::size_t end = std::min(rows.size(), first + kBarsPerLine);
      std::string bars;
      for (std::size_t e = first; e < end; ++e) bars += bar(rows[e], most);
      const auto sum = std::accumulate(rows.begin() + static_cast<std::ptrdiff_t>(first),
                                       rows.begin() + static_cast<std::ptrdiff_t>(end), std::int64_t{0});
      fmt::print("  rank {:<3} experts {:>4} to {:<4} {}  {}\n", r, expert, expert + (end - first) - 1, bars, sum);
      expert += end - first;
    }
  }
  std::fflush(stdout);
}

void print_differences(const DemoReport& report) {
  fmt::print("\n{:<26} {:<34} {:>9} {:>9} {:>9} | {:>10} {:>9}\n", "", "", "values", "unequal", "largest", "to float64",
             "relative");
  for (std::size_t i = 0; i < report.differences.size(); ++i) {
    for (const Difference& d : report.differences[i]) {
      const bool first = &d == report.differences[i].data();
      const std::string exact = d.has_exact ? fmt::format("{:>10.3g} {:>9.2g}", d.to_exact, d.to_exact_relative)
                                            : fmt::format("{:>10} {:>9}", "-", "-");
      fmt::print("{:<26} {:<34} {:>9} {:>9} {:>9.3g} | {}\n", first ? report.cases[i].run.name() : "", d.what, d.count,
                 d.unequal, d.largest, exact);
    }
  }
  fmt::print(
      "unequal and largest: against the same layer in one process, same codec and order of sums; relative: norm of the "
      "distance to float64\n");
  std::fflush(stdout);
}

std::string to_json(const DemoReport& report) {
  const DemoOptions& o = report.options;
  nlohmann::json json = {{"version", version()},
                         {"verified", report.failure.empty()},
                         {"failure", report.failure},
                         {"seconds", report.seconds},
                         {"options",
                          {{"ranks", o.ranks},
                           {"nodes", o.nodes},
                           {"node_sizes", Topology::split(o.ranks, o.nodes).describe()},
                           {"tokens", o.tokens},
                           {"hidden", o.hidden},
                           {"inner", o.inner()},
                           {"experts", o.experts},
                           {"top_k", o.top_k},
                           {"groups", o.groups},
                           {"top_groups", o.top_groups},
                           {"codec", o.wire.name},
                           {"reduction", name(o.reduction)},
                           {"backend", o.backend},
                           {"experts_on", "host"},
                           {"network", o.network},
                           {"ranks_as", name(o.ranks_as)},
                           {"text", o.text},
                           {"text_bytes", report.text_bytes},
                           {"seed", o.seed},
                           {"timeout_s", o.timeout_s}}},
                         {"left_out", report.skipped},
                         {"cases", nlohmann::json::array()}};
  for (std::size_t i = 0; i < report.cases.size(); ++i) {
    const CaseRun& run = report.cases[i];
    nlohmann::json differences = nlohmann::json::array();
    if (i < report.differences.size()) {
      for (const Difference& d : report.differences[i]) {
        nlohmann::json entry = {{"what", d.what}, {"values", d.count}, {"unequal", d.unequal}, {"largest", d.largest}};
        if (d.has_exact) entry.update({{"to_float64", d.to_exact}, {"to_float64_relative", d.to_exact_relative}});
        differences.push_back(entry);
      }
    }
    json["cases"].push_back({{"mode", name(run.run.mode)},
                             {"layout", name(run.run.layout)},
                             {"forward", steps_json(run, &LayerResult::forward)},
                             {"backward", steps_json(run, &LayerResult::backward)},
                             {"expert_seconds", expert_seconds(run)},
                             {"load", expert_load(run)},
                             {"differences", differences}});
  }
  return json.dump(2);
}

}  // namespace ferry::app
