// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 5, combine_send: makes this rank's rows readable by the peers, who fetch what they need (combine_recv). Rows that the
// experts wrote into the combine input stay where they are; others are copied; rows of one token are summed first, unless the
// reduction is flat. See the host step of this name.
#include "cuda/device/combine_call.cuh"
#include "cuda/device/elements.cuh"
#include "cuda/device/wait.cuh"
#include "cuda/kernels.h"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr FaultStep kStep = FaultStep::kCombineSend;

__device__ bool is_flat(const CombineArgsOnDevice& a) {
  return a.reduction.group == Reduction::Group::kChoice;
}
__device__ bool weights_go_ahead(const CombineArgsOnDevice& a) {
  return a.weigh == CombineArgsOnDevice::Weigh::kGiven && !is_flat(a);
}

/// A warp's share of the work.
struct WarpShare {
  int lane = static_cast<int>(threadIdx.x) % 32;
  std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
};

/// Stores the weights of this rank's tokens at the ranks that sum their rows, in the order of the rows there. Choices 32 at a
/// time: a rank that has choices in several of these groups gets the weights again with each.
__device__ void send_weights_ahead(const CombineArgsOnDevice& a) {
  const WarpShare share;
  for (std::int64_t t = share.first; t < a.num_tokens; t += share.step) {
    for (int begin = 0; begin < a.top_k; begin += 32) {
      const int choice = begin + share.lane;
      const std::int64_t at = t * a.top_k + choice;
      const std::int32_t rank = choice < a.top_k ? a.handle.ranks[at] : -1;
      const unsigned same = __match_any_sync(kAll, rank >= 0 ? rank : -1 - share.lane);
      const bool first = rank >= 0 && (same & ((1u << share.lane) - 1)) == 0 && a.group.windows[rank] != nullptr;
      const std::int32_t row = first ? a.handle.tokens[at] : -1;
      for (unsigned left = __ballot_sync(kAll, first); left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        const std::int32_t to_rank = __shfl_sync(kAll, rank, lane);
        const std::int64_t to_row = __shfl_sync(kAll, row, lane);
        auto* to = reinterpret_cast<float*>(a.group.windows[to_rank] + a.group.layout.weights_ahead +
                                            a.group.flight * a.group.layout.weights_ahead_stride) +
                   to_row * a.top_k;
        for (int k = share.lane; k < a.top_k; k += 32)
          to[k] = a.weights[t * a.weights_stride[0] + k * a.weights_stride[1]];
      }
    }
  }
}

/// Where rows come from and go to.
class RowSource16 {
 public:
  __device__ explicit RowSource16(const CombineArgsOnDevice& args) : a_(args) {
    own_ = args.group.windows[args.group.rank];
    rows_ = own_ + args.rows_offset;
  }
  __device__ const std::byte* x_row(std::int64_t row) const {
    if (a_.layout != Layout::kExpertPadded) return a_.x + row * a_.row_stride;
    return a_.x + row / a_.expert_capacity * a_.expert_stride + row % a_.expert_capacity * a_.row_stride;
  }
  __device__ std::byte* sent_row(std::int64_t row) const { return rows_ + row * a_.sent_stride; }
  /// [K] combined weights of rank-major row n.
  __device__ float* combined_weights(std::int64_t n) const {
    return reinterpret_cast<float*>(own_ + a_.group.layout.combine_weights +
                                    a_.group.flight * a_.group.layout.combine_weights_stride) +
           n * a_.top_k;
  }
  __device__ const float* weights_ahead(std::int64_t n) const {
    return reinterpret_cast<const float*>(own_ + a_.group.layout.weights_ahead +
                                          a_.group.flight * a_.group.layout.weights_ahead_stride) +
           n * a_.top_k;
  }

 private:
  const CombineArgsOnDevice& a_;
  std::byte *own_, *rows_;
};

template <DType kDType>
__device__ void copy_row(const CombineArgsOnDevice& a, const std::byte* from, std::byte* to, int lane) {
  constexpr int kCount = Elements<kDType>::kCount;
  if (reinterpret_cast<std::uintptr_t>(from) % 16 == 0 && a.hidden % kCount == 0) {
    constexpr int kBatch = 14;  // loads in flight per lane: 112 KiB per SM, half a row of 7168
    const auto* source = reinterpret_cast<const uint4*>(from);
    auto* target = reinterpret_cast<uint4*>(to);
    const auto count = static_cast<int>(a.hidden / kCount);
    for (int begin = lane; begin - lane < count; begin += 32 * kBatch) {
      uint4 pieces[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i * 32 < count) pieces[i] = source[begin + i * 32];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i * 32 < count) target[begin + i * 32] = pieces[i];
      }
    }
    return;
  }
  for (std::int64_t column = lane * kCount; column < a.hidden; column += 32 * kCount) {
    const int count = static_cast<int>(min(static_cast<std::int64_t>(kCount), a.hidden - column));
    Sixteen<kDType>::load(from + column * (16 / kCount), count).store(to + column * (16 / kCount), kCount);
  }
}

