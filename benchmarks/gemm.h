// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A large product of bf16 matrices, what computes while rows are in flight. In cublas/, or in no_cublas/ where the toolkit has no
// cuBLAS.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

namespace ferry::bench {

/// [rows, inner] x [inner, columns], bf16, summed in float32, on the current device.
class Gemm {
 public:
  /// Empty, or why there can be none.
  static std::string why_not();

  /// The matrices hold values like chance.
  Gemm(std::int64_t rows, std::int64_t columns, std::int64_t inner, cudaStream_t stream);
  ~Gemm();

  /// Puts one product on the stream. Throws std::runtime_error.
  void launch();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ferry::bench
