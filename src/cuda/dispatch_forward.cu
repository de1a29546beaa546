// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 3, dispatch_forward: the rail peer hands rows of other nodes on to their owners in its node, chunk by chunk as they arrive; its
// end is the end of the send: peers are told of all rows that come from this rank, its own and those that passed through. See the host
// step of this name.
#include "cuda/device/lanes.cuh"
#include "cuda/device/network.cuh"
#include "cuda/device/receivers.cuh"
#include "cuda/kernels.h"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace {

constexpr FaultStep kStep = FaultStep::kDispatchForward;
constexpr int kForwardThreads = 512;

/// Sources' first rows among those that pass through this rank, and, behind the last, their number; in shared memory.
struct Streams {
  std::int32_t* first;
  __device__ std::int32_t rows(int source) const { return first[source + 1] - first[source]; }
};

/// Waits until every source has said how many rows it sends. All threads of a block.
__device__ bool await_totals(const ForwardArgs& a, std::uint64_t epoch, const Streams& streams) {
  bool good = true;
  for (int i = static_cast<int>(threadIdx.x); i < a.network.num_sources; i += static_cast<int>(blockDim.x)) {
    const int source = a.network.sources[i];
    const std::uint64_t seen =
        wait_network(a.group, kStep, epoch, NetworkWord::kDispatchTotal, source, a.group.flight, 0, total_of(epoch));
    good = check_network_word(a.group, kStep, epoch, source, seen) && good;
    streams.first[i + 1] = static_cast<std::int32_t>(seen & kNetworkGivenUp);
  }
  good = __syncthreads_and(good) != 0;
  if (threadIdx.x == 0) {
    streams.first[0] = 0;
    for (int i = 0; i < a.network.num_sources; ++i) streams.first[i + 1] += streams.first[i];
  }
  __syncthreads();
  return good;
}

/// The handle's offsets of forwarded rows by source rank; one block.
__device__ void write_offsets(const ForwardArgs& a, const Streams& streams, bool good) {
  for (int rank = static_cast<int>(threadIdx.x); rank <= a.group.num_ranks; rank += static_cast<int>(blockDim.x)) {
    std::int32_t rows = 0;
    for (int i = 0; i < a.network.num_sources && good; ++i) {
      if (a.network.sources[i] < rank) rows = streams.first[i + 1];
    }
    a.handle.forward_offsets[rank] = rows;
  }
}

/// A warp that hands on rows.
class Forwarder {
 public:
  __device__ Forwarder(const ForwardArgs& args, const Receivers& receivers)
      : a_(args),
        receivers_(receivers),
        lane_(static_cast<int>(threadIdx.x) % 32),
        meta_bytes_(static_cast<int>(wire::TokenMeta::bytes(args.top_k))) {}

  /// Row `row` of the stream at `stream`; number `number` of all that pass through this rank.
  __device__ void hand_on(const std::byte* stream, std::int64_t row, std::int64_t number) {
    const std::byte* record_at = stream + a_.group.layout.network.max_tokens * a_.row_bytes + row * meta_bytes_;
    const wire::TokenMeta record(const_cast<std::byte*>(record_at), a_.top_k);
    const std::int32_t slot = lane_ < a_.top_k ? load_relaxed(record.slots() + lane_) : -1;
    const std::int32_t rank = slot < 0 ? -1 : a_.group.placement.rank_of_slot[slot];
    std::byte** receiver = rank < 0 ? nullptr : receivers_.of(rank);
    const bool here = receiver != nullptr && receiver[0] != nullptr;
    const unsigned same = __match_any_sync(kAll, here ? rank : -1 - lane_);
    const bool first = here && (same & ((1u << lane_) - 1)) == 0;
    const std::int64_t to_row = first ? load_relaxed(record.rows() + lane_) : 0;
    const std::int64_t to_token = first ? load_relaxed(record.tokens() + lane_) : 0;
    const unsigned owners = __ballot_sync(kAll, first);
    for (int b = 0; b < a_.num_blocks; ++b) {
      const int padded = a_.padded[b];
      copy(stream + a_.group.layout.network.max_tokens * a_.begin[b] + row * padded, padded, owners,
           first ? receiver[1 + b] + to_row * padded : nullptr);
    }
    copy(record_at, meta_bytes_, owners, first ? receiver[0] + to_token * meta_bytes_ : nullptr);
    if (a_.write_records) copy(record_at, meta_bytes_, 1u, a_.handle.forwarded + number * meta_bytes_);
  }

