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
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_settings.h"

namespace {

using ferry::bench::Settings;

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

struct Shared {
  explicit Shared(int ranks) : sync(ranks), flags{}, link(static_cast<std::size_t>(ranks)) {}
  std::barrier<> sync;
  Flags flags;
  std::vector<std::byte*> link;
  std::vector<std::vector<double>> times;        ///< [rank][iteration]
  std::vector<std::vector<double>> first_times;  ///< of the first of two calls, time_apart()
  bool verified = true;
};

class RankBench {
 public:
  RankBench(const Settings& options, int rank, int ranks, Shared& shared)
      : RankBench(options, rank, ranks, shared, rank) {}
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
    const auto num_sets = static_cast<std::size_t>(o_.sets);
    if (o_.launch == "direct")
      return time(warm_up, o_.iterations, [&](int i) { call(static_cast<std::size_t>(i) % num_sets); });
    std::vector<cudaGraphExec_t> graphs(num_sets);
    for (std::size_t set = 0; set < num_sets; ++set) {
      cudaGraph_t graph = nullptr;
      check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
      call(set);
      check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
      check(cudaGraphInstantiate(&graphs[set], graph, 0), "cudaGraphInstantiate");
      check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    }
    shared_.sync.arrive_and_wait();  // whoever makes a graph may have to wait for kernels
    time(warm_up, o_.iterations, [&](int i) {
      check(cudaGraphLaunch(graphs[static_cast<std::size_t>(i) % num_sets], stream_), "cudaGraphLaunch");
    });
    for (cudaGraphExec_t graph : graphs) check(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
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
    const auto timed = [&](int i, auto& call, std::vector<double>& to) {
      barrier();
      check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
      call(i);
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

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}
/// Per iteration the slowest rank.
std::vector<double> slowest(const Shared& shared) {
  std::vector<double> out = shared.times[0];
  for (const auto& times : shared.times) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::max(out[i], times[i]);
  }
  return out;
}

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
