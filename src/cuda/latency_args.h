// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of latency mode are given, beside args.h.
#pragma once

#include "core/host_device.h"
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

/// Division of small numbers by one that is known before the launch: n * divisor < 2^32.
struct Division {
  std::uint32_t factor = 0, whole = 0;
  Division() = default;
  explicit Division(std::int64_t divisor)
      : factor(divisor == 1 ? 0 : static_cast<std::uint32_t>((std::int64_t{1} << 32) / divisor + 1)),
        whole(divisor == 1 ? ~0u : 0u) {}
  FERRY_HD int quotient(int n) const {
    const auto number = static_cast<std::uint32_t>(n);
    return static_cast<int>((static_cast<std::uint64_t>(number) * factor >> 32) + (number & whole));
  }
};

/// Offsets in a window and sizes in units of 16 bytes, for the call's flight: 32 bits hold them, and code that is fetched once costs
/// more than what it does.
struct UsualSlots {
  std::uint32_t first = 0, writer = 0, slot = 0;  ///< the first slot, from writer to writer, from slot to slot
  std::uint32_t piece_begin = 0, piece = 0;       ///< in a slot
  std::uint32_t row = 0;                          ///< from row to row of the caller's payload
};

/// Choices per token of a usual call.
inline constexpr int kUsualTopK = 8;

/// A usual dispatch: see latency/usual.cuh.
struct UsualDispatchArgs {
  LatencyDispatchArgs call;
  UsualSlots slots;
  Division by_local;   ///< a slot by the experts of a rank gives its rank
  Division by_parts;   ///< a token's record and pieces
  Division by_pieces;  ///< without the record
};
/// A usual combine.
struct UsualCombineArgs {
  CombineArgsOnDevice call;
  std::uint32_t returns = 0, token = 0,
                place =
                    0;  ///< units of 16 bytes, as in UsualSlots: the first, from token to token, from place to place
  std::uint32_t row = 0, out_row = 0;  ///< from row to row of x and of the result
  Division by_local, by_pieces;
};

}  // namespace ferry::cuda
