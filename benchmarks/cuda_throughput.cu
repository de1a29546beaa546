// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Dispatch and combine on GPUs, a thread per GPU, each call timed alone: a barrier of all devices, an event, the call, an event;
// the slowest rank counts. In the same run the link's ceiling: every GPU pushes to its neighbour with a plain copy kernel. One
// JSON line per measurement (benchmarks/README.md).
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda_report.h"
#include "cuda_ruler.cuh"
#include "cuda_settings.h"
#include "ferry/ferry.h"
#include "options.h"

namespace {

using namespace ferry;
using bench::busiest;
using bench::ranks_needed;

/// Inputs of one rotation.
struct Set {
  Inputs in;
  DeviceArray<float> scales;
  std::vector<unsigned> needed;
};

bool is_by_expert(const std::string& op) {
  return op == "dispatch-expert" || op == "combine-flat";
}

class Runner {
 public:
  Runner(const Settings& o, int ranks) : o_(o), ranks_(ranks), shared_(ranks), lines_(o, ranks, machine_name(ranks)) {}

  /// False if any result was wrong.
  bool run() {
    bench::run_ranks(ranks_, [&](int rank, Meeting& meeting) { run_rank(rank, meeting); });
    return all_verified_;
  }

 private:
  void run_rank(int rank, Meeting& meeting) {
    RankBench bench(o_, rank, ranks_, shared_, rank);
    const double ceiling = bench.link_gbps(132);
    if (rank == 0) lines_.ceiling = ceiling;
    for (int sms : o_.sms) {
      const double own = bench.link_gbps(sms);
      if (rank == 0) std::printf("ceiling: all SMs %.1f GB/s, %d SMs %.1f GB/s\n", ceiling, sms, own);
    }
    for (std::int64_t tokens : o_.tokens) run_tokens(bench, meeting, tokens);
  }

  void run_tokens(RankBench& bench, Meeting& meeting, std::int64_t tokens) {
    GroupConfig config;
    config.backend = "cuda";
    config.device = bench.rank_;
    config.topology = Topology::nodes(std::vector<int>(static_cast<std::size_t>(o_.nodes), ranks_ / o_.nodes));
    config.network_options.link_bytes_per_second = static_cast<std::int64_t>(o_.link_gbps) * 1'000'000'000;
    config.limits.num_experts = o_.experts;
    config.limits.max_tokens = tokens;
    config.limits.max_latency_tokens = 0;
    config.limits.max_top_k = o_.top_k;
    config.limits.hidden = o_.hidden;
    // What these routings need of expert rows, with room.
    config.limits.recv_rows = tokens * o_.top_k * (o_.routing == "uniform" ? 5 : 4 * ranks_) / 4 + 1024;
    config.limits.owned_rows = (o_.sets + 1) * tokens * ranks_;  // as many results are kept
    config.timeout = std::chrono::seconds(5);
    Group group = make_group(bench, config, meeting);
    const auto sets = make_sets(bench, tokens);
    for (const std::string& op : o_.ops) {
      for (int sms : o_.sms) measure(bench, group, sets, tokens, op, sms);
    }
    shared_.sync.arrive_and_wait();
  }

  /// Says how long it took and what device memory it took, beside what the plan says.
  Group make_group(RankBench& bench, const GroupConfig& config, Meeting& meeting) {
    std::int64_t planned = 0;
    bool on_device = false;
    const MemoryPlan plan = memory_plan(config, *config.topology, bench.rank_);
    for (std::size_t i = 1; i < plan.regions.size(); ++i) {  // regions of device memory count from 0 again
      on_device = on_device || plan.regions[i].offset_bytes == 0;
      if (on_device) planned += plan.regions[i].bytes;
    }
    std::size_t before = 0, after = 0, all = 0;
    check(cudaMemGetInfo(&before, &all), "cudaMemGetInfo");
    bench.shared_.sync.arrive_and_wait();
    const auto start = std::chrono::steady_clock::now();
    Group group = Group::create(config, meeting);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    check(cudaMemGetInfo(&after, &all), "cudaMemGetInfo");
    if (bench.rank_ == 0) {
      std::printf("a group of %d in %.2f s; device memory of rank 0: %.1f MB, planned %.1f MB\n", ranks_, took.count(),
                  static_cast<double>(before - after) * 1e-6, static_cast<double>(planned) * 1e-6);
    }
    return group;
  }

  std::vector<Set> make_sets(RankBench& bench, std::int64_t tokens) {
    std::vector<Set> sets;
    for (int s = 0; s < o_.sets; ++s) {
      const std::int64_t scales = tokens * ((o_.hidden + 127) / 128);
      Set set{bench.make_inputs(tokens, s), bench.allocate_array<float>(scales),
              ranks_needed(o_, make_routing(o_, tokens, bench.rank_, s), ranks_)};
      check(cudaMemset(set.scales.get(), 0x3f, static_cast<std::size_t>(scales) * 4), "cudaMemset");
      sets.push_back(std::move(set));
    }
    check(cudaDeviceSynchronize(), "filling inputs");
    bench.shared_.sync.arrive_and_wait();
    return sets;
  }

