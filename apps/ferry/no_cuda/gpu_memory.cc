// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A build without CUDA has no memory on GPUs.
#include "gpu_memory.h"

#include <stdexcept>

namespace ferry::app {

void prepare_for_gpus() {}

int require_gpus() {
  throw std::runtime_error(
      "--backend: cuda given, but this build has no CUDA; use --backend host, or build Ferry where nvcc is found with "
      "FERRY_CUDA=ON");
}

std::unique_ptr<RankMemory> make_gpu_memory(const GpuShare&) {
  require_gpus();
  return nullptr;
}

}  // namespace ferry::app
