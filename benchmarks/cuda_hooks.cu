// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What latency mode costs with hooks, a thread per rank. The durations of the four kernels, each receive launched after its data has
// arrived: by events around a kernel, less what two events with nothing between them show, and as a kernel trace notes them, with
// the SMs they take. And a large product of matrices between send and receive, in turn with the same product alone. One JSON line
// per measurement (benchmarks/README.md).
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_latency_calls.cuh"
#include "cuda_report.h"
#include "cuda_ruler.cuh"
#include "gemm.h"
#include "kernel_trace.h"

namespace {

constexpr int kWarmUp = 10;
constexpr std::array kHalves{"dispatch_send", "dispatch_recv", "combine_send", "combine_recv"};
constexpr std::size_t kNumHalves = kHalves.size();
using bench::KernelTrace;
using TimesOfRanks = std::vector<std::vector<double>>;  ///< [rank][iteration], us

struct HooksSettings {
  Settings common;
  int gemm_rows = 4096, gemm_columns = 4096;
};

/// This rank's part.
template <typename OfRanks>
auto& own(OfRanks& of_ranks, const RankBench& bench) {
  return of_ranks[static_cast<std::size_t>(bench.rank_)];
}

/// The four halves in turn on one rank, all of them over the same inputs as in a layer.
class Halves {
 public:
  Halves(Group& group, const Calls& calls, int sets) : group_(group), calls_(calls), sets_(sets) {}

  void launch(std::size_t half, int iteration) {
    if (half == 0) dispatch_ = group_.dispatch_send(calls_.dispatch_args(iteration % sets_));
    if (half == 1) arrived_ = dispatch_.receive();
    if (half == 2) combine_ = group_.combine_send(calls_.combine_args(arrived_, Reduction::per_rank()));
    if (half == 3) combine_.receive();
  }

 private:
  Group& group_;
  const Calls& calls_;
  const int sets_;
  PendingDispatch dispatch_;
  PendingCombine combine_;
  DispatchResult arrived_;
};

class HooksRunner {
 public:
  HooksRunner(const HooksSettings& settings, int ranks, int gpus)
      : settings_(settings),
        o_(settings_.common),
        ranks_(ranks),
        gpus_(gpus),
        shared_(ranks),
        lines_(o_, ranks, machine_name(gpus)) {
    for (auto& times : times_) times.resize(static_cast<std::size_t>(ranks));
    sms_taken_.resize(static_cast<std::size_t>(ranks));
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    device_sms_ = properties.multiProcessorCount;
  }

  bool run() {
    bench::run_ranks(ranks_, [&](int rank, Meeting& meeting) {
      RankBench bench(o_, rank, ranks_, shared_, rank % gpus_);
      for (const std::int64_t tokens : o_.tokens) run_tokens(bench, meeting, tokens, false);
      // Last: a profiler leaves traces itself.
      for (const std::int64_t tokens : o_.tokens) {
        if (asked("trace")) run_tokens(bench, meeting, tokens, true);
      }
    });
    return all_verified_;
  }

 private:
  bool asked(const char* op) const { return std::find(o_.ops.begin(), o_.ops.end(), op) != o_.ops.end(); }
  void sync() { shared_.sync.arrive_and_wait(); }

  void run_tokens(RankBench& bench, Meeting& meeting, std::int64_t tokens, bool traced) {
    Group group = make_latency_group(o_, meeting, bench.rank_ % gpus_, tokens);
    for (const int sms : o_.sms) {
      Calls calls(bench, o_, group, tokens, sms);
      Halves halves(group, calls, o_.sets);
      sync();
      if (!calls.verify()) shared_.verified = false;
      group.check();
      sync();
      if (traced) measure_by_trace(bench, halves, tokens);
      if (!traced && asked("events")) measure_by_events(bench, halves, tokens, sms);
      if (!traced && asked("gemm")) measure_gemm(bench, halves, tokens, sms);
      group.check();
      sync();
    }
    group.close();
    sync();
  }

  void measure_by_events(RankBench& bench, Halves& halves, std::int64_t tokens, int sms) {
    bench.time(kWarmUp, o_.iterations, [](int) {});
    const double nothing = median(slowest(shared_.times));
    sync();
    for (std::size_t first = 0; first < kNumHalves; first += 2) {
      // A combine needs a dispatch, and may have that of an earlier call.
      bench.time_apart(
          kWarmUp, o_.iterations, [&](int i) { halves.launch(first, i); }, [&](int i) { halves.launch(first + 1, i); });
      own(times_[first], bench) = own(shared_.first_times, bench);
      own(times_[first + 1], bench) = own(shared_.times, bench);
    }
    for (auto& times : times_) {
      for (double& time : own(times, bench)) time -= nothing;
    }
    own(sms_taken_, bench).fill(sms);
    report_halves(bench, "events", tokens);
  }

