// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Which calls of latency mode are usual, and their launches: latency/usual.cuh says what their kernels leave out.
#pragma once

#include "cuda/kernels.h"
#include "cuda/policy.h"
#include "ferry/placement.h"

namespace ferry::cuda {

/// Experts in their order, as many on each rank.
bool is_even(const Placement& placement);

/// Of calls whose placement is_even() and that nobody is left out of. Ranks of one call may differ in this.
bool is_usual(const LatencyDispatchArgs& args, const LatencySize& size, const DeviceLimits& limits);
bool is_usual(const CombineArgsOnDevice& args, const LatencySize& size);

void launch_usual(const LatencyDispatchArgs& args, Phase phase, const LatencyWork& work, const LatencySize& size,
                  const DeviceLimits& limits, cudaStream_t stream);
void launch_usual(const CombineArgsOnDevice& args, Phase phase, const LatencyWork& work, const LatencySize& size,
                  const DeviceLimits& limits, cudaStream_t stream);

}  // namespace ferry::cuda
