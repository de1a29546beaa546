// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the GPUs of this machine can do for the cuda backend. Tried, not only asked.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ferry/capability.h"

namespace ferry::app {

struct GpuFinding {
  Capability capability;
  bool needed = true;  ///< the cuda backend does not work over all GPUs without it
};

struct GpuFindings {
  int num_gpus = 0;
  std::vector<GpuFinding> list;
};

/// Looks in processes of its own, which are given up when they fall silent: a driver that hangs or crashes becomes a finding. Must
/// be called before this process uses CUDA or has other threads.
GpuFindings look_at_gpus();

/// The part inside the process that uses CUDA, in cuda/ and no_cuda/: tells what it finds as it finds it; returns the number of
/// GPUs.
int examine_gpus(const std::function<void(const GpuFinding&)>& tell);

/// How a GPU of compute capability major.minor runs code that was compiled for `architectures` (CMake's list with commas: "80,90a,
/// 100-virtual"): "sm_90 code"; "PTX for 8.0, compiled by the driver when it is loaded"; empty if it cannot.
std::string code_for_gpu(const std::string& architectures, int major, int minor);

}  // namespace ferry::app
