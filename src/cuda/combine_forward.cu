// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 6, combine_forward: the rail peer sums the rows that ranks of its node have for tokens of other nodes, one sum per (token,
// node), and sends the sums back along the rail, chunk by chunk. See the host step of this name.
#include "cuda/device/token_summer.cuh"
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

constexpr FaultStep kStep = FaultStep::kCombineForward;

/// Until the sources have read what this rank gave back in the flight's last combine, and the engine has taken it from the staging
/// region. All threads of a block.
__device__ bool await_room(const GroupArgs& group, const NetworkArgs& net, std::uint64_t epoch) {
  bool good = true;
  const std::uint64_t last = net.state->returned_epoch[group.flight];
  for (int i = static_cast<int>(threadIdx.x); i < net.num_sources && last != 0; i += static_cast<int>(blockDim.x)) {
    good = wait_network(group, kStep, epoch, NetworkWord::kRead, net.sources[i], group.flight, 0, total_of(last)) != 0 &&
           good;
  }
  if (threadIdx.x == 0) good = wait_completed(group, net, kStep, epoch, net.state->combine_busy[group.flight]) && good;
  return __syncthreads_and(good) != 0;
}

/// Sources need not wait for rows that will not come. The last block, one thread.
__device__ void give_up(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch) {
  for (int i = 0; i < net.num_sources; ++i) {
    for (int chunk = 0; chunk < NetworkLayout::kChunks; ++chunk)
      network_post(a.group, net, kStep, epoch, net.sources[i], NetworkWord::kReturnChunk, a.group.flight, chunk,
                   total_of(epoch) | kNetworkGivenUp);
  }
}

extern __shared__ __align__(128) std::byte shared_bytes[];

template <DType kDType>
__global__ void __launch_bounds__(32 * kMostCombineWarps, 1)
    combine_forward_kernel(const __grid_constant__ CombineArgsOnDevice a, const __grid_constant__ NetworkArgs net) {
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->combine_epoch[group.flight];  // filed by combine_send
  bool good = !__syncthreads_or(has_failed(group, epoch));
  good = good && wait_everybody(group, kStep, epoch, DeviceSignal::kCombineReady, total_of(epoch));
  auto* ranks = reinterpret_cast<RankRows*>(shared_bytes + blockDim.x / 32 * sizeof(WarpMemory<kMaxTopK>));
  good = good && read_notes(a, kStep, epoch, ranks);
  good = good && await_room(group, net, epoch);
  if (good) {
    auto& memory = reinterpret_cast<WarpMemory<kMaxTopK>*>(shared_bytes)[threadIdx.x / 32];
    TokenSummer<kDType, true, kMaxTopK, SumOf::kForwarded>(a, memory, ranks, &net, epoch).sum_all();
  }
  if (!is_last_block(group)) return;
  for (int i = static_cast<int>(threadIdx.x); i < net.num_sources * NetworkLayout::kChunks;
       i += static_cast<int>(blockDim.x))
    net.return_rows[i] = 0;
  if (threadIdx.x != 0) return;
  if (has_failed(group, epoch)) give_up(a, net, epoch);
  net.state->returned_epoch[group.flight] = epoch;
  const std::uint64_t commands = commands_so_far(net);
  net.state->combine_busy[group.flight] = commands;
  *net.ring.submitted = commands;
}

}  // namespace

void launch_combine_forward(const CombineArgsOnDevice& args, const NetworkArgs& network, const Launch& launch,
                            cudaStream_t stream) {
  with_dtype(args.dtype, [&]<DType kDType>() {
    combine_forward_kernel<kDType><<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args, network);
  });
}

void prepare_combine_forward(int dynamic_bytes) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    with_dtype(dtype, [&]<DType kDType>() {
      prepare_kernel(reinterpret_cast<const void*>(combine_forward_kernel<kDType>), dynamic_bytes);
    });
  }
}

}  // namespace ferry::cuda