/// What lane k knows about choice k of a received token.
struct MyChoice {
  bool mine = false;
  std::int32_t row = -1;
  float weight = 1.0f;
};

/// Sums the rows of this rank's choices of one token, ascending, rounded once.
template <DType kDType>
__device__ void sum_choices(const CombineArgsOnDevice& a, const RowSource16& rows, const MyChoice& choice,
                            std::byte* to, int lane) {
  constexpr int kCount = Elements<kDType>::kCount;
  const bool weighted = a.weigh != CombineArgsOnDevice::Weigh::kNone;
  const unsigned mine = __ballot_sync(kAll, choice.mine);
  for (std::int64_t from = 0; from < a.hidden; from += 32 * kCount) {
    const std::int64_t column = from + lane * kCount;
    const int count = static_cast<int>(min(static_cast<std::int64_t>(kCount), a.hidden - column));
    Sums<kDType> sums;
    for (unsigned left = mine; left != 0; left &= left - 1) {
      const int k = __ffs(static_cast<int>(left)) - 1;
      const std::int32_t row = __shfl_sync(kAll, choice.row, k);
      const float weight = __shfl_sync(kAll, choice.weight, k);
      if (count <= 0) continue;
      const auto value = Sixteen<kDType>::load(rows.x_row(row) + column * (16 / kCount), count);
      if (weighted) {
        sums.add_weighted(value, weight);
      } else {
        sums.add(value);
      }
    }
    if (count > 0) sums.round().store(to + column * (16 / kCount), kCount);
  }
}

__device__ float combined_weight(const CombineArgsOnDevice& a, std::int64_t n, int k, std::int32_t row) {
  if (a.layout == Layout::kRankMajor) return a.topk_weights[n * a.topk_stride[0] + k * a.topk_stride[1]];
  if (a.layout == Layout::kExpertMajor) return a.topk_weights[row * a.topk_stride[0]];
  return a.topk_weights[row / a.expert_capacity * a.topk_stride[0] + row % a.expert_capacity * a.topk_stride[1]];
}

/// Rank-major rows as they are. Nothing has to be looked up: rows of one source lie side by side.
template <DType kDType>
__device__ void copy_rows(const CombineArgsOnDevice& a) {
  const RowSource16 rows(a);
  const WarpShare share;
  const std::int32_t* offsets = a.handle.source_offsets;
  const std::int64_t own = offsets[a.group.rank];
  const std::int64_t skipped = a.own_in_place ? offsets[a.group.rank + 1] - own : 0;
  const std::int64_t count = offsets[a.group.num_ranks] - skipped;
  for (std::int64_t i = share.first; i < count; i += share.step) {
    const std::int64_t n = i < own ? i : i + skipped;
    copy_row<kDType>(a, rows.x_row(n), rows.sent_row(n), share.lane);
  }
}

/// What a received token with more choices than lanes knows about one of them.
struct WideChoices {
  const CombineArgsOnDevice& a;
  const RowSource16& rows;
  wire::TokenMeta record;
  std::int64_t n;

  __device__ bool is_mine(int k) const {
    const std::int32_t slot = record.slots()[k];
    return slot >= 0 && a.handle.rank_of_slot[slot] == a.group.rank;
  }
  __device__ float weight(int k) const {
    return weights_go_ahead(a) ? load_relaxed(rows.weights_ahead(n) + k) : record.weights()[k];
  }
};

/// As sum_choices.
template <DType kDType>
__device__ void sum_wide_choices(const WideChoices& choices, std::byte* to, int lane) {
  constexpr int kCount = Elements<kDType>::kCount;
  const CombineArgsOnDevice& a = choices.a;
  for (std::int64_t column = lane * kCount; column < a.hidden; column += 32 * kCount) {
    const int count = static_cast<int>(min(static_cast<std::int64_t>(kCount), a.hidden - column));
    Sums<kDType> sums;
    for (int k = 0; k < a.top_k; ++k) {
      if (!choices.is_mine(k)) continue;
      const auto value =
          Sixteen<kDType>::load(choices.rows.x_row(choices.record.rows()[k]) + column * (16 / kCount), count);
      if (a.weigh != CombineArgsOnDevice::Weigh::kNone) {
        sums.add_weighted(value, choices.weight(k));
      } else {
        sums.add(value);
      }
    }
    sums.round().store(to + column * (16 / kCount), kCount);
  }
}

