// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry bench --backend cuda` is the GPU benchmark of the mode, benchmarks/cuda_throughput.cu or cuda_latency.cu, under the
// options of `ferry bench`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench_case.h"
#include "bench_run.h"

namespace ferry::bench {

struct GpuBench {
  BenchCase bench_case;  ///< ranks 0: every GPU; iterations 0: the benchmark's own number
  std::vector<std::int64_t> tokens;
  std::vector<std::string> ops;   ///< dispatch, combine, steps (latency mode)
  std::vector<int> sms;           ///< empty: 16, in latency mode as many as Ferry chooses
  std::string input{};            ///< of combine: window | any; empty: window, in latency mode any
  std::string launch = "direct";  ///< direct | graph
  std::string json_path;
};

/// The benchmark's arguments, its name first. Throws std::invalid_argument for a case that it does not measure.
std::vector<std::string> gpu_arguments(const GpuBench& gpu_bench, const Origin& origin);

/// Runs the benchmark of the case's mode: 0 if all results were right. In cuda/; without CUDA in the build, or a GPU, throws
/// std::runtime_error.
int run_gpu_bench(const BenchCase& bench_case, std::vector<std::string> arguments);

}  // namespace ferry::bench
