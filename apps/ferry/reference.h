// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The demo's layer computed in one process with plain loops: no group, no windows, nothing of Ferry's routing or
// combining.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "demo_options.h"
#include "layer.h"

namespace ferry::app {

/// Results of all tokens, ranks one after the other.
struct ReferenceResult {
  std::vector<float> out, x_gradients, weight_gradients;  ///< as LayerResult, [R * T, ...]
  std::vector<std::uint64_t> expert_digests;              ///< [E]
  std::vector<std::uint64_t> gate_digests;                ///< [R]
  std::vector<std::int64_t> expert_rows;                  ///< [E]
  std::vector<std::int32_t> ids;                          ///< [R * T, K]
};
/// With the codec, the reduction order and the roundings that Ferry documents: to be compared bit for bit.
ReferenceResult compute_reference(const DemoOptions& options, const std::vector<LayerInput>& inputs,
                                  const std::function<void(double fraction)>& on_progress);

struct ExactResult {
  std::vector<double> out, x_gradients, weight_gradients;
};
/// In float64 from the same inputs, weights and choices of experts, with no codec and no rounding on the way.
ExactResult compute_exactly(const DemoOptions& options, const std::vector<LayerInput>& inputs,
                            const std::vector<std::int32_t>& ids,
                            const std::function<void(double fraction)>& on_progress);

}  // namespace ferry::app
