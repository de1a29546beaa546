// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 2, dispatch_send, of a usual dispatch: as dispatch_send.cuh, which says what crosses.
#pragma once

#include "cuda/latency/quantise.cuh"
#include "cuda/latency/usual_routing.cuh"

namespace ferry::cuda::latency {

/// kCoded: bf16 rows become fp8 with float32 scales of 128 channels; else rows of one block go as they are.
template <bool kCoded>
class UsualSender {
 public:
  __device__ UsualSender(const UsualDispatchArgs& args, const UsualMemory& memory, const UsualRouter& router,
                         const Peer& peer, const Shifts& shifts)
      : a_(args.call),
        m_(memory),
        router_(router),
        peer_(peer),
        slots_(args.slots),
        by_parts_(args.by_parts),
        lane_(lane_idx()),
        parts_(args.call.format.pieces() + 1),
        items_(static_cast<int>(args.call.num_tokens) * parts_),
        first_(shifts.first),
        step_(shifts.step) {}

  /// Asks for what the first item begins with: it needs no routing.
  __device__ void start() { ask(first_); }

  /// All of this warp's items. `begin` is called once the first is ready for the wire: it waits for the routing and until the peers'
  /// slots are free, and says false if the call ends here. `rehearses`: see UsualRehearsal.
  template <typename Begin>
  __device__ bool send_all(bool rehearses, Begin&& begin) {
    std::uint32_t tag = 0;
    bool begun = false, repeated = false;
    int item = first_;
    do {
      int t = kNobody, part = rehearses ? kBeyond : -1;
      if (item < items_) {
        t = by_parts_.quotient(item);
        part = item - t * parts_;
      }
      if (part > 0) code();
      if (!begun && !begin(tag, repeated)) return false;
      begun = true;
      if (part > 0) send_piece(t, part - 1, tag);
      if (part == 0) send_record(t, tag, repeated);
      item += step_;
      ask(item);
    } while (item < items_);
    return true;
  }

 private:
  static constexpr int kNobody = -1;  ///< the token of a rehearsal

  /// What a lane reads of a part.
  struct Source {
    uint4 vectors[kCoded ? 6 : 3];
    float weight;
  };

  __device__ int vectors_of_row() const { return kCoded ? a_.format.coded_vectors : a_.format.plain_vectors; }

  __device__ void ask(int item) {
    if (item >= items_) return;
    const int t = by_parts_.quotient(item), part = item - t * parts_;
    if (part == 0) {
      if (lane_ < kUsualTopK) source_.weight = __ldg(a_.weights + t * kUsualTopK + lane_);
      return;
    }
    const auto* row = reinterpret_cast<const uint4*>(
        a_.blocks[0].data + static_cast<std::uint64_t>(static_cast<std::uint32_t>(t)) * slots_.row * 16);
    const int last = vectors_of_row() - 1, first = (part - 1) * wire::kPieceVectors + lane_;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      // What lies beyond the row's end is its last vector once more, and not sent.
      const int vector = min(first + 32 * j, last);
      if constexpr (kCoded) {
        source_.vectors[2 * j] = __ldg(row + 2 * vector);
        source_.vectors[2 * j + 1] = __ldg(row + 2 * vector + 1);
      } else {
        source_.vectors[j] = __ldg(row + vector);
      }
    }
  }

  /// Calls `store(slot)` for the slot of token t at every rank that needs it. A lane knows a rank's.
  template <typename Store>
  __device__ void for_each_slot(int t, Store&& store) const {
    const GroupArgs& group = a_.group;
    bool needs = false;
    unsigned long long slot = 0;
    if (t == kNobody) {
      needs = lane_ == 0;
    } else if (lane_ < group.num_ranks) {
      const std::uint32_t* bits = m_.rank_bits + lane_ * m_.words;
      needs = (bits[t / 32] >> t % 32 & 1) != 0;
      if (needs) {
        const std::uint32_t before = static_cast<std::uint32_t>(bits_before(bits, t));
        slot = reinterpret_cast<unsigned long long>(
            at_unit(peer_.window(), slots_.first + group.rank * slots_.writer + before * slots_.slot));
      }
    }
    for (unsigned left = __ballot_sync(kAllLanes, needs); left != 0; left &= left - 1) {
      const int rank = __ffs(static_cast<int>(left)) - 1;
      delay_signal(group, rank);
      store(reinterpret_cast<std::byte*>(__shfl_sync(kAllLanes, slot, rank)));
    }
  }

  /// Lane k sends choice k, the lane after them the token.
  __device__ void send_record(int t, std::uint32_t tag, bool repeated) {
    const std::int32_t slot = lane_ < kUsualTopK ? m_.slots[t * kUsualTopK + lane_] : -1;
    const std::int32_t position = router_.position(t, slot, repeated);
    const std::uint32_t weight = __float_as_uint(source_.weight);
    const bool is_token = lane_ == kUsualTopK;
    for_each_slot(t, [&](std::byte* to) {
      if (lane_ <= kUsualTopK) {
        store_packet(to + lane_ * 16, static_cast<std::uint32_t>(is_token ? t : slot),
                     is_token ? 0 : static_cast<std::uint32_t>(position), is_token ? 0 : weight, tag);
      }
    });
    if (lane_ >= kUsualTopK) return;
    const HandleArgs& h = a_.handle;
    const int at = t * kUsualTopK + lane_;
    h.slots[at] = slot;
    h.ranks[at] = slot < 0 ? -1 : router_.rank_of(slot);
    h.rows[at] = h.tokens[at] = -1;
    h.weights[at] = source_.weight;
  }

