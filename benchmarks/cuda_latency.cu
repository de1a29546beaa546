// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Latency mode on GPUs, a thread per rank: whole calls, each timed alone as in cuda_throughput.cu (a barrier of the ranks, an event,
// the call, an event; the slowest rank counts), directly and as replays of a graph; and the four halves of calls with hooks, each
// receive launched after its data has arrived. One JSON line per measurement (benchmarks/README.md). Several ranks on one GPU share
// its SMs: such figures say how the code runs, not how fast a link is.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "cuda_latency_calls.cuh"
#include "cuda_report.h"
#include "cuda_ruler.cuh"

namespace {

class LatencyRunner {
 public:
  LatencyRunner(const Settings& settings, int ranks, int gpus)
      : o_(settings), ranks_(ranks), gpus_(gpus), shared_(ranks), lines_(o_, ranks, machine_name(gpus)) {}

  bool run() {
    bench::run_ranks(ranks_, [&](int rank, Meeting& meeting) {
      RankBench bench(o_, rank, ranks_, shared_, rank % gpus_);
      if (ranks_ <= gpus_) {
        const double ceiling = bench.link_gbps(132);
        if (rank == 0) lines_.ceiling = ceiling;
      }
      for (const std::int64_t tokens : o_.tokens) run_tokens(bench, meeting, tokens);
    });
    return all_verified_;
  }

 private:
  bool asked(const char* op) const { return std::find(o_.ops.begin(), o_.ops.end(), op) != o_.ops.end(); }

  void run_tokens(RankBench& bench, Meeting& meeting, std::int64_t tokens) {
    Group group = make_latency_group(o_, meeting, bench.rank_ % gpus_, tokens);
    for (const int sms : o_.sms) {
      Calls calls(bench, o_, group, tokens, sms);
      shared_.sync.arrive_and_wait();
      if (!calls.verify()) shared_.verified = false;
      group.check();
      shared_.sync.arrive_and_wait();
      measure_whole(bench, group, calls, tokens, sms);
      if (asked("halves")) measure_halves(bench, group, calls, tokens, sms);
      shared_.sync.arrive_and_wait();
    }
    group.close();
    shared_.sync.arrive_and_wait();
  }

  void measure_whole(RankBench& bench, Group& group, Calls& calls, std::int64_t tokens, int sms) {
    const auto num_sets = static_cast<std::size_t>(o_.sets);
    std::vector<DispatchResult> arrived(num_sets);
    const auto dispatch = [&](std::size_t s) { arrived[s] = group.dispatch(calls.dispatch_args(static_cast<int>(s))); };
    for (const Reduction reduction : {Reduction::per_rank(), Reduction::flat()}) {
      const bool flat = reduction == Reduction::flat();
      const bool dispatches = !flat && asked("dispatch"), combines = asked(flat ? "combine-flat" : "combine");
      if (!dispatches && !combines) continue;
      // In turn, as a layer does it: a dispatch directly after a dispatch would wait for credits that a combine has given else.
      bench.time_pairs(10, dispatch, [&](std::size_t s) { group.combine(calls.combine_args(arrived[s], reduction)); });
      if (combines) report(bench, "combine", flat ? "flat" : "per_rank", tokens, sms);
      if (!dispatches) continue;
      swap_times(bench);
      report(bench, "dispatch", "", tokens, sms);
    }
    group.check();
  }

