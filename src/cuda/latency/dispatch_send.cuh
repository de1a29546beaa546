// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 2, dispatch_send, of latency mode: a warp takes the record of a token, or a piece of its row, quantises it where asked and
// stores it in packets at every rank that needs the token, once each. See the host step of this name.
#pragma once

#include "cuda/latency/quantise.cuh"
#include "cuda/latency/routing.cuh"

namespace ferry::cuda::latency {

/// Shared memory of a warp that sends: scales of the piece at hand, as on the wire.
inline constexpr int kScaleWords = 48;

/// As the host: live choices get what all choices of the token had. A lane per choice.
__device__ __noinline__ inline float renormalised(const LatencyDispatchArgs& a, int t, std::int32_t slot,
                                                  float weight) {
  bool given = false;
  if (lane_idx() < a.top_k && a.ids != nullptr) {
    const std::int64_t at = t * a.ids_stride[0] + lane_idx() * a.ids_stride[1];
    given = a.wide_ids ? static_cast<const std::int64_t*>(a.ids)[at] >= 0
                       : static_cast<const std::int32_t*>(a.ids)[at] >= 0;
  }
  float all = 0.0f, live = 0.0f;
  for (int i = 0; i < a.top_k; ++i) {
    const float value = __shfl_sync(kAllLanes, weight, i);
    if (__shfl_sync(kAllLanes, static_cast<int>(given), i) != 0) all += value;
    if (__shfl_sync(kAllLanes, slot, i) >= 0) live += value;
  }
  return live == all || live == 0.0f ? weight : weight * (all / live);
}

class DispatchSender {
 public:
  __device__ DispatchSender(const LatencyDispatchArgs& args, const RoutingMemory& routing, std::uint32_t* scales,
                            const Router& router)
      : a_(args),
        m_(routing),
        scales_(scales),
        router_(router),
        lane_(lane_idx()),
        num_tokens_(static_cast<int>(args.num_tokens)),
        parts_(args.format.pieces() + 1) {}

  /// Asks for what the first item begins with: it needs no routing.
  __device__ void start() { ask(turns_.first); }

