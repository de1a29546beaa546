// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// SwiGLU forward and backward; see experts.h.
#include "experts.h"

#include <cmath>
#include <utility>

#include "multiply.h"
#include "numbers.h"

namespace ferry::app {
namespace {

template <class Real>
std::vector<Real> random_weights(std::int64_t rows, std::int64_t width, std::uint64_t seed) {
  const float scale = std::sqrt(3.0f / static_cast<float>(rows));  // unit variance in, unit variance out
  std::vector<Real> weights(static_cast<std::size_t>(rows * width));
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = Real(round_to(DType::kBf16, scale * uniform(seed, i)));
  return weights;
}

template <class Real>
std::vector<Real> product(const std::vector<Real>& in, std::int64_t rows, std::int64_t depth,
                          const std::vector<Real>& weights, std::int64_t width) {
  std::vector<Real> out(static_cast<std::size_t>(rows * width));
  multiply(in.data(), rows, depth, weights.data(), width, out.data());
  return out;
}

/// in^T times other: a sum over rows.
template <class Real>
std::vector<Real> weight_gradient(const std::vector<Real>& in, std::int64_t depth, const std::vector<Real>& other,
                                  std::int64_t width, std::int64_t rows) {
  return product(transposed(in.data(), rows, depth), depth, rows, other, width);
}

}  // namespace

template <class Real>
ExpertWeights<Real> make_expert(std::int64_t hidden, std::int64_t inner, std::uint64_t seed, int expert) {
  const std::uint64_t stream = mix(seed, 0x100000u + static_cast<std::uint64_t>(expert));
  ExpertWeights<Real> weights;
  weights.hidden = hidden;
  weights.inner = inner;
  weights.gate = random_weights<Real>(hidden, inner, mix(stream, 0));
  weights.up = random_weights<Real>(hidden, inner, mix(stream, 1));
  weights.down = random_weights<Real>(inner, hidden, mix(stream, 2));
  weights.gate_transposed = transposed(weights.gate.data(), hidden, inner);
  weights.up_transposed = transposed(weights.up.data(), hidden, inner);
  weights.down_transposed = transposed(weights.down.data(), inner, hidden);
  return weights;
}

template <class Real>
ExpertRun<Real> expert_forward(const ExpertWeights<Real>& weights, std::vector<Real> x) {
  ExpertRun<Real> run;
  run.num_rows = static_cast<std::int64_t>(x.size()) / weights.hidden;
  run.x = std::move(x);
  run.gate = product(run.x, run.num_rows, weights.hidden, weights.gate, weights.inner);
  run.up = product(run.x, run.num_rows, weights.hidden, weights.up, weights.inner);
  run.inner.resize(run.gate.size());
  for (std::size_t i = 0; i < run.inner.size(); ++i) {
    run.inner[i] = run.gate[i] / (Real(1) + std::exp(-run.gate[i])) * run.up[i];
  }
  run.y = product(run.inner, run.num_rows, weights.inner, weights.down, weights.hidden);
  return run;
}

template <class Real>
ExpertGradients<Real> expert_backward(const ExpertWeights<Real>& weights, const ExpertRun<Real>& run,
                                      const std::vector<Real>& dy) {
  const std::int64_t rows = run.num_rows;
  const std::vector<Real> dinner = product(dy, rows, weights.hidden, weights.down_transposed, weights.inner);
  std::vector<Real> dgate(run.gate.size());
  std::vector<Real> dup(run.up.size());
  for (std::size_t i = 0; i < dgate.size(); ++i) {
    const Real g = run.gate[i];
    const Real s = Real(1) / (Real(1) + std::exp(-g));
    dgate[i] = dinner[i] * run.up[i] * (s * (Real(1) + g * (Real(1) - s)));
    dup[i] = dinner[i] * (g * s);
  }
  ExpertGradients<Real> out;
  out.x = product(dgate, rows, weights.inner, weights.gate_transposed, weights.hidden);
  const std::vector<Real> through_up = product(dup, rows, weights.inner, weights.up_transposed, weights.hidden);
  for (std::size_t i = 0; i < out.x.size(); ++i) out.x[i] += through_up[i];
  out.gate = weight_gradient(run.x, weights.hidden, dgate, weights.inner, rows);
  out.up = weight_gradient(run.x, weights.hidden, dup, weights.inner, rows);
  out.down = weight_gradient(run.inner, weights.inner, dy, weights.hidden, rows);
  return out;
}

template ExpertWeights<float> make_expert(std::int64_t, std::int64_t, std::uint64_t, int);
template ExpertWeights<double> make_expert(std::int64_t, std::int64_t, std::uint64_t, int);
template ExpertRun<float> expert_forward(const ExpertWeights<float>&, std::vector<float>);
template ExpertRun<double> expert_forward(const ExpertWeights<double>&, std::vector<double>);
template ExpertGradients<float> expert_backward(const ExpertWeights<float>&, const ExpertRun<float>&,
                                                const std::vector<float>&);
template ExpertGradients<double> expert_backward(const ExpertWeights<double>&, const ExpertRun<double>&,
                                                 const std::vector<double>&);

}  // namespace ferry::app
