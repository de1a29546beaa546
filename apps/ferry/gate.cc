// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Scores, groups, choices, weights; see gate.h.
#include "gate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "multiply.h"
#include "numbers.h"

namespace ferry::app {
namespace {

template <class Real>
std::vector<Real> sigmoid_scores(const GateShape& shape, const std::vector<Real>& gate, const std::vector<Real>& x) {
  const auto num_tokens = static_cast<std::int64_t>(x.size()) / shape.hidden;
  std::vector<Real> scores(static_cast<std::size_t>(num_tokens * shape.num_experts));
  multiply(x.data(), num_tokens, shape.hidden, gate.data(), static_cast<std::int64_t>(shape.num_experts),
           scores.data());
  for (Real& score : scores) score = Real(1) / (Real(1) + std::exp(-score));
  return scores;
}

/// The sum of the two best scores of a group; of its only score if it has one.
float group_score(const float* scores, int size) {
  float best = 0, second = 0;
  for (int i = 0; i < size; ++i) {
    if (scores[i] > best) {
      second = best;
      best = scores[i];
    } else if (scores[i] > second) {
      second = scores[i];
    }
  }
  return best + second;
}

/// Indices of the `count` largest values, best first, lower index first among equals.
std::vector<int> largest(const std::vector<int>& candidates, const float* values, int count) {
  std::vector<int> order = candidates;
  std::stable_sort(order.begin(), order.end(), [values](int a, int b) { return values[a] > values[b]; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

std::vector<int> choose_experts(const GateShape& shape, const float* scores) {
  const int group_size = shape.num_experts / shape.num_groups;
  std::vector<float> group_scores;
  for (int g = 0; g < shape.num_groups; ++g) group_scores.push_back(group_score(scores + g * group_size, group_size));
  std::vector<int> groups(group_scores.size());
  std::iota(groups.begin(), groups.end(), 0);
  groups = largest(groups, group_scores.data(), shape.num_top_groups);
  std::sort(groups.begin(), groups.end());
  std::vector<int> experts;
  for (const int g : groups) {
    for (int i = 0; i < group_size; ++i) experts.push_back(g * group_size + i);
  }
  return largest(experts, scores, shape.top_k);
}

template <class Real>
std::vector<Real> normalised_weights(const GateShape& shape, const std::vector<Real>& scores,
                                     const std::vector<std::int32_t>& ids) {
  std::vector<Real> weights(ids.size());
  const auto top_k = static_cast<std::size_t>(shape.top_k);
  for (std::size_t first = 0; first < ids.size(); first += top_k) {
    const Real* row = scores.data() + first / top_k * static_cast<std::size_t>(shape.num_experts);
    Real sum = 0;
    for (std::size_t k = 0; k < top_k; ++k) sum += row[ids[first + k]];
    for (std::size_t k = 0; k < top_k; ++k) weights[first + k] = row[ids[first + k]] / sum * Real(kRoutedScale);
  }
  return weights;
}

}  // namespace

std::vector<float> make_gate(const GateShape& shape, std::uint64_t seed) {
  // Logits of order 1: rows have a variance of about 1/2.
  const float scale = std::sqrt(6.0f / static_cast<float>(shape.hidden));
  std::vector<float> gate(static_cast<std::size_t>(shape.hidden * shape.num_experts));
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = scale * uniform(mix(seed, 0x6a7e), i);
  return gate;
}

Routing<float> route_tokens(const GateShape& shape, const std::vector<float>& gate, const std::vector<float>& x) {
  Routing<float> routing;
  routing.scores = sigmoid_scores(shape, gate, x);
  for (std::size_t row = 0; row < routing.scores.size(); row += static_cast<std::size_t>(shape.num_experts)) {
    for (const int expert : choose_experts(shape, routing.scores.data() + row)) routing.ids.push_back(expert);
  }
  routing.weights = normalised_weights(shape, routing.scores, routing.ids);
  return routing;
}

Routing<double> route_exactly(const GateShape& shape, const std::vector<double>& gate, const std::vector<double>& x,
                              const std::vector<std::int32_t>& ids) {
  Routing<double> routing;
  routing.ids = ids;
  routing.scores = sigmoid_scores(shape, gate, x);
  routing.weights = normalised_weights(shape, routing.scores, ids);
  return routing;
}

template <class Real>
GateGradients<Real> gate_backward(const GateShape& shape, const std::vector<Real>& gate, const std::vector<Real>& x,
                                  const Routing<Real>& routing, const std::vector<Real>& weight_gradients) {
  const auto top_k = static_cast<std::size_t>(shape.top_k);
  const auto num_experts = static_cast<std::size_t>(shape.num_experts);
  const std::size_t num_tokens = routing.ids.size() / top_k;
  std::vector<Real> logits(num_tokens * num_experts);  // gradients; only chosen experts get one
  for (std::size_t t = 0; t < num_tokens; ++t) {
    const std::int32_t* ids = routing.ids.data() + t * top_k;
    const Real* scores = routing.scores.data() + t * num_experts;
    const Real* gradients = weight_gradients.data() + t * top_k;
    // w_k = scale * s_k / S, so dL/ds_j = scale / S * (g_j - sum_k g_k s_k / S), and ds/dlogit = s (1 - s).
    Real sum = 0, weighted = 0;
    for (std::size_t k = 0; k < top_k; ++k) {
      sum += scores[ids[k]];
      weighted += gradients[k] * scores[ids[k]];
    }
    for (std::size_t k = 0; k < top_k; ++k) {
      const Real score = scores[ids[k]];
      logits[t * num_experts + static_cast<std::size_t>(ids[k])] =
          Real(kRoutedScale) / sum * (gradients[k] - weighted / sum) * score * (Real(1) - score);
    }
  }
  const auto rows = static_cast<std::int64_t>(num_tokens);
  const auto width = static_cast<std::int64_t>(num_experts);
  GateGradients<Real> out;
  out.x.resize(x.size());
  multiply(logits.data(), rows, width, transposed(gate.data(), shape.hidden, width).data(), shape.hidden, out.x.data());
  out.gate.resize(gate.size());
  multiply(transposed(x.data(), rows, shape.hidden).data(), shape.hidden, rows, logits.data(), width, out.gate.data());
  return out;
}

template GateGradients<float> gate_backward(const GateShape&, const std::vector<float>&, const std::vector<float>&,
                                            const Routing<float>&, const std::vector<float>&);
template GateGradients<double> gate_backward(const GateShape&, const std::vector<double>&, const std::vector<double>&,
                                             const Routing<double>&, const std::vector<double>&);

}  // namespace ferry::app
