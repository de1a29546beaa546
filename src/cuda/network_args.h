// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What kernels of a group that spans nodes are given beside what all are given.
#pragma once

#include "cuda/args.h"
#include "net/device_ring.h"

namespace ferry::cuda {

/// What of the network outlasts a kernel on the device. Kernels of one group run one after the other.
struct NetworkState {
  net::DeviceRingState ring;
  /// Commands after whose completion a flight's staging may be written again.
  std::uint64_t dispatch_busy[kMaxFlights] = {}, combine_busy[kMaxFlights] = {};
  /// The last combine of a flight whose rows this rank has given back to other nodes.
  std::uint64_t returned_epoch[kMaxFlights] = {};
  /// Latency mode, by kind and flight: when the outbox may be written again, and what ranks of other nodes know of the calls read.
  std::uint64_t latency_busy[2][kMaxFlights] = {}, latency_told[2][kMaxFlights] = {};
  std::uint32_t chunk_warps[NetworkLayout::kChunks] =
      {};  ///< of a dispatch: warps that have staged their tokens of a chunk
};

/// By value. Tables are in device memory, made anew with the windows.
struct NetworkArgs {
  std::int32_t my_node = 0, num_nodes = 1, num_sources = 0;
  const std::int32_t* node_of = nullptr;  ///< [R]
  const std::int32_t* rail = nullptr;     ///< [nodes] who receives there for this rank; -1: nobody, or this is its node
  const std::int32_t* rail_stream = nullptr;  ///< [nodes] which of the streams there is this rank's
  const std::int32_t* sources = nullptr;      ///< [num_sources] for whom this rank receives, ascending
  const std::int32_t* window_slot =
      nullptr;  ///< [R] of the peer's device window in commands; -1: mapped here, or left out
  std::uint32_t* staged_tokens = nullptr;  ///< [num_sources][kChunks] tokens of a chunk whose rows are staged
  // Scratch of a combine whose rows go back one by one.
  std::int32_t* rows_before = nullptr;  ///< by token that passed through this rank: rows of its source's before its own
  std::int32_t* rows_of_source = nullptr;  ///< [num_sources] all of them
  std::int32_t* returned_before =
      nullptr;  ///< [T, nodes] rows of this rank's tokens that come back from a node before a token's
  net::DeviceRing ring;
  NetworkState* state = nullptr;
};

/// dispatch_forward.
struct ForwardArgs {
  GroupArgs group;
  NetworkArgs network;
  std::int32_t top_k = 0, num_blocks = 0, row_bytes = 0;
  std::int32_t begin[wire::kMaxBlocks] = {}, padded[wire::kMaxBlocks] = {};  ///< of blocks in the wire row
  HandleArgs handle;
  bool write_records = true;
};

}  // namespace ferry::cuda
