// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows on their way back between nodes: a rail peer stages them in the order of the records that passed through it, source by source;
// chunks are put as they are whole. The token's rank finds a row by the token's number in its stream for that node.
#pragma once

#include "cuda/device/network.cuh"
#include "wire/token_meta.h"

namespace ferry::cuda {

/// The count of a return word: what of the digest fits, so that ranks of different nodes notice that their arguments differ.
__device__ inline std::int64_t digest_count(const GroupArgs& group) {
  const std::uint64_t low = group.digest & kNetworkGivenUp;
  return static_cast<std::int64_t>(low == kNetworkGivenUp ? low - 1 : low);
}

/// A source's tokens among those that passed through this rank, and where their rows are staged: one row a token, or as many as
/// combine_numbers has counted.
struct ReturnStream {
  int source_idx;
  std::int64_t first, tokens;  ///< first: number of the first one

  /// The stream of the token with this number.
  __device__ ReturnStream(const CombineArgsOnDevice& a, const NetworkArgs& net, std::int64_t number) : source_idx(0) {
    while (source_idx + 1 < net.num_sources && a.handle.forward_offsets[net.sources[source_idx + 1]] <= number)
      ++source_idx;
    const int source = net.sources[source_idx];
    first = a.handle.forward_offsets[source];
    tokens = a.handle.forward_offsets[source + 1] - first;
  }
  /// Rows before those of the stream's token `at`, all of them for the one behind the last.
  __device__ std::int64_t rows_before(const CombineArgsOnDevice& a, const NetworkArgs& net, std::int64_t at) const {
    if (a.reduction.group == Reduction::Group::kNode) return at;
    return at < tokens ? net.rows_before[first + at] : net.rows_of_source[source_idx];
  }
  /// Where the stream's row 0 is staged, in rows from the begin of the region.
  __device__ std::int64_t staged_at(const CombineArgsOnDevice& a) const {
    if (a.reduction.group == Reduction::Group::kNode) return first;
    return source_idx * a.group.layout.network.max_returned_rows();
  }
};

/// The combined weights of the choices in this node of token `number` of those that passed through this rank. A whole warp.
__device__ inline void stage_returned_weights(const CombineArgsOnDevice& a, std::int64_t number) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane >= a.top_k) return;
  const GroupArgs& group = a.group;
  const wire::TokenMeta record(a.handle.forwarded + number * wire::TokenMeta::bytes(a.top_k), a.top_k);
  const std::int32_t slot = record.slots()[lane];
  const std::int32_t rank = slot < 0 ? -1 : a.handle.rank_of_slot[slot];
  float weight = 0.0f;
  if (rank >= 0 && group.windows[rank] != nullptr) {
    const auto* weights = reinterpret_cast<const float*>(group.windows[rank] + group.layout.combine_weights +
                                                         group.flight * group.layout.combine_weights_stride);
    weight = load_relaxed(weights + static_cast<std::int64_t>(record.tokens()[lane]) * a.top_k + lane);
  }
  auto* to = reinterpret_cast<float*>(group.own_window + group.layout.network.return_weights_staging_at(group.flight));
  to[number * a.top_k + lane] = weight;
}

/// What goes back for token `number` of those that passed through this rank was staged by the calling warp. Whoever stages the last
/// token of a chunk puts the chunk into the window of its tokens' rank and says so.
__device__ inline void report_returned(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch,
                                       std::int64_t number, std::int64_t row_bytes) {
  if (a.topk_weights != nullptr) stage_returned_weights(a, number);
  __syncwarp();
  if (threadIdx.x % 32 != 0) return;
  const GroupArgs& group = a.group;
  const NetworkLayout& layout = group.layout.network;
  const ReturnStream stream(a, net, number);
  const int source = net.sources[stream.source_idx];
  const auto chunk = static_cast<int>((number - stream.first) / layout.return_chunk_tokens());
  const std::int64_t begin_token = chunk * layout.return_chunk_tokens();
  const std::int64_t end_token = min(stream.tokens, begin_token + layout.return_chunk_tokens());
  __threadfence_system();  // the warp's stores before the count
  if (atomicAdd(&net.staged_tokens[stream.source_idx * NetworkLayout::kChunks + chunk], 1u) !=
      static_cast<unsigned>(end_token - begin_token - 1))
    return;
  __threadfence_system();  // those of all warps before the commands
  const std::int64_t begin = stream.rows_before(a, net, begin_token), end = stream.rows_before(a, net, end_token);
  const std::int64_t to =
      layout.returns_at(group.flight, NetworkLayout::other_node(net.my_node, net.node_of[source])) + begin * row_bytes;
  const std::byte* from =
      group.own_window + layout.return_staging_at(group.flight) + (stream.staged_at(a) + begin) * row_bytes;
  bool good = network_put(group, net, FaultStep::kCombineForward, epoch, source, to, from, (end - begin) * row_bytes);
  if (good && a.topk_weights != nullptr) {
    const std::int64_t weights_bytes = 4 * static_cast<std::int64_t>(a.top_k);
    good = network_put(
        group, net, FaultStep::kCombineForward, epoch, source,
        layout.return_weights_at(group.flight, NetworkLayout::other_node(net.my_node, net.node_of[source])) +
            begin_token * weights_bytes,
        group.own_window + layout.return_weights_staging_at(group.flight) +
            (stream.first + begin_token) * weights_bytes,
        (end_token - begin_token) * weights_bytes);
  }
  if (good)
    network_post(group, net, FaultStep::kCombineForward, epoch, source, NetworkWord::kReturnChunk, group.flight, chunk,
                 total_of(epoch, digest_count(group)));
}

/// Until the rows of a chunk that the rail peer in `node` gives back are here. One thread.
__device__ inline bool await_returned(const CombineArgsOnDevice& a, const NetworkArgs& net, std::uint64_t epoch,
                                      int node, int chunk) {
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
