// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Loads all kernels when the group is made: loading one later may wait for those that run, which may wait for this rank.
#include "cuda/kernels.h"

#include "cuda/check.h"

namespace ferry::cuda {

// Each defined beside its kernel.
void prepare_route(int max_shared_bytes);
void prepare_dispatch_send(int max_shared_bytes);
void prepare_dispatch_recv();
void prepare_combine_send();
void prepare_combine_recv(int max_shared_bytes);
void prepare_copy();

void prepare_kernels() {
  int device = 0, max_shared_bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  prepare_route(max_shared_bytes);
  prepare_dispatch_send(max_shared_bytes);
  prepare_dispatch_recv();
  prepare_combine_send();
  prepare_combine_recv(max_shared_bytes);
  prepare_copy();
  check(cudaGetLastError(), "ferry: loading kernels");
}

}  // namespace ferry::cuda
