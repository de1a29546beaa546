// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Latency mode on GPUs, a thread per rank: whole calls, each timed alone as in cuda_throughput.cu (a barrier of the ranks, an event,
// the call, an event; the slowest rank counts), directly and as replays of a graph; and the four halves of calls with hooks, each
// receive launched after its data has arrived. One JSON line per measurement (benchmarks/README.md). Several ranks on one GPU share
// its SMs: such figures say how the code runs, not how fast a link is.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "cuda_ruler.cuh"
#include "cuda_settings.h"
#include "ferry/ferry.h"
#include "options.h"

namespace {

using namespace ferry;
using bench::busiest;
using bench::make_routing;

struct LatencySettings {
  Settings common;
  int ranks = 0;
  Codec combine_codec = Codec::kNone;
};

/// logfmt10 packs magnitudes below 1 only: the experts' rows are so many octaves smaller than what they got.
constexpr int kOctaves = 6;

__global__ void shrink_kernel(std::uint16_t* values, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    values[i] = static_cast<std::uint16_t>(values[i] - (kOctaves << 7));
}

/// Inputs of one rotation.
struct Inputs {
  std::uint16_t* x;
  std::int64_t* ids;
  float* weights;
};

/// Every call's arguments, results and checks on one rank.
class Calls {
 public:
  Calls(RankBench& bench, const LatencySettings& settings, Group& group, std::int64_t tokens, int sms)
      : bench_(bench),
        o_(settings.common),
        combine_codec_(settings.combine_codec),
        group_(group),
        tokens_(tokens),
        sms_(sms) {
    const Settings& o = o_;
    for (int s = 0; s < o.sets; ++s) inputs_.push_back(make_inputs(s));
    const auto rows = static_cast<std::size_t>(o.experts / bench.ranks_) * static_cast<std::size_t>(capacity());
    y_ = static_cast<std::uint16_t*>(bench.allocate(rows * static_cast<std::size_t>(o.hidden) * 2));
    out_ = static_cast<std::uint16_t*>(bench.allocate(static_cast<std::size_t>(tokens * o.hidden) * 2));
    fill_kernel<<<128, 256, 0, bench.stream_>>>(y_, static_cast<std::int64_t>(rows), o.hidden, bench.rank_, 0);
    shrink_kernel<<<128, 256, 0, bench.stream_>>>(y_, static_cast<std::int64_t>(rows) * o.hidden);
    check(cudaStreamSynchronize(bench.stream_), "filling inputs");
  }
  ~Calls() {
    for (const Inputs& inputs : inputs_) {
      cudaFree(inputs.x);
      cudaFree(inputs.ids);
      cudaFree(inputs.weights);
    }
    cudaFree(y_);
    cudaFree(out_);
  }
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  std::int64_t capacity() const { return tokens_ * bench_.ranks_; }

  DispatchArgs dispatch_args(int set) const {
    const Inputs& in = inputs_[static_cast<std::size_t>(set)];
    DispatchArgs args;
    args.mode = Mode::kLatency;
    args.layout = Layout::kExpertPadded;
    args.codec = Codec::kFp8F32;
    args.payload = {Tensor::contiguous(static_cast<void*>(in.x), DType::kBf16, {tokens_, o_.hidden})};
    args.topk_ids = Tensor::contiguous(static_cast<void*>(in.ids), DType::kInt64, {tokens_, o_.top_k});
    args.topk_weights = Tensor::contiguous(static_cast<void*>(in.weights), DType::kFp32, {tokens_, o_.top_k});
    args.expert_capacity = capacity();
    args.host_counts = false;
    args.num_sms = sms_;
    args.stream = bench_.stream_;
    return args;
  }
  CombineArgs combine_args(const DispatchResult& from, Reduction reduction) const {
    CombineArgs args;
    args.handle = &from.handle;
    args.x =
        Tensor::contiguous(static_cast<void*>(y_), DType::kBf16, {o_.experts / bench_.ranks_, capacity(), o_.hidden});
    args.reduction = reduction;
    args.weighting = CombineArgs::Weighting::kFromDispatch;
    args.codec = combine_codec_;
    args.out = Tensor::contiguous(static_cast<void*>(out_), DType::kBf16, {tokens_, o_.hidden});
    args.num_sms = sms_;
    args.stream = bench_.stream_;
    return args;
  }

