// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Events between streams. FERRY_HAS_CUDA is defined where the library has its CUDA backend.
#include "cuda_calls.h"

#ifdef FERRY_HAS_CUDA

#include <cuda_runtime_api.h>

#include <string>

#include "ferry/error.h"

namespace ferry::python {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not to be found by somebody else
  throw Error(ErrorCode::kInternal, std::string("ferry: ") + what + ": " + cudaGetErrorString(status));
}

/// Makes a GPU current for this thread until the scope ends.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope() { cudaSetDevice(before_); }

 private:
  int before_ = -1;
};

/// The number of the graph that a stream's work goes into, 0 for none.
unsigned long long graph_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long graph = 0;
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &graph);
  if (error == cudaErrorStreamCaptureImplicit) {
    cudaGetLastError();  // the legacy default stream cannot be captured, and says so while another one is
    return 0;
  }
  check(error, "cudaStreamGetCaptureInfo");
  return status == cudaStreamCaptureStatusActive ? graph : 0;
}

}  // namespace

int current_device() {
  int count = 0, device = -1;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0 && cudaGetDevice(&device) == cudaSuccess) return device;
  cudaGetLastError();
  return -1;
}

void make_follow(int device, void* later, void* earlier) {
  if (later == earlier) return;
  const DeviceScope scope(device);
  auto* waiting = static_cast<cudaStream_t>(later);
  auto* done = static_cast<cudaStream_t>(earlier);
  if (graph_of(waiting) != graph_of(done)) return;
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  const cudaError_t recorded = cudaEventRecord(event, done);
  const cudaError_t waited = recorded == cudaSuccess ? cudaStreamWaitEvent(waiting, event, 0) : recorded;
  cudaEventDestroy(event);  // goes once it was reached
  check(recorded, "cudaEventRecord");
  check(waited, "cudaStreamWaitEvent");
}

bool is_captured(int device, void* stream) {
  const DeviceScope scope(device);
  return graph_of(static_cast<cudaStream_t>(stream)) != 0;
}

}  // namespace ferry::python

#else

namespace ferry::python {

int current_device() {
  return -1;
}

void make_follow(int, void*, void*) {}

bool is_captured(int, void*) {
  return false;
}

}  // namespace ferry::python

#endif
