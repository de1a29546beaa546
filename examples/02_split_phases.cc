// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Send now, work, receive later. In latency mode nothing waits between the two halves. Two calls are in flight at once.
#include <cstdio>
#include <numeric>
#include <vector>

#include "as_threads.h"
#include "ferry/ferry.h"

namespace {

constexpr int kRanks = 2, kTokens = 4, kHidden = 16, kTopK = 2, kExperts = 4;

ferry::DispatchArgs arguments(std::vector<float>& x, std::vector<std::int32_t>& ids) {
  ferry::DispatchArgs args;
  args.payload = {ferry::Tensor::contiguous(x.data(), ferry::DType::kFp32, {kTokens, kHidden})};
  args.topk_ids = ferry::Tensor::contiguous(ids.data(), ferry::DType::kInt32, {kTokens, kTopK});
  args.mode = ferry::Mode::kLatency;
  args.layout = ferry::Layout::kExpertPadded;
  return args;
}

bool run_rank(ferry::Meeting& meeting) {
  ferry::GroupLimits limits{.num_experts = kExperts,
                            .max_tokens = kTokens,
                            .max_latency_tokens = kTokens,
                            .hidden = kHidden,
                            .dtype = ferry::DType::kFp32};
  ferry::Group group = ferry::Group::create({.limits = limits}, meeting);

  // A batch cut in two halves; both are under way while this rank works.
  std::vector<float> first(kTokens * kHidden, 1.0f), second(kTokens * kHidden, 2.0f);
  std::vector<std::int32_t> ids = {0, 1, 2, 3, 3, 0, -1, 2};  // -1: no choice
  ferry::PendingDispatch first_on_its_way = group.dispatch_send(arguments(first, ids));
  ferry::PendingDispatch second_on_its_way = group.dispatch_send(arguments(second, ids));

  std::vector<double> own_work(1000);
  std::iota(own_work.begin(), own_work.end(), 0.0);

  ferry::DispatchResult first_arrived = first_on_its_way.receive();
  ferry::DispatchResult second_arrived = second_on_its_way.receive();

  ferry::CombineArgs back;
  back.handle = &first_arrived.handle;
  back.x = first_arrived.payload[0];
  ferry::PendingCombine first_back = group.combine_send(back);
  back.handle = &second_arrived.handle;
  back.x = second_arrived.payload[0];
  ferry::PendingCombine second_back = group.combine_send(back);
  const ferry::CombineResult first_result = first_back.receive();
  const ferry::CombineResult second_result = second_back.receive();

  // Token 0 has two choices, token 3 one.
  const auto* one = static_cast<const float*>(first_result.out.data);
  const auto* two = static_cast<const float*>(second_result.out.data);
  std::printf("rank %d: %.0f and %.0f, with one choice dropped %.0f and %.0f\n", group.rank(), one[0], two[0],
              one[3 * kHidden], two[3 * kHidden]);
  return one[0] == 2 && two[0] == 4 && one[3 * kHidden] == 1 && two[3 * kHidden] == 2;
}

}  // namespace

int main() {
  return example::run_as_threads(kRanks, run_rank);
}