 private:
  /// Loads each piece once, not from the first-level cache, which the engine's writes pass by, and stores it where every lane of
  /// `targets` has it. Bytes are a multiple of 16.
  __device__ void copy(const std::byte* from, int bytes, unsigned targets, std::byte* to) const {
    constexpr int kBatch = 8, kStep16 = 32 * 16;
    for (int begin = lane_ * 16; begin - lane_ * 16 < bytes; begin += kStep16 * kBatch) {
      uint4 pieces[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i * kStep16 < bytes) pieces[i] = __ldcg(reinterpret_cast<const uint4*>(from + begin + i * kStep16));
      }
      for (unsigned left = targets; left != 0; left &= left - 1) {
        auto* target = reinterpret_cast<std::byte*>(
            __shfl_sync(kAll, reinterpret_cast<unsigned long long>(to), __ffs(static_cast<int>(left)) - 1));
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (begin + i * kStep16 < bytes) *reinterpret_cast<uint4*>(target + begin + i * kStep16) = pieces[i];
        }
      }
    }
  }

  const ForwardArgs& a_;
  const Receivers receivers_;
  const int lane_, meta_bytes_;
};

/// Rows of a source's stream before a chunk, all of them if there is no such chunk. Chunks are looked at in order: the one before has
/// come, and if its word speaks of an older call, the stream ended before it.
__device__ std::int64_t rows_before(const ForwardArgs& a, std::uint64_t epoch, const Streams& streams, int source_idx,
                                    int chunk) {
  if (chunk == 0) return 0;
  const std::uint64_t seen = load_relaxed(
      network_word(a.group, NetworkWord::kDispatchChunk, a.network.sources[source_idx], a.group.flight, chunk - 1));
  return seen >> 24 == epoch ? static_cast<std::int64_t>(seen & kNetworkGivenUp) : streams.rows(source_idx);
}

/// Hands on the rows of all sources, chunk after chunk. Every warp waits for itself.
__device__ void forward_rows(const ForwardArgs& a, std::uint64_t epoch, const Streams& streams,
                             const Receivers& receivers) {
  const GroupArgs& group = a.group;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
  Forwarder forwarder(a, receivers);
  for (int chunk = 0; chunk < NetworkLayout::kChunks; ++chunk) {
    for (int i = 0; i < a.network.num_sources; ++i) {
      const int source = a.network.sources[i];
      const std::int64_t begin = rows_before(a, epoch, streams, i, chunk);
      if (begin >= streams.rows(i)) continue;
      std::uint64_t seen = 0;
      if (lane == 0)
        seen = wait_network(group, kStep, epoch, NetworkWord::kDispatchChunk, source, group.flight, chunk,
                            total_of(epoch));
      seen = __shfl_sync(kAll, seen, 0);
      if (seen >> 24 != epoch) return;  // the wait has failed
      const std::byte* stream = group.own_window + group.layout.network.forward_at(group.flight, i);
      const std::int64_t end =
          min(static_cast<std::int64_t>(seen & kNetworkGivenUp), static_cast<std::int64_t>(streams.rows(i)));
      for (std::int64_t row = begin + (warp - begin % warps + warps) % warps; row < end; row += warps)
        forwarder.hand_on(stream, row, streams.first[i] + row);
    }
  }
}

extern __shared__ __align__(16) std::byte shared_bytes[];

__global__ void __launch_bounds__(kForwardThreads, 1) dispatch_forward_kernel(const __grid_constant__ ForwardArgs a) {
  const GroupArgs& group = a.group;
  const std::uint64_t epoch = group.state->epoch + 1;
  const Receivers receivers{reinterpret_cast<std::byte**>(shared_bytes), 1 + a.num_blocks};
  const Streams streams{reinterpret_cast<std::int32_t*>(receivers.of(group.num_ranks))};
  bool good = !__syncthreads_or(has_failed(group, epoch));
  good = good && find_receivers(group, a.num_blocks, epoch, BlockShare(0), receivers);
  good = good && await_totals(a, epoch, streams);
  if (blockIdx.x == 0 && a.write_records) write_offsets(a, streams, good);
  if (good) forward_rows(a, epoch, streams, receivers);
  __threadfence_system();
  if (is_last_block(group)) finish_send(group, epoch);
}

}  // namespace

std::size_t forward_shared_bytes(int num_ranks, int num_blocks, int num_sources) {
  return static_cast<std::size_t>(num_ranks * (1 + num_blocks)) * sizeof(std::byte*) +
         static_cast<std::size_t>(num_sources + 1) * sizeof(std::int32_t);
}

void launch_dispatch_forward(const ForwardArgs& args, const Launch& launch, cudaStream_t stream) {
  dispatch_forward_kernel<<<launch.blocks, kForwardThreads, launch.shared_bytes, stream>>>(args);
}

void prepare_dispatch_forward(int dynamic_bytes) {
  prepare_kernel(reinterpret_cast<const void*>(dispatch_forward_kernel), dynamic_bytes);
}

}  // namespace ferry::cuda