  void measure_by_trace(RankBench& bench, Halves& halves, std::int64_t tokens) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    if (bench.rank_ == 0) KernelTrace::start();
    sync();
    const std::uint32_t stream = KernelTrace::number_of(bench.stream_);
    for (int i = 0; i < kWarmUp + o_.iterations; ++i) {
      for (std::size_t half = 0; half < kNumHalves; ++half) {
        bench.barrier();
        halves.launch(half, i);
        check(cudaStreamSynchronize(bench.stream_), "the traced half");
      }
    }
    sync();
    if (bench.rank_ == 0) records_ = KernelTrace::stop();
    sync();
    read_trace(bench, device, stream);
    report_halves(bench, "trace", tokens);
  }

  /// What lies between two barriers is one half.
  void read_trace(RankBench& bench, int device, std::uint32_t stream) {
    for (auto& times : times_) own(times, bench).assign(static_cast<std::size_t>(o_.iterations), 0);
    own(sms_taken_, bench).fill(0);
    std::size_t barriers = 0;
    const auto wanted = static_cast<std::size_t>(kWarmUp + o_.iterations) * kNumHalves;
    for (const bench::KernelRecord& record : records_) {
      if (record.device != static_cast<std::uint32_t>(device) || record.stream != stream) continue;
      if (record.name.find("barrier_kernel") != std::string::npos) {
        ++barriers;
        continue;
      }
      if (barriers <= kWarmUp * kNumHalves) continue;
      const std::size_t half = (barriers - 1) % kNumHalves, i = (barriers - 1) / kNumHalves - kWarmUp;
      own(times_[half], bench).at(i) += static_cast<double>(record.end_ns - record.begin_ns) * 1e-3;
      int& taken = own(sms_taken_, bench)[half];
      taken = std::max(taken, static_cast<int>(std::min<std::int64_t>(record.blocks, device_sms_)));
    }
    if (barriers != wanted)
      throw std::runtime_error("the kernel trace has " + std::to_string(barriers) +
                               " barriers of this rank, expected " + std::to_string(wanted));
    for (std::size_t half = 0; half < kNumHalves; ++half) {
      const auto& times = own(times_[half], bench);
      if (std::find(times.begin(), times.end(), 0.0) != times.end())
        throw std::runtime_error(std::string("the kernel trace has no kernel of a ") + kHalves[half]);
    }
  }

  /// In turn: the product alone, and the product between the halves of a call.
  void measure_gemm(RankBench& bench, Halves& halves, std::int64_t tokens, int sms) {
    bench::Gemm gemm(settings_.gemm_rows, settings_.gemm_columns, o_.hidden, bench.stream_);
    halves.launch(0, 0);
    halves.launch(1, 0);
    check(cudaStreamSynchronize(bench.stream_), "dispatch");
    for (std::size_t first = 0; first < kNumHalves; first += 2) {
      auto &alone = own(times_[0], bench), &between = own(times_[1], bench);
      alone.clear();
      between.clear();
      sync();
      for (int i = 0; i < kWarmUp + o_.iterations; ++i) {
        const double time = time_gemm(
            bench, gemm, [] {}, [] {});
        const double beside = time_gemm(
            bench, gemm, [&] { halves.launch(first, i); }, [&] { halves.launch(first + 1, i); });
        if (i < kWarmUp) continue;
        alone.push_back(time);
        between.push_back(beside);
      }
      sync();
      if (bench.rank_ == 0) write_gemm(first == 0 ? "dispatch" : "combine", tokens, sms);
      sync();
    }
  }

