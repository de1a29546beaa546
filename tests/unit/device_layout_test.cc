// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The layout of device windows: regions apart from each other, signals of two writers never in one line, the plan's numbers.
#include "backend/device_layout.h"

#include <gtest/gtest.h>

#include <set>

#include "ferry/ferry.h"

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
