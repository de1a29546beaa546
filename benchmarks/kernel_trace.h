// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Begin and end of every kernel as the device's profiler notes them. In cupti/, or in no_cupti/ where the toolkit has no CUPTI.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ferry::bench {

struct KernelRecord {
  std::string name;  ///< mangled
  std::int64_t begin_ns = 0, end_ns = 0;
  std::int64_t blocks = 0;
  std::uint32_t device = 0, stream = 0;
};

/// Kernels of the process, of all devices. All throw std::runtime_error.
class KernelTrace {
 public:
  /// Empty, or why kernels cannot be traced.
  static std::string why_not();
  /// The stream's number in records; of the current context.
  static std::uint32_t number_of(cudaStream_t stream);
  /// From here on kernels are noted; they may cost the host a little more.
  static void start();
  /// What was noted since start(), by begin. Kernels that matter must have ended.
  static std::vector<KernelRecord> stop();
};

}  // namespace ferry::bench
