// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of a device window that other nodes write or that is on its way to them: words that the engine posts, streams of rows,
// and rows that come back. Empty on one node. Who writes, who reads and when a region may be reused: docs/memory_model.md.
#pragma once

#include <cstdint>

#include "backend/latency_layout.h"
#include "core/host_device.h"
#include "core/regions.h"
#include "ferry/group.h"
#include "ferry/topology.h"

namespace ferry {

class WindowLayout;

/// Words that a rank of another node posts through the engine; one writer, one reader.
enum class NetworkWord : std::uint8_t {
  kCounts,           ///< [2 parities] exchange << 24: the writer's counts are here
  kRead,             ///< [flights] the writer has read what it got for its combine
  kWeights,          ///< [flights] the weights that the writer sends ahead are here
  kLatencyDispatch,  ///< [flights] what the writer sends in this latency dispatch is here
  kLatencyCombine,   ///< [flights] the same of a latency combine
  kDispatchTotal,    ///< [flights] rows that the writer's stream will have
  kDispatchChunk,    ///< [flights][kChunks] rows of the stream up to the end of this chunk, which are here
  kReturnChunk,      ///< [flights][kChunks] the rows of this chunk that the writer, a rail peer, gives back are here
};

struct NetworkLayout {
  static constexpr int kChunks = 16;  ///< of a stream
  static constexpr int kFlightWords = 5 + 2 * kChunks;

  std::int64_t num_ranks = 0, num_nodes = 1;
  std::int64_t max_tokens = 0, max_top_k = 0;
  std::int64_t words = 0, words_stride = 0;
  /// A stream: blocks one after the other, max_tokens rows each, then max_tokens records.
  std::int64_t stream_bytes = 0;
  std::int64_t staging = 0, staging_stride = 0;  ///< [flights][other nodes] streams on their way out
  std::int64_t forward = 0, forward_stride = 0;  ///< [flights][sources] streams of sources that this rank serves
  std::int64_t return_row_bytes = 0;
  std::int64_t return_staging = 0,
               return_staging_stride = 0;  ///< [flights][sources][max_returned_rows] on their way back
  std::int64_t return_weights_staging = 0, return_weights_staging_stride = 0;  ///< [flights][sources * max_tokens][K]
  std::int64_t return_weights = 0, return_weights_stride = 0;  ///< [flights][other nodes][max_tokens][K] float32
  /// [ranks of other nodes] what latency mode stores for a rank, at the places of its window's regions of latency mode, which begin at
  /// `latency_begin`.
  std::int64_t outbox = 0, outbox_stride = 0, latency_begin = 0;
  std::int64_t weights_staging = 0, weights_staging_stride = 0;  ///< [flights][R][max_tokens][K] float32, sent ahead
  std::int64_t returns = 0, returns_stride = 0;  ///< [flights][other nodes][max_returned_rows] of this rank's tokens

  FERRY_HD std::int64_t word_at(NetworkWord word, int writer, int flight, int index) const {
    const std::int64_t base = words + writer * words_stride;
    if (word == NetworkWord::kCounts) return base + 8 * index;
    const std::int64_t of_flight = base + 8 * (2 + static_cast<std::int64_t>(flight) * kFlightWords);
    if (word == NetworkWord::kRead) return of_flight;
    if (word == NetworkWord::kWeights) return of_flight + 8;
    if (word == NetworkWord::kDispatchTotal) return of_flight + 16;
    if (word == NetworkWord::kLatencyDispatch) return of_flight + 24;
    if (word == NetworkWord::kLatencyCombine) return of_flight + 32;
    return of_flight + 8 * (5 + (word == NetworkWord::kReturnChunk ? kChunks : 0) + index);
  }
  /// Number of a node among those other than `mine`.
  FERRY_HD static int other_node(int node, int mine) { return node < mine ? node : node - 1; }
  FERRY_HD std::int64_t staging_at(int flight, int other) const {
    return staging + flight * staging_stride + other * stream_bytes;
  }
  FERRY_HD std::int64_t forward_at(int flight, int stream) const {
    return forward + flight * forward_stride + stream * stream_bytes;
  }
  FERRY_HD std::int64_t returns_at(int flight, int other) const {
    return returns + flight * returns_stride + other * max_returned_rows() * return_row_bytes;
  }
  FERRY_HD std::int64_t return_staging_at(int flight) const { return return_staging + flight * return_staging_stride; }
  FERRY_HD std::int64_t weights_bytes() const { return 4 * max_tokens * max_top_k; }
  FERRY_HD std::int64_t return_weights_staging_at(int flight) const {
    return return_weights_staging + flight * return_weights_staging_stride;
  }
  FERRY_HD std::int64_t return_weights_at(int flight, int other) const {
    return return_weights + flight * return_weights_stride + other * weights_bytes();
  }
  FERRY_HD std::int64_t weights_staging_at(int flight, int rank) const {
    return weights_staging + flight * weights_staging_stride + rank * weights_bytes();
  }
  /// Most rows that go back for the tokens of one rank from one node: flat, one per choice.
  FERRY_HD std::int64_t max_returned_rows() const { return max_tokens * max_top_k; }
  /// Tokens of a chunk of what goes back.
  FERRY_HD std::int64_t return_chunk_tokens() const { return (max_tokens + kChunks - 1) / kChunks; }
};

/// Adds the regions to `list`; none on one node. `latency`: those of latency mode.
NetworkLayout make_network_layout(const GroupLimits& limits, const Topology& topology, const WindowLayout& window,
                                  const LatencyLayout& latency, RegionList& list);

}  // namespace ferry
