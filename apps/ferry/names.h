// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Words on the command line that stand for values.
#pragma once

#include "ferry/types.h"
#include "options.h"
#include "ranks.h"
#include "wire.h"

namespace ferry::app {

inline Words<Mode> mode_words() {
  return {{"throughput", Mode::kThroughput}, {"latency", Mode::kLatency}};
}
inline Words<Layout> layout_words() {
  return {{"rank_major", Layout::kRankMajor},
          {"expert_major", Layout::kExpertMajor},
          {"expert_padded", Layout::kExpertPadded}};
}
inline Words<Reduction> reduction_words() {
  return {{"flat", Reduction::flat()}, {"per_rank", Reduction::per_rank()}, {"per_node", Reduction::per_node()}};
}
inline Words<Wire> wire_words() {
  const Wire bf16{"bf16", DType::kBf16, Codec::kNone};
  const Wire fp8{"fp8_f32", DType::kBf16, Codec::kFp8F32};
  return {{"bf16", bf16},
          {"none", bf16},
          {"fp16", {"fp16", DType::kFp16, Codec::kNone}},
          {"fp32", {"fp32", DType::kFp32, Codec::kNone}},
          {"fp8_f32", fp8},
          {"fp8", fp8},
          {"fp8_ue8m0", {"fp8_ue8m0", DType::kBf16, Codec::kFp8Ue8m0}}};
}
inline Words<RanksAs> ranks_as_words() {
  return {{"processes", RanksAs::kProcesses}, {"threads", RanksAs::kThreads}};
}

}  // namespace ferry::app