  template <typename Before, typename After>
  double time_gemm(RankBench& bench, bench::Gemm& gemm, Before&& before, After&& after) {
    bench.barrier();
    before();
    check(cudaEventRecord(bench.begin_, bench.stream_), "cudaEventRecord");
    gemm.launch();
    check(cudaEventRecord(bench.end_, bench.stream_), "cudaEventRecord");
    after();
    check(cudaStreamSynchronize(bench.stream_), "the product");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, bench.begin_, bench.end_), "cudaEventElapsedTime");
    return 1000.0 * ms;
  }

  void write_gemm(const std::string& in_flight, std::int64_t tokens, int sms) {
    const auto alone = slowest(times_[0]), between = slowest(times_[1]);
    const double slow_down = 100 * (median(between) / median(alone) - 1);
    auto line = lines_.make({.mode = "latency",
                             .op = "gemm",
                             .payload = "bf16",
                             .codec = "bf16",
                             .tokens = tokens,
                             .num_sms = sms,
                             .verified = shared_.verified},
                            between);
    line["in_flight"] = in_flight;
    line["gemm"] = {settings_.gemm_rows, settings_.gemm_columns, o_.hidden};
    line["alone_us_median"] = median(alone);
    line["alone_us_p99"] = bench::quantile(alone, 0.99);
    line["slow_down_percent"] = slow_down;
    lines_.append(line);
    std::printf(
        "gemm %d x %d x %ld, %s of %ld tokens in flight: alone %.1f us, between send and receive %.1f us "
        "(p99 %.1f, %.1f): slower by %.2f %%\n",
        settings_.gemm_rows, settings_.gemm_columns, static_cast<long>(o_.hidden), in_flight.c_str(),
        static_cast<long>(tokens), median(alone), median(between), bench::quantile(alone, 0.99),
        bench::quantile(between, 0.99), slow_down);
    std::fflush(stdout);
  }

  /// A line for each half and one for their sum; `clock` says how they were timed. SMs are known to the trace only.
  void report_halves(RankBench& bench, const char* clock, std::int64_t tokens) {
    sync();
    if (bench.rank_ == 0) {
      std::vector<double> sum(static_cast<std::size_t>(o_.iterations), 0);
      double sm_us = 0;
      int most_sms = 0;
      for (std::size_t half = 0; half < kNumHalves; ++half) {
        const auto times = slowest(times_[half]);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += times[i];
        int taken = 0;
        for (const auto& of_rank : sms_taken_) taken = std::max(taken, of_rank[half]);
        const bool known = std::string(clock) == "trace";
        const double product = known ? taken * median(times) : 0;
        sm_us += product;
        most_sms = std::max(most_sms, taken);
        write_half(kHalves[half], half < 2 ? "" : "per_rank", clock, tokens, taken, times, product);
      }
      write_half("four_kernels", "per_rank", clock, tokens, most_sms, sum, sm_us);
      all_verified_ = all_verified_ && shared_.verified;
    }
    sync();
  }

  void write_half(const std::string& op, const std::string& reduction, const char* clock, std::int64_t tokens, int sms,
                  const std::vector<double>& times, double sm_us) {
    auto what = measured(o_, ranks_, op, reduction, tokens, sms);
    what.verified = shared_.verified;
    auto line = lines_.make(what, times);
    line["clock"] = clock;
    line["sm_us"] = sm_us > 0 ? nlohmann::ordered_json(sm_us) : nullptr;
    lines_.append(line);
    std::printf("%-14s %-6s %4ld tokens %3d SMs: %7.2f us (p90 %7.2f, p99 %7.2f), %8.0f SM us, %s\n", op.c_str(), clock,
                static_cast<long>(tokens), sms, median(times), bench::quantile(times, 0.9),
                bench::quantile(times, 0.99), sm_us, what.verified ? "verified" : "WRONG");
    std::fflush(stdout);
  }

  const HooksSettings settings_;
  const Settings& o_;
  const int ranks_, gpus_;
  Shared shared_;
  bench::Lines lines_;
  int device_sms_ = 0;
  std::array<TimesOfRanks, kNumHalves> times_;
  std::vector<std::array<int, kNumHalves>> sms_taken_;  ///< [rank]
  std::vector<bench::KernelRecord> records_;
  bool all_verified_ = true;
};

/// What this build can measure; what it cannot is said.
std::vector<std::string> possible_ops(const std::vector<std::string>& wanted) {
  std::vector<std::string> possible;
  for (const std::string& op : wanted) {
    const std::string why = op == "trace"  ? KernelTrace::why_not()
                            : op == "gemm" ? bench::Gemm::why_not()
                                           : std::string();
    if (why.empty()) {
      possible.push_back(op);
    } else {
      std::fprintf(stderr, "no %s: %s\n", op.c_str(), why.c_str());
    }
  }
  return possible;
}

}  // namespace

int main(int argc, char** argv) {
  HooksSettings settings;
  Settings& o = settings.common;
  o.tokens = {128};
  o.sms = {0};
  o.iterations = 1000;
  o.ops.clear();
  const std::vector<std::string> all_ops{"events", "trace", "gemm"};
  app::Program program("Latency mode with hooks on GPUs: four kernels, and a product of matrices between them");
  app::Options options = program.options();
  options.some_of("--ops", o.ops, all_ops, "what to measure (default: all that this build can)");
  options.number("--gemm-rows", settings.gemm_rows, 1, 1 << 20, "rows of the product");
  options.number("--gemm-columns", settings.gemm_columns, 1, 1 << 20, "columns of the product; it sums over hidden");
  add_latency_options(options, o);
  if (const auto ended = program.parse(argc, argv)) return *ended;
  const std::vector<std::string> possible = possible_ops(o.ops.empty() ? all_ops : o.ops);
  if (!o.ops.empty() && possible.size() < o.ops.size()) return 2;
  o.ops = possible;
  const LatencyRanks found = latency_ranks(o);
  if (found.exit_code != 0) return found.exit_code;
  return HooksRunner(settings, found.ranks, found.gpus).run() ? 0 : 1;
}
