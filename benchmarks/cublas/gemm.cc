// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The product by cuBLAS, with memory of its own to work in, so that launches allocate nothing.
#include "gemm.h"

#include <cublas_v2.h>

#include <random>
#include <stdexcept>
#include <vector>

namespace ferry::bench {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string(what) + ": " + cublasGetStatusString(status));
}

struct DeviceFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, DeviceFree>;

DeviceMemory allocate(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status != cudaSuccess) throw std::runtime_error(std::string("matrices: ") + cudaGetErrorString(status));
  return DeviceMemory(memory);
}
/// Values from -2 to 2 that look like chance: what a product draws of power depends on them.
DeviceMemory matrix(std::int64_t rows, std::int64_t columns) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * columns));
  std::minstd_rand random;
  for (std::uint16_t& value : values) {
    const auto bits = static_cast<unsigned>(random()) >> 8;
    value = static_cast<std::uint16_t>((bits & 0x8000) | (0x3f00 + (bits & 0xff)));
  }
  DeviceMemory memory = allocate(values.size() * 2);
  const cudaError_t status = cudaMemcpy(memory.get(), values.data(), values.size() * 2, cudaMemcpyHostToDevice);
  if (status != cudaSuccess) throw std::runtime_error(std::string("matrices: ") + cudaGetErrorString(status));
  return memory;
}

}  // namespace

struct Gemm::State {
  ~State() {
    if (handle != nullptr) cublasDestroy(handle);
  }
  int rows = 0, columns = 0, inner = 0;
  DeviceMemory a, b, c, workspace;
  cublasHandle_t handle = nullptr;
};

std::string Gemm::why_not() {
  return {};
}

Gemm::Gemm(std::int64_t rows, std::int64_t columns, std::int64_t inner, cudaStream_t stream)
    : state_(std::make_unique<State>()) {
  state_->rows = static_cast<int>(rows);
  state_->columns = static_cast<int>(columns);
  state_->inner = static_cast<int>(inner);
  state_->a = matrix(rows, inner);
  state_->b = matrix(inner, columns);
  state_->c = allocate(static_cast<std::size_t>(rows * columns) * 2);
  state_->workspace = allocate(kWorkspaceBytes);
  check(cublasCreate(&state_->handle), "cublasCreate");
  check(cublasSetStream(state_->handle, stream), "cublasSetStream");
  check(cublasSetWorkspace(state_->handle, state_->workspace.get(), kWorkspaceBytes), "cublasSetWorkspace");
}
Gemm::~Gemm() = default;

void Gemm::launch() {
  const State& s = *state_;
  const float one = 1, zero = 0;
  // cuBLAS stores by columns: the transposed product.
  check(cublasGemmEx(s.handle, CUBLAS_OP_N, CUBLAS_OP_N, s.columns, s.rows, s.inner, &one, s.b.get(), CUDA_R_16BF,
                     s.columns, s.a.get(), CUDA_R_16BF, s.inner, &zero, s.c.get(), CUDA_R_16BF, s.columns,
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
}

}  // namespace ferry::bench
