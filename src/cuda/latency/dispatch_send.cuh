// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 2, dispatch_send, of latency mode: a warp takes the record of a token, or a piece of its row, quantises it where asked and
// stores it in packets at every rank that needs the token, once each. See the host step of this name.
#pragma once

#include "cuda/latency/quantise.cuh"
#include "cuda/latency/routing.cuh"

namespace ferry::cuda::latency {

/// Shared memory of a warp that sends.
struct SendWarpMemory {
  float* weights;          ///< [K] of the token at hand
  std::int32_t* positions;  ///< [K]
  std::uint32_t* scales;   ///< of the piece at hand, as on the wire
  static constexpr int kScaleWords = 48;
  FERRY_HD static std::size_t bytes(int top_k) { return static_cast<std::size_t>((2 * top_k + kScaleWords + 3) / 4 * 16); }
  __device__ SendWarpMemory(std::byte* at, int top_k)
      : weights(reinterpret_cast<float*>(at)),
        positions(reinterpret_cast<std::int32_t*>(at) + top_k),
        scales(reinterpret_cast<std::uint32_t*>(at) + 2 * top_k) {}
};

class DispatchSender {
 public:
  __device__ DispatchSender(const LatencyDispatchArgs& args, const RoutingMemory& routing, const SendWarpMemory& memory,
                            const Router& router)
      : a_(args), m_(routing), w_(memory), router_(router), lane_(lane_idx()), parts_(args.format.pieces() + 1) {}

  /// Asks for what the first item begins with: it needs no routing.
  __device__ void start() { ask(turns_.first); }

  /// All of this warp's items. `epochs` are known, and the peers' slots free.
  __device__ void send_all(const Epochs& epochs) {
    tag_ = epochs.tag();
    const std::int64_t items = a_.num_tokens * parts_;
    for (std::int64_t item = turns_.first; item < items; item += turns_.step) {
      const std::int64_t t = item / parts_;
      const int part = static_cast<int>(item % parts_);
      if (part == 0) {
        send_record(t);
      } else if (part <= a_.format.coded_pieces) {
        send_coded(t, part - 1);
      } else {
        send_plain(t, part - 1);
      }
      ask(item + turns_.step);
    }
  }

 private:
  /// What a lane reads of a part: 6 vectors of 16 bytes at most.
  struct Source {
    Channels channels[3];
  };

  __device__ void ask(std::int64_t item) {
    if (item >= a_.num_tokens * parts_) return;
    const std::int64_t t = item / parts_;
    const int part = static_cast<int>(item % parts_);
    if (part == 0) {
      if (a_.weights != nullptr && lane_ < a_.top_k)
        source_.channels[0].pairs[0] = __float_as_uint(__ldg(a_.weights + t * a_.weights_stride[0] + lane_ * a_.weights_stride[1]));
      return;
    }
    const bool coded = part <= a_.format.coded_pieces;
    const int first = (coded ? part - 1 : part - 1 - a_.format.coded_pieces) * wire::kPieceVectors + lane_;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int vector = first + 32 * j;
      if (coded) {
        source_.channels[j] = load_channels(t, vector);
      } else if (vector < a_.format.plain_vectors) {
        const uint4 bits = load_plain(t, vector);
        source_.channels[j].pairs[0] = bits.x;
        source_.channels[j].pairs[1] = bits.y;
        source_.channels[j].pairs[2] = bits.z;
        source_.channels[j].pairs[3] = bits.w;
      }
    }
  }

  /// 16 channels of the block that is coded; 0 beyond its end.
  __device__ Channels load_channels(std::int64_t t, int vector) const {
    const BlockArgs& block = a_.blocks[0];
    const std::byte* row = block.data + t * block.row_stride;
    const int first = vector * 16;
    Channels out;
    if (first >= block.width) return out;
    if (block.element_stride == 2 && first + 16 <= block.width && reinterpret_cast<std::uintptr_t>(row) % 16 == 0) {
      const auto* from = reinterpret_cast<const uint4*>(row + first * 2);
      const uint4 a = __ldg(from), b = __ldg(from + 1);
      out = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
      return out;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (first + i >= block.width) break;
      const std::uint32_t value = *reinterpret_cast<const std::uint16_t*>(row + (first + i) * block.element_stride);
      out.pairs[i / 2] |= value << (i % 2 * 16);
    }
    return out;
  }

  /// A vector of the blocks that are not coded.
  __device__ uint4 load_plain(std::int64_t t, int vector) const {
    int b = a_.codec == Codec::kNone ? 0 : 2;
    int at = vector * 16;
    while (at >= a_.blocks[b].padded) at -= a_.blocks[b++].padded;
    const BlockArgs& block = a_.blocks[b];
    const std::byte* row = block.data + t * block.row_stride;
    if (block.in_pieces) return __ldg(reinterpret_cast<const uint4*>(row + at));
    return gather(block, row, at);
  }

