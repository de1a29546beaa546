// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 2, dispatch_send: a warp takes a token, brings its row in its wire form piece by piece into shared memory and stores every
// piece at each destination, straight into the row where it belongs: at this rank into every expert's row, at the others into the
// first, from which they make their copies (dispatch_recv). Where there are SMs enough and no codec, some blocks store
// only rows that stay on this rank and the others only what crosses the link; such a row is brought twice. In expert layouts the
// former then copy rows of peers as they arrive. See the host step of this name.
#include "cuda/device/row_sender.cuh"
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

extern __shared__ __align__(128) std::byte shared_bytes[];

template <bool kWide, bool kCopies>
__global__ void __launch_bounds__(512, 1) dispatch_send_kernel(const __grid_constant__ SendArgs a) {
  const std::uint64_t epoch = a.group.state->epoch + 1;
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto* stages = reinterpret_cast<SendStages*>(shared_bytes);
  const int record_bytes = static_cast<int>(wire::TokenMeta::bytes(a.top_k));
  std::byte* records = shared_bytes + warps * sizeof(SendStages);
  const Receivers receivers{reinterpret_cast<std::byte**>(records + warps * record_bytes), 1 + a.num_blocks};
  auto* lists = reinterpret_cast<Destination*>(receivers.of(a.group.num_ranks));
  const BlockShare share(a.own_blocks);
  // All threads alike: another block may find just now that the call is over.
  if (!__syncthreads_or(has_failed(a.group, epoch)) && find_receivers(a.group, a.num_blocks, epoch, share, receivers)) {
    RowSender<kWide, kCopies> sender(a, share, receivers, stages[warp],
                                     reinterpret_cast<std::int32_t*>(records + warp * record_bytes),
                                     lists + warp * most_destinations(a.top_k));
    sender.send_all(epoch, share.peers);
    if (kCopies && share.own) {
      copy_arriving_rows(a.group, epoch, a.handle.source_offsets, share.block, share.blocks,
                         static_cast<int>(gridDim.x) - share.blocks, [&](std::int64_t n) { sender.copy_arrived(n); });
      sender.drain();
    }
  }
  if (kCopies && share.peers) {
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&a.group.state->sending_blocks_done, 1u);
  }
  __threadfence_system();
  if (!is_last_block(a.group)) return;
  if (!a.more_follows) {
    finish_send(a.group, epoch);
  } else if (threadIdx.x == 0) {
    a.group.state->sending_blocks_done = 0;
  }
}

}  // namespace

std::size_t send_shared_bytes(int warps, int num_ranks, int num_blocks, int top_k) {
  return static_cast<std::size_t>(warps) *
             (sizeof(SendStages) + static_cast<std::size_t>(wire::TokenMeta::bytes(top_k)) +
              static_cast<std::size_t>(most_destinations(top_k)) * sizeof(Destination)) +
         static_cast<std::size_t>(num_ranks * (1 + num_blocks)) * sizeof(std::byte*);
}

void launch_dispatch_send(const SendArgs& args, const Launch& launch, cudaStream_t stream) {
  const auto kernel = args.top_k > kMaxTopK                        ? dispatch_send_kernel<true, false>
                      : args.own_everywhere && args.own_blocks > 0 ? dispatch_send_kernel<false, true>
                                                                   : dispatch_send_kernel<false, false>;
  kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
}

void prepare_dispatch_send(int dynamic_bytes) {
  for (const auto kernel :
       {dispatch_send_kernel<false, false>, dispatch_send_kernel<false, true>, dispatch_send_kernel<true, false>})
    prepare_kernel(reinterpret_cast<const void*>(kernel), dynamic_bytes);
}

}  // namespace ferry::cuda
