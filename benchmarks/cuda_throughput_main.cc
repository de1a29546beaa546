// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The program ferry_cuda_throughput. `ferry bench --backend cuda` is the same benchmark.

/// cuda_throughput.cu
int ferry_cuda_throughput_main(int argc, char** argv);

int main(int argc, char** argv) {
  return ferry_cuda_throughput_main(argc, argv);
}
