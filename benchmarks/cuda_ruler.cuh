// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The ruler of the benchmarks on GPUs: a barrier of all ranks, timed calls, and the link's ceiling. For files of one program each.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_report.h"
#include "cuda_settings.h"

namespace {

using ferry::bench::make_routing;
using ferry::bench::median;
using ferry::bench::Settings;
using ferry::bench::slowest;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

constexpr int kMaxGpus = 8;
constexpr long long kHoldCycles = 120000;  // some 65 us
struct Flags {
  unsigned long long* of[kMaxGpus];  ///< [kMaxGpus] words on each GPU
};

__device__ void meet(const Flags& flags, int rank, unsigned long long round) {
  const int peer = static_cast<int>(threadIdx.x);
  __threadfence_system();
  *reinterpret_cast<volatile unsigned long long*>(flags.of[peer] + rank) = round;
  __threadfence_system();
  const long long start = clock64();
  while (*reinterpret_cast<volatile unsigned long long*>(flags.of[rank] + peer) < round) {
    if (clock64() - start > 4000000000ll) return;  // about two seconds
  }
}

/// All devices leave it at about the same time, and not before every host had time to queue the call behind it: what is timed
/// begins when the stream reaches the call.
__global__ void barrier_kernel(Flags flags, int rank, int ranks, unsigned long long round, long long hold_cycles) {
  if (static_cast<int>(threadIdx.x) >= ranks) return;
  meet(flags, rank, 2 * round - 1);
  const long long start = clock64();
  while (clock64() - start < hold_cycles) {
  }
  meet(flags, rank, 2 * round);
}

__global__ void __launch_bounds__(1024) push_kernel(uint4* to, const uint4* from, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    to[i] = a;
    to[i + step] = b;
    to[i + 2 * step] = c;
    to[i + 3 * step] = d;
  }
  for (; i < count; i += step) to[i] = from[i];
}

__global__ void fill_kernel(std::uint16_t* x, std::int64_t tokens, std::int64_t hidden, int rank, int set) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < tokens * hidden;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const std::int64_t t = i / hidden, j = i % hidden;
    // bf16 values from 1 to 2 with 7 bits that depend on everything.
    x[i] = static_cast<std::uint16_t>(0x3f80 | ((t * 31 + j * 7 + rank * 13 + set * 5 + (t >> 5)) & 0x7f));
  }
}
std::uint16_t value_of(std::int64_t t, std::int64_t j, int rank, int set) {
  return static_cast<std::uint16_t>(0x3f80 | ((t * 31 + j * 7 + rank * 13 + set * 5 + (t >> 5)) & 0x7f));
}

struct DeviceFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
template <typename T>
using DeviceArray = std::unique_ptr<T[], DeviceFree>;

/// A rank's tokens, their choices and weights of 2 / top-k.
struct Inputs {
  DeviceArray<std::uint16_t> x;
  DeviceArray<std::int64_t> ids;
  DeviceArray<float> weights;
};

struct Shared {
  explicit Shared(int ranks)
      : sync(ranks), flags{}, link(static_cast<std::size_t>(ranks)), times(static_cast<std::size_t>(ranks)) {}
  std::barrier<> sync;
  Flags flags;
  std::vector<std::byte*> link;
  std::vector<std::vector<double>> times;        ///< [rank][iteration]
  std::vector<std::vector<double>> first_times;  ///< of the first of two calls, time_apart()
  bool verified = true;
};

