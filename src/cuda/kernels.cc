// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Loads all kernels when the group is made: loading one later may wait for those that run, which may wait for this rank.
#include "cuda/kernels.h"

#include "cuda/check.h"

namespace ferry::cuda {

// Each defined beside its kernel.
void prepare_route(int dynamic_bytes);
void prepare_dispatch_send(int dynamic_bytes);
void prepare_dispatch_recv();
void prepare_combine_send();
void prepare_combine_recv(int dynamic_bytes);
void prepare_copy();
void prepare_dispatch_stage(int dynamic_bytes);
void prepare_dispatch_forward(int dynamic_bytes);
void prepare_latency_across();
void prepare_combine_numbers();
void prepare_combine_weights(int dynamic_bytes);
void prepare_combine_forward(int dynamic_bytes);
void prepare_latency_dispatch(int dynamic_bytes);
void prepare_latency_combine(int dynamic_bytes);
void prepare_usual_dispatch(int dynamic_bytes);
void prepare_usual_combine();

void prepare_kernel(const void* kernel, int dynamic_bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes),
        "ferry: shared memory of a kernel");
  cudaFuncAttributes attributes;  // asking for them loads the kernel
  check(cudaFuncGetAttributes(&attributes, kernel), "ferry: loading a kernel");
}

void prepare_kernels() {
  int device = 0, max_shared_bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  const int dynamic_bytes = max_shared_bytes - kStaticSharedBytes;
  prepare_route(dynamic_bytes);
  prepare_dispatch_send(dynamic_bytes);
  prepare_dispatch_recv();
  prepare_combine_send();
  prepare_combine_recv(dynamic_bytes);
  prepare_copy();
  prepare_dispatch_stage(dynamic_bytes);
  prepare_dispatch_forward(dynamic_bytes);
  prepare_latency_across();
  prepare_combine_numbers();
  prepare_combine_weights(dynamic_bytes);
  prepare_combine_forward(dynamic_bytes);
  prepare_latency_dispatch(dynamic_bytes);
  prepare_latency_combine(dynamic_bytes);
  prepare_usual_dispatch(dynamic_bytes);
  prepare_usual_combine();
}

}  // namespace ferry::cuda
