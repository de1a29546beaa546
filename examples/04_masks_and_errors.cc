// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What happens when something is wrong: misuse is refused before anything moves, a rank that does not come ends in an
// error within the deadline, and the others go on without it.
#include <chrono>
#include <cstdio>
#include <optional>
#include <vector>

#include "as_threads.h"
#include "ferry/ferry.h"

namespace {

constexpr int kRanks = 3, kTokens = 2, kHidden = 8, kTopK = 2, kExperts = 6, kAbsent = 2;

/// The code of the error that `call` ends in, its sentence printed; nothing if it succeeds.
template <class Call>
std::optional<ferry::ErrorCode> error_of(int rank, Call&& call) {
  try {
    call();
  } catch (const ferry::Error& error) {
    std::printf("rank %d: %s\n", rank, error.what());
    return error.code();
  }
  return std::nullopt;
}

bool run_rank(ferry::Meeting& meeting) {
  ferry::GroupLimits limits{
      .num_experts = kExperts, .max_tokens = kTokens, .hidden = kHidden, .dtype = ferry::DType::kFp32};
  ferry::Group group = ferry::Group::create({.limits = limits, .timeout = std::chrono::seconds(20)}, meeting);
  std::vector<float> x(kTokens * kHidden, 1.0f);
  std::vector<std::int32_t> ids = {0, 2, 1, 4};  // expert 4 lives on rank 2
  ferry::DispatchArgs send;
  send.payload = {ferry::Tensor::contiguous(x.data(), ferry::DType::kFp32, {kTokens, kHidden})};
  send.topk_ids = ferry::Tensor::contiguous(ids.data(), ferry::DType::kInt32, {kTokens, kTopK});

  // Misuse: expert_major needs counts, which latency mode does not wait for. Asking first costs nothing.
  ferry::DispatchArgs wrong = send;
  wrong.mode = ferry::Mode::kLatency;
  wrong.layout = ferry::Layout::kExpertMajor;
  if (group.why_not(wrong).empty() || !error_of(group.rank(), [&] { group.dispatch(wrong); })) return false;

  // One rank leaves. The others notice within their deadline; the message names step and peer. Who notices second may
  // find that the first one has masked the absent rank already: a mismatch, and the same way out.
  if (group.rank() == kAbsent) return true;
  send.timeout = std::chrono::milliseconds(500);
  const auto code = error_of(group.rank(), [&] { group.dispatch(send); });
  if (code != ferry::ErrorCode::kTimeout && code != ferry::ErrorCode::kPeerLost && code != ferry::ErrorCode::kMismatch)
    return false;

  // They leave it out and go on: nothing is sent to it, its part of a sum is missing.
  group.mask(kAbsent);
  send.timeout = {};
  const ferry::DispatchResult arrived = group.dispatch(send);
  ferry::CombineArgs back;
  back.handle = &arrived.handle;
  back.x = arrived.payload[0];
  const ferry::CombineResult result = group.combine(back);
  const auto* out = static_cast<const float*>(result.out.data);
  std::printf("rank %d: without rank %d: %.0f and %.0f\n", group.rank(), kAbsent, out[0], out[kHidden]);
  return out[0] == 2 && out[kHidden] == 1;
}

}  // namespace

int main() {
  return example::run_as_threads(kRanks, run_rank);
}
