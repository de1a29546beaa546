// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 7, combine_recv: wait until the peers' rows may be read, fetch each token's rows from where they lie, weigh, sum in the
// documented order, add bias, round once. Fetching was measured a little faster than pushing (docs/design/cuda.md), and needs
// no slots for returned rows. See the host step of this name.
#include "cuda/device/elements.cuh"
#include "cuda/device/wait.cuh"
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr FaultStep kStep = FaultStep::kCombineRecv;
constexpr int kWarps = 16;
// Columns of 16 bytes and rows that a lane asks for before it uses the first: 8 loads in flight.
constexpr int kColumns = 2, kRows = 4;

/// The rows of one token in the order of the sum; one per warp, in shared memory.
struct Terms {
  const std::byte* rows[kMaxTopK];
  float weights[kMaxTopK];
};

/// Refuses peers that are in another call or gave other arguments. All threads of a block.
__device__ bool check_notes(const CombineArgsOnDevice& a, std::uint64_t epoch) {
  const GroupArgs& group = a.group;
  bool good = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (group.windows[peer] == nullptr) continue;
    const auto& note =
        *reinterpret_cast<const CombineNote*>(group.windows[group.rank] + group.layout.note_at(group.flight, peer));
    if (note.epoch == epoch && note.digest == group.digest) continue;
    fail(group, epoch, {.kind = note.epoch == epoch ? FaultKind::kMismatch : FaultKind::kGoneOn, .step = kStep,
                        .peer = peer, .seen = note.epoch, .wanted = epoch});
    good = false;
  }
  return __syncthreads_and(good) != 0;
}

template <DType kDType>
class TokenSummer {
 public:
  using Vector = Sixteen<kDType>;
  static constexpr int kCount = Elements<kDType>::kCount;
  static constexpr int kElementBytes = 16 / kCount;

  __device__ TokenSummer(const CombineArgsOnDevice& args, Terms& terms)
      : a_(args), terms_(terms), lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void sum_all() {
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
    for (std::int64_t t = static_cast<std::int64_t>(threadIdx.x / 32) * gridDim.x + blockIdx.x; t < a_.num_tokens;
         t += warps) {
      find_terms(t);
      sum(t);
    }
  }

 private:
  __device__ const CombineNote& note_of(int rank) const {
    return *reinterpret_cast<const CombineNote*>(a_.group.windows[a_.group.rank] +
                                                 a_.group.layout.note_at(a_.group.flight, rank));
  }
  __device__ float weight_of(std::int64_t at, std::int64_t token) const {
    if (a_.weigh == CombineArgsOnDevice::Weigh::kFromDispatch) return a_.handle.weights[at];
    if (a_.weigh == CombineArgsOnDevice::Weigh::kGiven)
      return a_.weights[token * a_.weights_stride[0] + lane_ * a_.weights_stride[1]];
    return 1.0f;
  }

  /// Lane k looks at choice k: which row it brings, and at which place of the sum.
  __device__ void find_terms(std::int64_t token) {
    const std::int64_t at = token * a_.top_k + lane_;
    const std::int32_t rank = lane_ < a_.top_k ? a_.handle.ranks[at] : -1;
    const bool live = rank >= 0 && a_.group.windows[rank] != nullptr;
    const unsigned before = (1u << lane_) - 1;
    bool brings = live;
    int place = 0;
    if (a_.reduction.group != Reduction::Group::kChoice) {
      const unsigned same = __match_any_sync(kAll, rank >= 0 ? rank : -1 - lane_);
      const bool last = a_.reduction.order == Reduction::Order::kLastChoice;
      brings = live && (last ? (same & ~before & ~(1u << lane_)) == 0 : (same & before) == 0);
      const unsigned bringing = __ballot_sync(kAll, brings);
      if (last) {
        place = __popc(bringing & before);
      } else {
        for (unsigned left = bringing; left != 0; left &= left - 1)
          place += __shfl_sync(kAll, rank, __ffs(static_cast<int>(left)) - 1) < rank ? 1 : 0;
      }
      count_ = __popc(bringing);
    } else {
      const unsigned bringing = __ballot_sync(kAll, brings);
      place = __popc(bringing & before);
      count_ = __popc(bringing);
    }
    __syncwarp();
    if (brings) {
      const bool flat = a_.reduction.group == Reduction::Group::kChoice;
      const CombineNote& note = note_of(rank);
      terms_.rows[place] = a_.group.windows[rank] + note.rows_offset +
                           static_cast<std::int64_t>(flat ? a_.handle.rows[at] : a_.handle.tokens[at]) * note.row_stride;
      terms_.weights[place] = flat ? weight_of(at, token) : 1.0f;
    }
    if (a_.out_weights != nullptr && lane_ < a_.top_k) {
      float value = 0.0f;
      if (live) {
        value += load_relaxed(reinterpret_cast<const float*>(a_.group.windows[rank] + a_.group.layout.combine_weights +
                                                             a_.group.flight * a_.group.layout.combine_weights_stride) +
                              static_cast<std::int64_t>(a_.handle.tokens[at]) * a_.top_k + lane_);
      }
      a_.out_weights[at] = value;
    }
    __syncwarp();
  }