  /// The experts return the rows they got, kOctaves smaller, with weights that are powers of two and sum to 2: a token comes back
  /// as twice that, as the codecs made it.
  bool verify() {
    const DispatchResult arrived = group_.dispatch(dispatch_args(0));
    check(cudaStreamSynchronize(bench_.stream_), "dispatch");
    const int local = o_.experts / bench_.ranks_;
    std::vector<std::int32_t> counts(static_cast<std::size_t>(local));
    check(cudaMemcpy(counts.data(), arrived.expert_counts.data, counts.size() * 4, cudaMemcpyDeviceToHost), "counts");
    std::int64_t wanted = 0, seen = 0;
    for (int source = 0; source < bench_.ranks_; ++source) {
      for (const std::int64_t id : make_routing(o_, tokens_, source, 0)) wanted += id / local == bench_.rank_ ? 1 : 0;
    }
    std::vector<std::uint8_t> row(static_cast<std::size_t>(o_.hidden));
    std::vector<float> scales(static_cast<std::size_t>((o_.hidden + 127) / 128));
    std::vector<std::uint16_t> restored(static_cast<std::size_t>(o_.hidden));
    for (int e = 0; e < local; ++e) {
      seen += counts[static_cast<std::size_t>(e)];
      for (std::int64_t n = 0; n < counts[static_cast<std::size_t>(e)]; ++n) {
        const std::int64_t at = e * capacity() + n;
        check(cudaMemcpy(row.data(), static_cast<std::uint8_t*>(arrived.payload[0].data) + at * o_.hidden, row.size(),
                         cudaMemcpyDeviceToHost),
              "row");
        const std::int64_t stride = arrived.payload[1].strides[1];
        check(cudaMemcpy(scales.data(), static_cast<float*>(arrived.payload[1].data) + at * stride, scales.size() * 4,
                         cudaMemcpyDeviceToHost),
              "scales");
        for (std::int64_t j = 0; j < o_.hidden; ++j)
          restored[static_cast<std::size_t>(j)] = to_bf16(std::ldexp(
              from_e4m3(row[static_cast<std::size_t>(j)]) * scales[static_cast<std::size_t>(j / 128)], -kOctaves));
        check(cudaMemcpy(y_ + at * o_.hidden, restored.data(), restored.size() * 2, cudaMemcpyHostToDevice), "row");
      }
    }
    bench_.shared_.sync
        .arrive_and_wait();  // copies may queue behind kernels that wait for them, where ranks share a GPU
    if (seen != wanted) return false;
    group_.combine(combine_args(arrived, Reduction::per_rank()));
    std::vector<std::uint16_t> sums(static_cast<std::size_t>(o_.hidden));
    check(cudaStreamSynchronize(bench_.stream_), "combine");
    for (std::int64_t t = 0; t < tokens_; ++t) {
      check(cudaMemcpy(sums.data(), out_ + t * o_.hidden, sums.size() * 2, cudaMemcpyDeviceToHost), "out");
      for (std::int64_t j = 0; j < o_.hidden; ++j) {
        // fp8 keeps 4 significant bits and bf16 8: within 1/16 and a little, and once more for a codec of combine.
        const float off = combine_codec_ == Codec::kNone ? 0.08f : combine_codec_ == Codec::kLogfmt10 ? 0.1f : 0.15f;
        const float expected = std::ldexp(2.0f * from_bf16(value_of(t, j, bench_.rank_, 0)), -kOctaves);
        const float value = from_bf16(sums[static_cast<std::size_t>(j)]);
        if (!(value > expected * (1 - off) && value < expected * (1 + off))) return false;
      }
    }
    return true;
  }