class RankBench {
 public:
  RankBench(const Settings& options, int rank, int ranks, Shared& shared, int device)
      : o_(options), rank_(rank), ranks_(ranks), shared_(shared) {
    check(cudaSetDevice(device), "cudaSetDevice");
    if (device != rank) hold_cycles_ *= 8;  // ranks of one GPU share its context, and wait for each other to launch
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer != device) cudaDeviceEnablePeerAccess(peer, 0);
    }
    cudaGetLastError();
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    shared_.flags.of[rank] = static_cast<unsigned long long*>(allocate(sizeof(unsigned long long) * kMaxGpus));
    check(cudaMemset(shared_.flags.of[rank], 0, sizeof(unsigned long long) * kMaxGpus), "cudaMemset");
    shared_.link[static_cast<std::size_t>(rank)] = static_cast<std::byte*>(allocate(kLinkBytes));
    link_source_ = static_cast<std::byte*>(allocate(kLinkBytes));
    check(cudaDeviceSynchronize(), "cudaMemset");
    shared_.sync.arrive_and_wait();
  }

  void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
  }
  template <typename T>
  DeviceArray<T> allocate_array(std::int64_t count) {
    return DeviceArray<T>(static_cast<T*>(allocate(static_cast<std::size_t>(count) * sizeof(T))));
  }
  Inputs make_inputs(std::int64_t tokens, int set) {
    const std::int64_t choices = tokens * o_.top_k;
    Inputs in{allocate_array<std::uint16_t>(tokens * o_.hidden), allocate_array<std::int64_t>(choices),
              allocate_array<float>(choices)};
    const auto ids = make_routing(o_, tokens, rank_, set);
    check(cudaMemcpy(in.ids.get(), ids.data(), ids.size() * 8, cudaMemcpyHostToDevice), "cudaMemcpy");
    const std::vector<float> weights(ids.size(), 2.0f / static_cast<float>(o_.top_k));
    check(cudaMemcpy(in.weights.get(), weights.data(), weights.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
    fill_kernel<<<128, 256, 0, stream_>>>(in.x.get(), tokens, o_.hidden, rank_, set);
    check(cudaStreamSynchronize(stream_), "filling inputs");
    return in;
  }

  /// GB/s of the link: every rank pushes to its neighbour; of all ranks the slowest.
  double link_gbps(int sms) {
    time(3, 10, [&](int) { push(sms); });
    const double gbps = kLinkBytes / median(slowest(shared_.times)) * 1e-3;
    shared_.sync.arrive_and_wait();
    return gbps;
  }
  void barrier() { barrier_kernel<<<1, kMaxGpus, 0, stream_>>>(shared_.flags, rank_, ranks_, ++round_, hold_cycles_); }

  /// Calls `call` alone, again and again; its times in us go to shared_.times[rank].
  template <typename Call>
  void time(int warm_up, int iterations, Call&& call) {
    auto& times = shared_.times[static_cast<std::size_t>(rank_)];
    times.clear();
    for (int i = 0; i < warm_up + iterations; ++i) {
      barrier();
      check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
      const auto called = std::chrono::steady_clock::now();
      call(i);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - called;
      check(cudaEventRecord(end_, stream_), "cudaEventRecord");
      check(cudaStreamSynchronize(stream_), "the timed call");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
      if (i < warm_up) continue;
      times.push_back(1000.0 * ms);
      host_us_ = i == warm_up ? took.count() * 1e6 : std::min(host_us_, took.count() * 1e6);
    }
    shared_.sync.arrive_and_wait();
  }

  /// Times call(set) for one input set after the other, directly or as a replay of its graph.
  template <typename Call>
  void time_sets(int warm_up, Call&& call) {
    const Replays replays(*this, call);
    time(warm_up, o_.iterations, [&](int i) { replays.run(i, call); });
  }

  /// The same of two calls in turn, as a model makes them: first(set), second(set). The first one's times go to first_times.
  template <typename First, typename Second>
  void time_pairs(int warm_up, First&& first, Second&& second) {
    const Replays firsts(*this, first), seconds(*this, second);
    time_apart(
        warm_up, o_.iterations, [&](int i) { firsts.run(i, first); }, [&](int i) { seconds.run(i, second); });
  }

  /// Two calls that belong together, each timed alone behind a barrier of its own; the first one's times go to first_times.
  template <typename First, typename Second>
  void time_apart(int warm_up, int iterations, First&& first, Second&& second) {
    auto& times = shared_.times[static_cast<std::size_t>(rank_)];
    shared_.sync.arrive_and_wait();
    if (rank_ == 0) shared_.first_times.assign(static_cast<std::size_t>(ranks_), {});
    shared_.sync.arrive_and_wait();
    auto& first_times = shared_.first_times[static_cast<std::size_t>(rank_)];
    times.clear();
    host_us_ = 0;
    const auto timed = [&](int i, auto& call, std::vector<double>& to) {
      barrier();
      check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
      const auto called = std::chrono::steady_clock::now();
      call(i);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - called;
      if (host_us_ == 0 || took.count() * 1e6 < host_us_) host_us_ = took.count() * 1e6;
      check(cudaEventRecord(end_, stream_), "cudaEventRecord");
      check(cudaStreamSynchronize(stream_), "the timed call");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
      if (i >= warm_up) to.push_back(1000.0 * ms);
    };
    for (int i = 0; i < warm_up + iterations; ++i) {
      timed(i, first, first_times);
      timed(i, second, times);
    }
    shared_.sync.arrive_and_wait();
  }

  void push(int sms) {
    push_kernel<<<sms, 1024, 0, stream_>>>(
        reinterpret_cast<uint4*>(shared_.link[static_cast<std::size_t>((rank_ + 1) % ranks_)]),
        reinterpret_cast<const uint4*>(link_source_), static_cast<std::int64_t>(kLinkBytes / 16));
  }

  /// A call with each set of inputs, captured and replayed if the settings say so.
  class Replays {
   public:
    template <typename Call>
    Replays(RankBench& bench, Call& call) : bench_(bench), num_sets_(static_cast<std::size_t>(bench.o_.sets)) {
      if (bench.o_.launch == "direct") return;
      graphs_.resize(num_sets_);
      for (std::size_t set = 0; set < num_sets_; ++set) {
        cudaGraph_t graph = nullptr;
        check(cudaStreamBeginCapture(bench.stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        call(set);
        check(cudaStreamEndCapture(bench.stream_, &graph), "cudaStreamEndCapture");
        check(cudaGraphInstantiate(&graphs_[set], graph, 0), "cudaGraphInstantiate");
        check(cudaGraphDestroy(graph), "cudaGraphDestroy");
      }
      bench.shared_.sync.arrive_and_wait();  // whoever makes a graph may have to wait for kernels
    }
    ~Replays() {
      for (cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
    }
    Replays(const Replays&) = delete;
    Replays& operator=(const Replays&) = delete;

    template <typename Call>
    void run(int i, Call& call) const {
      const std::size_t set = static_cast<std::size_t>(i) % num_sets_;
      if (graphs_.empty()) return call(set);
      check(cudaGraphLaunch(graphs_[set], bench_.stream_), "cudaGraphLaunch");
    }

   private:
    const RankBench& bench_;
    const std::size_t num_sets_;
    std::vector<cudaGraphExec_t> graphs_;
  };

  static constexpr std::size_t kLinkBytes = std::size_t{256} << 20;
  const Settings& o_;
  const int rank_, ranks_;
  Shared& shared_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::byte* link_source_ = nullptr;
  unsigned long long round_ = 0;
  long long hold_cycles_ = kHoldCycles;
  double host_us_ = 0;  ///< least time that a call of the last time() took on the host
};

/// "2xH200"
std::string machine_name(int gpus) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::string gpu = properties.name;
  if (gpu.starts_with("NVIDIA ")) gpu.erase(0, 7);
  std::replace(gpu.begin(), gpu.end(), ' ', '-');
  return std::to_string(gpus) + "x" + gpu;
}

}  // namespace
