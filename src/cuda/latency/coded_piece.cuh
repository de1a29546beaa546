// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A piece of a row that combine returns, in fewer bits: coded by a warp, in packets, restored. 24 channels to a lane in vectors of 8; 16
// lanes' vectors are a group. The same bits as src/wire/return_codec.cc.
//
// fp8: 24 bytes of a lane are two packets. logfmt10: 24 codes are seven and a half words; two packets, and one that two lanes share.
// The words of the groups cross in two packets behind the row's pieces: the first holds those of groups 0, 2, 4, the second of 1, 3, 5,
// so that a lane finds the three that it needs in one. They also say whether the piece was packed or left as it is.
#pragma once

#include "cuda/device/elements.cuh"
#include "cuda/latency/quantise.cuh"
#include "wire/return_codec.h"

namespace ferry::cuda::latency {

inline constexpr int kGroupLanes = wire::kCodedGroup / 8;
inline constexpr int kCodeWords = 8;  ///< of 24 codes of 10 bits
static_assert(wire::kChunkChannels == wire::kPieceVectors * 8);

/// Where a piece lies in a return slot.
struct PiecePlace {
  std::byte* data;
  std::byte* words;
  int count;  ///< vectors

  __device__ std::byte* packet(int idx) const { return data + idx * wire::kPacketBytes; }
  __device__ std::byte* own_words() const { return words + lane_idx() / kGroupLanes * wire::kPacketBytes; }
  /// Vectors of this lane.
  __device__ int own_vectors() const {
    const int lane = lane_idx();
    return lane + 64 < count ? 3 : lane + 32 < count ? 2 : lane < count ? 1 : 0;
  }
};

/// Vectors behind the row's end become 0: they are nobody's maximum.
__device__ inline void clear_behind(Piece& piece, const PiecePlace& place) {
  const int own = place.own_vectors();
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    if (j >= own) piece.vectors[j] = uint4{};
  }
}

/// The words of this lane's groups, one for each vector.
__device__ inline void store_words(const PiecePlace& place, const std::uint32_t (&words)[3], std::uint32_t tag) {
  if (lane_idx() % kGroupLanes == 0) store_packet(place.own_words(), words[0], words[1], words[2], tag);
}

template <Codec kCodec>
struct PieceCodec;

template <>
struct PieceCodec<Codec::kFp8F32> {
  __device__ static void store(const PiecePlace& place, Piece piece, std::uint32_t tag) {
    clear_behind(piece, place);
    std::uint32_t out[6], scales[3];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const uint4& v = piece.vectors[j];
      const wire::Fp8ScaleF32 scale =
          wire::fp8_scale_f32(static_cast<std::uint16_t>(largest_of_lanes(largest_of(v), kGroupLanes)));
      scales[j] = __float_as_uint(scale.scale);
      out[2 * j] = encode_two(v.x, v.y, scale.multiplier);
      out[2 * j + 1] = encode_two(v.z, v.w, scale.multiplier);
    }
    store_words(place, scales, tag);
    const int lane = lane_idx(), own = place.own_vectors();
    if (own >= 1) store_packet(place.packet(lane), out[0], out[1], out[2], tag);
    if (own >= 2) store_packet(place.packet(32 + lane), out[3], out[4], out[5], tag);
  }

 private:
  __device__ static std::uint32_t largest_of(const uint4& v) {
    std::uint32_t largest = 0;
#pragma unroll
    for (const std::uint32_t pair : {v.x, v.y, v.z, v.w}) {
      const std::uint32_t magnitudes = pair & 0x7fff7fffu;
      largest = __vmaxu2(largest, magnitudes & ~__vcmpgtu2(magnitudes, 0x7f807f80u));
    }
    return max(largest & 0xffffu, largest >> 16);
  }
  __device__ static std::uint32_t encode_two(std::uint32_t a, std::uint32_t b, float multiplier) {
    const auto low = [&](std::uint32_t pair) { return __uint_as_float(pair << 16) * multiplier; };
    const auto high = [&](std::uint32_t pair) { return __uint_as_float(pair & 0xffff0000u) * multiplier; };
    return encode_pair(low(a), high(a)) | encode_pair(low(b), high(b)) << 16;
  }
};