  __device__ void sum(std::int64_t token) {
    const bool weighted =
        a_.weigh != CombineArgsOnDevice::Weigh::kNone && a_.reduction.group == Reduction::Group::kChoice;
    for (std::int64_t from = 0; from < a_.hidden; from += 32 * kCount * kColumns) {
      Sums<kDType> sums[kColumns];
      if (a_.reduction.group != Reduction::Group::kNode) start_at_bias(sums, token, from);
      for (int first = 0; first < count_; first += kRows) {
        uint4 rows[kRows][kColumns];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (first + r >= count_) break;
          const std::byte* row = terms_.rows[first + r];
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const std::int64_t column = from + (c * 32 + lane_) * kCount;
            if (column < a_.hidden) rows[r][c] = load_once(row + column * kElementBytes);
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (first + r >= count_) break;
          const float weight = terms_.weights[first + r];
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            if (weighted) {
              sums[c].add_weighted(Vector::of(rows[r][c]), weight);
            } else {
              sums[c].add(Vector::of(rows[r][c]));
            }
          }
        }
      }
      if (a_.reduction.group == Reduction::Group::kNode && count_ > 0) {
        Sums<kDType> outer[kColumns];
        start_at_bias(outer, token, from);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          outer[c].add(sums[c].round());
          sums[c] = outer[c];
        }
      } else if (a_.reduction.group == Reduction::Group::kNode) {
        start_at_bias(sums, token, from);
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const std::int64_t column = from + (c * 32 + lane_) * kCount;
        if (column >= a_.hidden) continue;
        const int count = static_cast<int>(min(static_cast<std::int64_t>(kCount), a_.hidden - column));
        sums[c].round().store(a_.out + token * a_.out_stride + column * kElementBytes, count);
      }
    }
  }

  __device__ void start_at_bias(Sums<kDType> (&sums)[kColumns], std::int64_t token, std::int64_t from) const {
    for (int b = 0; b < 2; ++b) {
      if (a_.bias[b] == nullptr) continue;
      for (int c = 0; c < kColumns; ++c) {
        for (int i = 0; i < kCount; ++i) {
          const std::int64_t column = from + (c * 32 + lane_) * kCount + i;
          if (column < a_.hidden) sums[c].values[i] += bias_at(b, token, column);
        }
      }
    }
  }
  __device__ float bias_at(int which, std::int64_t token, std::int64_t column) const {
    const std::byte* row = a_.bias[which] + token * a_.bias_stride[which];
    if (a_.bias_dtype[which] == DType::kFp32) return reinterpret_cast<const float*>(row)[column];
    return Elements<kDType>::widen(reinterpret_cast<const typename Elements<kDType>::Word*>(row)[column]);
  }

  const CombineArgsOnDevice& a_;
  Terms& terms_;
  const int lane_;
  int count_ = 0;
};

template <DType kDType>
__global__ void __launch_bounds__(32 * kWarps, 1) combine_recv_kernel(const __grid_constant__ CombineArgsOnDevice a) {
  __shared__ Terms terms[kWarps];
  const std::uint64_t epoch = a.group.state->combine_epoch[a.group.flight];
  bool good = !has_failed(a.group, epoch);
  good = good && wait_everybody(a.group, kStep, epoch, DeviceSignal::kCombineReady, total_of(epoch));
  good = good && check_notes(a, epoch);
  if (good) {
    TokenSummer<kDType> summer(a, terms[threadIdx.x / 32]);
    summer.sum_all();
  }
  // Also after a failure: peers need not wait for a rank that reads nothing any more.
  if (!is_last_block(a.group)) return;
  for (int peer = static_cast<int>(threadIdx.x); peer < a.group.num_ranks; peer += static_cast<int>(blockDim.x))
    post(a.group, DeviceSignal::kCombineRead, peer, total_of(epoch));
}

}  // namespace

void launch_combine_recv(const CombineArgsOnDevice& args, const Launch& launch, cudaStream_t stream) {
  with_dtype(args.dtype, [&]<DType kDType>() {
    combine_recv_kernel<kDType><<<launch.blocks, 32 * kWarps, 0, stream>>>(args);
  });
}

void prepare_combine_recv() {
  cudaFuncAttributes attributes;
  cudaFuncGetAttributes(&attributes, combine_recv_kernel<DType::kBf16>);
  cudaFuncGetAttributes(&attributes, combine_recv_kernel<DType::kFp16>);
  cudaFuncGetAttributes(&attributes, combine_recv_kernel<DType::kFp32>);
}

}  // namespace ferry::cuda