  /// What was read of a piece, as it goes; scales in the packets' order.
  __device__ void code() {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if constexpr (kCoded) {
        const uint4 &a = source_.vectors[2 * j], &b = source_.vectors[2 * j + 1];
        const Channels channels{{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
        const std::uint32_t largest = largest_of_lanes(largest_magnitude(channels), 8);
        const wire::Fp8ScaleF32 made = wire::fp8_scale_f32(static_cast<std::uint16_t>(largest));
        scales_[j] = __float_as_uint(made.scale);
        data_.vectors[j] = encode(channels, made.multiplier);
      } else {
        data_.vectors[j] = source_.vectors[j];
      }
    }
    if constexpr (kCoded) {
      // Scale 4 j + g is lane 8 g's scales_[j]; packet p, lane p's, takes scales 3 p, 3 p + 1 and 3 p + 2.
      std::uint32_t words[3];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int scale = min(3 * lane_ + i, kUsualScales - 1);
        const int from = scale % 4 * 8;
        const std::uint32_t x = __shfl_sync(kAllLanes, scales_[0], from), y = __shfl_sync(kAllLanes, scales_[1], from),
                            z = __shfl_sync(kAllLanes, scales_[2], from);
        words[i] = scale < 4 ? x : scale < 8 ? y : z;
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) scales_[i] = words[i];
    }
  }

  __device__ void send_piece(int t, int piece, std::uint32_t tag) {
    const int count = min(wire::kPieceVectors, vectors_of_row() - piece * wire::kPieceVectors);
    const std::uint32_t at = slots_.piece_begin + static_cast<std::uint32_t>(piece) * slots_.piece;
    for_each_slot(t, [&](std::byte* slot) {
      std::byte* to = at_unit(slot, at);
      store_piece(to, data_, count, tag);
      if (kCoded && lane_ < kUsualScales / 3 && count > 0)
        store_packet(to + wire::kPieceBytes + lane_ * 16, scales_[0], scales_[1], scales_[2], tag);
    });
  }

  const LatencyDispatchArgs& a_;
  const UsualMemory& m_;
  const UsualRouter& router_;
  const Peer& peer_;
  const UsualSlots& slots_;
  const Division by_parts_;
  const int lane_, parts_, items_, first_, step_;
  Source source_ = {};
  Piece data_;
  std::uint32_t scales_[3];
};

/// The id of a choice that is out of range; rare.
__device__ __noinline__ inline std::int64_t usual_id_at(const LatencyDispatchArgs& a, int choice) {
  return a.wide_ids ? static_cast<const std::int64_t*>(a.ids)[choice] : static_cast<const std::int32_t*>(a.ids)[choice];
}

/// As Manifest: what this rank says before its rows, a warp per reader. By the block that keeps the books. `bad`: token * 8 + choice
/// of an id out of range, or UsualRouter::kNone.
__device__ inline void send_usual_manifests(const LatencyDispatchArgs& a, const UsualMemory& m, const Peer& peer,
                                            const Shifts& shifts, const Epochs& epochs, int bad) {
  const GroupArgs& group = a.group;
  const bool good = bad == UsualRouter::kNone;
  const int local = a.num_local, words = LatencyLayout::kManifestWords + local;
  const std::int64_t id = good ? 0 : usual_id_at(a, bad);
  for (int reader = shifts.warp; reader < group.num_ranks; reader += shifts.warps) {
    std::byte* to = peer.window_of(reader) + group.layout.latency.manifest_at(group.flight, group.rank);
    delay_signal(group, reader);
    for (int packet = lane_idx(); packet * 3 < words; packet += 32) {
      std::uint32_t word[3];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int expert = 3 * packet + i - LatencyLayout::kManifestWords;
        word[i] =
            good && expert >= 0 && expert < local ? static_cast<std::uint32_t>(m.totals[reader * local + expert]) : 0;
      }
      if (packet == 0) {
        word[0] = static_cast<std::uint32_t>(epochs.now >> 32);
        word[1] = static_cast<std::uint32_t>(group.digest);
        word[2] = static_cast<std::uint32_t>(group.digest >> 32);
      } else if (packet == 1) {
        word[0] = good ? kCallGood : kCallBadId;
        word[1] = good ? 0 : static_cast<std::uint32_t>(bad / kUsualTopK);
        word[2] = static_cast<std::uint32_t>(id);
      } else if (packet == 2) {
        word[0] = static_cast<std::uint32_t>(id >> 32);
        word[1] = good ? static_cast<std::uint32_t>(m.tokens[reader]) : 0;
      }
      store_packet(to + packet * 16, word[0], word[1], word[2], epochs.tag());
    }
  }
}

}  // namespace ferry::cuda::latency