template <>
struct PieceCodec<Codec::kLogfmt10> {
  __device__ static void store(const PiecePlace& place, Piece piece, std::uint32_t tag) {
    clear_behind(piece, place);
    wire::LogfmtRange ranges[3];
    std::uint32_t words[3];
    bool fit = true;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      ranges[j] = range_of_lanes(piece.vectors[j]);
      words[j] = ranges[j].word();
      fit = fit && ranges[j].fits();
    }
    store_words(place, words, tag);
    if (__all_sync(kAllLanes, fit) == 0) return store_piece(place.data, piece, place.count, tag);
    std::uint32_t codes[kCodeWords] = {};
#pragma unroll
    for (int j = 0; j < 3; ++j) encode(piece.vectors[j], j, wire::LogfmtScale(ranges[j]), codes);
    store_codes(place, codes, tag);
  }

 private:
  /// Of the group that this lane's vector belongs to.
  __device__ static wire::LogfmtRange range_of_lanes(const uint4& v) {
    // Less one, zeros are the largest of all and never the least.
    std::uint32_t largest = 0, least = 0xffffffffu;
#pragma unroll
    for (const std::uint32_t pair : {v.x, v.y, v.z, v.w}) {
      const std::uint32_t magnitudes = pair & 0x7fff7fffu;
      largest = __vmaxu2(largest, magnitudes);
      least = __vminu2(least, __vsub2(magnitudes, 0x00010001u));
    }
    const std::uint32_t lowest = min(least & 0xffffu, least >> 16);
    std::uint32_t both = max(largest & 0xffffu, largest >> 16) << 16 | (0xffffu - lowest);
#pragma unroll
    for (int step = 1; step < kGroupLanes; step *= 2) both = __vmaxu2(both, __shfl_xor_sync(kAllLanes, both, step));
    return {both >> 16, (0x10000u - (both & 0xffffu)) & 0xffffu};
  }
  __device__ static void encode(const uint4& v, int j, const wire::LogfmtScale& scale,
                                std::uint32_t (&codes)[kCodeWords]) {
    const std::uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t code = scale.encode(i % 2 == 0 ? pairs[i / 2] & 0xffffu : pairs[i / 2] >> 16);
      const int bit = (8 * j + i) * wire::kLogfmtBits, shift = bit % 32;
      codes[bit / 32] |= code << shift;
      if (shift > 32 - wire::kLogfmtBits) codes[bit / 32 + 1] |= code >> (32 - shift);
    }
  }
  /// The eighth word has 16 bits.
  __device__ static void store_codes(const PiecePlace& place, const std::uint32_t (&codes)[kCodeWords],
                                     std::uint32_t tag) {
    const int lane = lane_idx(), own = place.own_vectors();
    const std::uint32_t next = __shfl_down_sync(kAllLanes, codes[6], 1),
                        last = __shfl_down_sync(kAllLanes, codes[7], 1);
    if (own >= 1) store_packet(place.packet(lane), codes[0], codes[1], codes[2], tag);
    if (own >= 2) store_packet(place.packet(32 + lane), codes[3], codes[4], codes[5], tag);
    if (own >= 3 && lane % 2 == 0)
      store_packet(place.packet(64 + lane / 2), codes[6], next, codes[7] | last << 16, tag);
  }
};

/// A piece that is on its way; as PieceArrival.
template <Codec kCodec>
class CodedArrival;

/// What both have: the words of this lane's groups, and packets.
class CodedPackets {
 public:
  __device__ CodedPackets(const PiecePlace& place, std::uint32_t tag) : place_(place), tag_(tag) {}

 protected:
  __device__ void ask_words() { words_ = load_packet(place_.own_words()); }
  __device__ bool wait_words(PacketWait& wait) {
    while (__all_sync(kAllLanes, words_.w == tag_) == 0) {
      if (wait.is_over(Awaited::kScales, kAllLanes)) return false;
      ask_words();
    }
    tie(words_, wait.nothing());
    return true;
  }
  /// Lets every word of a packet depend on the others, since not every lane uses all: see PacketArrival.
  __device__ static void tie(uint4& packet, std::uint32_t nothing) {
    const std::uint32_t x = packet.x, y = packet.y, z = packet.z;
    packet.x |= (y | z) & nothing;
    packet.y |= (x | z) & nothing;
    packet.z |= (x | y) & nothing;
  }
  /// `ask` loads the first `wanted` packets.
  template <typename Ask>
  __device__ bool wait_packets(PacketWait& wait, int wanted, Ask&& ask) {
    while (true) {
      bool here = true;
#pragma unroll
      for (int i = 0; i < 4; ++i) here = here && (i >= wanted || packets_[i].w == tag_);
      if (__all_sync(kAllLanes, here) != 0) return true;
      if (wait.is_over(Awaited::kRow, kAllLanes)) return false;
      ask();
    }
  }
  __device__ std::uint32_t word(int j) const {
    return j == 0 ? words_.x : j == 1 ? words_.y : words_.z;
  }