  /// Elements that do not lie side by side, or not on 16-byte boundaries.
  __device__ static uint4 gather(const BlockArgs& block, const std::byte* row, int at) {
    union {
      uint4 bits;
      std::uint8_t bytes[16];
      std::uint16_t halves[8];
      std::uint32_t words[4];
      std::uint64_t longs[2];
    } out;
    out.bits = make_uint4(0, 0, 0, 0);
    const auto fill = [&](auto* elements) {
      using Word = std::remove_reference_t<decltype(*elements)>;
      constexpr int kBytes = static_cast<int>(sizeof(Word));
#pragma unroll
      for (int i = 0; i < 16 / kBytes; ++i) {
        if (at + i * kBytes < block.bytes)
          elements[i] = *reinterpret_cast<const Word*>(row + (at / kBytes + i) * block.element_stride);
      }
    };
    if (block.element_bytes == 1) fill(out.bytes);
    if (block.element_bytes == 2) fill(out.halves);
    if (block.element_bytes == 4) fill(out.words);
    if (block.element_bytes == 8) fill(out.longs);
    return out.bits;
  }

  /// Calls `store(slot)` for the slot of token t at every rank that needs it.
  template <typename Store>
  __device__ void for_each_slot(std::int64_t t, Store&& store) const {
    for (int first = 0; first < a_.top_k; first += 32) {
      std::int32_t rank = -1, index = 0;
      if (first + lane_ < a_.top_k) {
        const std::int64_t at = (first + lane_) * a_.num_tokens + t;
        rank = m_.firsts[at];
        if (rank >= 0) index = m_.indexes[at];
      }
      for (unsigned left = __ballot_sync(kAllLanes, rank >= 0); left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        const std::int32_t to = __shfl_sync(kAllLanes, rank, lane), i = __shfl_sync(kAllLanes, index, lane);
        delay_signal(a_.group, to);
        store(m_.windows[to] + a_.group.layout.latency.slot_at(a_.group.flight, a_.group.rank, i));
      }
    }
  }

  __device__ void send_record(std::int64_t t) {
    const int k = a_.top_k;
    float weight = __uint_as_float(source_.channels[0].pairs[0]);
    __syncwarp();
    for (int i = 0; i < k; ++i) {
      const std::int32_t position = router_.position(t, i);
      if (lane_ == 0) w_.positions[i] = position;
    }
    if (a_.weights != nullptr) {
      for (int i = lane_; i < k; i += 32) {
        if (i >= 32) weight = a_.weights[t * a_.weights_stride[0] + i * a_.weights_stride[1]];
        w_.weights[i] = weight;
      }
      __syncwarp();
      renormalise(t);
    }
    __syncwarp();
    for_each_slot(t, [&](std::byte* slot) {
      for (int i = lane_; i <= k; i += 32) {
        if (i == k) {
          store_packet(slot + i * 16, static_cast<std::uint32_t>(t), 0, 0, tag_);
        } else {
          store_packet(slot + i * 16, static_cast<std::uint32_t>(m_.slots[i * a_.num_tokens + t]),
                       static_cast<std::uint32_t>(w_.positions[i]),
                       a_.weights != nullptr ? __float_as_uint(w_.weights[i]) : 0, tag_);
        }
      }
    });
    if (a_.write_handle) write_handle(t);
  }

  /// As the host: live choices get what all choices of the token had. Every lane works it out.
  __device__ void renormalise(std::int64_t t) const {
    if (!a_.renormalise || a_.ids == nullptr) return;
    float all = 0.0f, live = 0.0f;
    for (int i = 0; i < a_.top_k; ++i) {
      const std::int64_t at = t * a_.ids_stride[0] + i * a_.ids_stride[1];
      const bool given = a_.wide_ids ? static_cast<const std::int64_t*>(a_.ids)[at] >= 0
                                     : static_cast<const std::int32_t*>(a_.ids)[at] >= 0;
      if (given) all += w_.weights[i];
      if (m_.slots[i * a_.num_tokens + t] >= 0) live += w_.weights[i];
    }
    if (live == all || live == 0.0f) return;
    const float scale = all / live;
    __syncwarp();
    for (int i = lane_; i < a_.top_k; i += 32) w_.weights[i] *= scale;
  }

  __device__ void write_handle(std::int64_t t) const {
    const HandleArgs& h = a_.handle;
    for (int i = lane_; i < a_.top_k; i += 32) {
      const std::int64_t at = t * a_.top_k + i;
      const std::int32_t slot = m_.slots[i * a_.num_tokens + t];
      h.slots[at] = slot;
      h.ranks[at] = slot < 0 ? -1 : a_.group.placement.rank_of_slot[slot];
      h.rows[at] = h.tokens[at] = -1;
      if (h.weights != nullptr && a_.weights != nullptr) h.weights[at] = w_.weights[i];
    }
  }

