// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The regions of latency mode in device windows: apart from each other, in the plan, proportional to ranks x tokens.
#include "backend/latency_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "backend/device_layout.h"
#include "ferry/ferry.h"
#include "wire/packets.h"

namespace ferry {
namespace {

GroupConfig config_of(int experts, std::int64_t tokens, std::int64_t hidden) {
  GroupConfig config;
  config.backend = "cuda";
  config.limits.num_experts = experts;
  config.limits.max_tokens = 64;
  config.limits.max_latency_tokens = tokens;
  config.limits.hidden = hidden;
  return config;
}

struct Made {
  RegionList list{256};
  LatencyLayout layout;
  Made(const GroupConfig& config, int num_ranks) {
    const Topology topology = Topology::single_node(num_ranks);
    const Placement placement = Placement::contiguous(config.limits.num_experts, num_ranks);
    const WindowLayout window(config.limits, topology, placement, 0, RowPlace::kDevice);
    layout = make_latency_layout(config.limits, num_ranks, placement.num_slots(), window, list);
  }
};

bool is_of_latency(const std::string& name) {
  return name.starts_with("device latency");
}
bool is_result(const std::string& name) {
  return name.starts_with("device latency results");
}

/// What the plan says latency mode takes of a window, results aside.
std::int64_t planned_bytes(const GroupConfig& config, int num_ranks) {
  std::int64_t bytes = 0;
  for (const RegionPlan& region : memory_plan(config, Topology::single_node(num_ranks), 0).regions) {
    if (is_of_latency(region.name) && !is_result(region.name)) bytes += region.bytes;
  }
  return bytes;
}

/// A stretch that one writer fills.
struct Part {
  std::int64_t begin = 0, bytes = 0;
  std::string what;
};

std::vector<Part> parts_of(const LatencyLayout& l, int num_ranks) {
  std::vector<Part> parts;
  for (int flight = 0; flight < l.num_flights; ++flight) {
    for (int writer = 0; writer < num_ranks; ++writer) {
      for (const LatencyKind kind : {LatencyKind::kDispatch, LatencyKind::kCombine})
        parts.push_back({l.credit_at(kind, flight, writer), 8, "credit"});
      parts.push_back({l.manifest_at(flight, writer), l.manifest_bytes, "manifest"});
      parts.push_back({l.note_at(flight, writer), wire::kPacketBytes, "note"});
      for (std::int64_t i = 0; i < l.max_tokens; ++i) {
        parts.push_back({l.slot_at(flight, writer, i), l.slot_bytes, "slot"});
        parts.push_back({l.weights_at(flight, writer, i), l.weights_bytes, "weights"});
      }
    }
    for (std::int64_t token = 0; token < l.max_tokens; ++token) {
      for (int place = 0; place < l.max_top_k; ++place)
        parts.push_back({l.return_at(flight, token, place), l.return_bytes, "return"});
    }
  }
  return parts;
}

TEST(LatencyLayout, PartsOfWritersFlightsAndKindsAreApart) {
  for (const int flights : {1, 3}) {
    GroupConfig config = config_of(11, 7, 100);
    config.limits.num_flights = flights;
    constexpr int kRanks = 5;
    const Made made(config, kRanks);
    const LatencyLayout& layout = made.layout;
    std::vector<Part> parts = parts_of(layout, kRanks);
    for (int flight = 0; flight < flights; ++flight) {
      parts.push_back({layout.results + flight * layout.results_stride,
                       layout.result_rows * max_dispatch_row_bytes(config.limits), "results"});
    }
    std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.begin < b.begin; });
    EXPECT_GE(parts.front().begin, 0);
    for (std::size_t i = 1; i < parts.size(); ++i) {
      ASSERT_LE(parts[i - 1].begin + parts[i - 1].bytes, parts[i].begin)
          << "a " << parts[i - 1].what << " reaches into a " << parts[i].what;
    }
    EXPECT_LE(parts.back().begin + parts.back().bytes, made.list.total_bytes());
    for (const Part& part : parts) ASSERT_EQ(part.begin % (part.what == "credit" ? 8 : 16), 0) << part.what;
  }
}

TEST(LatencyLayout, CreditsOfWritersShareNoLine) {
  GroupConfig config = config_of(8, 4, 64);
  config.limits.num_flights = 20;  // more words than a line has
  const LatencyLayout layout = Made(config, 4).layout;
  for (int writer = 1; writer < 4; ++writer) {
    EXPECT_LT(layout.credit_at(LatencyKind::kCombine, 19, writer - 1) / 128,
              layout.credit_at(LatencyKind::kDispatch, 0, writer) / 128);
  }
}

