// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Copies that expert layouts make of peers' rows while more of them arrive. A rank says, chunk of tokens by chunk, which of its
// rows are at a peer; blocks of the peer's dispatch_send that have nothing else to do copy those, and dispatch_recv what is left.
// Nobody waits for progress: what is not seen in time is copied later. Who writes and reads what: docs/memory_model.md.
#pragma once

#include "cuda/device/wait.cuh"

namespace ferry::cuda {

/// The tokens of a dispatch in chunks. Each of the warps that send to peers has equally many tokens of a chunk, one after the
/// other; what is left at the end is no chunk.
struct TokenChunks {
  int warps, tokens_per_warp, count;

  __device__ TokenChunks(std::int64_t num_tokens, int sending_warps)
      : warps(sending_warps),
        tokens_per_warp(static_cast<int>((num_tokens + warps * kMostChunks - 1) / (warps * kMostChunks))),
        count(tokens_per_warp == 0 ? 0 : static_cast<int>(num_tokens / (warps * tokens_per_warp))) {}
  /// Which chunk a warp has ended with so many tokens; -1: none.
  __device__ int ended_with(int tokens) const {
    return tokens % tokens_per_warp == 0 && tokens / tokens_per_warp <= count ? tokens / tokens_per_warp - 1 : -1;
  }
};

inline constexpr std::int64_t kMostProgress = (1 << 24) - 1;  ///< the count of a signal

/// A warp has stored its tokens of a chunk, and the stores are complete. The last one tells every peer where its rows of this
/// rank end that are there. Of two chunks that end at once the later may be told first: a progress may also become smaller.
__device__ inline void report_chunk(const GroupArgs& group, std::uint64_t epoch, const HandleArgs& handle, int top_k,
                                    const TokenChunks& chunks, int chunk) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  bool last = false;
  if (lane == 0) {
    __threadfence_system();
    last = atomicAdd(&group.state->chunk_warps[chunk], 1u) == static_cast<unsigned>(chunks.warps - 1);
    __threadfence_system();
  }
  if (!__shfl_sync(0xffffffffu, last, 0)) return;
  const std::int64_t tokens = static_cast<std::int64_t>(chunks.warps) * chunks.tokens_per_warp;
  const std::int64_t begin = chunk * tokens * top_k;
  for (int peer = 0; peer < group.num_ranks; ++peer) {
    if (peer == group.rank || group.windows[peer] == nullptr) continue;
    // The last token of the chunk that goes there; without one there is nothing new.
    for (std::int64_t end = begin + tokens * top_k; end > begin; end -= 32) {
      const std::int64_t at = end - 1 - lane;
      const bool there = at >= begin && handle.ranks[at] == peer;
      const unsigned found = __ballot_sync(0xffffffffu, there);
      if (found == 0) continue;
      const std::int64_t row = there ? handle.tokens[at] + 1 : 0;
      if (lane == __ffs(static_cast<int>(found)) - 1)
        post(group, DeviceSignal::kDispatchProgress, peer, total_of(epoch, min(row, kMostProgress)));
      break;
    }
  }
}

/// Where the copies of a source's rows stand: all of those before a row whose number leaves `part` modulo kCopyParts.
__device__ inline std::uint64_t* copied_rows(const GroupArgs& group, int source, std::int64_t part) {
  return reinterpret_cast<std::uint64_t*>(group.windows[group.rank] + group.layout.copied_at(group.flight, source)) +
         part;
}

/// Row n of a source was copied by this call's dispatch_send.
__device__ inline bool is_copied(const GroupArgs& group, std::uint64_t epoch, int source, std::int64_t n) {
  return *copied_rows(group, source, n % DeviceLayout::kCopyParts) > total_of(epoch, min(n, kMostProgress));
}

/// Copies rows as they arrive until the blocks that send to peers are through: `copy(n)`, by a warp, does row n. All threads of
/// `blocks` blocks, each of which takes its share of sources and parts.
template <typename Copy>
__device__ void copy_arriving_rows(const GroupArgs& group, std::uint64_t epoch, const std::int32_t* source_offsets,
                                   int block, int blocks, int sending_blocks, Copy&& copy) {
  constexpr int kParts = DeviceLayout::kCopyParts;
  constexpr int kRowsPerWarp = 2;  // between looks at whether the others are through: some microseconds
  __shared__ std::int64_t begin, end;
  __shared__ bool go_on;
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto number_of = [](std::uint64_t total) {
    return static_cast<std::int64_t>(total & static_cast<std::uint64_t>(kMostProgress));
  };
  if (threadIdx.x == 0) {
    for (int i = block; i < group.num_ranks * kParts; i += blocks) {
      const std::int64_t first = source_offsets[i / kParts];
      *copied_rows(group, i / kParts, i % kParts) = total_of(epoch, min(first, kMostProgress));
    }
  }
  const std::int64_t start = now_ns();
  for (bool has_any = true; has_any;) {
    has_any = false;
    for (int i = block; i < group.num_ranks * kParts; i += blocks) {
      const int source = i / kParts, part = i % kParts;
      if (source == group.rank || group.windows[source] == nullptr) continue;
      has_any = true;
      std::uint64_t* copied = copied_rows(group, source, part);
      if (threadIdx.x == 0) {
        go_on = load_relaxed(&group.state->sending_blocks_done) < static_cast<unsigned>(sending_blocks) &&
                !has_failed(group, epoch) && now_ns() - start <= group.timeout_ns;
        const std::uint64_t seen = load_acquire(own_signal(group, DeviceSignal::kDispatchProgress, source));
        begin = number_of(*copied);
        end = seen >> 24 == epoch ? number_of(seen) : begin;
        end = min(max(end, begin), begin + static_cast<std::int64_t>(kParts) * warps * kRowsPerWarp);
      }
      __syncthreads();
      if (!go_on) return;
      if (end > begin) {
        std::int64_t n = begin + (part - begin % kParts + kParts) % kParts + static_cast<std::int64_t>(warp) * kParts;
        for (; n < end; n += static_cast<std::int64_t>(warps) * kParts) copy(n);
      }
      __syncthreads();
      if (threadIdx.x == 0) *copied = total_of(epoch, end);
    }
  }
}

}  // namespace ferry::cuda
