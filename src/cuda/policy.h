// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How a call is spread over a device: pure functions of its shape, so that they can be tested without one.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/kernels.h"

namespace ferry::cuda {

/// What of a device bounds a launch.
struct DeviceLimits {
  int num_sms = 132;
  int shared_bytes = 231424;  ///< dynamic, per block
  int sharers = 1;            ///< ranks of the group on the device, whose kernels must be resident together
};

struct CallShape {
  std::int64_t num_tokens = 0;   ///< T
  std::int64_t recv_tokens = 0;  ///< most rows that can arrive
  int top_k = 1;
  int keys = 0;  ///< ranks + slots
  int num_experts = 0;
  int num_sms = 0;  ///< the caller's budget; 0 = Ferry chooses
  int num_ranks = 1, live_ranks = 1;
  int num_blocks = 1;           ///< of the payload on the wire
  bool own_everywhere = false;  ///< rows that stay on their rank are stored once per choice
};

/// Empty if route can count that many keys in shared memory.
std::string why_not_route(const CallShape& shape, const DeviceLimits& limits);
Launch plan_route(const CallShape& shape, const DeviceLimits& limits);
Launch plan_dispatch_send(const CallShape& shape, const DeviceLimits& limits);
/// How many of the blocks of dispatch_send store only rows that stay on this rank; 0: all blocks store everything.
int plan_own_blocks(const CallShape& shape, int blocks);
/// Waiting and copying what lies beside the rows, at most `recv_tokens` of them.
Launch plan_dispatch_recv(const CallShape& shape, const DeviceLimits& limits);
/// Launches that go over the rows received, at most `recv_tokens`.
Launch plan_over_rows(const CallShape& shape, const DeviceLimits& limits);
Launch plan_combine_recv(const CallShape& shape, const DeviceLimits& limits);

/// What the kernels of latency mode have to do: a warp takes one item at a time.
struct LatencyWork {
  std::int64_t send_items = 0, recv_items = 0;  ///< 0: that half is not in the kernel
  int num_sms = 0;                              ///< the caller's budget; 0 = Ferry chooses
  int bookkeepers = 0;                          ///< blocks beside those that take items, where there is room
};
Launch plan_latency_dispatch(const LatencyWork& work, const LatencySize& size, const DeviceLimits& limits);
Launch plan_latency_combine(const LatencyWork& work, const LatencySize& size, const DeviceLimits& limits);
/// Empty if the routing of such a call fits into shared memory.
std::string why_not_latency(const LatencySize& size, const DeviceLimits& limits);

}  // namespace ferry::cuda
