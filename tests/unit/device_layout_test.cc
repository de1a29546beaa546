// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The layout of device windows: regions apart from each other, signals of two writers never in one line, the plan's numbers.
// And that of handles in device memory: their parts stay where they are.
#include "backend/device_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "backend/handle_layout.h"
#include "ferry/ferry.h"
#include "wire/token_meta.h"

namespace ferry {
namespace {

GroupConfig config_of(int experts) {
  GroupConfig config;
  config.backend = "cuda";
  config.limits.num_experts = experts;
  config.limits.max_tokens = 64;
  config.limits.hidden = 100;
  config.limits.num_flights = 3;
  return config;
}

TEST(DeviceLayout, SignalsOfWritersShareNoLine) {
  const Topology topology = Topology::single_node(5);
  const GroupConfig config = config_of(11);
  const Placement placement = Placement::contiguous(11, 5);
  const WindowLayout window(config.limits, topology, placement, 0, RowPlace::kDevice);
  RegionList list(256);
  const DeviceLayout layout = make_device_layout(config.limits, topology, placement, window, list);
  std::set<std::int64_t> words, lines_of_others;
  for (int writer = 0; writer < 5; ++writer) {
    std::set<std::int64_t> lines;
    for (int kind = 0; kind < static_cast<int>(DeviceSignal::kNumSignals); ++kind) {
      const bool per_flight = kind >= static_cast<int>(DeviceSignal::kDispatchRows);
      for (int flight = 0; flight < (per_flight ? 3 : 1); ++flight) {
        const std::int64_t at = layout.signal_at(static_cast<DeviceSignal>(kind), flight, writer);
        EXPECT_TRUE(words.insert(at).second);
        EXPECT_LT(at + 8, layout.notes + 1);
        lines.insert(at / DeviceLayout::kLineBytes);
      }
    }
    for (std::int64_t line : lines) EXPECT_TRUE(lines_of_others.insert(line).second);
  }
  EXPECT_LE(layout.note_at(2, 4) + static_cast<std::int64_t>(sizeof(CombineNote)), layout.copied);
  EXPECT_LE(layout.copied_at(2, 4) + DeviceLayout::kCopyParts * 8, layout.counts);
  EXPECT_LE(layout.counts_at(1, 4) + layout.counts_stride, layout.recv);
  EXPECT_EQ(layout.total_bytes, list.total_bytes());
}

/// Between nodes: words of two writers never in one line, none twice, and every region inside the window and apart from the others.
TEST(DeviceLayout, WordsAndStreamsBetweenNodesLieApart) {
  const Topology topology = Topology::nodes({2, 1, 3});
  GroupConfig config = config_of(11);
  config.limits.max_latency_tokens = 8;
  const Placement placement = Placement::contiguous(11, 6);
  const WindowLayout window(config.limits, topology, placement, 2, RowPlace::kDevice);
  RegionList list(256);
  const DeviceLayout layout = make_device_layout(config.limits, topology, placement, window, list);
  const NetworkLayout& net = layout.network;
  std::set<std::int64_t> words, lines_of_others;
  for (int writer = 0; writer < 6; ++writer) {
    std::set<std::int64_t> lines;
    const auto add = [&](NetworkWord word, int flight, int index) {
      const std::int64_t at = net.word_at(word, writer, flight, index);
      EXPECT_TRUE(words.insert(at).second);
      EXPECT_EQ(at % 8, 0);
      EXPECT_GE(at, net.words);
      EXPECT_LE(at + 8, net.words + 6 * net.words_stride);
      lines.insert(at / DeviceLayout::kLineBytes);
    };
    for (int parity = 0; parity < 2; ++parity) add(NetworkWord::kCounts, 0, parity);
    for (int flight = 0; flight < 3; ++flight) {
      for (const NetworkWord word : {NetworkWord::kRead, NetworkWord::kWeights, NetworkWord::kDispatchTotal,
                                     NetworkWord::kLatencyDispatch, NetworkWord::kLatencyCombine})
        add(word, flight, 0);
      for (int chunk = 0; chunk < NetworkLayout::kChunks; ++chunk) {
        add(NetworkWord::kDispatchChunk, flight, chunk);
        add(NetworkWord::kReturnChunk, flight, chunk);
      }
    }
    for (std::int64_t line : lines) EXPECT_TRUE(lines_of_others.insert(line).second);
  }
  const std::int64_t record_bytes = window.max_row_bytes() + wire::TokenMeta::bytes(config.limits.max_top_k);
  EXPECT_GE(net.stream_bytes, 64 * record_bytes);
  EXPECT_LE(net.staging_at(0, 1) + net.stream_bytes, net.staging_at(1, 0));  // two other nodes
  EXPECT_LE(net.forward_at(0, 1) + net.stream_bytes, net.forward_at(1, 0));  // two sources
  EXPECT_LE(net.returns_at(0, 1) + net.max_returned_rows() * net.return_row_bytes, net.returns_at(1, 0));
  EXPECT_LE(net.weights_staging_at(0, 5) + net.weights_bytes(), net.weights_staging_at(1, 0));
  EXPECT_EQ(net.latency_begin, layout.latency.credits);
  EXPECT_GE(net.outbox_stride, layout.latency.weights_at(2, 5, 7) + layout.latency.weights_bytes - net.latency_begin);
  EXPECT_LE(net.outbox + 5 * net.outbox_stride, layout.total_bytes);  // the smallest node has one rank
  EXPECT_LE(net.return_chunk_tokens() * (NetworkLayout::kChunks - 1), 64);
  EXPECT_GE(net.return_chunk_tokens() * NetworkLayout::kChunks, 64);
  EXPECT_EQ(NetworkLayout::other_node(0, 1), 0);
  EXPECT_EQ(NetworkLayout::other_node(2, 1), 1);
  // One node takes nothing of it.
  RegionList alone(256);
  const WindowLayout one(config.limits, Topology::single_node(6), placement, 0, RowPlace::kDevice);
  const DeviceLayout single = make_device_layout(config.limits, Topology::single_node(6), placement, one, alone);
  EXPECT_EQ(single.network.stream_bytes, 0);
  EXPECT_LT(single.total_bytes, layout.total_bytes);
}

// A dispatch writes the parts of a handle in device memory while its header says the capacity, a combine reads them when it says what came.
TEST(DeviceLayout, NoPartOfAHandleMovesWhenTheRowsBecomeKnown) {
  HandleHeader header;
  header.num_ranks = 6;
  header.num_nodes = 3;
  header.num_slots = 11;
  header.num_local_experts = 2;
  header.top_k = 4;
  header.has_weights = 1;
  header.num_tokens = 5;
  header.num_rows = 64;
  header.num_expert_rows = 128;
  header.num_forwarded = 40;
  std::vector<std::byte> block(static_cast<std::size_t>(HandleView::bytes_for(header)));
  const HandleView written(block.data(), header);
  header.num_rows = 7;
  header.num_expert_rows = 9;
  const HandleView read(block.data(), header);
  EXPECT_EQ(read.rank_of_slot(), written.rank_of_slot());
  EXPECT_EQ(read.source_offsets(), written.source_offsets());
  EXPECT_EQ(read.expert_offsets(), written.expert_offsets());
  EXPECT_EQ(read.forward_rows(), written.forward_rows());
  EXPECT_EQ(read.forward_offsets(), written.forward_offsets());
  EXPECT_EQ(read.forwarded_records(), written.forwarded_records());
  EXPECT_EQ(read.records(), written.records());
}

TEST(DeviceLayout, ThePlanNamesEveryRegionAndItsSumIsTheWindow) {
  const MemoryPlan plan = memory_plan(config_of(11), Topology::single_node(4), 2);
  std::int64_t device_end = 0, host_rows = 0;
  for (const RegionPlan& region : plan.regions) {
    if (region.name.starts_with("device") || region.name.starts_with("combine notes") ||
        region.name.starts_with("combine input") || region.name.starts_with("combine rows") ||
        region.name.starts_with("combine weights"))
      device_end = std::max(device_end, region.offset_bytes + region.bytes);
    if (region.name.starts_with("receive rows")) host_rows += region.bytes;
  }
  EXPECT_EQ(host_rows, 0);  // rows are on the device
  EXPECT_EQ(plan.regions.back().name, "device results");
  EXPECT_GT(plan.regions.back().bytes, 2 * 2 * config_of(11).limits.max_tokens * config_of(11).limits.hidden);
  EXPECT_GT(device_end, 0);
  EXPECT_GE(plan.total_bytes, device_end);
}

}  // namespace
}  // namespace ferry
