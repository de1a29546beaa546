// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/network_memory.h"

#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include "net/window_table.h"

namespace ferry::cuda {

NetworkMemory::NetworkMemory(const Runtime& runtime, GroupMemory& memory)
    : runtime_(runtime), memory_(memory), state_(memory.pool->allocate(sizeof(NetworkState))) {
  const auto num_ranks = static_cast<std::size_t>(runtime.topology.num_ranks());
  const auto num_nodes = static_cast<std::size_t>(runtime.topology.num_nodes());
  const auto max_tokens = static_cast<std::size_t>(runtime.device_layout.network.max_tokens);
  tables_ = memory.pool->allocate(4 * (4 * num_ranks + 2 * num_nodes + num_ranks * NetworkLayout::kChunks));
  // A rank serves no more sources than there are ranks in other nodes, whoever is masked.
  scratch_ = memory.pool->allocate(4 * max_tokens * (num_ranks + num_nodes));
  latency_windows_ = memory.pool->allocate(sizeof(std::byte*) * num_ranks);
  args_.ring = runtime.engine->device_ring();
  args_.state = reinterpret_cast<NetworkState*>(state_.get());
  args_.my_node = runtime.topology.node_of(runtime.rank);
  args_.num_nodes = runtime.topology.num_nodes();
  NetworkState state;
  state.ring = {args_.ring.first_index, args_.ring.first_index};
  memory.copy_to_device(args_.state, &state, sizeof(state));
}

void NetworkMemory::drain() const {
  if (!runtime_.engine) return;
  const net::Channel& channel = runtime_.engine->channel(runtime_.engine->num_channels() - 1);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (channel.completed() < channel.submitted() && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::microseconds(20));
}

void NetworkMemory::adopt(const Windows& windows) {
  const Topology& topology = runtime_.topology;
  const auto num_ranks = static_cast<std::size_t>(topology.num_ranks());
  std::vector<std::int32_t> words;
  for (int rank = 0; rank < topology.num_ranks(); ++rank) words.push_back(topology.node_of(rank));
  const std::size_t rails_at = words.size();
  for (int node = 0; node < topology.num_nodes(); ++node)
    words.push_back(node == args_.my_node ? -1 : windows.rails.rail(runtime_.rank, node));
  const std::size_t streams_at = words.size();
  for (int node = 0; node < topology.num_nodes(); ++node) {
    const std::int32_t rail = words[rails_at + static_cast<std::size_t>(node)];
    words.push_back(rail < 0 ? -1 : windows.rails.source_index(rail, runtime_.rank));
  }
  const std::size_t slots_at = words.size();
  words.resize(slots_at + num_ranks, -1);
  for (int rank : windows.live) {
    if (topology.node_of(rank) == args_.my_node) continue;
    words[slots_at + static_cast<std::size_t>(rank)] =
        static_cast<std::int32_t>(net::slot_of(windows.remote_device(rank)));
  }
  const std::size_t sources_at = words.size();
  const std::vector<int>& sources = windows.rails.sources_of(runtime_.rank);
  words.insert(words.end(), sources.begin(), sources.end());
  words.resize(sources_at + num_ranks, -1);
  const std::size_t returns_at = words.size();
  words.resize(returns_at + num_ranks * NetworkLayout::kChunks, 0);
  const std::size_t totals_at = words.size();
  words.resize(totals_at + num_ranks, 0);
  memory_.copy_to_device(tables_.get(), words.data(), words.size() * 4);
  // Words in new windows begin at zero. The ring goes on: it is the engine's.
  const NetworkState fresh;
  memory_.copy_to_device(args_.state->returned_epoch, fresh.returned_epoch, sizeof(fresh.returned_epoch));
  memory_.copy_to_device(args_.state->latency_told, fresh.latency_told, sizeof(fresh.latency_told));
  memory_.copy_to_device(args_.state->chunk_warps, fresh.chunk_warps, sizeof(fresh.chunk_warps));
  const NetworkLayout& layout = runtime_.device_layout.network;
  std::vector<std::byte*> latency_windows;
  std::byte* outbox = windows.device(runtime_.rank) + layout.outbox;
  for (int rank = 0; rank < topology.num_ranks(); ++rank) {
    latency_windows.push_back(windows.device(rank));
    if (topology.node_of(rank) == args_.my_node) continue;
    if (!windows.membership.is_masked(rank)) latency_windows.back() = outbox - layout.latency_begin;
    outbox += layout.outbox_stride;
  }
  memory_.copy_to_device(latency_windows_.get(), latency_windows.data(), latency_windows.size() * sizeof(std::byte*));
  auto* base = reinterpret_cast<std::int32_t*>(tables_.get());
  args_.node_of = base;
  args_.rail = base + rails_at;
  args_.rail_stream = base + streams_at;
  args_.window_slot = base + slots_at;
  args_.sources = base + sources_at;
  args_.num_sources = static_cast<std::int32_t>(sources.size());
  args_.staged_tokens = reinterpret_cast<std::uint32_t*>(base + returns_at);
  args_.rows_of_source = base + totals_at;
  args_.rows_before = reinterpret_cast<std::int32_t*>(scratch_.get());
  args_.returned_before =
      args_.rows_before + static_cast<std::int64_t>(num_ranks) * runtime_.device_layout.network.max_tokens;
}

}  // namespace ferry::cuda