  /// A send, everybody's data arrives, then the receive: with nothing to wait for, its time is its work.
  void measure_halves(RankBench& bench, Group& group, Calls& calls, std::int64_t tokens, int sms) {
    PendingDispatch dispatch;
    PendingCombine combine;
    DispatchResult arrived = group.dispatch(calls.dispatch_args(0));
    bench.time_apart(
        5, o_.iterations, [&](int i) { dispatch = group.dispatch_send(calls.dispatch_args(i % o_.sets)); },
        [&](int) { arrived = dispatch.receive(); });
    report(bench, "dispatch_recv", "", tokens, sms);
    swap_times(bench);
    report(bench, "dispatch_send", "", tokens, sms);
    bench.time_apart(
        5, o_.iterations,
        [&](int) { combine = group.combine_send(calls.combine_args(arrived, Reduction::per_rank())); },
        [&](int) { combine.receive(); });
    report(bench, "combine_recv", "per_rank", tokens, sms);
    swap_times(bench);
    report(bench, "combine_send", "per_rank", tokens, sms);
    group.check();
  }
  void swap_times(const RankBench& bench) {
    shared_.sync.arrive_and_wait();
    if (bench.rank_ == 0) std::swap(shared_.times, shared_.first_times);
    shared_.sync.arrive_and_wait();
  }

  void report(RankBench& bench, const std::string& op, const std::string& reduction, std::int64_t tokens, int sms) {
    shared_.sync.arrive_and_wait();
    if (bench.rank_ == 0) write_line(measured(o_, ranks_, op, reduction, tokens, sms), bench.host_us_);
    shared_.sync.arrive_and_wait();
  }

  void write_line(bench::Measured what, double host_us) {
    what.verified = shared_.verified;
    const std::vector<double> times = slowest(shared_.times);
    nlohmann::ordered_json line = lines_.make(what, times);
    if (what.op.starts_with("combine")) {
      line["input"] = "any";
    } else {
      line["output"] = "window";
    }
    lines_.append(line);
    std::printf("%-14s %-9s %-6s %4ld tokens %3d SMs: %7.1f us (p90 %7.1f, p99 %7.1f), host %5.1f us, %s\n",
                what.op.c_str(), what.reduction.c_str(), o_.launch.c_str(), static_cast<long>(what.tokens),
                what.num_sms, median(times), bench::quantile(times, 0.9), bench::quantile(times, 0.99), host_us,
                what.verified ? "verified" : "WRONG");
    std::fflush(stdout);
    all_verified_ = all_verified_ && shared_.verified;
  }

  const Settings o_;
  const int ranks_, gpus_;
  Shared shared_;
  bench::Lines lines_;
  bool all_verified_ = true;
};

constexpr std::array kOps{"dispatch", "combine", "combine-flat", "halves"};

/// Without --ops everything that there is for this layout and launch; what was asked for and is not there is refused.
bool choose_ops(Settings& o) {
  const auto missing = [&](const std::string& op) -> std::string {
    if (op == "combine-flat" && o.layout != "expert_padded") return "--layout expert_padded";
    if (op == "halves" && o.launch != "direct") return "--launch direct";
    return {};
  };
  for (const std::string& op : o.ops) {
    if (missing(op).empty()) continue;
    std::fprintf(stderr, "--ops: %s given, expected with %s only\n", op.c_str(), missing(op).c_str());
    return false;
  }
  if (!o.ops.empty()) return true;
  std::copy_if(kOps.begin(), kOps.end(), std::back_inserter(o.ops),
               [&](const char* op) { return missing(op).empty(); });
  return true;
}

}  // namespace

int ferry_cuda_latency_main(int argc, char** argv) {
  Settings o;
  o.tokens = {1, 8, 32, 128};
  o.sms = {0};
  o.iterations = 200;
  o.ops.clear();
  app::Program program("Latency mode on GPUs, a thread per rank, each call timed alone");
  app::Options options = program.options();
  options.some_of("--ops", o.ops, {kOps.begin(), kOps.end()}, "what to measure (default: all that there is)");
  add_latency_options(options, o);
  bench::add_launch_option(options, o);
  if (const auto ended = program.parse(argc, argv)) return *ended;
  if (!choose_ops(o)) return 2;
  const LatencyRanks found = latency_ranks(o);
  if (found.exit_code != 0) return found.exit_code;
  return LatencyRunner(o, found.ranks, found.gpus).run() ? 0 : 1;
}
