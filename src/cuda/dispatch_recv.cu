// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 4, dispatch_recv: wait for the rows, which are in place already; copy those of peers that several local experts want,
// unless dispatch_send has done so already; write the records into the handle, and the ids and weights of the result. See the
// host step of this name.
#include "cuda/device/row_progress.cuh"
#include "cuda/device/wait.cuh"
#include "cuda/kernels.h"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr FaultStep kStep = FaultStep::kDispatchRecv;

class Receiver {
 public:
  __device__ Receiver(const ReceiveArgs& args, std::uint64_t epoch)
      : a_(args),
        epoch_(epoch),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32),
        warps_(static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32)),
        first_slot_(args.group.placement.first_slot[args.group.rank]) {
    std::byte* own = args.group.windows[args.group.rank];
    arrived_ = own + args.group.layout.recv_meta + args.group.flight * args.group.layout.recv_meta_stride;
  }

  __device__ void take_rows(std::int64_t num_rows) {
    const std::int64_t bytes = wire::TokenMeta::bytes(a_.top_k);
    if (a_.write_records) copy_all(a_.handle.records, arrived_, num_rows * bytes);
    if (a_.shape.layout == Layout::kRankMajor) return take_choices(num_rows);
    // dispatch_send has stored this rank's own rows at all their choices.
    const std::int32_t* offsets = a_.handle.source_offsets + a_.group.rank;
    const std::int64_t own = offsets[0], own_end = offsets[1];
    for (std::int64_t n = warp_; n < num_rows; n += warps_) {
      const bool is_own = n >= own && n < own_end;
      if (!is_own || a_.weights != nullptr) take(n, !is_own);
    }
  }
  /// Rows of the ids and weights beyond the real ones.
  __device__ void clear_rest(std::int64_t num_rows) {
    if (a_.shape.layout != Layout::kRankMajor) return;
    const std::int64_t end = a_.shown_rows * a_.top_k;
    for (std::int64_t i = num_rows * a_.top_k + thread(); i < end; i += threads()) write_choice(i, -1, 0.0f);
  }
  /// Weights of expert rows that no choice has; those that one has are written by take() after a grid barrier.
  __device__ void clear_row_weights() {
    if (a_.shape.layout == Layout::kRankMajor || a_.weights == nullptr) return;
    for (std::int64_t i = thread(); i < a_.shown_rows; i += threads()) a_.weights[i] = 0.0f;
  }
  __device__ void zero_padding() {
    if (!a_.zero_padding) return;
    for (int e = 0; e < a_.num_local; ++e) {
      const std::int64_t begin = a_.handle.expert_offsets[e] + a_.handle.expert_counts[e];
      for (std::int64_t row = begin + warp_; row < a_.handle.expert_offsets[e + 1]; row += warps_) {
        for (int b = 0; b < a_.num_blocks; ++b) {
          std::byte* to = at(b, row);
          for (std::int64_t i = lane_ * 16; i < a_.padded[b]; i += 32 * 16)
            *reinterpret_cast<uint4*>(to + i) = make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

 private:
  __device__ std::int64_t thread() const { return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
  __device__ std::int64_t threads() const { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }
  __device__ std::byte* at(int block, std::int64_t row) const { return a_.rows[block] + row * a_.padded[block]; }

  __device__ void write_choice(std::int64_t i, std::int32_t local, float weight) const {
    if (a_.wide_ids) {
      static_cast<std::int64_t*>(a_.ids)[i] = local;
    } else {
      static_cast<std::int32_t*>(a_.ids)[i] = local;
    }
    if (a_.weights != nullptr) a_.weights[i] = weight;
  }

  /// All threads of the grid, four pieces of 16 bytes each at a time.
  __device__ void copy_all(std::byte* to, const std::byte* from, std::int64_t bytes) const {
    auto* target = reinterpret_cast<uint4*>(to);
    const auto* source = reinterpret_cast<const uint4*>(from);
    const std::int64_t count = bytes / 16, step = threads();
#pragma unroll 4
    for (std::int64_t i = thread(); i < count; i += step) target[i] = source[i];
  }

  __device__ bool is_mine(std::int32_t slot) const {
    return slot >= first_slot_ && slot < first_slot_ + a_.num_local;
  }

  /// rank_major: a thread per choice, so that the loads of many rows are in flight together.
  __device__ void take_choices(std::int64_t num_rows) const {
    const int k = a_.top_k;
    if (k > 32) return take_wide_choices(num_rows);
    const int rows = 32 / k, choice = lane_ % k;  // a warp takes so many rows at a time
    if (lane_ >= rows * k) return;
    const std::int64_t bytes = wire::TokenMeta::bytes(k), step = warps_ * rows;
#pragma unroll 4
    for (std::int64_t n = warp_ * rows + lane_ / k; n < num_rows; n += step) {
      const wire::TokenMeta record(arrived_ + n * bytes, k);
      const std::int32_t slot = record.slots()[choice];
      const float weight = a_.weights != nullptr ? record.weights()[choice] : 0.0f;
      write_choice(n * k + choice, is_mine(slot) ? slot - first_slot_ : -1, is_mine(slot) ? weight : 0.0f);
    }
  }

  /// The same for more choices than lanes.
  __device__ void take_wide_choices(std::int64_t num_rows) const {
    const int k = a_.top_k;
    const std::int64_t bytes = wire::TokenMeta::bytes(k);
    for (std::int64_t i = thread(); i < num_rows * k; i += threads()) {
      const wire::TokenMeta record(arrived_ + i / k * bytes, k);
      const std::int32_t slot = record.slots()[i % k];
      const float weight = a_.weights != nullptr ? record.weights()[i % k] : 0.0f;
      write_choice(i, is_mine(slot) ? slot - first_slot_ : -1, is_mine(slot) ? weight : 0.0f);
    }
  }

  /// Expert layouts: a warp per row; it lies at its first choice here and, if it is to be, is copied to the others. 32 choices at
  /// a time.
  __device__ void take(std::int64_t n, bool copied) const {
    const int k = a_.top_k;
    const wire::TokenMeta record(arrived_ + n * wire::TokenMeta::bytes(k), k);
    std::int32_t first = -1;
    for (int begin = 0; begin < k; begin += 32) {
      const int choice = begin + lane_;
      const std::int32_t slot = choice < k ? record.slots()[choice] : -1;
      const bool mine = is_mine(slot);
      const std::int32_t row = mine ? record.rows()[choice] : -1;
      if (mine && a_.weights != nullptr) a_.weights[row] = record.weights()[choice];
      unsigned left = __ballot_sync(kAll, mine);
      if (left == 0 || !copied) continue;
      if (first < 0) {
        first = __shfl_sync(kAll, row, __ffs(static_cast<int>(left)) - 1);
        left &= left - 1;
        copied = !is_copied(a_.group, epoch_, record.source_rank(), n);
      }
      if (left != 0 && copied) copy_row(first, row, left);
    }
  }

  /// Each piece of the row is loaded once and stored at every lane of `targets`.
  __device__ void copy_row(std::int64_t from, std::int32_t row, unsigned targets) const {
    constexpr int kBatch = 4;
    for (int b = 0; b < a_.num_blocks; ++b) {
      const std::byte* source = at(b, from);
      for (std::int64_t begin = lane_ * 16; begin - lane_ * 16 < a_.padded[b]; begin += 32 * 16 * kBatch) {
        uint4 pieces[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const std::int64_t offset = begin + i * 32 * 16;
          if (offset < a_.padded[b]) pieces[i] = *reinterpret_cast<const uint4*>(source + offset);
        }
        for (unsigned left = targets; left != 0; left &= left - 1) {
          std::byte* target = at(b, __shfl_sync(kAll, row, __ffs(static_cast<int>(left)) - 1));
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            const std::int64_t offset = begin + i * 32 * 16;
            if (offset < a_.padded[b]) *reinterpret_cast<uint4*>(target + offset) = pieces[i];
          }
        }
      }
    }
  }

  const ReceiveArgs& a_;
  const std::uint64_t epoch_;
  const int lane_;
  const std::int64_t warp_, warps_;
  const std::int32_t first_slot_;
  std::byte* arrived_;
};

/// The combine input of this flight is handed out: nobody may still read what it held before.
__device__ bool wait_for_input(const GroupArgs& group, std::uint64_t epoch) {
  const std::uint64_t user = group.state->input_epoch[group.flight];
  if (user == 0) return true;
  return wait_everybody(group, kStep, epoch, DeviceSignal::kCombineRead, total_of(user),
                        group.state->input_flight[group.flight]);
}

/// A rank that came late finds signals of all peers, also of those that gave up on this call and sent no rows. All threads of a
/// block.
__device__ bool check_senders(const GroupArgs& group, std::uint64_t epoch) {
  bool good = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (group.windows[peer] == nullptr) continue;
    const std::uint64_t seen = load_relaxed(own_signal(group, DeviceSignal::kDispatchRows, peer));
    if (seen == total_of(epoch, kRowsSent)) continue;
    const bool gone_on = seen >> 24 != epoch;
    fail(group, epoch,
         {.kind = gone_on ? FaultKind::kGoneOn : FaultKind::kGivenUp,
          .step = kStep,
          .peer = peer,
          .seen = seen >> 24,
          .wanted = epoch});
    good = false;
  }
  return __syncthreads_and(good) != 0;
}

/// A call that failed leaves nothing behind that could be taken for rows. The handle of a cached dispatch is that of a call that
/// went well.
__device__ void clear_counts(const ReceiveArgs& a) {
  if (blockIdx.x != 0) return;
  if (threadIdx.x == 0) *a.num_rows = 0;
  if (!a.write_records) return;
  for (int i = static_cast<int>(threadIdx.x); i <= a.group.num_ranks; i += static_cast<int>(blockDim.x))
    a.handle.source_offsets[i] = 0;
  for (int i = static_cast<int>(threadIdx.x); i < a.num_local; i += static_cast<int>(blockDim.x))
    a.handle.expert_counts[i] = 0;
}

__global__ void __launch_bounds__(1024, 1) dispatch_recv_kernel(const __grid_constant__ ReceiveArgs a) {
  const std::uint64_t epoch = a.group.state->dispatch_epoch[a.group.flight];
  Receiver receiver(a, epoch);
  bool good = !has_failed(a.group, epoch);
  receiver.clear_row_weights();
  good = good && wait_everybody(a.group, kStep, epoch, DeviceSignal::kDispatchRows, total_of(epoch));
  good = good && check_senders(a.group, epoch);
  good = good && wait_for_input(a.group, epoch);
  if (a.weights != nullptr && a.shape.layout != Layout::kRankMajor) good = grid_barrier(a.group, kStep, epoch) && good;
  if (!good) {
    receiver.clear_rest(0);
    clear_counts(a);
    return;
  }
  const std::int64_t num_rows = a.handle.source_offsets[a.group.num_ranks];
  for (int e = static_cast<int>(threadIdx.x); blockIdx.x == 0 && e < a.num_local; e += static_cast<int>(blockDim.x))
    count_rows(a.recv_counts, e, a.handle.expert_counts[e]);
  receiver.take_rows(num_rows);
  receiver.clear_rest(num_rows);
  receiver.zero_padding();
}

}  // namespace

void launch_dispatch_recv(const ReceiveArgs& args, const Launch& launch, cudaStream_t stream) {
  dispatch_recv_kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
}

void prepare_dispatch_recv() {
  prepare_kernel(reinterpret_cast<const void*>(dispatch_recv_kernel), 0);
}

}  // namespace ferry::cuda
