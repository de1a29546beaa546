// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where rows that go back between nodes one by one (per_rank, flat) have their places: the rail peer and the token's rank count them
// the same way, so that no numbers cross. A block each; sums per node need no numbers, a token's place is its row in the stream.
#include "cuda/device/block_scan.cuh"
#include "cuda/device/network.cuh"
#include "cuda/kernels.h"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace {

constexpr int kThreads = 1024;

/// Rows that go back for a token, of whose choices `rank_of(k)` says the rank, -1 for those that do not count: each, or one per rank.
template <typename RankOf>
__device__ std::int32_t count_rows(const CombineArgsOnDevice& a, RankOf&& rank_of) {
  std::int32_t rows = 0;
  for (int k = 0; k < a.top_k; ++k) {
    const std::int32_t rank = rank_of(k);
    bool counts = rank >= 0;
    for (int other = 0; other < k && counts && a.reduction.group == Reduction::Group::kRank; ++other)
      counts = rank_of(other) != rank;
    rows += counts ? 1 : 0;
  }
  return rows;
}

/// Rows before each token that passed through this rank, counted per source, and all of each source's.
__global__ void __launch_bounds__(kThreads, 1)
    number_forwarded_kernel(const __grid_constant__ CombineArgsOnDevice a, const __grid_constant__ NetworkArgs net) {
  for (int i = 0; i < net.num_sources; ++i) {
    const std::int64_t first = a.handle.forward_offsets[net.sources[i]];
    const std::int64_t end = a.handle.forward_offsets[net.sources[i] + 1];
    std::int32_t rows = 0;
    for (std::int64_t begin = first; begin < end; begin += kThreads) {
      const std::int64_t number = begin + threadIdx.x;
      const wire::TokenMeta record(a.handle.forwarded + number * wire::TokenMeta::bytes(a.top_k), a.top_k);
      const auto rank_of = [&](int k) {
        const std::int32_t slot = record.slots()[k];
        const std::int32_t rank = slot < 0 ? -1 : a.handle.rank_of_slot[slot];
        return rank >= 0 && a.group.windows[rank] != nullptr ? rank : -1;
      };
      const BlockScan scan(number < end ? count_rows(a, rank_of) : 0);
      if (number < end) net.rows_before[number] = rows + scan.before;
      rows += scan.all;
    }
    if (threadIdx.x == 0) net.rows_of_source[i] = rows;
  }
}

/// Rows of each other node before each of this rank's tokens.
__global__ void __launch_bounds__(kThreads, 1)
    number_returned_kernel(const __grid_constant__ CombineArgsOnDevice a, const __grid_constant__ NetworkArgs net) {
  for (int node = 0; node < net.num_nodes; ++node) {
    if (net.rail[node] < 0) continue;
    std::int32_t rows = 0;
    for (std::int64_t begin = 0; begin < a.num_tokens; begin += kThreads) {
      const std::int64_t token = begin + threadIdx.x;
      const auto rank_of = [&](int k) {
        const std::int32_t rank = a.handle.ranks[token * a.top_k + k];
        return rank >= 0 && a.group.members[rank] != nullptr && net.node_of[rank] == node ? rank : -1;
      };
      const BlockScan scan(token < a.num_tokens ? count_rows(a, rank_of) : 0);
      if (token < a.num_tokens) net.returned_before[token * net.num_nodes + node] = rows + scan.before;
      rows += scan.all;
    }
  }
}

}  // namespace

void launch_number_forwarded(const CombineArgsOnDevice& args, const NetworkArgs& network, cudaStream_t stream) {
  number_forwarded_kernel<<<1, kThreads, 0, stream>>>(args, network);
}

void launch_number_returned(const CombineArgsOnDevice& args, const NetworkArgs& network, cudaStream_t stream) {
  number_returned_kernel<<<1, kThreads, 0, stream>>>(args, network);
}

void prepare_combine_numbers() {
  prepare_kernel(reinterpret_cast<const void*>(number_forwarded_kernel), 0);
  prepare_kernel(reinterpret_cast<const void*>(number_returned_kernel), 0);
}

}  // namespace ferry::cuda