  DispatchArgs dispatch_args(RankBench& bench, const Set& set, std::int64_t tokens, const std::string& op, int sms) {
    DispatchArgs args;
    if (op == "dispatch-fp8") {
      args.payload.push_back(
          Tensor::contiguous(static_cast<void*>(set.in.x.get()), DType::kFp8E4m3, {tokens, o_.hidden}));
      args.payload.push_back(
          Tensor::contiguous(static_cast<void*>(set.scales.get()), DType::kFp32, {tokens, (o_.hidden + 127) / 128}));
    } else {
      args.payload.push_back(Tensor::contiguous(static_cast<void*>(set.in.x.get()), DType::kBf16, {tokens, o_.hidden}));
    }
    args.topk_ids = Tensor::contiguous(static_cast<void*>(set.in.ids.get()), DType::kInt64, {tokens, o_.top_k});
    if (is_by_expert(op)) args.layout = Layout::kExpertMajor;
    args.host_counts = false;
    if (op == "dispatch-owned") {
      args.host_counts = true;
      args.output = Output::kOwned;
    }
    args.num_sms = sms;
    args.stream = bench.stream_;
    return args;
  }

  void measure(RankBench& bench, Group& group, const std::vector<Set>& sets, std::int64_t tokens, const std::string& op,
               int sms) {
    const bool combine = op.rfind("combine", 0) == 0;
    std::byte* any = nullptr;
    if (combine) {
      // One dispatch per set would be needed for fresh handles; the handle of set i is used for every i-th combine.
      std::vector<DispatchResult> results;
      for (const Set& set : sets) {
        DispatchArgs args = dispatch_args(bench, set, tokens, op, sms);
        args.host_counts = true;
        results.push_back(group.dispatch(args));
      }
      const std::int64_t rows = group.config().limits.max_tokens * ranks_;
      if (op == "combine-any")
        any = static_cast<std::byte*>(bench.allocate(static_cast<std::size_t>(rows * o_.hidden * 2)));
      check(cudaStreamSynchronize(bench.stream_), "dispatch");
      bench.shared_.sync.arrive_and_wait();
      std::vector<CombineResult> keep(sets.size());
      bench.time_sets(3, [&](std::size_t i) {
        const DispatchResult& from = results[i];
        keep[i] = group.combine(combine_args(bench, group, from, op, sms, any));
      });
      verify_combine(bench, group, sets, tokens, op, sms, any);
    } else {
      std::vector<DispatchResult> keep(sets.size());
      bench.time_sets(3,
                      [&](std::size_t i) { keep[i] = group.dispatch(dispatch_args(bench, sets[i], tokens, op, sms)); });
      verify_dispatch(bench, group, sets, tokens, op, sms);
    }
    group.check();
    bench.shared_.sync.arrive_and_wait();
    if (bench.rank_ == 0) report(tokens, op, sms);
    if (any != nullptr) cudaFree(any);
    bench.shared_.sync.arrive_and_wait();
  }

  /// (source, token) of each rank-major row of a rank.
  std::vector<std::pair<int, std::int64_t>> expected_rows(std::int64_t tokens, int rank, int set) const {
    std::vector<std::pair<int, std::int64_t>> rows;
    for (int source = 0; source < ranks_; ++source) {
      const auto needed = ranks_needed(o_, make_routing(o_, tokens, source, set), ranks_);
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (needed[static_cast<std::size_t>(t)] >> rank & 1) rows.push_back({source, t});
      }
    }
    return rows;
  }

