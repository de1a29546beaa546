// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 7, combine_recv: wait until the peers' rows may be read, fetch each token's rows from where they lie, weigh, sum in the
// documented order, add bias, round once. A warp takes a token; its rows come in pieces through the warp's ring of pieces, far
// ahead of the sums. Fetching needs no slots for returned rows and no second pass (docs/design/cuda.md). See the host step of
// this name.
#include "cuda/device/combine_call.cuh"
#include "cuda/device/token_summer.cuh"
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

constexpr FaultStep kStep = FaultStep::kCombineRecv;

extern __shared__ __align__(128) std::byte shared_bytes[];

template <DType kDType, int kMost>
__global__ void __launch_bounds__(32 * kMostCombineWarps, 1)
    combine_recv_kernel(const __grid_constant__ CombineArgsOnDevice a) {
  const DeviceState& state = *a.group.state;
  const std::uint64_t epoch = a.announces ? state.epoch + 1 : state.combine_epoch[a.group.flight];
  bool good = !has_failed(a.group, epoch);
  if (a.announces && blockIdx.x == 0 && good) {
    good = wait_until_read(a.group, epoch);
    if (good) {
      announce_rows(a, epoch);
      if (threadIdx.x == 0) file_input(a, epoch);
    }
  }
  good = good && wait_everybody(a.group, kStep, epoch, DeviceSignal::kCombineReady, total_of(epoch));
  auto* ranks = reinterpret_cast<RankRows*>(shared_bytes + blockDim.x / 32 * sizeof(WarpMemory<kMost>));
  good = good && read_notes(a, kStep, epoch, ranks);
  if (good) {
    auto& memory = reinterpret_cast<WarpMemory<kMost>*>(shared_bytes)[threadIdx.x / 32];
    const bool plain = a.reduction.group == Reduction::Group::kRank && a.bias[0] == nullptr && a.bias[1] == nullptr;
    if (plain && kMost <= kMaxTopK) {
      TokenSummer<kDType, kMost <= kMaxTopK, kMost>(a, memory, ranks).sum_all();
    } else {
      TokenSummer<kDType, false, kMost>(a, memory, ranks).sum_all();
    }
  }
  // Also after a failure: peers need not wait for a rank that reads nothing any more.
  if (!is_last_block(a.group)) return;
  for (int peer = static_cast<int>(threadIdx.x); peer < a.group.num_ranks; peer += static_cast<int>(blockDim.x))
    post(a.group, DeviceSignal::kCombineRead, peer, total_of(epoch));
  if (a.announces && threadIdx.x == 0) file_combine(a, epoch);
}

/// Of a group that spans nodes; combine_send has announced. Rows of other nodes come as chunks through the rail peers there; every rank of
/// another node is told at the end that this one has read what it got.
template <DType kDType>
__global__ void __launch_bounds__(32 * kMostCombineWarps, 1)
    combine_recv_network_kernel(const __grid_constant__ CombineArgsOnDevice a,
                                const __grid_constant__ NetworkArgs net) {
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->combine_epoch[group.flight];
  bool good = !__syncthreads_or(has_failed(group, epoch));
  good = good && wait_everybody(group, kStep, epoch, DeviceSignal::kCombineReady, total_of(epoch));
  auto* ranks = reinterpret_cast<RankRows*>(shared_bytes + blockDim.x / 32 * sizeof(WarpMemory<kMaxTopK>));
  good = good && read_notes(a, kStep, epoch, ranks);
  if (good) {
    auto& memory = reinterpret_cast<WarpMemory<kMaxTopK>*>(shared_bytes)[threadIdx.x / 32];
    TokenSummer<kDType, false, kMaxTopK, SumOf::kOwnTokensAcrossNodes>(a, memory, ranks, &net, epoch).sum_all();
  }
  if (!is_last_block(group)) return;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x))
    post(group, DeviceSignal::kCombineRead, peer, total_of(epoch));
  if (threadIdx.x != 0) return;
  for (int peer = 0; peer < group.num_ranks; ++peer) {
    if (net.window_slot[peer] >= 0)
      network_post(group, net, kStep, epoch, peer, NetworkWord::kRead, group.flight, 0, total_of(epoch));
  }
  *net.ring.submitted = commands_so_far(net);
}

}  // namespace

std::size_t combine_shared_bytes(int warps, int num_ranks, int top_k) {
  const std::size_t memory = top_k > kMaxTopK ? sizeof(WarpMemory<kWideTopK>) : sizeof(WarpMemory<kMaxTopK>);
  return static_cast<std::size_t>(warps) * memory + static_cast<std::size_t>(num_ranks) * sizeof(RankRows);
}

void launch_combine_recv(const CombineArgsOnDevice& args, const Launch& launch, cudaStream_t stream) {
  with_dtype(args.dtype, [&]<DType kDType>() {
    const auto kernel =
        args.top_k > kMaxTopK ? combine_recv_kernel<kDType, kWideTopK> : combine_recv_kernel<kDType, kMaxTopK>;
    kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
  });
}

void launch_combine_recv(const CombineArgsOnDevice& args, const NetworkArgs& network, const Launch& launch,
                         cudaStream_t stream) {
  with_dtype(args.dtype, [&]<DType kDType>() {
    combine_recv_network_kernel<kDType><<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args, network);
  });
}

void prepare_combine_recv(int dynamic_bytes) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    with_dtype(dtype, [&]<DType kDType>() {
      prepare_kernel(reinterpret_cast<const void*>(combine_recv_kernel<kDType, kMaxTopK>), dynamic_bytes);
      prepare_kernel(reinterpret_cast<const void*>(combine_recv_kernel<kDType, kWideTopK>), dynamic_bytes);
      prepare_kernel(reinterpret_cast<const void*>(combine_recv_network_kernel<kDType>), dynamic_bytes);
    });
  }
}

}  // namespace ferry::cuda
