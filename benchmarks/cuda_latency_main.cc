// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The program ferry_cuda_latency. `ferry bench --backend cuda --mode latency` is the same benchmark.

/// cuda_latency.cu
int ferry_cuda_latency_main(int argc, char** argv);

int main(int argc, char** argv) {
  return ferry_cuda_latency_main(argc, argv);
}