  /// All of this warp's items. `epochs` are known, and the peers' slots free.
  __device__ void send_all(const Epochs& epochs) {
    tag_ = epochs.tag();
    for (int item = turns_.first; item < num_tokens_ * parts_; item += turns_.step) {
      const int t = item / parts_, part = item % parts_;
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

  __device__ void ask(int item) {
    if (item >= num_tokens_ * parts_) return;
    const int t = item / parts_, part = item % parts_;
    if (part == 0) {
      if (a_.weights != nullptr && lane_ < a_.top_k)
        source_.channels[0].pairs[0] =
            __float_as_uint(__ldg(a_.weights + t * a_.weights_stride[0] + lane_ * a_.weights_stride[1]));
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
  __device__ Channels load_channels(int t, int vector) const {
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
    return gather_channels(block, row, first);
  }
  /// Channels that do not lie side by side, or not on 16-byte boundaries, or end within these 16.
  __device__ __noinline__ static Channels gather_channels(const BlockArgs& block, const std::byte* row, int first) {
    Channels out;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (first + i >= block.width) break;
      const std::uint32_t value = *reinterpret_cast<const std::uint16_t*>(row + (first + i) * block.element_stride);
      out.pairs[i / 2] |= value << (i % 2 * 16);
    }
    return out;
  }

  /// A vector of the blocks that are not coded.
  __device__ uint4 load_plain(int t, int vector) const {
    int b = a_.codec == Codec::kNone ? 0 : 2;
    int at = vector * 16;
    while (at >= a_.blocks[b].padded) at -= a_.blocks[b++].padded;
    const BlockArgs& block = a_.blocks[b];
    const std::byte* row = block.data + t * block.row_stride;
    if (block.in_pieces) return __ldg(reinterpret_cast<const uint4*>(row + at));
    return gather(block, row, at);
  }

  /// Elements that do not lie side by side, or not on 16-byte boundaries.
  __device__ __noinline__ static uint4 gather(const BlockArgs& block, const std::byte* row, int at) {
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
  __device__ void for_each_slot(int t, Store&& store) const {
    std::int32_t rank = -1, index = 0;
    if (lane_ < a_.top_k) {
      rank = m_.firsts[lane_ * num_tokens_ + t];
      if (rank >= 0) index = m_.indexes[lane_ * num_tokens_ + t];
    }
    for (unsigned left = __ballot_sync(kAllLanes, rank >= 0); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      const std::int32_t to = __shfl_sync(kAllLanes, rank, lane), i = __shfl_sync(kAllLanes, index, lane);
      if (m_.windows[to] == nullptr) continue;  // masked since the slots were given out
      delay_signal(a_.group, to);
      store(m_.windows[to] + a_.group.layout.latency.slot_at(a_.group.flight, a_.group.rank, i));
    }
  }

  /// Lane k sends choice k, the lane after them the token.
  __device__ void send_record(int t) {
    const bool is_choice = lane_ < a_.top_k;
    float weight = a_.weights != nullptr ? __uint_as_float(source_.channels[0].pairs[0]) : 0.0f;
    const std::int32_t slot = is_choice ? m_.slots[lane_ * num_tokens_ + t] : -1;
    const std::int32_t position = router_.position(t);
    if (a_.weights != nullptr && a_.renormalise) weight = renormalised(a_, t, slot, weight);
    for_each_slot(t, [&](std::byte* to) {
      if (is_choice) {
        store_packet(to + lane_ * 16, static_cast<std::uint32_t>(slot), static_cast<std::uint32_t>(position),
                     __float_as_uint(weight), tag_);
      }
      if (lane_ == a_.top_k % 32) store_packet(to + a_.top_k * 16, static_cast<std::uint32_t>(t), 0, 0, tag_);
    });
    if (a_.write_handle && is_choice) write_handle(t * a_.top_k + lane_, slot, weight);
  }

  __device__ void write_handle(int at, std::int32_t slot, float weight) const {
    const HandleArgs& h = a_.handle;
    h.slots[at] = slot;
    h.ranks[at] = slot < 0 ? -1 : a_.group.placement.rank_of_slot[slot];
    h.rows[at] = h.tokens[at] = -1;
    if (h.weights != nullptr && a_.weights != nullptr) h.weights[at] = weight;
  }

  __device__ void send_coded(int t, int piece) {
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
        if (lane_ % lanes == 0) scales_[scale] = __float_as_uint(made.scale);
      } else {
        const wire::Fp8ScaleUe8m0 made = wire::fp8_scale_ue8m0(magnitude);
        multiplier = made.multiplier;
        if (lane_ % lanes == 0) reinterpret_cast<std::uint8_t*>(scales_)[scale] = made.scale;
      }
      coded.vectors[j] = encode(source_.channels[j], multiplier);
    }
    __syncwarp();
    const int count = min(wire::kPieceVectors, format.coded_vectors - piece * wire::kPieceVectors);
    const int packets = static_cast<int>(wire::packets_of_words(format.scale_words));
    const auto word = [&](int i) { return i < format.scale_words ? scales_[i] : 0u; };
    for_each_slot(t, [&](std::byte* slot) {
      std::byte* to = slot + format.piece_at(piece);
      store_piece(to, coded, count, tag_);
      if (lane_ < packets)
        store_packet(to + wire::kPieceBytes + lane_ * 16, word(3 * lane_), word(3 * lane_ + 1), word(3 * lane_ + 2),
                     tag_);
    });
    __syncwarp();
  }

  __device__ void send_plain(int t, int piece) {
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
  std::uint32_t* scales_;
  const Router& router_;
  const Turns turns_;
  const int lane_, num_tokens_, parts_;
  std::uint32_t tag_ = 0;
  Source source_;
};

__device__ __noinline__ inline std::int64_t id_at(const LatencyDispatchArgs& a, int choice) {
  const std::int64_t at = choice / a.top_k * a.ids_stride[0] + choice % a.top_k * a.ids_stride[1];
  return a.wide_ids ? static_cast<const std::int64_t*>(a.ids)[at] : static_cast<const std::int32_t*>(a.ids)[at];
}

/// What a rank says before its rows: what it calls, how many rows come, how many for each expert. A warp per reader.
class Manifest {
 public:
  /// Asks for what the first reader's takes.
  __device__ Manifest(const LatencyDispatchArgs& args, const RoutingMemory& routing) : a_(args), m_(routing) {
    ask(first_);
  }

  /// `bad`: token * K + choice of an id out of range, or Router::kNone.
  __device__ void send_all(const Epochs& epochs, int bad) {
    for (int reader = first_; reader < a_.group.num_ranks; reader += turns_.step) {
      if (reader != first_) ask(reader);
      std::byte* window = m_.windows[reader];
      if (window == nullptr) continue;
      const int words = LatencyLayout::kManifestWords + end_slot_ - first_slot_;
      std::byte* to = window + a_.group.layout.latency.manifest_at(a_.group.flight, a_.group.rank);
      delay_signal(a_.group, reader);
      for (int packet = lane_idx(); packet * 3 < words; packet += 32) {
        const auto at = [&](int i) { return i < words ? word(epochs, reader, bad, i) : 0u; };
        store_packet(to + packet * 16, at(3 * packet), at(3 * packet + 1), at(3 * packet + 2), epochs.tag());
      }
    }
  }

 private:
  __device__ void ask(int reader) {
    if (reader >= a_.group.num_ranks) return;
    first_slot_ = __ldg(a_.group.placement.first_slot + reader);
    end_slot_ = __ldg(a_.group.placement.first_slot + reader + 1);
  }
  __device__ std::uint32_t word(const Epochs& epochs, int reader, int bad, int i) const {
    const bool good = bad == Router::kNone;
    if (i >= LatencyLayout::kManifestWords)
      return good ? static_cast<std::uint32_t>(m_.slot_counts[first_slot_ + i - LatencyLayout::kManifestWords]) : 0;
    switch (i) {
      case 0:
        return static_cast<std::uint32_t>(epochs.now >> 32);
      case 1:
        return static_cast<std::uint32_t>(a_.group.digest);
      case 2:
        return static_cast<std::uint32_t>(a_.group.digest >> 32);
      case 3:
        return good ? kCallGood : kCallBadId;
      case 4:
        return good ? 0 : static_cast<std::uint32_t>(bad / a_.top_k);
      case 5:
      case 6:
        return good ? 0 : static_cast<std::uint32_t>(id_at(a_, bad) >> (i == 5 ? 0 : 32));
      default:
        return good ? static_cast<std::uint32_t>(m_.rank_counts[reader]) : 0;
    }
  }
  const LatencyDispatchArgs& a_;
  const RoutingMemory& m_;
  const Turns turns_;
  const int first_ = turns_.step - 1 - turns_.first;  ///< from the last warp on: the first ones have rows to send
  int first_slot_ = 0, end_slot_ = 0;                 ///< of the reader at hand
};

}  // namespace ferry::cuda::latency
