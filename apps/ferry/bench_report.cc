// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// From times to JSON lines and a table, and the options that name a case: the reading side of bench_run.h.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <thread>

#include <fmt/format.h>

#include "bench_columns.h"
#include "bench_run.h"

namespace ferry::bench {
namespace {

using Json = nlohmann::ordered_json;

/// Nearest rank: the smallest value that at least this share of the values does not exceed.
double percentile(std::vector<double> values, double share) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::clamp<std::size_t>(rank, 1, values.size()) - 1];
}

/// A number with a few decimals; JSON knows no NaN.
Json number(double value, int decimals = 3) {
  if (!std::isfinite(value)) return nullptr;
  return std::stod(fmt::format("{:.{}f}", value, decimals));
}

std::string read_command(const std::string& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
  std::string text;
  std::array<char, 128> part{};
  while (pipe != nullptr && std::fgets(part.data(), part.size(), pipe.get()) != nullptr) text += part.data();
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

std::string commit_of_program() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string folder = program.parent_path().string();
  if (error || folder.empty() || folder.find('\'') != std::string::npos) return "unknown";
  const std::string commit = read_command("git -C '" + folder + "' rev-parse --short=12 HEAD 2>/dev/null");
  return commit.empty() ? "unknown" : commit;
}

std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

const char* architecture() {
#if defined(__x86_64__)
  return "x86";
#elif defined(__aarch64__)
  return "arm64";
#else
  return "other";
#endif
}

/// Choices times row bytes: what others quote. Local rows and rows that were never sent count.
double logical_bytes(const BenchCase& c, bool combine) {
  const std::size_t row = combine ? combine_row_bytes(c) : wire_row_bytes(c);
  return static_cast<double>(c.tokens) * c.top_k * static_cast<double>(row);
}

struct Measured {
  std::string op;
  std::vector<double> seconds;
  std::vector<double> copy_seconds;
  std::int64_t necessary_bytes = 0;
  double logical_bytes = 0;
};

Json case_fields(const BenchCase& c, const Origin& origin, const std::string& op) {
  return {{"commit", origin.commit},
          {"date", origin.date},
          {"machine", origin.machine},
          {"backend", c.backend},
          {"ranks", c.ranks},
          {"nodes", c.nodes},
          {"ranks_as", c.ranks_as},
          {"mode", c.mode},
          {"op", op},
          {"layout", c.layout},
          {"payload", c.payload},
          {"codec", c.codec == "none" ? c.payload : c.codec},
          {"reduction", c.reduction},
          {"tokens", c.tokens},
          {"hidden", c.hidden},
          {"top_k", c.top_k},
          {"experts", c.experts},
          {"routing", c.routing},
          {"network", c.nodes == 1          ? "none"
                      : c.network == "auto" ? "loopback"
                                            : c.network.c_str()},
          {"link_limit_gbps", nullptr},
          {"launch", "direct"},
          {"num_sms", 0},
          {"output", c.output},
          {"input", "any"}};
}

Json line(const BenchCase& c, const Origin& origin, const Measured& measured, bool verified) {
  Json json = case_fields(c, origin, measured.op);
  const double median = percentile(measured.seconds, 0.5);
  const double ceiling = static_cast<double>(measured.necessary_bytes) / percentile(measured.copy_seconds, 0.5) / 1e9;
  const double reached = static_cast<double>(measured.necessary_bytes) / median / 1e9;
  json["time_us_median"] = number(median * 1e6);
  json["time_us_p90"] = number(percentile(measured.seconds, 0.9) * 1e6);
  json["time_us_p99"] = number(percentile(measured.seconds, 0.99) * 1e6);
  json["necessary_bytes"] = measured.necessary_bytes;
  json["ceiling_gbps"] = number(ceiling);
  json["fraction"] = number(reached / ceiling, 4);
  json["logical_gbps"] = number(measured.logical_bytes / median / 1e9);
  json["verified"] = verified;
  return json;
}

bool all_right(const BenchCase& c, Arena& arena) {
  for (int rank = 0; rank < c.ranks; ++rank) {
    if (arena.seconds(kWrongColumn, 0, rank) != 0) return false;  // NaN: never checked
  }
  return true;
}

}  // namespace

Origin find_origin() {
  return {.commit = commit_of_program(),
          .date = date_now(),
          .machine = fmt::format("{}-core-{}", std::thread::hardware_concurrency(), architecture())};
}

