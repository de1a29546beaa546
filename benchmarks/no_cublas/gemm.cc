// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Without cuBLAS there is no product of matrices.
#include "gemm.h"

#include <stdexcept>

namespace ferry::bench {

struct Gemm::State {};

std::string Gemm::why_not() {
  return "this build has no cuBLAS";
}
Gemm::Gemm(std::int64_t, std::int64_t, std::int64_t, cudaStream_t) {
  throw std::runtime_error(why_not());
}
Gemm::~Gemm() = default;
void Gemm::launch() {}

}  // namespace ferry::bench
