// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The gate of the demo's layer: the group-limited top-k of DeepSeek-V3, and its backward.
#pragma once

#include <cstdint>
#include <vector>

namespace ferry::app {

struct GateShape {
  std::int64_t hidden = 0;
  int num_experts = 0;
  int num_groups = 1;      ///< divides num_experts
  int num_top_groups = 1;  ///< groups a token may use
  int top_k = 1;           ///< at most num_top_groups * num_experts / num_groups
};
constexpr float kRoutedScale = 2.5f;

/// What the gate decided for T tokens. `Real` is float or double.
template <class Real>
struct Routing {
  std::vector<std::int32_t> ids;  ///< [T, K], best first
  std::vector<Real> weights;      ///< [T, K]: score / sum of the chosen scores * kRoutedScale
  std::vector<Real> scores;       ///< [T, E] sigmoid of the logits
};

/// Gate weights [hidden, E] from a seed.
std::vector<float> make_gate(const GateShape& shape, std::uint64_t seed);

/// Chooses experts for rows x [T, hidden]. Equal scores: the lower index wins.
Routing<float> route_tokens(const GateShape& shape, const std::vector<float>& gate, const std::vector<float>& x);
/// The same choice of experts with weights in float64.
Routing<double> route_exactly(const GateShape& shape, const std::vector<double>& gate, const std::vector<double>& x,
                              const std::vector<std::int32_t>& ids);

template <class Real>
struct GateGradients {
  std::vector<Real> x;     ///< [T, hidden]
  std::vector<Real> gate;  ///< [hidden, E], summed over tokens ascending
};
/// From gradients of the routing weights [T, K].
template <class Real>
GateGradients<Real> gate_backward(const GateShape& shape, const std::vector<Real>& gate, const std::vector<Real>& x,
                                  const Routing<Real>& routing, const std::vector<Real>& weight_gradients);

}  // namespace ferry::app
