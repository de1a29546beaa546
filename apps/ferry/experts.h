// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The experts of the demo's layer: SwiGLU, y = (silu(x Wg) * (x Wu)) Wd, forward and backward. Each output element is
// summed in a fixed order, so a row gets the same bits on whatever rank and in whatever batch it is computed.
#pragma once

#include <cstdint>
#include <vector>

namespace ferry::app {

/// Weights of one expert: values of bf16, with the transposes that the backward needs. `Real` is float or double.
template <class Real>
struct ExpertWeights {
  std::int64_t hidden = 0;
  std::int64_t inner = 0;
  std::vector<Real> gate, up, down;  ///< [hidden, inner], [hidden, inner], [inner, hidden]
  std::vector<Real> gate_transposed, up_transposed, down_transposed;
};
/// Made from a seed, so nobody has to store or send weights.
template <class Real>
ExpertWeights<Real> make_expert(std::int64_t hidden, std::int64_t inner, std::uint64_t seed, int expert);

/// What the forward of n rows leaves for the backward.
template <class Real>
struct ExpertRun {
  std::int64_t num_rows = 0;
  std::vector<Real> x;         ///< [n, hidden]
  std::vector<Real> gate, up;  ///< [n, inner] before the activation
  std::vector<Real> inner;     ///< [n, inner] silu(gate) * up
  std::vector<Real> y;         ///< [n, hidden]
};
template <class Real>
ExpertRun<Real> expert_forward(const ExpertWeights<Real>& weights, std::vector<Real> x);

template <class Real>
struct ExpertGradients {
  std::vector<Real> x;               ///< [n, hidden]
  std::vector<Real> gate, up, down;  ///< as the weights, summed over rows ascending
};
/// From gradients of y [n, hidden].
template <class Real>
ExpertGradients<Real> expert_backward(const ExpertWeights<Real>& weights, const ExpertRun<Real>& run,
                                      const std::vector<Real>& dy);

}  // namespace ferry::app