  void verify_dispatch(RankBench& bench, Group& group, const std::vector<Set>& sets, std::int64_t tokens,
                       const std::string& op, int sms) {
    DispatchArgs args = dispatch_args(bench, sets[0], tokens, op, sms);
    args.host_counts = true;
    const DispatchResult result = group.dispatch(args);
    check(cudaStreamSynchronize(bench.stream_), "dispatch");
    bool good = true;
    if (op != "dispatch-expert") {
      const auto rows = expected_rows(tokens, bench.rank_, 0);
      good = static_cast<std::int64_t>(rows.size()) == result.handle.num_rows();
      const std::int64_t row_bytes = op == "dispatch-fp8" ? o_.hidden : o_.hidden * 2;
      std::vector<std::byte> seen(static_cast<std::size_t>(row_bytes));
      for (std::size_t n = 0; good && n < rows.size(); n += 1 + rows.size() / 200) {
        check(
            cudaMemcpy(seen.data(),
                       static_cast<const std::byte*>(result.payload[0].data) + static_cast<std::int64_t>(n) * row_bytes,
                       seen.size(), cudaMemcpyDeviceToHost),
            "cudaMemcpy");
        // The fp8 row of token t is the t-th run of `hidden` bytes of the bf16 tensor.
        for (std::int64_t i = 0; good && i < row_bytes; ++i) {
          const std::int64_t byte = rows[n].second * row_bytes + i;
          const std::int64_t element = byte / 2;
          const std::uint16_t value = value_of(element / o_.hidden, element % o_.hidden, rows[n].first, 0);
          good = seen[static_cast<std::size_t>(i)] == static_cast<std::byte>(byte % 2 == 0 ? value & 0xff : value >> 8);
        }
      }
    } else {
      // Every expert row holds some token's row: count rows against the routing.
      std::int64_t wanted = 0;
      const Placement placement = Placement::contiguous(o_.experts, ranks_);
      for (int source = 0; source < ranks_; ++source) {
        for (std::int64_t id : make_routing(o_, tokens, source, 0))
          wanted += placement.rank_of_slot(placement.slots_of(static_cast<int>(id))[0]) == bench.rank_ ? 1 : 0;
      }
      std::int64_t seen = 0;
      for (std::int32_t count : result.handle.expert_counts()) seen += count;
      good = seen == wanted;
      std::vector<std::uint16_t> row(static_cast<std::size_t>(o_.hidden));
      for (std::int64_t n = 0; good && n < seen; n += 1 + seen / 100) {
        check(cudaMemcpy(row.data(), static_cast<const std::uint16_t*>(result.payload[0].data) + n * o_.hidden,
                         row.size() * 2, cudaMemcpyDeviceToHost),
              "cudaMemcpy");
        for (std::int64_t j = 1; good && j < o_.hidden; ++j)
          good = ((row[static_cast<std::size_t>(j)] - row[static_cast<std::size_t>(j - 1)]) & 0x7f) == 7;
      }
    }
    if (!good) shared_.verified = false;
  }

  CombineArgs combine_args(RankBench& bench, Group& group, const DispatchResult& from, const std::string& op, int sms,
                           std::byte* any) {
    CombineArgs args;
    args.handle = &from.handle;
    args.x = any == nullptr
                 ? group.combine_input(from.handle, DType::kBf16, o_.hidden)
                 : Tensor::contiguous(static_cast<void*>(any), DType::kBf16, {from.handle.num_rows(), o_.hidden});
    if (op == "combine-flat") args.reduction = Reduction::flat();
    if (op == "combine-node") args.reduction = Reduction::per_node();
    args.num_sms = sms;
    args.stream = bench.stream_;
    return args;
  }

  /// The experts return the rows they got: a token's sum is its row times the number of its ranks, or of its choices.
  void verify_combine(RankBench& bench, Group& group, const std::vector<Set>& sets, std::int64_t tokens,
                      const std::string& op, int sms, std::byte* any) {
    DispatchArgs args = dispatch_args(bench, sets[0], tokens, op, sms);
    args.host_counts = true;
    const DispatchResult result = group.dispatch(args);
    const CombineArgs back = combine_args(bench, group, result, op, sms, any);
    check(
        cudaMemcpyAsync(back.x.data, result.payload[0].data, static_cast<std::size_t>(back.x.shape[0] * o_.hidden * 2),
                        cudaMemcpyDeviceToDevice, bench.stream_),
        "cudaMemcpyAsync");
    const CombineResult combined = group.combine(back);
    std::vector<std::uint16_t> row(static_cast<std::size_t>(o_.hidden));
    check(cudaStreamSynchronize(bench.stream_), "combine");
    bool good = true;
    for (std::int64_t t = 0; good && t < tokens; t += 1 + tokens / 100) {
      check(cudaMemcpy(row.data(), static_cast<const std::uint16_t*>(combined.out.data) + t * o_.hidden, row.size() * 2,
                       cudaMemcpyDeviceToHost),
            "cudaMemcpy");
      const int count =
          op == "combine-flat" ? o_.top_k : __builtin_popcount(sets[0].needed[static_cast<std::size_t>(t)]);
      for (std::int64_t j = 0; good && j < o_.hidden; ++j) {
        const std::uint32_t bits = static_cast<std::uint32_t>(value_of(t, j, bench.rank_, 0)) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        const float sum = value * static_cast<float>(count);
        std::uint32_t sum_bits;
        std::memcpy(&sum_bits, &sum, 4);
        const auto rounded = static_cast<std::uint16_t>((sum_bits + 0x7fff + ((sum_bits >> 16) & 1)) >> 16);
        good = row[static_cast<std::size_t>(j)] == rounded;
      }
    }
    if (!good) shared_.verified = false;
  }

