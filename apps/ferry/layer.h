// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A mixture-of-experts layer spread over the ranks of a Ferry group, forward and backward: the demo's subject.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "demo_options.h"
#include "ferry/group.h"
#include "rank_memory.h"

namespace ferry::app {

/// One rank's tokens. The loss is half the squared distance of the layer's output to the embedding of the next bytes.
struct LayerInput {
  std::vector<float> x;       ///< [T, hidden]
  std::vector<float> target;  ///< [T, hidden]
};
/// The tokens [rank * T, (rank + 1) * T) of the text.
LayerInput layer_input(const DemoOptions& options, const std::string& text, int rank);

/// What one rank has after a forward and a backward.
struct LayerResult {
  std::vector<float> out;                     ///< [T, hidden]
  std::vector<float> x_gradients;             ///< [T, hidden], through experts and gate
  std::vector<float> weight_gradients;        ///< [T, K], of the routing weights
  std::vector<std::uint64_t> expert_digests;  ///< of the weight gradients of each local expert
  std::uint64_t gate_digest = 0;              ///< of this rank's share of the gate's weight gradients
  std::vector<std::int64_t> expert_rows;      ///< rows of each local expert
  std::vector<StepTrace> forward, backward;   ///< the steps of dispatch and combine
  double expert_seconds = 0;                  ///< spent in experts, both ways
};
std::vector<std::byte> pack(const LayerResult& result);
LayerResult unpack_layer_result(std::span<const std::byte> bytes);

struct LayerHooks {
  std::function<void()> line_up;  ///< called before each call of Ferry, so that times do not hold the others' computing
  std::function<void()> alive;    ///< called now and then during long computing
};
/// Collective over the group. Tokens, and rows on their way back, lie in `memory`; the experts compute on the host.
LayerResult run_layer(Group& group, RankMemory& memory, const DemoOptions& options, const DemoCase& run,
                      const LayerInput& input, const LayerHooks& hooks);

}  // namespace ferry::app
