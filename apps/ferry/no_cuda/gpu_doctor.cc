// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A build without CUDA cannot look at GPUs.
#include "gpu_doctor.h"

namespace ferry::app {

int examine_gpus(const std::function<void(const GpuFinding&)>& tell) {
  tell(
      {.capability = {.name = "GPUs",
                      .usable = false,
                      .detail = "not looked at: this build has no CUDA",
                      .fix = "none needed for the host backend; build Ferry where nvcc is found, with FERRY_CUDA=ON"}});
  return 0;
}

}  // namespace ferry::app
