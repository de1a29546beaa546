// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A build without CUDA has no GPU benchmark.
#include "bench_gpu.h"

#include "gpu_memory.h"

namespace ferry::bench {

int run_gpu_bench(const BenchCase&, std::vector<std::string>) {
  return app::require_gpus();
}

}  // namespace ferry::bench
