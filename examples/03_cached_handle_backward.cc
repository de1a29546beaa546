// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Training: the backward of combine is a dispatch with the same handle, the backward of dispatch a combine. The layer
// is out = sum over choices of w * (scale of the expert) * x, so every gradient can be checked by hand.
#include <cstdio>
#include <vector>

#include "as_threads.h"
#include "ferry/ferry.h"

namespace {

constexpr int kRanks = 2, kTokens = 2, kHidden = 4, kTopK = 2, kExperts = 4;

/// What expert e does to a row.
float scale_of(int expert) {
  return static_cast<float>(expert + 1);
}

/// A copy of the rows of an expert_major result, each times the scale of its expert.
std::vector<float> through_experts(const ferry::DispatchResult& arrived, int first_expert) {
  const auto* rows = static_cast<const float*>(arrived.payload[0].data);
  const std::int64_t stride = arrived.payload[0].strides[0];
  const auto counts = arrived.handle.expert_counts();
  const auto offsets = arrived.handle.expert_offsets();
  std::vector<float> y(arrived.payload[0].shape[0] * kHidden);
  for (std::size_t e = 0; e < counts.size(); ++e) {
    for (std::int64_t row = offsets[e]; row < offsets[e] + counts[e]; ++row) {
      for (int h = 0; h < kHidden; ++h)
        y[row * kHidden + h] = scale_of(first_expert + static_cast<int>(e)) * rows[row * stride + h];
    }
  }
  return y;
}

bool run_rank(ferry::Meeting& meeting) {
  ferry::GroupLimits limits{
      .num_experts = kExperts, .max_tokens = kTokens, .hidden = kHidden, .dtype = ferry::DType::kFp32};
  ferry::Group group = ferry::Group::create({.limits = limits}, meeting);
  const int first_expert = group.placement().first_slot(group.rank());
  std::vector<float> x(kTokens * kHidden, 1.0f);
  std::vector<std::int32_t> ids = {0, 2, 1, 3};
  std::vector<float> weights = {0.25f, 0.75f, 0.5f, 0.5f};

  // Forward.
  ferry::DispatchArgs send;
  send.payload = {ferry::Tensor::contiguous(x.data(), ferry::DType::kFp32, {kTokens, kHidden})};
  send.topk_ids = ferry::Tensor::contiguous(ids.data(), ferry::DType::kInt32, {kTokens, kTopK});
  send.topk_weights = ferry::Tensor::contiguous(weights.data(), ferry::DType::kFp32, {kTokens, kTopK});
  send.layout = ferry::Layout::kExpertMajor;
  send.output = ferry::Output::kOwned;  // stays while later calls reuse the window
  const ferry::DispatchResult arrived = group.dispatch(send);
  const std::vector<float> y = through_experts(arrived, first_expert);
  ferry::CombineArgs back;
  back.handle = &arrived.handle;
  back.x = ferry::Tensor::contiguous(y.data(), ferry::DType::kFp32, {arrived.payload[0].shape[0], kHidden});
  back.weighting = ferry::CombineArgs::Weighting::kFromDispatch;
  const ferry::CombineResult result = group.combine(back);
  const auto* out = static_cast<const float*>(result.out.data);

  // Backward: gradients of the output go where the rows went ...
  std::vector<float> gradients(kTokens * kHidden, 1.0f);
  ferry::DispatchArgs again;
  again.payload = {ferry::Tensor::contiguous(gradients.data(), ferry::DType::kFp32, {kTokens, kHidden})};
  again.handle = &arrived.handle;
  again.layout = send.layout;
  const ferry::DispatchResult arrived_gradients = group.dispatch(again);
  // ... through the experts, times the weights that came with the forward; and dL/dw is the product with the expert's
  // row ...
  std::vector<float> dx = through_experts(arrived_gradients, first_expert);
  std::vector<float> dw(static_cast<std::size_t>(arrived.payload[0].shape[0]));
  const auto* dy = static_cast<const float*>(arrived_gradients.payload[0].data);
  for (std::size_t row = 0; row < dw.size(); ++row) {
    for (int h = 0; h < kHidden; ++h) {
      dw[row] += dy[row * arrived_gradients.payload[0].strides[0] + h] * y[row * kHidden + h];
      dx[row * kHidden + h] *= static_cast<const float*>(arrived.topk_weights.data)[row];
    }
  }
  // ... and return to their tokens.
  ferry::CombineArgs home;
  home.handle = &arrived.handle;
  home.x = ferry::Tensor::contiguous(dx.data(), ferry::DType::kFp32, {arrived.payload[0].shape[0], kHidden});
  home.topk_weights = ferry::Tensor::contiguous(dw.data(), ferry::DType::kFp32, {static_cast<std::int64_t>(dw.size())});
  const ferry::CombineResult grads = group.combine(home);
  const auto* x_gradients = static_cast<const float*>(grads.out.data);
  const auto* weight_gradients = static_cast<const float*>(grads.topk_weights.data);

  std::printf("rank %d: out %.2f, dx %.2f, dw %.0f %.0f\n", group.rank(), out[0], x_gradients[0], weight_gradients[0],
              weight_gradients[1]);
  const float expected = 0.25f * scale_of(0) + 0.75f * scale_of(2);
  return out[0] == expected && x_gradients[0] == expected && weight_gradients[0] == kHidden * scale_of(0) &&
         weight_gradients[1] == kHidden * scale_of(2);
}

}  // namespace

int main() {
  return example::run_as_threads(kRanks, run_rank);
}
