// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How calls are spread over a device, without a device.
#include "cuda/policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

namespace ferry::cuda {
namespace {

const DeviceLimits kH200{};

CallShape shape(std::int64_t tokens) {
  return {.num_tokens = tokens, .recv_tokens = 4 * tokens, .top_k = 8, .keys = 4 + 256};
}

TEST(CudaPolicy, TheBudgetBoundsEveryLaunch) {
  for (const std::int64_t tokens : {0, 1, 7, 128, 4096, 100000}) {
    for (const int sms : {0, 1, 3, 16, 132, 1000}) {
      CallShape call = shape(tokens);
      call.num_sms = sms;
      const int most = sms == 0 ? 16 : std::min(sms, kH200.num_sms);
      for (const Launch& launch :
           {plan_route(call, kH200), plan_dispatch_send(call, kH200), plan_dispatch_recv(call, kH200),
            plan_over_rows(call, kH200), plan_combine_recv(call, kH200)}) {
        EXPECT_GE(launch.blocks, 1);
        EXPECT_LE(launch.blocks, most) << tokens << " tokens";
        EXPECT_EQ(launch.threads % 32, 0);
        EXPECT_LE(launch.threads, 1024);
        EXPECT_LE(launch.shared_bytes, static_cast<std::size_t>(kH200.shared_bytes));
      }
    }
  }
}

TEST(CudaPolicy, LargeCallsUseTheWholeBudget) {
  EXPECT_EQ(plan_route(shape(4096), kH200).blocks, 16);
  EXPECT_EQ(plan_dispatch_send(shape(4096), kH200).blocks, 16);
  EXPECT_EQ(plan_combine_recv(shape(4096), kH200).blocks, 16);
}

TEST(CudaPolicy, SomeBlocksKeepToOwnRowsWhereTheOthersFillTheLink) {
  CallShape call = shape(4096);
  EXPECT_EQ(plan_own_blocks(call, 16), 0) << "nobody to send to";
  for (const auto& [ranks, blocks, own] :
       {std::tuple{2, 16, 8}, {4, 16, 8}, {8, 16, 8}, {4, 10, 2}, {2, 8, 0}, {4, 8, 0}, {2, 1, 0}, {2, 132, 124}}) {
    call.num_ranks = call.live_ranks = ranks;
    EXPECT_EQ(plan_own_blocks(call, blocks), own) << ranks << " ranks, " << blocks << " blocks";
  }
}

TEST(CudaPolicy, OwnRowsOfExpertLayoutsTakeMoreBlocks) {
  CallShape call = shape(4096);
  call.own_everywhere = true;
  // On two ranks four of a token's eight rows stay: too few blocks would be left for the link.
  for (const auto& [ranks, blocks, own] :
       {std::tuple{2, 16, 0}, {4, 16, 8}, {8, 16, 8}, {4, 12, 4}, {4, 8, 0}, {2, 64, 56}}) {
    call.num_ranks = call.live_ranks = ranks;
    EXPECT_EQ(plan_own_blocks(call, blocks), own) << ranks << " ranks, " << blocks << " blocks";
  }
}

TEST(CudaPolicy, OneTokenTakesOneBlock) {
  EXPECT_EQ(plan_route(shape(1), kH200).blocks, 1);
  EXPECT_EQ(plan_dispatch_send(shape(1), kH200).blocks, 1);
}

TEST(CudaPolicy, ManyExpertsTakeFewerWarpsAndThenAreRefused) {
  CallShape call = shape(4096);
  call.keys = call.num_experts = 10000;
  EXPECT_EQ(why_not_route(call, kH200), "");
  const Launch few = plan_route(call, kH200);
  EXPECT_LT(few.threads, 512);
  EXPECT_LE(few.shared_bytes, static_cast<std::size_t>(kH200.shared_bytes));
  call.keys = 30000;
  EXPECT_NE(why_not_route(call, kH200).find("30000"), std::string::npos);
}

TEST(CudaPolicy, LittleSharedMemoryTakesFewerWarps) {
  const DeviceLimits sm_80{.num_sms = 108, .shared_bytes = 163 * 1024 - 1024},
      sm_89{.num_sms = 142, .shared_bytes = 98 * 1024};
  for (const DeviceLimits& limits : {sm_80, sm_89}) {
    for (const Launch& launch : {plan_dispatch_send(shape(4096), limits), plan_combine_recv(shape(4096), limits)}) {
      EXPECT_GE(launch.threads, 32);
      EXPECT_LE(launch.shared_bytes, static_cast<std::size_t>(limits.shared_bytes));
    }
  }
}

TEST(CudaPolicy, ManyRanksAndBlocksTakeFewerWarps) {
  CallShape call = shape(4096);
  call.num_ranks = 1024;
  call.num_blocks = wire::kMaxBlocks;
  const Launch few = plan_dispatch_send(call, kH200);
  EXPECT_GE(few.threads, 32);
  EXPECT_LT(few.threads, plan_dispatch_send(shape(4096), kH200).threads);
  EXPECT_LE(few.shared_bytes, static_cast<std::size_t>(kH200.shared_bytes));
}

TEST(CudaPolicy, AnyTopKHasWholeTokensInAStep) {
  for (int top_k = 1; top_k <= kWideTopK; ++top_k) {
    CallShape call = shape(4096);
    call.top_k = top_k;
    EXPECT_GE(plan_route(call, kH200).blocks, 1);
    EXPECT_GE(plan_combine_recv(call, kH200).threads, 8 * 32) << top_k;
    EXPECT_LE(plan_combine_recv(call, kH200).shared_bytes, static_cast<std::size_t>(kH200.shared_bytes)) << top_k;
    EXPECT_LE(plan_dispatch_send(call, kH200).shared_bytes, static_cast<std::size_t>(kH200.shared_bytes)) << top_k;
  }
}

// Latency mode.

/// `tokens` of hidden 7168 in bf16, eight choices over eight ranks: ten pieces and a record each.
LatencyWork latency_work(std::int64_t tokens) {
  return {.send_items = tokens * 11, .recv_items = tokens * 80};
}
LatencySize latency_size(std::int64_t tokens) {
  return {.num_experts = 256, .num_slots = 256, .num_ranks = 8, .num_local = 32, .top_k = 8, .choices = tokens * 8};
}

TEST(CudaPolicy, TheBudgetBoundsLatencyLaunches) {
  for (const std::int64_t tokens : {0, 1, 7, 128, 512}) {
    for (const int sms : {0, 1, 3, 16, 132, 1000}) {
      LatencyWork work = latency_work(tokens);
      work.num_sms = sms;
      const int most = sms == 0 ? kH200.num_sms : std::min(sms, kH200.num_sms);
      for (const Launch& launch : {plan_latency_dispatch(work, latency_size(tokens), kH200),
                                   plan_latency_combine(work, latency_size(tokens), kH200)}) {
        EXPECT_GE(launch.blocks, 1);
        EXPECT_LE(launch.blocks, most) << tokens << " tokens";
        EXPECT_EQ(launch.threads, kLatencyThreads);
        EXPECT_LE(launch.shared_bytes, static_cast<std::size_t>(kH200.shared_bytes));
      }
    }
  }
}

TEST(CudaPolicy, FewItemsOfLatencyModeAreSpreadOut) {
  // A block has eight warps, and an item is a warp's: two to a block use four times the SMs that full blocks would.
  for (const auto& [items, blocks] :
       {std::pair{0, 1}, {1, 1}, {2, 1}, {3, 2}, {11, 6}, {80, 40}, {264, 132}, {9999, 132}}) {
    const LatencyWork sends{.send_items = items}, receives{.recv_items = items};
    EXPECT_EQ(plan_latency_dispatch(sends, latency_size(1), kH200).blocks, blocks) << items << " items to send";
    EXPECT_EQ(plan_latency_combine(receives, latency_size(1), kH200).blocks, blocks) << items << " items to receive";
  }
  const LatencyWork both{.send_items = 10, .recv_items = 40};
  EXPECT_EQ(plan_latency_dispatch(both, latency_size(1), kH200).blocks, 20) << "the larger half counts";
}

TEST(CudaPolicy, RanksThatShareADeviceTakeHalfOfItTogetherInLatencyMode) {
  for (int sharers = 2; sharers <= kH200.num_sms / 2; ++sharers) {
    const DeviceLimits shared{.sharers = sharers};
    for (const int sms : {0, 1, 132}) {  // a budget makes it less, never more
      LatencyWork work = latency_work(128);
      work.num_sms = sms;
      for (const Launch& launch : {plan_latency_dispatch(work, latency_size(128), shared),
                                   plan_latency_combine(work, latency_size(128), shared)}) {
        EXPECT_GE(launch.blocks, 1);
        EXPECT_LE(launch.blocks * sharers, shared.num_sms / 2) << sharers << " ranks";
      }
    }
  }
  EXPECT_EQ(plan_latency_dispatch(latency_work(128), latency_size(128), {.sharers = 100}).blocks, 1);
}

TEST(CudaPolicy, LatencyCallsThatDoNotFitIntoSharedMemoryAreRefused) {
  EXPECT_EQ(why_not_latency(latency_size(128), kH200), "");
  EXPECT_EQ(why_not_latency(latency_size(2048), kH200), "");
  const std::string why = why_not_latency(latency_size(4096), kH200);
  for (const char* part : {"32768 choices", "256 experts", "8 ranks", "of 231424", "use throughput mode"})
    EXPECT_NE(why.find(part), std::string::npos) << "no '" << part << "' in: " << why;
  LatencySize many = latency_size(128);
  many.num_experts = many.num_slots = 30000;
  EXPECT_NE(why_not_latency(many, kH200).find("30000 experts"), std::string::npos);
}

}  // namespace
}  // namespace ferry::cuda
