// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The chunks in which streams of rows leave for other nodes. Warps stage tokens; the last one to end a chunk commands the puts of its
// rows and records for every node, and a word behind them.
#pragma once

#include "cuda/device/lanes.cuh"
#include "cuda/device/network.cuh"
#include "wire/token_meta.h"

namespace ferry::cuda {

/// Tokens of a chunk: of each warp equally many, one after the other, but for the last.
struct StreamChunks {
  int warps, tokens_per_warp, count;
  std::int64_t tokens;  ///< of a chunk

  __device__ StreamChunks(std::int64_t num_tokens, int all_warps)
      : warps(all_warps),
        tokens_per_warp(max(
            1, static_cast<int>((num_tokens + warps * NetworkLayout::kChunks - 1) / (warps * NetworkLayout::kChunks)))),
        count(static_cast<int>((num_tokens + warps * tokens_per_warp - 1) / (warps * tokens_per_warp))),
        tokens(static_cast<std::int64_t>(warps) * tokens_per_warp) {}
};

/// Rows of the stream for `node` among the tokens before `end`. A whole warp.
__device__ inline std::int64_t stream_rows_before(const std::int32_t* forward_rows, int num_nodes, int node,
                                                  std::int64_t end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (; end > 0; end -= 32) {
    const std::int64_t token = end - 1 - lane;
    const std::int32_t row = token >= 0 ? forward_rows[token * num_nodes + node] : -1;
    const unsigned found = __ballot_sync(kAll, row >= 0);
    if (found != 0) return __shfl_sync(kAll, row, __ffs(static_cast<int>(found)) - 1) + 1;
  }
  return 0;
}

/// A warp has stored its tokens of a chunk, and the stores are complete. The last warp puts the chunk's rows, block by block of the
/// payload, and its records, and posts how many rows are there then. A fault leaves the rest undone: the rail peers end at their
/// deadline.
__device__ inline void put_chunk(const SendArgs& a, const NetworkArgs& net, std::uint64_t epoch,
                                 const StreamChunks& chunks, int chunk) {
  const GroupArgs& group = a.group;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  bool last = false;
  __syncwarp();
  if (lane == 0) {
    __threadfence_system();  // rows and records of this warp before the count
    last = atomicAdd(&net.state->chunk_warps[chunk], 1u) == static_cast<unsigned>(chunks.warps - 1);
    __threadfence_system();  // those of all warps before the commands
  }
  if (!__shfl_sync(kAll, last, 0)) return;
  const NetworkLayout& layout = group.layout.network;
  const std::int64_t first_token = chunk * chunks.tokens, end_token = min(a.num_tokens, first_token + chunks.tokens);
  for (int node = 0; node < net.num_nodes; ++node) {
    const int rail = net.rail[node];
    if (rail < 0) continue;
    const std::int64_t begin = stream_rows_before(a.handle.forward_rows, net.num_nodes, node, first_token);
    const std::int64_t end = stream_rows_before(a.handle.forward_rows, net.num_nodes, node, end_token);
    if (lane != 0) continue;
    const std::int64_t from = layout.staging_at(group.flight, NetworkLayout::other_node(node, net.my_node));
    const std::int64_t to = layout.forward_at(group.flight, net.rail_stream[node]);
    const auto put = [&](std::int64_t region, std::int64_t row_bytes) {
      return network_put(group, net, FaultStep::kDispatchSend, epoch, rail, to + region + begin * row_bytes,
                         group.own_window + from + region + begin * row_bytes, (end - begin) * row_bytes);
    };
    bool good = put(layout.max_tokens * a.row_bytes, wire::TokenMeta::bytes(a.top_k));
    for (int b = 0; b < a.num_blocks && good; ++b)
      good = put(layout.max_tokens * a.blocks[b].begin, a.blocks[b].padded);
    if (good)
      network_post(group, net, FaultStep::kDispatchSend, epoch, rail, NetworkWord::kDispatchChunk, group.flight, chunk,
                   total_of(epoch, end));
  }
  __syncwarp();
}

}  // namespace ferry::cuda
