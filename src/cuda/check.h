// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// CUDA errors as our errors, and the current device of a thread.
#pragma once

#include <cuda_runtime_api.h>

namespace ferry::cuda {

/// Throws Error(internal) that names the call and the CUDA error.
void check(cudaError_t status, const char* what);

/// Makes a device current for this thread until the scope ends. What the library asks of the driver inside (memory, copies and
/// events of its own) concerns no stream of a caller, so it is allowed while this or another thread captures a CUDA graph.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope();

 private:
  int before_ = -1;
  cudaStreamCaptureMode capture_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace ferry::cuda