  void report(std::int64_t tokens, const std::string& op, int sms) {
    const bool combine = op.rfind("combine", 0) == 0;
    const std::vector<double> times = slowest(shared_.times);
    const std::string payload = op == "dispatch-fp8" ? "fp8_f32" : "bf16";
    const std::int64_t row_bytes = op == "dispatch-fp8" ? o_.hidden + (o_.hidden + 127) / 128 * 4 : 2 * o_.hidden;
    double rows = 0;
    const auto unit = op == "combine-flat" ? bench::Unit::kChoice : bench::Unit::kToken;
    using bench::Across;
    const Across across = op == "combine-flat"              ? Across::kChoice
                          : combine && op != "combine-node" ? Across::kRank
                                                            : Across::kNode;
    for (int s = 0; s < o_.sets; ++s) {
      rows +=
          (o_.nodes > 1 ? bench::busiest_across(o_, tokens, ranks_, s, across) : busiest(o_, tokens, ranks_, s, unit)) /
          o_.sets;
    }
    const double bytes = rows * static_cast<double>(row_bytes);
    const std::string sum = op == "combine-flat" ? "flat" : op == "combine-node" ? "per_node" : "per_rank";
    nlohmann::ordered_json line = lines_.make({.mode = "throughput",
                                               .op = combine ? "combine" : "dispatch",
                                               .layout = is_by_expert(op) ? "expert_major" : "rank_major",
                                               .payload = payload,
                                               .codec = payload,
                                               .reduction = combine ? sum : "",
                                               .tokens = tokens,
                                               .num_sms = sms,
                                               .necessary_bytes = bytes,
                                               .logical_bytes = static_cast<double>(tokens * o_.top_k * row_bytes),
                                               .verified = shared_.verified},
                                              times);
    // Between nodes it is the emulated link that bounds a call; without a limit, what one GPU can send to another.
    const double ceiling = o_.nodes > 1 && o_.link_gbps > 0 ? o_.link_gbps : lines_.ceiling;
    line["ceiling_gbps"] = ceiling;
    line["fraction"] = bytes / (median(times) * 1e3) / ceiling;
    line["nodes"] = o_.nodes;
    if (o_.nodes > 1) line["network"] = "loopback";
    if (o_.nodes > 1 && o_.link_gbps > 0) line["link_limit_gbps"] = o_.link_gbps;
    if (combine) line["input"] = op == "combine-any" ? "any" : "window";
    if (!combine) line["output"] = op == "dispatch-owned" ? "owned" : "window";
    lines_.append(line);
    std::printf("%-16s %5ld tokens %3d SMs: %8.1f us (p90 %8.1f)  floor %6.1f  fraction %.3f  %s\n", op.c_str(),
                static_cast<long>(tokens), sms, median(times), bench::quantile(times, 0.9), bytes / ceiling * 1e-3,
                line["fraction"].get<double>(), shared_.verified ? "verified" : "WRONG");
    std::fflush(stdout);
    all_verified_ = all_verified_ && shared_.verified;
    shared_.verified = true;
  }

  const Settings& o_;
  const int ranks_;
  Shared shared_;
  bench::Lines lines_;
  bool all_verified_ = true;
};

}  // namespace

int ferry_cuda_throughput_main(int argc, char** argv) {
  Settings o;
  const std::vector<std::string> all_ops = o.ops;
  app::Program program("Dispatch and combine on GPUs, a thread per GPU, each call timed alone");
  app::Options options = program.options();
  options.some_of("--ops", o.ops, all_ops, "what to measure");
  options.number("--ranks", o.ranks, 0, kMaxGpus, "GPUs; 0: all");
  options.number("--nodes", o.nodes, 1, kMaxGpus,
                 "pretend nodes of equal size, between which the loopback network copies");
  options.number("--link-gbps", o.link_gbps, 0, 1000,
                 "GB/s that a rank seems to send to other nodes with; 0: as fast as it goes");
  bench::add_cuda_options(options, o, 64);
  bench::add_launch_option(options, o);
  if (const auto ended = program.parse(argc, argv)) return *ended;
  if (o.top_k > o.experts) {
    std::fprintf(stderr, "--top-k: %d given, expected at most the number of experts, %d\n", o.top_k, o.experts);
    return 2;
  }
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
    std::fprintf(stderr, "cuda_throughput: no GPU\n");
    return 1;
  }
  const int ranks = o.ranks > 0 ? std::min(o.ranks, gpus) : std::min(gpus, kMaxGpus);
  if (ranks % o.nodes != 0) {
    std::fprintf(stderr, "--nodes: %d given, expected a divisor of the number of ranks, %d\n", o.nodes, ranks);
    return 2;
  }
  return Runner(o, ranks).run() ? 0 : 1;
}