 private:
  Inputs make_inputs(int set) {
    Inputs in;
    const auto choices = static_cast<std::size_t>(tokens_ * o_.top_k);
    in.x = static_cast<std::uint16_t*>(bench_.allocate(static_cast<std::size_t>(tokens_ * o_.hidden * 2)));
    in.ids = static_cast<std::int64_t*>(bench_.allocate(choices * 8));
    in.weights = static_cast<float*>(bench_.allocate(choices * 4));
    const auto ids = make_routing(o_, tokens_, bench_.rank_, set);
    check(cudaMemcpy(in.ids, ids.data(), choices * 8, cudaMemcpyHostToDevice), "cudaMemcpy");
    std::vector<float> weights(choices, 2.0f / static_cast<float>(o_.top_k));
    check(cudaMemcpy(in.weights, weights.data(), choices * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
    fill_kernel<<<128, 256, 0, bench_.stream_>>>(in.x, tokens_, o_.hidden, bench_.rank_, set);
    check(cudaStreamSynchronize(bench_.stream_), "filling inputs");
    return in;
  }
  static float from_bf16(std::uint16_t code) {
    const std::uint32_t bits = static_cast<std::uint32_t>(code) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  static std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static float from_e4m3(std::uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                          : std::ldexp(1.0f + static_cast<float>(mantissa) / 8, exponent - 7);
    return (code & 0x80) != 0 ? -magnitude : magnitude;
  }

  RankBench& bench_;
  const Settings& o_;
  const Codec combine_codec_;
  Group& group_;
  const std::int64_t tokens_;
  const int sms_;
  std::vector<Inputs> inputs_;
  std::uint16_t *y_ = nullptr, *out_ = nullptr;
};

class LatencyRunner {
 public:
  LatencyRunner(const LatencySettings& settings, int ranks, int gpus)
      : settings_(settings), o_(settings_.common), ranks_(ranks), gpus_(gpus), shared_(ranks) {
    shared_.times.resize(static_cast<std::size_t>(ranks));
    if (!o_.json.empty()) file_ = std::fopen(o_.json.c_str(), "a");
  }
  ~LatencyRunner() {
    if (file_ != nullptr) std::fclose(file_);
  }

  bool run() {
    auto meetings = meet_in_process(ranks_);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks_; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          RankBench bench(o_, rank, ranks_, shared_, rank % gpus_);
          if (ranks_ <= gpus_) {
            bench.time(3, 10, [&](int) { bench.push(132); });
            if (rank == 0) ceiling_ = RankBench::kLinkBytes / median(slowest(shared_)) * 1e-3;
          }
          shared_.sync.arrive_and_wait();
          for (const std::int64_t tokens : o_.tokens)
            run_tokens(bench, *meetings[static_cast<std::size_t>(rank)], tokens);
        } catch (const std::exception& error) {
          std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
          std::fflush(nullptr);
          std::_Exit(1);  // the others wait for this rank
        }
      });
    }
    for (auto& thread : threads) thread.join();
    return all_verified_;
  }

 private:
  void run_tokens(RankBench& bench, Meeting& meeting, std::int64_t tokens) {
    GroupConfig config;
    config.backend = "cuda";
    config.device = bench.rank_ % gpus_;
    config.limits.num_experts = o_.experts;
    config.limits.max_tokens = 1;
    config.limits.recv_rows = 64;
    config.limits.max_latency_tokens = tokens;
    config.limits.max_top_k = o_.top_k;
    config.limits.hidden = o_.hidden;
    config.timeout = std::chrono::seconds(5);
    Group group = Group::create(config, meeting);
    for (const int sms : o_.sms) {
      Calls calls(bench, settings_, group, tokens, sms);
      shared_.sync.arrive_and_wait();
      if (!calls.verify()) shared_.verified = false;
      group.check();
      shared_.sync.arrive_and_wait();
      measure_whole(bench, group, calls, tokens, sms);
      measure_halves(bench, group, calls, tokens, sms);
      shared_.sync.arrive_and_wait();
    }
    group.close();
    shared_.sync.arrive_and_wait();
  }

