// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry bench`: measures dispatch and combine on this machine and prints one line, or one JSON object, per measurement.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "bench_ferry.h"
#include "bench_gpu.h"
#include "commands.h"
#include "demo_options.h"
#include "options.h"
#include "ranks.h"

namespace ferry::app {
namespace {

using bench::Arena;
using bench::BenchCase;
using Measurements = std::vector<nlohmann::ordered_json>;

struct BenchOptions {
  BenchCase bench_case;
  std::vector<std::int64_t> tokens{1024};
  std::vector<std::string> ops{"dispatch", "combine"};
  std::vector<int> sms{};
  std::string input;  ///< empty: what is usual for the backend and the mode; the host has no other than any
  std::string launch = "direct";
  std::string json_path;
  NetworkOptions network{};
  std::vector<std::string> netns{};  ///< by node
};

void run_one_rank(const BenchCase& bench_case, const NetworkOptions& network, Arena& arena, RankPort& port) {
  try {
    bench::FerryJob job(bench_case, port.meeting(), network);
    port.set_stop([&] {
      arena.fail(port.rank(), "another rank failed");
      job.abort();
    });
    bench::run_rank(bench_case, port.rank(), arena, job);
    port.set_stop({});
  } catch (const std::exception& error) {
    port.set_stop({});
    arena.fail(port.rank(), error.what());
    throw;
  }
}

Measurements measure(const BenchOptions& options, const BenchCase& bench_case) {
  Arena arena = Arena::create(bench::arena_shape(bench_case));
  Launch launch;
  launch.num_ranks = bench_case.ranks;
  launch.as = bench_case.ranks_as == "threads" ? RanksAs::kThreads : RanksAs::kProcesses;
  // Ranks are silent while they measure; each of their waits has a deadline of its own.
  launch.silence_limit = std::chrono::hours(1);
  launch.netns = netns_of_ranks(options.netns, bench_case.ranks, bench_case.nodes);
  const std::optional<RunFailure> failure =
      run_ranks(launch, [&](RankPort& port) { run_one_rank(bench_case, options.network, arena, port); });
  if (failure) {
    const std::string reason =
        arena.failed() ? arena.failure() : fmt::format("rank {}: {}", failure->rank, failure->reason);
    if (failure->stuck) {
      fmt::print(stderr, "ferry bench: {}\n", reason);
      std::_Exit(kExitFailed);
    }
    throw std::runtime_error(reason);
  }
  return bench::summarise(bench_case, bench::find_origin(), arena);
}

/// Keeps what was asked for: dispatch, combine, steps.
Measurements select(const Measurements& all, const std::vector<std::string>& ops) {
  const auto asked = [&](const char* word) { return std::find(ops.begin(), ops.end(), word) != ops.end(); };
  Measurements chosen;
  for (const nlohmann::ordered_json& measurement : all) {
    const std::string op = measurement["op"];
    const bool whole = op == "dispatch" || op == "combine";
    if (whole ? asked(op.c_str()) : asked("steps")) chosen.push_back(measurement);
  }
  return chosen;
}

int run_bench(const BenchOptions& options) {
  bool verified = true;
  bool first = true;
  for (const std::int64_t tokens : options.tokens) {
    BenchCase bench_case = options.bench_case;
    bench_case.tokens = tokens;
    bench::complete(bench_case);
    if (std::exchange(first, false)) fmt::print("{}\n", bench::table_header());
    const Measurements measurements = select(measure(options, bench_case), options.ops);
    for (const nlohmann::ordered_json& measurement : measurements) {
      fmt::print("{}\n", bench::table_line(measurement));
      verified = verified && measurement["verified"].get<bool>();
    }
    std::fflush(stdout);
    if (!options.json_path.empty()) bench::append_json(options.json_path, measurements);
  }
  fmt::print("{}\n", verified ? "verified" : "FAILED: a result was not what it should be");
  return verified ? kExitOk : kExitFailed;
}

int run_on_gpus(const BenchOptions& options) {
  bench::GpuBench gpu_bench{.bench_case = options.bench_case,
                            .tokens = options.tokens,
                            .ops = options.ops,
                            .sms = options.sms,
                            .input = options.input,
                            .launch = options.launch,
                            .json_path = options.json_path};
  if (gpu_bench.bench_case.ranks_as.empty()) gpu_bench.bench_case.ranks_as = "threads";
  const int code = bench::run_gpu_bench(gpu_bench.bench_case, bench::gpu_arguments(gpu_bench, bench::find_origin()));
  if (code == kExitBadUsage) return code;  // it has said why
  fmt::print("{}\n", code == kExitOk ? "verified" : "FAILED: a result was not what it should be, or could not be had");
  return code;
}

int run_on_host(BenchOptions options) {
  if (options.input == "window")
    throw std::invalid_argument(
        "ferry bench: --input: window given, expected any on the host, where combine copies nothing");
  if (options.launch != "direct")
    throw std::invalid_argument("ferry bench: --launch: graph given, expected direct on the host");
  if (options.bench_case.ranks == 0) options.bench_case.ranks = 2;
  if (options.bench_case.ranks_as.empty()) options.bench_case.ranks_as = "processes";
  return run_bench(options);
}

int run_guarded(const BenchOptions& options) {
  try {
    return options.bench_case.backend == "cuda" ? run_on_gpus(options) : run_on_host(options);
  } catch (const std::invalid_argument& error) {
    fmt::print(stderr, "{}\n", error.what());
    return kExitBadUsage;
  } catch (const std::exception& error) {
    fmt::print("FAILED: {}\n", error.what());
    return kExitFailed;
  }
}

}  // namespace

void add_bench_command(Program& program, int& exit_code) {
  const auto options = std::make_shared<BenchOptions>();
  Options bench = program.command("bench", "Measure dispatch and combine on this machine",
                                  [options, &exit_code] { exit_code = run_guarded(*options); });
  options->bench_case.ranks = 0;
  options->bench_case.ranks_as.clear();
  bench::add_case_options(bench, options->bench_case, options->tokens);
  add_network_options(bench, options->bench_case.network, options->network, options->netns);
  bench.word("--backend", options->bench_case.backend,
             Words<std::string>{{"auto", "host"}, {"host", "host"}, {"cuda", "cuda"}},
             "where the rows lie: host memory, or GPUs, a thread for each; auto is host (default: auto)");
  bench.values("--sms", options->sms,
               "GPUs: SMs per call; several values make several cases (default: 16, in latency mode Ferry chooses)");
  bench.word("--input", options->input, Words<std::string>{{"window", "window"}, {"any", "any"}},
             "what combine reads: rows in the window (default on GPUs in throughput mode), or any tensor");
  bench.word("--launch", options->launch, Words<std::string>{{"direct", "direct"}, {"graph", "graph"}},
             "GPUs: direct calls or replays of captured ones (default: direct)");
  bench.some_of("--op", options->ops, {"dispatch", "combine", "steps"},
                "what to report: dispatch, combine (whole operations), steps (GPUs: in latency mode, the halves)");
  bench.json_file(options->json_path, "append one JSON line per measurement to this file");
}

}  // namespace ferry::app
