// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// See check.h.
#include "cuda/check.h"

#include <fmt/format.h>

#include "ferry/error.h"

namespace ferry::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::kInternal,
              fmt::format("{}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status)));
}

DeviceScope::DeviceScope(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
  check(cudaThreadExchangeStreamCaptureMode(&capture_), "cudaThreadExchangeStreamCaptureMode");
}

DeviceScope::~DeviceScope() {
  cudaThreadExchangeStreamCaptureMode(&capture_);
  cudaSetDevice(before_);
}

}  // namespace ferry::cuda
