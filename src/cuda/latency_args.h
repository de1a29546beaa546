// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of latency mode are given, beside args.h.
#pragma once

#include "cuda/args.h"
#include "wire/packets.h"

namespace ferry::cuda {

/// What of a call a kernel does. A whole call is one kernel, so that receiving begins while others still send.
enum class Phase : std::int32_t { kSend, kReceive, kWhole };

struct LatencyDispatchArgs {
  GroupArgs group;
  // What is sent.
  const void* ids = nullptr;  ///< null: a cached dispatch, whose slots are
  bool wide_ids = false;
  std::int64_t ids_stride[2] = {};             ///< elements
  const std::int32_t* cached_slots = nullptr;  ///< [T, K]
  const float* weights = nullptr;              ///< null without
  std::int64_t weights_stride[2] = {};
  bool renormalise = false;
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 0, num_blocks = 0;
  Codec codec = Codec::kNone;
  std::int32_t scale_block = 128;
  wire::PacketFormat format;
  BlockArgs blocks[wire::kMaxBlocks];  ///< as SendArgs
  HandleArgs handle;
  bool write_handle = true;  ///< false: it is that of an earlier dispatch, whose routing is the same
  // What is received.
  std::int32_t first_slot = 0, num_local = 0;  ///< this rank's places of experts
  routing::ExpertShape shape;
  std::byte* rows[wire::kMaxBlocks] = {};  ///< of each block
  bool wide_ids_out = false;
  std::int64_t shown_rows = 0;  ///< as ReceiveArgs
  void* ids_out = nullptr;
  float* weights_out = nullptr;
  std::int64_t* num_rows = nullptr;
  HostCounts* counts = nullptr;  ///< in host memory; null: not asked for
  CountersArgs recv_counts;
  std::uint64_t ticket = 0;
};

}  // namespace ferry::cuda