TEST(LatencyLayout, ASlotHoldsWhateverTheLimitsAllow) {
  for (const std::int64_t hidden : {1, 64, 1000, 7168}) {
    for (const std::int64_t extra : {0, 1, 5000}) {
      GroupConfig config = config_of(8, 4, hidden);
      config.limits.extra_bytes = extra;
      const LatencyLayout layout = Made(config, 2).layout;
      for (const bool has_codec : {false, true}) {
        for (const int scale_block : {32, 128}) {
          wire::RowFormat row;
          row.add(has_codec ? DType::kFp8E4m3 : DType::kBf16, hidden, has_codec ? 1 : 2);
          if (has_codec) row.add(DType::kFp32, wire::num_scales(hidden, scale_block), 4);
          if (extra > 0) row.add(DType::kUint8, extra, 1);
          const Codec codec = has_codec ? Codec::kFp8F32 : Codec::kNone;
          EXPECT_LE(wire::packet_format(row, config.limits.max_top_k, codec, scale_block).slot_bytes, layout.slot_bytes)
              << "hidden " << hidden << ", " << extra << " extra bytes, " << (has_codec ? "coded" : "as it is");
        }
      }
    }
  }
}

TEST(LatencyLayout, AManifestHoldsTheCountsOfEveryPlaceOfAnExpert) {
  const LatencyLayout layout = Made(config_of(288, 4, 64), 4).layout;
  EXPECT_GE(layout.manifest_bytes / wire::kPacketBytes * wire::kPacketWords, LatencyLayout::kManifestWords + 288);
}

TEST(LatencyLayout, ThePlanNamesItsRegions) {
  const GroupConfig config = config_of(11, 7, 100);
  const Made made(config, 4);
  std::int64_t bytes = 0;
  std::size_t named = 0;
  for (const RegionPlan& region : memory_plan(config, Topology::single_node(4), 2).regions) {
    if (!is_of_latency(region.name)) continue;
    bytes += region.bytes;
    ++named;
  }
  std::int64_t made_bytes = 0;
  for (const Region& region : made.list.regions()) made_bytes += region.bytes;
  EXPECT_EQ(named, made.list.regions().size());
  EXPECT_EQ(bytes, made_bytes);
}

TEST(LatencyLayout, NoTokensTakeNothing) {
  const GroupConfig config = config_of(11, 0, 100);
  EXPECT_EQ(Made(config, 4).list.total_bytes(), 0);
  for (const RegionPlan& region : memory_plan(config, Topology::single_node(4), 2).regions)
    EXPECT_FALSE(is_of_latency(region.name)) << region.name;
}

TEST(LatencyLayout, ProportionalToRanksAndTokensAndNotToExperts) {
  const auto slots = [](int experts, std::int64_t tokens, int num_ranks) {
    const Made made(config_of(experts, tokens, 1024), num_ranks);
    std::int64_t bytes = 0;
    for (const Region& region : made.list.regions()) {
      if (region.name.starts_with("device latency slots")) bytes += region.bytes;
    }
    return bytes;
  };
  EXPECT_GT(slots(64, 32, 4), 0);
  EXPECT_EQ(slots(64, 32, 8), 2 * slots(64, 32, 4));
  EXPECT_EQ(slots(64, 64, 4), 2 * slots(64, 32, 4));
  EXPECT_EQ(slots(256, 32, 4), slots(64, 32, 4));
  // Counts per expert and the rest take little beside them.
  const std::int64_t few = planned_bytes(config_of(64, 128, 7168), 64),
                     many = planned_bytes(config_of(4096, 128, 7168), 64);
  EXPECT_LT(many - few, few / 100);
}

/// At 128 tokens per rank, hidden 7168, bf16 or fp8, 288 experts and two flights; results aside, which DeepEP has outside of its
/// buffer, too. That takes 2.1 GB whatever the number of ranks: 2 x (288 x 128 messages to send and as many to receive).
TEST(LatencyLayout, WhatItTakesAtTheSizesOfDecoding) {
  const auto bytes = [](int num_ranks) { return planned_bytes(config_of(288, 128, 7168), num_ranks); };
  EXPECT_EQ(bytes(4), 65'681'024);
  EXPECT_EQ(bytes(64), 406'022'144);
  EXPECT_EQ(bytes(288), 1'676'628'992);
  constexpr std::int64_t kDeepEpBytes = 2'146'961'792;
  EXPECT_LT(bytes(288), kDeepEpBytes);
}

}  // namespace
}  // namespace ferry
