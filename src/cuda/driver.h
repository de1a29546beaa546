// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Functions of the driver, found at run time through the runtime library: nothing links against libcuda. And which device a group
// works on.
#pragma once

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "ferry/error.h"

namespace ferry::cuda {

/// Throws Error(unsupported) where the driver lacks it.
template <typename Function>
void find_driver_function(const char* name, Function& function) {
  constexpr unsigned kVersion = 12000;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result);
  if (status != cudaSuccess || found == nullptr) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("ferry: this driver has no {}; expected a driver for CUDA 12 or later", name));
  }
  function = reinterpret_cast<Function>(found);
}

/// What GroupConfig::device means: -1 is the thread's current device. Throws Error(unsupported | invalid_argument).
int chosen_device(int device);

}  // namespace ferry::cuda