/// As make_rows, for tokens with more choices than lanes.
template <DType kDType>
__device__ void make_wide_rows(const CombineArgsOnDevice& a) {
  const RowSource16 rows(a);
  const WarpShare share;
  const std::int64_t num_rows = a.handle.source_offsets[a.group.num_ranks];
  if (a.source == RowSource::kInPlace && a.topk_weights == nullptr) return;
  for (std::int64_t n = share.first; n < num_rows; n += share.step) {
    const WideChoices choices{a, rows, {a.handle.records + n * wire::TokenMeta::bytes(a.top_k), a.top_k}, n};
    for (int k = share.lane; k < a.top_k && a.topk_weights != nullptr; k += 32) {
      rows.combined_weights(n)[k] = choices.is_mine(k) ? combined_weight(a, n, k, choices.record.rows()[k]) : 0.0f;
    }
    if (a.source == RowSource::kSumChoices) {
      sum_wide_choices<kDType>(choices, rows.sent_row(n), share.lane);
    } else if (a.source != RowSource::kCopy || (a.own_in_place && choices.record.source_rank() == a.group.rank)) {
      continue;
    } else if (a.layout == Layout::kRankMajor) {
      copy_row<kDType>(a, rows.x_row(n), rows.sent_row(n), share.lane);
    } else {
      for (int k = 0; k < a.top_k; ++k) {
        const std::int32_t row = choices.record.rows()[k];
        if (choices.is_mine(k)) copy_row<kDType>(a, rows.x_row(row), rows.sent_row(row), share.lane);
      }
    }
  }
}

template <DType kDType>
__device__ void make_rows(const CombineArgsOnDevice& a) {
  const RowSource16 rows(a);
  const WarpShare share;
  const int lane = share.lane, k = a.top_k;
  const std::int64_t num_rows = a.handle.source_offsets[a.group.num_ranks];
  if (a.source == RowSource::kInPlace && a.topk_weights == nullptr) return;
  if (a.source == RowSource::kCopy && a.layout == Layout::kRankMajor && a.topk_weights == nullptr)
    return copy_rows<kDType>(a);
  for (std::int64_t n = share.first; n < num_rows; n += share.step) {
    const wire::TokenMeta record(a.handle.records + n * wire::TokenMeta::bytes(k), k);
    const std::int32_t slot = lane < k ? record.slots()[lane] : -1;
    MyChoice choice;
    choice.mine = slot >= 0 && a.handle.rank_of_slot[slot] == a.group.rank;
    if (choice.mine) {
      choice.row = record.rows()[lane];
      if (weights_go_ahead(a)) {
        choice.weight = load_relaxed(rows.weights_ahead(n) + lane);
      } else if (a.weigh == CombineArgsOnDevice::Weigh::kFromDispatch) {
        choice.weight = record.weights()[lane];
      }
    }
    if (a.topk_weights != nullptr && lane < k)
      rows.combined_weights(n)[lane] = choice.mine ? combined_weight(a, n, lane, choice.row) : 0.0f;
    if (a.source == RowSource::kSumChoices) {
      sum_choices<kDType>(a, rows, choice, rows.sent_row(n), lane);
    } else if (a.own_in_place && record.source_rank() == a.group.rank) {
      continue;
    } else if (a.source == RowSource::kCopy && a.layout == Layout::kRankMajor) {
      copy_row<kDType>(a, rows.x_row(n), rows.sent_row(n), lane);
    } else if (a.source == RowSource::kCopy) {
      for (unsigned left = __ballot_sync(kAll, choice.mine); left != 0; left &= left - 1) {
        const std::int32_t row = __shfl_sync(kAll, choice.row, __ffs(static_cast<int>(left)) - 1);
        copy_row<kDType>(a, rows.x_row(row), rows.sent_row(row), lane);
      }
    }
  }
}

template <DType kDType, bool kWide>
__global__ void __launch_bounds__(512, 1) combine_send_kernel(const __grid_constant__ CombineArgsOnDevice a) {
  const std::uint64_t epoch = a.group.state->epoch + 1;
  bool good = wait_until_read(a.group, epoch);
  if (weights_go_ahead(a)) {
    if (good) send_weights_ahead(a);
    __threadfence_system();
    good = grid_barrier(a.group, kStep, epoch) && good;
    if (blockIdx.x == 0 && good) {
      for (int peer = static_cast<int>(threadIdx.x); peer < a.group.num_ranks; peer += static_cast<int>(blockDim.x))
        post(a.group, DeviceSignal::kCombineWeights, peer, total_of(epoch));
    }
    good = good && wait_everybody(a.group, kStep, epoch, DeviceSignal::kCombineWeights, total_of(epoch));
  }
  if constexpr (kWide) {
    if (good) make_wide_rows<kDType>(a);
  } else {
    if (good) make_rows<kDType>(a);
  }
  __threadfence_system();
  if (!is_last_block(a.group)) return;
  const bool failed = has_failed(a.group, epoch);
  if (!failed) announce_rows(a, epoch);
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (!failed) file_input(a, epoch);
  file_combine(a, epoch);
}

}  // namespace

void launch_combine_send(const CombineArgsOnDevice& args, const Launch& launch, cudaStream_t stream) {
  with_dtype(args.dtype, [&]<DType kDType>() {
    const auto kernel = args.top_k > kMaxTopK ? combine_send_kernel<kDType, true> : combine_send_kernel<kDType, false>;
    kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
  });
}

void prepare_combine_send() {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    with_dtype(dtype, [&]<DType kDType>() {
      prepare_kernel(reinterpret_cast<const void*>(combine_send_kernel<kDType, false>), 0);
      prepare_kernel(reinterpret_cast<const void*>(combine_send_kernel<kDType, true>), 0);
    });
  }
}

}  // namespace ferry::cuda
