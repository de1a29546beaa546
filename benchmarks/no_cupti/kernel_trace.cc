// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Without CUPTI no kernel is traced.
#include "kernel_trace.h"

#include <stdexcept>

namespace ferry::bench {

std::string KernelTrace::why_not() {
  return "this build has no CUPTI";
}
std::uint32_t KernelTrace::number_of(cudaStream_t) {
  throw std::runtime_error(why_not());
}
void KernelTrace::start() {
  throw std::runtime_error(why_not());
}
std::vector<KernelRecord> KernelTrace::stop() {
  throw std::runtime_error(why_not());
}

}  // namespace ferry::bench
