// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls the GPU benchmark.
#include "bench_gpu.h"

#include <fmt/format.h>

#include <stdexcept>

#include "gpu_memory.h"

/// benchmarks/cuda_throughput.cu, benchmarks/cuda_latency.cu
int ferry_cuda_throughput_main(int argc, char** argv);
int ferry_cuda_latency_main(int argc, char** argv);

namespace ferry::bench {

int run_gpu_bench(const BenchCase& bench_case, std::vector<std::string> arguments) {
  app::prepare_for_gpus();
  const int num_gpus = app::require_gpus();
  if (bench_case.ranks > num_gpus) {
    throw std::invalid_argument(fmt::format("ferry bench: --ranks: {} given, expected at most the number of GPUs, {}",
                                            bench_case.ranks, num_gpus));
  }
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const auto main = bench_case.mode == "latency" ? &ferry_cuda_latency_main : &ferry_cuda_throughput_main;
  return main(static_cast<int>(arguments.size()), argv.data());
}

}  // namespace ferry::bench