  PiecePlace place_;
  std::uint32_t tag_;
  uint4 words_ = {};
  uint4 packets_[4] = {};
};

template <>
class CodedArrival<Codec::kFp8F32> : CodedPackets {
 public:
  using CodedPackets::CodedPackets;

  __device__ void ask() {
    ask_words();
    ask_packets();
  }
  __device__ bool wait(PacketWait& wait) {
    return wait_words(wait) && wait_packets(wait, min(place_.own_vectors(), 2), [&] { ask_packets(); });
  }
  /// The 8 channels of vector j, restored.
  __device__ void restore(int j, float (&out)[8]) const {
    const uint4 &a = packets_[0], &b = packets_[1];
    const std::uint32_t words[6] = {a.x, a.y, a.z, b.x, b.y, b.z};
    const float scale = __uint_as_float(word(j));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = widen_pair(words[2 * j + i / 2] >> (i % 2 * 16));
      out[2 * i] = two.x * scale;
      out[2 * i + 1] = two.y * scale;
    }
  }

 private:
  __device__ void ask_packets() {
    const int own = place_.own_vectors();
    if (own >= 1) packets_[0] = load_packet(place_.packet(lane_idx()));
    if (own >= 2) packets_[1] = load_packet(place_.packet(32 + lane_idx()));
  }
  /// The lower two of e4m3 bytes.
  __device__ static float2 widen_pair(std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 890
    std::uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(bytes)));
    __half2 both;
    __builtin_memcpy(&both, &halves, 4);
    return __half22float2(both);
#else
    return {wire::e4m3_to_float(static_cast<std::uint8_t>(bytes)),
            wire::e4m3_to_float(static_cast<std::uint8_t>(bytes >> 8))};
#endif
  }
};

template <>
class CodedArrival<Codec::kLogfmt10> : CodedPackets {
 public:
  using CodedPackets::CodedPackets;

  /// As if it came packed.
  __device__ void ask() {
    ask_words();
    ask_codes();
  }
  __device__ bool wait(PacketWait& wait) {
    if (!wait_words(wait)) return false;
    bool fit = true;
#pragma unroll
    for (int j = 0; j < 3; ++j) fit = fit && wire::LogfmtRange::of(word(j)).fits();
    packed_ = __all_sync(kAllLanes, fit) != 0;
    const int own = place_.own_vectors();
    if (packed_) {
      if (!wait_packets(wait, own, [&] { ask_codes(); })) return false;
      tie(packets_[2], wait.nothing());  // two lanes' words
      return true;
    }
    ask_plain();
    return wait_packets(wait, own == 0 ? 0 : own + 1, [&] { ask_plain(); });
  }
  __device__ void restore(int j, float (&out)[8]) const {
    const uint4* p = packets_;
    if (!packed_) {
      const uint4 vectors[3] = {make_uint4(p[0].x, p[0].y, p[0].z, p[1].x), make_uint4(p[1].y, p[1].z, p[2].x, p[2].y),
                                make_uint4(p[2].z, p[3].x, p[3].y, p[3].z)};
      const std::uint32_t pairs[4] = {vectors[j].x, vectors[j].y, vectors[j].z, vectors[j].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[2 * i] = __uint_as_float(pairs[i] << 16);
        out[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
      }
      return;
    }
    const bool odd = lane_idx() % 2 != 0;
    const std::uint32_t codes[kCodeWords] = {
        p[0].x, p[0].y, p[0].z, p[1].x, p[1].y, p[1].z, odd ? p[2].y : p[2].x, odd ? p[2].z >> 16 : p[2].z & 0xffffu};
    const wire::LogfmtScale scale(wire::LogfmtRange::of(word(j)));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int bit = (8 * j + i) * wire::kLogfmtBits, shift = bit % 32;
      std::uint32_t code = codes[bit / 32] >> shift;
      if (shift > 32 - wire::kLogfmtBits) code |= codes[bit / 32 + 1] << (32 - shift);
      out[i] = scale.decode(code & 1023u);
    }
  }

 private:
  __device__ void ask_codes() {
    const int lane = lane_idx(), own = place_.own_vectors();
    if (own >= 1) packets_[0] = load_packet(place_.packet(lane));
    if (own >= 2) packets_[1] = load_packet(place_.packet(32 + lane));
    if (own >= 3) packets_[2] = load_packet(place_.packet(64 + lane / 2));
  }
  __device__ void ask_plain() {
    const int own = place_.own_vectors();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (own > 0 && i <= own) packets_[i] = load_packet(place_.packet(32 * i + lane_idx()));
    }
  }
  bool packed_ = true;
};

}  // namespace ferry::cuda::latency
