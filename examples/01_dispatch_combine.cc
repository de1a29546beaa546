// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The shortest whole trip: four ranks as threads send their tokens to experts and get them back. Each expert returns
// its rows as they are, so a token comes back as often as it was sent: once per choice.
#include <cstdio>
#include <vector>

#include "as_threads.h"
#include "ferry/ferry.h"

namespace {

constexpr int kRanks = 4, kTokens = 3, kHidden = 8, kTopK = 2, kExperts = 8;

bool run_rank(ferry::Meeting& meeting) {
  ferry::Group group = ferry::Group::create(
      {.limits = {.num_experts = kExperts, .max_tokens = kTokens, .hidden = kHidden, .dtype = ferry::DType::kFp32}},
      meeting);
  std::vector<float> x(kTokens * kHidden, static_cast<float>(group.rank() + 1));
  std::vector<std::int32_t> ids = {0, 7, 3, 4, 5, 2};  // two experts for each token

  ferry::DispatchArgs send;
  send.payload = {ferry::Tensor::contiguous(x.data(), ferry::DType::kFp32, {kTokens, kHidden})};
  send.topk_ids = ferry::Tensor::contiguous(ids.data(), ferry::DType::kInt32, {kTokens, kTopK});
  send.layout = ferry::Layout::kExpertMajor;
  ferry::DispatchResult arrived = group.dispatch(send);  // rows of this rank's experts, one expert after the other

  ferry::CombineArgs back;
  back.handle = &arrived.handle;
  back.x = arrived.payload[0];  // here the experts would compute
  ferry::CombineResult result = group.combine(back);

  const auto* out = static_cast<const float*>(result.out.data);
  std::printf("rank %d got %lld rows and has %.0f back\n", group.rank(),
              static_cast<long long>(arrived.handle.num_rows()), out[0]);
  return out[0] == kTopK * x[0];
}

}  // namespace

int main() {
  return example::run_as_threads(kRanks, run_rank);
}