std::vector<Json> summarise(const BenchCase& c, const Origin& origin, Arena& arena) {
  const bool verified = all_right(c, arena);
  const Necessary necessary = mean_necessary_bytes(c);
  std::vector<Json> lines;
  lines.push_back(line(c, origin,
                       {.op = "dispatch",
                        .seconds = arena.slowest(kDispatchColumn),
                        .copy_seconds = arena.slowest(kDispatchCopyColumn),
                        .necessary_bytes = necessary.dispatch_bytes,
                        .logical_bytes = logical_bytes(c, false)},
                       verified));
  lines.push_back(line(c, origin,
                       {.op = "combine",
                        .seconds = arena.slowest(kCombineColumn),
                        .copy_seconds = arena.slowest(kCombineCopyColumn),
                        .necessary_bytes = necessary.combine_bytes,
                        .logical_bytes = logical_bytes(c, true)},
                       verified));
  for (std::size_t step = 0; step < step_names().size(); ++step) {
    const std::vector<double> seconds = arena.slowest(kFirstStepColumn + static_cast<int>(step));
    if (seconds.empty()) continue;
    // What a step alone would have to move is not defined, so it has a time and no fraction.
    lines.push_back(line(c, origin, {.op = step_names()[step], .seconds = seconds, .copy_seconds = {}}, verified));
  }
  return lines;
}

void add_case_options(app::Options& command, BenchCase& c, std::vector<std::int64_t>& tokens) {
  command.value("--mode", c.mode, "throughput or latency");
  command.value("--layout", c.layout, "rank_major, expert_major or expert_padded");
  command.value("--payload", c.payload, "bf16, fp16, fp32, fp8_f32, fp8_ue8m0 or bytes");
  command.value("--codec", c.codec, "none, fp8_f32 or fp8_ue8m0");
  command.value("--reduction", c.reduction, "flat, per_rank or per_node");
  command.value("--routing", c.routing, "uniform, grouped or zipf");
  command.value("--ranks-as", c.ranks_as, "processes or threads (default: processes; on GPUs threads)");
  command.value("--output", c.output, "window or owned");
  command.values("--tokens", tokens, "tokens per rank; several values make several cases");
  command.value("--hidden", c.hidden, "width of a row in elements");
  command.value("--top-k", c.top_k, "choices per token");
  command.value("--experts", c.experts, "experts of all ranks together");
  command.value("--expert-capacity", c.expert_capacity, "rows per expert of expert_padded; 0 = ranks x tokens");
  command.value("--ranks", c.ranks, "ranks; 0 = two, on GPUs one for each");
  command.value("--nodes", c.nodes, "pretend nodes");
  command.value("--iterations", c.iterations, "timed calls; 0 = 20, in latency mode 200");
  command.value("--warmup", c.warmup, "calls before; 0 = 4, in latency mode 20");
  command.value("--sets", c.num_sets, "input sets to rotate among; 0 = more than the last-level cache holds");
  command.value("--seed", c.seed, "of routing and input");
  command.value("--deadline", c.deadline_s, "seconds that any wait of a call may last");
}

std::string table_header() {
  return fmt::format("{:<8} {:<10} {:<16} {:>5} {:>6} {:<13} {:>6} {:>11} {:>11} {:>11} {:>9} {:>9} {:>8}  {}",
                     "backend", "mode", "op", "ranks", "tokens", "layout", "hidden", "median us", "p90 us", "p99 us",
                     "ceiling", "fraction", "logical", "verified");
}

std::string table_line(const Json& m) {
  const auto text = [&](const char* field, int decimals) {
    return m[field].is_null() ? std::string("-") : fmt::format("{:.{}f}", m[field].get<double>(), decimals);
  };
  return fmt::format("{:<8} {:<10} {:<16} {:>5} {:>6} {:<13} {:>6} {:>11} {:>11} {:>11} {:>9} {:>9} {:>8}  {}",
                     m["backend"].get<std::string>(), m["mode"].get<std::string>(), m["op"].get<std::string>(),
                     m["ranks"].get<int>(), m["tokens"].get<std::int64_t>(), m["layout"].get<std::string>(),
                     m["hidden"].get<std::int64_t>(), text("time_us_median", 1), text("time_us_p90", 1),
                     text("time_us_p99", 1), text("ceiling_gbps", 2), text("fraction", 3), text("logical_gbps", 2),
                     m["verified"].get<bool>());
}

void append_json(const std::string& path, const std::vector<Json>& measurements) {
  std::ofstream file(path, std::ios::app);
  for (const Json& measurement : measurements) file << measurement.dump() << '\n';
  file.flush();
  if (!file) throw std::runtime_error("ferry bench: cannot write " + path);
}

}  // namespace ferry::bench
