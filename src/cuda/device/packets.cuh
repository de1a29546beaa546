// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Packets: 16 bytes that cross as one, 12 of data and the tag of their call, so that who polls them needs no signal, and who
// stores them no fence. That they are never torn is a promise of PTX: a relaxed .b128 access is one access of the memory model.
// The tag is the low half of the call's epoch; nothing is cleaned, and what makes old tags harmless is said in
// docs/memory_model.md. All calls are made by a whole warp.
#pragma once

#include "cuda/device/wait.cuh"
#include "wire/packets.h"

namespace ferry::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_idx() {
  return static_cast<int>(threadIdx.x) % 32;
}

struct Packet {
  std::uint32_t words[wire::kPacketWords] = {};
};

__device__ inline void store_packet(std::byte* to, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                    std::uint32_t tag) {
  asm volatile(
      "{\n .reg .b64 low, high;\n .reg .b128 all;\n mov.b64 low, {%1, %2};\n mov.b64 high, {%3, %4};\n"
      " mov.b128 all, {low, high};\n st.relaxed.sys.global.b128 [%0], all;\n}" ::"l"(to),
      "r"(a), "r"(b), "r"(c), "r"(tag)
      : "memory");
}

/// x, y, z: data; w: the tag.
__device__ inline uint4 load_packet(const std::byte* at) {
  uint4 out;
  asm volatile(
      "{\n .reg .b64 low, high;\n .reg .b128 all;\n ld.relaxed.sys.global.b128 all, [%4];\n"
      " mov.b128 {low, high}, all;\n mov.b64 {%0, %1}, low;\n mov.b64 {%2, %3}, high;\n}"
      : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
      : "l"(at)
      : "memory");
  return out;
}

/// What a warp waits for, in the count of a fault's `seen`.
enum class Awaited : std::int32_t { kManifest = 1, kRecord, kRow, kScales, kNote, kWeights };

/// Whom a warp waits for, and what ends the wait: lane 0 looks at the clock for all. Where each lane waits for a rank of its own,
/// `writer` is lane 0's.
class PacketWait {
 public:
  __device__ PacketWait(const GroupArgs& group, FaultStep step, std::uint64_t epoch, int writer,
                        bool writer_per_lane = false)
      : group_(group), step_(step), epoch_(epoch), writer_(writer), writer_per_lane_(writer_per_lane) {}

  /// After a look in vain; `missing`: lanes whose packet is not here.
  __device__ bool is_over(Awaited what, unsigned missing) {
    // Whoever waits for long leaves room between looks: warps that only load keep an SM's memory pipeline from ever being idle, and
    // copies and kernels of other streams wait for that.
    if (++looks_ > kLooksInARow) __nanosleep(looks_ > 16 * kLooksInARow ? 2000 : 200);
    if (looks_ % 64 != 0) return false;
    if (start_ == 0) start_ = now_ns();
    bool over = false;
    if (lane_idx() == 0) {
      const int writer = writer_ + (writer_per_lane_ ? __ffs(static_cast<int>(missing)) - 1 : 0);
      over = wait_is_over(group_, step_, epoch_, writer, start_, looks_ % 4096 == 0,
                          total_of(epoch_ - 1, static_cast<std::int64_t>(what)), total_of(epoch_));
    }
    return __any_sync(kAllLanes, over) != 0;
  }
  /// 0, which the compiler cannot know.
  __device__ std::uint32_t nothing() const { return static_cast<std::uint32_t>(group_.rank >> 31); }

 private:
  static constexpr unsigned kLooksInARow = 128;  ///< some 100 us

  const GroupArgs& group_;
  const FaultStep step_;
  const std::uint64_t epoch_;
  const int writer_;
  const bool writer_per_lane_;
  std::int64_t start_ = 0;
  unsigned looks_ = 0;
};

/// A packet per lane that is on its way: asked for early, looked at late.
///
/// ptxas (13.0) makes narrow loads of a 16-byte load of which only some words are used, one after the other: the data may then be
/// an older packet's than the tag (seen: the token of a row, whose packet is read for one word, was now and then that of an
/// earlier call, and combine waited for a row that nobody sent). So every word depends on the others.
class PacketArrival {
 public:
  __device__ PacketArrival(const std::byte* at, bool wanted) : at_(at), wanted_(wanted) { ask(); }
  /// False if the wait ended badly.
  __device__ bool wait(std::uint32_t tag, PacketWait& wait, Awaited what) {
    while (const unsigned missing = __ballot_sync(kAllLanes, wanted_ && packet_.w != tag)) {
      if (wait.is_over(what, missing)) return false;
      ask();
    }
    const std::uint32_t x = packet_.x, y = packet_.y, z = packet_.z, nothing = wait.nothing();
    packet_.x |= (y | z) & nothing;
    packet_.y |= (x | z) & nothing;
    packet_.z |= (x | y) & nothing;
    return true;
  }
  __device__ const uint4& packet() const { return packet_; }

 private:
  __device__ void ask() {
    if (wanted_) packet_ = load_packet(at_);
  }
  const std::byte* at_;
  bool wanted_;
  uint4 packet_ = {};
};

/// What a lane holds of a piece: vectors lane, 32 + lane and 64 + lane of it.
struct Piece {
  uint4 vectors[3];
};

/// `count`: vectors of the piece, at most kPieceVectors.
__device__ inline void store_piece(std::byte* to, const Piece& piece, int count, std::uint32_t tag) {
  const int lane = lane_idx();
  std::byte* at = to + lane * wire::kPacketBytes;
  constexpr int kStep = 32 * wire::kPacketBytes;
  const uint4 &a = piece.vectors[0], &b = piece.vectors[1], &c = piece.vectors[2];
  if (lane < count) {
    store_packet(at, a.x, a.y, a.z, tag);
    store_packet(at + kStep, a.w, b.x, b.y, tag);
  }
  if (lane + 32 < count) store_packet(at + 2 * kStep, b.z, b.w, c.x, tag);
  if (lane + 64 < count) store_packet(at + 3 * kStep, c.y, c.z, c.w, tag);
}

/// A piece that is on its way: asked for early, looked at late.
class PieceArrival {
 public:
  __device__ PieceArrival(const std::byte* from, int count, std::uint32_t tag)
      : at_(from + lane_idx() * wire::kPacketBytes), tag_(tag) {
    const int lane = lane_idx();
    wanted_ = lane + 64 < count ? 4 : lane + 32 < count ? 3 : lane < count ? 2 : 0;
  }
  __device__ void ask() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < wanted_) packets_[i] = load_packet(at_ + i * 32 * wire::kPacketBytes);
    }
  }
  __device__ bool is_here() const {
    bool here = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) here = here && (i >= wanted_ || packets_[i].w == tag_);
    return __all_sync(kAllLanes, here) != 0;
  }
  /// After ask(). False if the wait ended badly.
  __device__ bool wait(PacketWait& wait) {
    while (!is_here()) {
      if (wait.is_over(Awaited::kRow, kAllLanes)) return false;
      ask();
    }
    return true;
  }
  __device__ Piece piece() const {
    const uint4* p = packets_;
    return {{make_uint4(p[0].x, p[0].y, p[0].z, p[1].x), make_uint4(p[1].y, p[1].z, p[2].x, p[2].y),
             make_uint4(p[2].z, p[3].x, p[3].y, p[3].z)}};
  }

 private:
  const std::byte* at_;
  const std::uint32_t tag_;
  int wanted_;
  uint4 packets_[4];
};

}  // namespace ferry::cuda
