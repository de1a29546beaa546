// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A rank's memory on a GPU. Implemented in cuda/, or in no_cuda/ for a build without CUDA.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "rank_memory.h"
#include "ranks.h"

namespace ferry::app {

/// Must be called before any part of the program uses CUDA, and before ranks are started.
void prepare_for_gpus();

/// Their number; starts CUDA in this process. Throws std::runtime_error where there is no GPU or no CUDA.
int require_gpus();

struct GpuShare {
  int rank = 0;
  int num_ranks = 1;
  RanksAs ranks_as = RanksAs::kProcesses;
  std::size_t lent_bytes = 0;           ///< room for all that is lent between two calls of forget()
  std::chrono::nanoseconds patience{};  ///< with work of the group; its own deadlines should come first
};

/// Rank r uses GPU r modulo their number. Takes its device memory at once, so that nothing is asked of the driver while kernels of
/// several ranks wait for each other; make it before the group. Throws std::runtime_error where there is no GPU or no CUDA.
std::unique_ptr<RankMemory> make_gpu_memory(const GpuShare& share);

}  // namespace ferry::app
