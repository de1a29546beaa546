// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows on their way back between nodes: a rail peer stages them in the order of the records that passed through it, source by source;
// chunks are put as they are whole. The token's rank finds a row by the token's number in its stream for that node.
#pragma once

#include "cuda/device/network.cuh"

namespace ferry::cuda {

/// The count of a return word: what of the digest fits, so that ranks of different nodes notice that their arguments differ.
__device__ inline std::int64_t digest_count(const GroupArgs& group) {
  const std::uint64_t low = group.digest & kNetworkGivenUp;
  return static_cast<std::int64_t>(low == kNetworkGivenUp ? low - 1 : low);
}

/// Rows between the begins of two chunks' rows, and of the last one what is left.
__device__ inline std::int64_t rows_of_chunk(const NetworkLayout& layout, std::int64_t rows, int chunk) {
  const std::int64_t begin = chunk * layout.return_chunk_rows();
  return min(layout.return_chunk_rows(), rows - begin);
}

/// Row `number` of all that passed through this rank is staged by the calling warp. Whoever stages the last row of a chunk puts the
/// chunk into the window of its tokens' rank and says so.
__device__ inline void report_returned(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch,
                                       std::int64_t number, std::int64_t row_bytes) {
  __syncwarp();
  if (threadIdx.x % 32 != 0) return;
  const GroupArgs& group = a.group;
  const NetworkLayout& layout = group.layout.network;
  int i = 0;
  while (i + 1 < net.num_sources && a.handle.forward_offsets[net.sources[i + 1]] <= number) ++i;
  const int source = net.sources[i];
  const std::int64_t first = a.handle.forward_offsets[source], rows = a.handle.forward_offsets[source + 1] - first;
  const auto chunk = static_cast<int>((number - first) / layout.return_chunk_rows());
  const std::int64_t wanted = rows_of_chunk(layout, rows, chunk);
  __threadfence_system();  // the warp's stores before the count
  if (atomicAdd(&net.return_rows[i * NetworkLayout::kChunks + chunk], 1u) != static_cast<unsigned>(wanted - 1)) return;
  __threadfence_system();  // those of all warps before the commands
  const std::int64_t begin = chunk * layout.return_chunk_rows();
  const std::int64_t to =
      layout.returns_at(group.flight, NetworkLayout::other_node(net.my_node, net.node_of[source])) + begin * row_bytes;
  const std::byte* from = group.own_window + layout.return_staging_at(group.flight) + (first + begin) * row_bytes;
  if (network_put(group, net, FaultStep::kCombineForward, epoch, source, to, from, wanted * row_bytes))
    network_post(group, net, FaultStep::kCombineForward, epoch, source, NetworkWord::kReturnChunk, group.flight, chunk,
                 total_of(epoch, digest_count(group)));
}

/// Until the rows of a chunk that the rail peer in `node` gives back are here. One thread.
__device__ inline bool await_returned(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch, int node,
                                      int chunk) {
  const GroupArgs& group = a.group;
  const int writer = net.rail[node];
  const std::uint64_t seen = wait_network(group, FaultStep::kCombineRecv, epoch, NetworkWord::kReturnChunk, writer,
                                          group.flight, chunk, total_of(epoch));
  if (!check_network_word(group, FaultStep::kCombineRecv, epoch, writer, seen)) return false;
  if (seen == total_of(epoch, digest_count(group))) return true;
  fail(group, epoch, {.kind = FaultKind::kMismatch, .step = FaultStep::kCombineRecv, .peer = writer});
  return false;
}

}  // namespace ferry::cuda