  void measure_whole(RankBench& bench, Group& group, Calls& calls, std::int64_t tokens, int sms) {
    const auto num_sets = static_cast<std::size_t>(o_.sets);
    std::vector<DispatchResult> arrived(num_sets);
    bench.time_sets(10, [&](std::size_t s) { arrived[s] = group.dispatch(calls.dispatch_args(static_cast<int>(s))); });
    report(bench, "dispatch", "", tokens, sms);
    for (const Reduction reduction : {Reduction::per_rank(), Reduction::flat()}) {
      bench.time_sets(10, [&](std::size_t s) { group.combine(calls.combine_args(arrived[s], reduction)); });
      report(bench, "combine", reduction == Reduction::flat() ? "flat" : "per_rank", tokens, sms);
    }
    group.check();
  }

  /// A send, everybody's data arrives, then the receive: with nothing to wait for, its time is its work.
  void measure_halves(RankBench& bench, Group& group, Calls& calls, std::int64_t tokens, int sms) {
    if (o_.launch != "direct") return;
    PendingDispatch dispatch;
    PendingCombine combine;
    DispatchResult arrived = group.dispatch(calls.dispatch_args(0));
    bench.time_apart(
        5, o_.iterations, [&](int i) { dispatch = group.dispatch_send(calls.dispatch_args(i % o_.sets)); },
        [&](int) { arrived = dispatch.receive(); });
    report(bench, "dispatch_recv", "", tokens, sms);
    swap_times();
    report(bench, "dispatch_send", "", tokens, sms);
    bench.time_apart(
        5, o_.iterations,
        [&](int) { combine = group.combine_send(calls.combine_args(arrived, Reduction::per_rank())); },
        [&](int) { combine.receive(); });
    report(bench, "combine_recv", "per_rank", tokens, sms);
    swap_times();
    report(bench, "combine_send", "per_rank", tokens, sms);
    group.check();
  }
  void swap_times() {
    shared_.sync.arrive_and_wait();
    if (std::this_thread::get_id() == reporter_) std::swap(shared_.times, shared_.first_times);
    shared_.sync.arrive_and_wait();
  }

  void report(RankBench& bench, const std::string& op, const std::string& reduction, std::int64_t tokens, int sms) {
    shared_.sync.arrive_and_wait();
    if (bench.rank_ == 0) {
      reporter_ = std::this_thread::get_id();
      write_line(op, reduction, tokens, sms, bench.host_us_);
    }
    shared_.sync.arrive_and_wait();
  }

  void write_line(const std::string& op, const std::string& reduction, std::int64_t tokens, int sms, double host_us) {
    const std::vector<double> times = slowest(shared_);
    const bool combine = op.starts_with("combine");
    const Codec codec = combine ? settings_.combine_codec : Codec::kFp8F32;
    const std::int64_t channels_bytes = codec == Codec::kNone       ? 2 * o_.hidden
                                        : codec == Codec::kLogfmt10 ? o_.hidden * 10 / 8
                                                                    : o_.hidden;
    const std::int64_t row_bytes = channels_bytes + (codec == Codec::kNone ? 0 : (o_.hidden + 127) / 128 * 4);
    double rows = 0;
    const auto unit = reduction == "flat" ? bench::Unit::kChoice : bench::Unit::kToken;
    for (int s = 0; s < o_.sets; ++s) rows += busiest(o_, tokens, ranks_, s, unit) / o_.sets;
    const double bytes = rows * static_cast<double>(row_bytes), time = median(times);
    nlohmann::ordered_json line = {
        {"commit", o_.commit},
        {"date", o_.date},
        {"machine", machine_name(gpus_)},
        {"backend", "cuda"},
        {"ranks", ranks_},
        {"nodes", 1},
        {"ranks_as", "threads"},
        {"mode", "latency"},
        {"op", op},
        {"layout", "expert_padded"},
        {"payload", "bf16"},
        {"codec", codec == Codec::kNone ? "bf16" : name(codec)},
        {"reduction", reduction},
        {"tokens", tokens},
        {"hidden", o_.hidden},
        {"top_k", o_.top_k},
        {"experts", o_.experts},
        {"routing", o_.routing},
        {"network", "none"},
        {"link_limit_gbps", nullptr},
        {"launch", o_.launch},
        {"num_sms", sms},
        {"time_us_median", time},
        {"time_us_p90", quantile(times, 0.9)},
        {"time_us_p99", quantile(times, 0.99)},
        {"necessary_bytes", bytes},
        {"ceiling_gbps", ceiling_ > 0 ? nlohmann::ordered_json(ceiling_) : nullptr},
        {"fraction", ceiling_ > 0 ? nlohmann::ordered_json(bytes / (time * 1e3) / ceiling_) : nullptr},
        {"logical_gbps", static_cast<double>(tokens * o_.top_k * row_bytes) / (time * 1e3)},
        {"verified", shared_.verified}};
    if (file_ != nullptr) std::fprintf(file_, "%s\n", line.dump().c_str());
    std::printf("%-14s %-9s %-6s %4ld tokens %3d SMs: %7.1f us (p90 %7.1f, p99 %7.1f), host %5.1f us, %s\n", op.c_str(),
                reduction.c_str(), o_.launch.c_str(), static_cast<long>(tokens), sms, time, quantile(times, 0.9),
                quantile(times, 0.99), host_us, shared_.verified ? "verified" : "WRONG");
    std::fflush(stdout);
    all_verified_ = all_verified_ && shared_.verified;
  }