  __device__ void send_coded(std::int64_t t, int piece) {
    const wire::PacketFormat& format = a_.format;
    const int lanes = a_.scale_block / 16;  // that share a scale
    const int per_round = 32 / lanes;
    Piece coded;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const std::uint32_t largest = largest_of_lanes(largest_magnitude(source_.channels[j]), lanes);
      const auto magnitude = static_cast<std::uint16_t>(largest);
      const int scale = j * per_round + lane_ / lanes;
      float multiplier;
      if (a_.codec == Codec::kFp8F32) {
        const wire::Fp8ScaleF32 made = wire::fp8_scale_f32(magnitude);
        multiplier = made.multiplier;
        if (lane_ % lanes == 0) w_.scales[scale] = __float_as_uint(made.scale);
      } else {
        const wire::Fp8ScaleUe8m0 made = wire::fp8_scale_ue8m0(magnitude);
        multiplier = made.multiplier;
        if (lane_ % lanes == 0) reinterpret_cast<std::uint8_t*>(w_.scales)[scale] = made.scale;
      }
      coded.vectors[j] = encode(source_.channels[j], multiplier);
    }
    __syncwarp();
    const int count = min(wire::kPieceVectors, format.coded_vectors - piece * wire::kPieceVectors);
    const int packets = static_cast<int>(wire::packets_of_words(format.scale_words));
    const auto word = [&](int i) { return i < format.scale_words ? w_.scales[i] : 0u; };
    for_each_slot(t, [&](std::byte* slot) {
      std::byte* to = slot + format.piece_at(piece);
      store_piece(to, coded, count, tag_);
      if (lane_ < packets)
        store_packet(to + wire::kPieceBytes + lane_ * 16, word(3 * lane_), word(3 * lane_ + 1), word(3 * lane_ + 2), tag_);
    });
    __syncwarp();
  }

  __device__ void send_plain(std::int64_t t, int piece) {
    Piece plain;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const std::uint32_t* w = source_.channels[j].pairs;
      plain.vectors[j] = make_uint4(w[0], w[1], w[2], w[3]);
    }
    const int done = (piece - a_.format.coded_pieces) * wire::kPieceVectors;
    const int count = min(wire::kPieceVectors, a_.format.plain_vectors - done);
    for_each_slot(t, [&](std::byte* slot) { store_piece(slot + a_.format.piece_at(piece), plain, count, tag_); });
  }

  const LatencyDispatchArgs& a_;
  const RoutingMemory& m_;
  const SendWarpMemory w_;
  const Router& router_;
  const Turns turns_;
  const int lane_, parts_;
  std::uint32_t tag_ = 0;
  Source source_;
};

/// What a rank says before its rows: what it calls, how many rows come, how many for each expert. A warp per reader.
struct Manifest {
  const LatencyDispatchArgs& a;
  const RoutingMemory& m;
  std::int64_t bad;  ///< token * K + choice of an id out of range, or Router::kNone

  __device__ std::uint32_t word(const Epochs& epochs, int reader, int first_slot, int i) const {
    const bool good = bad == Router::kNone;
    switch (i) {
      case 0:
        return static_cast<std::uint32_t>(epochs.now >> 32);
      case 1:
        return static_cast<std::uint32_t>(a.group.digest);
      case 2:
        return static_cast<std::uint32_t>(a.group.digest >> 32);
      case 3:
        return good ? kCallGood : kCallBadId;
      case 4:
        return good ? 0 : static_cast<std::uint32_t>(bad / a.top_k);
      case 5:
      case 6:
        return good ? 0 : static_cast<std::uint32_t>(bad_id() >> (i == 5 ? 0 : 32));
      case 7:
        return good ? static_cast<std::uint32_t>(m.rank_counts[reader]) : 0;
      default:
        return good ? static_cast<std::uint32_t>(m.slot_counts[first_slot + i - LatencyLayout::kManifestWords]) : 0;
    }
  }
  __device__ std::int64_t bad_id() const {
    const std::int64_t at = bad / a.top_k * a.ids_stride[0] + bad % a.top_k * a.ids_stride[1];
    return a.wide_ids ? static_cast<const std::int64_t*>(a.ids)[at] : static_cast<const std::int32_t*>(a.ids)[at];
  }

  __device__ void send_all(const Epochs& epochs) const {
    const Turns turns;
    // From the last warp on: the first ones have rows to send.
    for (std::int64_t reader = turns.step - 1 - turns.first; reader < a.group.num_ranks; reader += turns.step) {
      std::byte* window = m.windows[reader];
      if (window == nullptr) continue;
      const int r = static_cast<int>(reader);
      const std::int32_t* first_slot = a.group.placement.first_slot + r;
      const int first = first_slot[0], words = LatencyLayout::kManifestWords + first_slot[1] - first;
      std::byte* to = window + a.group.layout.latency.manifest_at(a.group.flight, a.group.rank);
      delay_signal(a.group, r);
      for (int packet = lane_idx(); packet * 3 < words; packet += 32) {
        const auto at = [&](int i) { return i < words ? word(epochs, r, first, i) : 0u; };
        store_packet(to + packet * 16, at(3 * packet), at(3 * packet + 1), at(3 * packet + 2), epochs.tag());
      }
    }
  }
};

}  // namespace ferry::cuda::latency
