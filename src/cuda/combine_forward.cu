// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 6, combine_forward: the rail peer fetches the rows that ranks of its node have for tokens of other nodes and sends them back along
// the rail, chunk by chunk: one sum per (token, node) for per_node, every row for the other reductions. See the host step of this name.
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
    good =
        wait_network(group, kStep, epoch, NetworkWord::kRead, net.sources[i], group.flight, 0, total_of(last)) != 0 &&
        good;
  }
  if (threadIdx.x == 0) good = wait_completed(group, net, kStep, epoch, net.state->combine_busy[group.flight]) && good;
  return __syncthreads_and(good) != 0;
}

/// A row as it is; bytes and addresses are multiples of 16.
__device__ void stage_row(std::byte* to, const std::byte* from, int bytes, int lane) {
  constexpr int kBatch = 8, kRun = 32 * 16;  // loads in flight
  for (int begin = lane * 16; begin - lane * 16 < bytes; begin += kRun * kBatch) {
    uint4 pieces[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i * kRun < bytes) pieces[i] = __ldcg(reinterpret_cast<const uint4*>(from + begin + i * kRun));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i * kRun < bytes) *reinterpret_cast<uint4*>(to + begin + i * kRun) = pieces[i];
    }
  }
}

/// Sources need not wait for rows that will not come. The last block, one thread.
__device__ void give_up(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch) {
  for (int i = 0; i < net.num_sources; ++i) {
    for (int chunk = 0; chunk < NetworkLayout::kChunks; ++chunk)
      network_post(a.group, net, kStep, epoch, net.sources[i], NetworkWord::kReturnChunk, a.group.flight, chunk,
                   total_of(epoch) | kNetworkGivenUp);
  }
}

/// per_rank and flat: a warp per token that passed through stages its rows, those of ranks ascending, or of choices. Bit for bit.
__device__ void stage_rows(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch,
                           const RankRows* ranks, int row_bytes) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
  const bool flat = a.reduction.group == Reduction::Group::kChoice;
  const std::int64_t end = a.handle.forward_offsets[a.group.num_ranks];
  for (std::int64_t number = static_cast<std::int64_t>(threadIdx.x / 32) * gridDim.x + blockIdx.x; number < end;
       number += step) {
    const ReturnStream stream(a, net, number);
    const wire::TokenMeta record(a.handle.forwarded + number * wire::TokenMeta::bytes(a.top_k), a.top_k);
    const std::int32_t slot = lane < a.top_k ? record.slots()[lane] : -1;
    const std::int32_t rank = slot < 0 ? -1 : a.handle.rank_of_slot[slot];
    const bool here = rank >= 0 && ranks[rank].base != nullptr;
    const unsigned same = __match_any_sync(kAll, here ? rank : -1 - lane), before = (1u << lane) - 1;
    const bool brings = here && (flat || (same & before) == 0);
    const unsigned bringing = __ballot_sync(kAll, brings);
    int place = 0;
    if (flat) {
      place = __popc(bringing & before);
    } else {
      for (unsigned left = bringing; left != 0; left &= left - 1)
        place += __shfl_sync(kAll, rank, __ffs(static_cast<int>(left)) - 1) < rank ? 1 : 0;
    }
    const std::byte* from = nullptr;
    if (brings) from = ranks[rank].base + (flat ? record.rows()[lane] : record.tokens()[lane]) * ranks[rank].stride;
    std::byte* to = a.out + (stream.staged_at(a) + stream.rows_before(a, net, number - stream.first)) * row_bytes;
    for (unsigned left = bringing; left != 0; left &= left - 1) {
      const int who = __ffs(static_cast<int>(left)) - 1;
      const auto* source =
          reinterpret_cast<const std::byte*>(__shfl_sync(kAll, reinterpret_cast<unsigned long long>(from), who));
      stage_row(to + static_cast<std::int64_t>(__shfl_sync(kAll, place, who)) * row_bytes, source, row_bytes, lane);
    }
    report_returned(a, net, epoch, number, row_bytes);
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
  if (good && a.reduction.group != Reduction::Group::kNode) {
    stage_rows(a, net, epoch, ranks, static_cast<int>(a.sent_stride));
  } else if (good) {
    auto& memory = reinterpret_cast<WarpMemory<kMaxTopK>*>(shared_bytes)[threadIdx.x / 32];
    TokenSummer<kDType, true, kMaxTopK, SumOf::kForwarded>(a, memory, ranks, &net, epoch).sum_all();
  }
  if (!is_last_block(group)) return;
  for (int i = static_cast<int>(threadIdx.x); i < net.num_sources * NetworkLayout::kChunks;
       i += static_cast<int>(blockDim.x))
    net.staged_tokens[i] = 0;
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