  const LatencySettings settings_;
  const Settings& o_;
  const int ranks_, gpus_;
  Shared shared_;
  std::thread::id reporter_;
  double ceiling_ = 0;
  bool all_verified_ = true;
  std::FILE* file_ = nullptr;
};

}  // namespace

int ferry_cuda_latency_main(int argc, char** argv) {
  LatencySettings settings;
  Settings& o = settings.common;
  o.tokens = {1, 8, 32, 128};
  o.sms = {0};
  o.iterations = 200;
  app::Program program("Latency mode on GPUs, a thread per rank, each call timed alone");
  app::Options options = program.options();
  options.values("--tokens", o.tokens, "tokens per rank; several values make several cases");
  options.values("--sms", o.sms, "SMs per call, 0: Ferry chooses; several values make several cases");
  options.word("--launch", o.launch, app::Words<std::string>{{"direct", "direct"}, {"graph", "graph"}},
               "direct calls or replays of captured ones (default: direct)");
  options.number("--ranks", settings.ranks, 0, kMaxGpus, "ranks; 0: one on each GPU; more than GPUs: several on one");
  options.word("--combine-codec", settings.combine_codec,
               app::Words<Codec>{{"none", Codec::kNone}, {"fp8_f32", Codec::kFp8F32}, {"logfmt10", Codec::kLogfmt10}},
               "how combine codes its rows (default: none)");
  options.number("--experts", o.experts, 1, 1 << 20, "experts of all ranks together");
  options.number("--top-k", o.top_k, 1, 32, "choices per token, a power of two");
  options.number("--hidden", o.hidden, 8, 1 << 20, "width of a row in elements");
  options.number("--iterations", o.iterations, 1, 1 << 20, "timed calls");
  options.json_file(o.json, "append one JSON line per measurement to this file");
  options.value("--commit", o.commit, "commit that the JSON lines name");
  options.value("--date", o.date, "date that the JSON lines name");
  if (const auto ended = program.parse(argc, argv)) return *ended;
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
    std::fprintf(stderr, "cuda_latency: no GPU\n");
    return 1;
  }
  const int ranks = settings.ranks > 0 ? settings.ranks : std::min(gpus, kMaxGpus);
  if (o.experts % ranks != 0) {
    std::fprintf(stderr, "--experts: %d given, expected a multiple of the number of ranks, %d\n", o.experts, ranks);
    return 2;
  }
  return LatencyRunner(settings, ranks, std::min(gpus, ranks)).run() ? 0 : 1;
}

int main(int argc, char** argv) {
  return ferry_cuda_latency_main(argc, argv);
}
