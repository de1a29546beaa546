// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace ferry::cuda {
namespace {

// Measured in docs/design/cuda.md.
constexpr int kDefaultSms = 16;
// Of SMs that do nothing else 8 fill a link: 345 GB/s, 9 to 12 push 310 to 319, 16 that store locally as well 290. With
// fewer than 7 left for the link, a share of all SMs is better.
constexpr int kLinkSms = 8, kLeastLinkSms = 7;
constexpr int kRouteWarps = 32, kSendWarps = 14, kRecvWarps = 32, kRowWarps = 16;

int budget(const CallShape& shape, const DeviceLimits& limits) {
  return std::clamp(shape.num_sms > 0 ? shape.num_sms : kDefaultSms, 1, limits.num_sms);
}

/// As many blocks as there is work for, within the budget.
int blocks_for(std::int64_t items, std::int64_t items_per_block, int most) {
  const std::int64_t wanted = (items + items_per_block - 1) / items_per_block;
  return static_cast<int>(std::clamp<std::int64_t>(wanted, 1, most));
}

/// As many warps as shared memory holds, at least one.
template <typename Bytes>
int most_warps(int most, const DeviceLimits& limits, Bytes&& bytes) {
  while (most > 1 && bytes(most) > static_cast<std::size_t>(limits.shared_bytes)) --most;
  return most;
}

int route_warps(const CallShape& shape, const DeviceLimits& limits) {
  int warps = kRouteWarps;
  while (warps > 0 &&
         route_shared_bytes(shape.keys, shape.num_experts, warps) > static_cast<std::size_t>(limits.shared_bytes))
    --warps;
  return warps;
}

}  // namespace

std::string why_not_route(const CallShape& shape, const DeviceLimits& limits) {
  if (route_warps(shape, limits) > 0) return {};
  return fmt::format("{} ranks and places of experts do not fit into {} bytes of shared memory; use fewer", shape.keys,
                     limits.shared_bytes);
}

Launch plan_route(const CallShape& shape, const DeviceLimits& limits) {
  const int warps = std::max(1, route_warps(shape, limits));
  const std::int64_t tokens_per_step = std::max(1, 32 / shape.top_k);
  return {.blocks = blocks_for(shape.num_tokens, warps * tokens_per_step, budget(shape, limits)),
          .threads = 32 * warps,
          .shared_bytes = route_shared_bytes(shape.keys, shape.num_experts, warps)};
}

Launch plan_dispatch_send(const CallShape& shape, const DeviceLimits& limits) {
  const auto bytes = [&](int warps) {
    return send_shared_bytes(warps, shape.num_ranks, shape.num_blocks, shape.top_k);
  };
  const int warps = most_warps(kSendWarps, limits, bytes);
  return {.blocks = blocks_for(shape.num_tokens, 1, budget(shape, limits)),
          .threads = 32 * warps,
          .shared_bytes = bytes(warps)};
}

int plan_own_blocks(const CallShape& shape, int blocks) {
  if (blocks < 2 || shape.live_ranks < 2) return 0;
  // An SM that loads what it stores: 44 GB/s into a link, 47 to 50 into its own memory, 58 if it stores it several times
  // (docs/design/cuda.md). Of uniform choices so many of a token's lie on a rank that it reaches:
  const double choices = shape.top_k / (shape.live_ranks * (1 - std::pow(1 - 1.0 / shape.live_ranks, shape.top_k)));
  const double own = shape.own_everywhere ? choices / 58.0 : 1.0 / 50.0, peers = (shape.live_ranks - 1) / 44.0;
  const int balanced = static_cast<int>(std::lround(blocks * own / (own + peers)));
  const int share = std::max({balanced, blocks - kLinkSms, 1});
  return blocks - share >= kLeastLinkSms ? share : 0;
}

Launch plan_dispatch_recv(const CallShape& shape, const DeviceLimits& limits) {
  return {.blocks = blocks_for(shape.recv_tokens, kRecvWarps, budget(shape, limits)), .threads = 32 * kRecvWarps};
}

Launch plan_over_rows(const CallShape& shape, const DeviceLimits& limits) {
  return {.blocks = blocks_for(shape.recv_tokens, kRowWarps, budget(shape, limits)), .threads = 32 * kRowWarps};
}

Launch plan_combine_recv(const CallShape& shape, const DeviceLimits& limits) {
  const auto bytes = [&](int warps) { return combine_shared_bytes(warps, shape.num_ranks, shape.top_k); };
  const int warps = most_warps(kMostCombineWarps, limits, bytes);
  return {.blocks = blocks_for(shape.num_tokens, 1, budget(shape, limits)),
          .threads = 32 * warps,
          .shared_bytes = bytes(warps)};
}

namespace {

/// Few items are spread over many SMs: what counts is how soon the last is done.
constexpr int kItemsPerBlock = 2;

int latency_blocks(const LatencyWork& work, const DeviceLimits& limits) {
  // Ranks that share a device wait for each other, so their kernels must be resident together: half of it is for them.
  const int share = limits.sharers > 1 ? std::max(1, limits.num_sms / 2 / limits.sharers) : limits.num_sms;
  const int most = work.num_sms > 0 ? std::min(work.num_sms, share) : share;
  const int beside = most > work.bookkeepers ? work.bookkeepers : 0;
  return blocks_for(std::max(work.send_items, work.recv_items), kItemsPerBlock, most - beside) + beside;
}

}  // namespace

Launch plan_latency_dispatch(const LatencyWork& work, const LatencySize& size, const DeviceLimits& limits) {
  return {.blocks = latency_blocks(work, limits),
          .threads = kLatencyThreads,
          .shared_bytes = latency_dispatch_shared_bytes(size, kLatencyThreads / 32)};
}

Launch plan_latency_combine(const LatencyWork& work, const LatencySize& size, const DeviceLimits& limits) {
  return {.blocks = latency_blocks(work, limits),
          .threads = kLatencyThreads,
          .shared_bytes = latency_combine_shared_bytes(size, kLatencyThreads / 32)};
}

std::string why_not_latency(const LatencySize& size, const DeviceLimits& limits) {
  const std::size_t needed = std::max(latency_dispatch_shared_bytes(size, kLatencyThreads / 32),
                                      latency_combine_shared_bytes(size, kLatencyThreads / 32));
  if (needed <= static_cast<std::size_t>(limits.shared_bytes)) return {};
  return fmt::format(
      "latency mode routes in shared memory: {} choices, {} experts and {} ranks take {} bytes of {}; use throughput "
      "mode",
      size.choices, size.num_experts, size.num_ranks, needed, limits.shared_bytes);
}

}  // namespace ferry::cuda
