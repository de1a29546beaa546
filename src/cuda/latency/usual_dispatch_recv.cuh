// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 4, dispatch_recv, of a usual dispatch into expert_padded: as dispatch_recv.cuh, which says what arrives and how it is placed.
#pragma once

#include "cuda/latency/usual_routing.cuh"
#include "wire/token_meta.h"

namespace ferry::cuda::latency {

/// Reads every source's manifest into shared memory, a warp per source. False if one did not come or says that the call cannot be.
__device__ inline bool read_usual_manifests(const LatencyDispatchArgs& a, const UsualMemory& m, const Shifts& shifts,
                                            const Epochs& epochs) {
  const GroupArgs& group = a.group;
  const int local = a.num_local, words = LatencyLayout::kManifestWords + local;
  for (int source = shifts.warp; source < group.num_ranks; source += shifts.warps) {
    const std::byte* from = group.own_window + group.layout.latency.manifest_at(group.flight, source);
    PacketWait wait(group, FaultStep::kDispatchRecv, epochs.now, source);
    for (int first = 0; first * 3 < words; first += 32) {
      const int packet = first + lane_idx();
      PacketArrival arrival(from + packet * 16, packet * 3 < words);
      if (!arrival.wait(epochs.tag(), wait, Awaited::kManifest)) return false;
      const uint4& seen = arrival.packet();
      if (first == 0 && !is_same_call(group, epochs, source, seen)) return false;
      const std::uint32_t values[3] = {seen.x, seen.y, seen.z};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int word = 3 * packet + i, expert = word - LatencyLayout::kManifestWords;
        if (word == LatencyLayout::kManifestWords - 1) m.rows[source] = static_cast<std::int32_t>(values[i]);
        if (expert >= 0 && expert < local) m.counts[source * local + expert] = static_cast<std::int32_t>(values[i]);
      }
    }
  }
  return true;
}

/// Rows that came for an expert of this rank, of all sources.
__device__ inline std::int32_t arrived_for(const LatencyDispatchArgs& a, const UsualMemory& m, int expert) {
  std::int32_t sum = 0;
#pragma unroll 1
  for (int source = 0; source < a.group.num_ranks; ++source) sum += m.counts[source * a.num_local + expert];
  return sum;
}

template <bool kCoded>
class UsualReceiver {
 public:
  static constexpr FaultStep kStep = FaultStep::kDispatchRecv;

  __device__ UsualReceiver(const UsualDispatchArgs& args, const UsualMemory& memory, const Epochs& epochs)
      : a_(args.call),
        m_(memory),
        epochs_(epochs),
        slots_(args.slots),
        by_pieces_(args.by_pieces),
        lane_(lane_idx()),
        pieces_(args.call.format.pieces()) {}

  /// All of this warp's items; false if one did not come. `begin` waits for the manifests and says false if the call ends here; a
  /// rehearsal comes before.
  template <typename Begin>
  __device__ bool take_all(const Shifts& shifts, bool rehearses, Begin&& begin) {
    bool begun = false;
    int items = 0, item = shifts.first;
    for (;;) {
      int row = 0, piece = rehearses ? kBeyond : -1;
      if (!rehearses && !begun) {
        if (!begin()) return false;
        begun = true;
        add_up_rows();
        items = num_rows() * pieces_;
      }
      if (item < items) {
        row = by_pieces_.quotient(item);
        piece = item - row * pieces_;
      }
      if (piece >= 0 && !take(row, piece)) return false;
      if (begun) item += shifts.step;
      if (begun && item >= items) return true;
      rehearses = false;
    }
  }

 private:
  /// What lane k knows about choice k of the token at hand.
  struct Choice {
    std::int32_t slot = -1, expert = -1, place = -1;
    float weight = 0.0f;
  };

  /// After the barrier behind the manifests.
  __device__ void add_up_rows() {
    end_ = lane_ < a_.group.num_ranks ? m_.rows[lane_] : 0;
#pragma unroll 1
    for (int step = 1; step < a_.group.num_ranks; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end_, step);
      if (lane_ >= step) end_ += before;
    }
  }
  __device__ int num_rows() const {
    return __shfl_sync(kAllLanes, end_, a_.group.num_ranks - 1);
  }
  __device__ int vectors_of_row() const {
    return kCoded ? a_.format.coded_vectors : a_.format.plain_vectors;
  }

  __device__ bool take(int row, int piece) const {
    const GroupArgs& group = a_.group;
    const int source = __popc(__ballot_sync(kAllLanes, lane_ < group.num_ranks && end_ <= row));
    const int before = __shfl_sync(kAllLanes, end_, max(source - 1, 0));
    const auto index = static_cast<std::uint32_t>(source == 0 ? row : row - before);
    const std::byte* slot = at_unit(
        group.own_window, slots_.first + static_cast<std::uint32_t>(source) * slots_.writer + index * slots_.slot);
    const std::byte* from = at_unit(slot, slots_.piece_begin + static_cast<std::uint32_t>(piece) * slots_.piece);
    // All of it is asked for before any of it is looked at.
    const int count = min(wire::kPieceVectors, vectors_of_row() - piece * wire::kPieceVectors);
    const bool real = count > 0;
    PacketArrival record(slot + lane_ * 16, real && lane_ <= kUsualTopK);
    PieceArrival data(from, count, epochs_.tag());
    data.ask();
    PacketArrival scales(from + wire::kPieceBytes + lane_ * 16,
                         kCoded && real && lane_ < wire::packets_of_words(kUsualScales));
    PacketWait wait(group, kStep, epochs_.now, source);
    if (!record.wait(epochs_.tag(), wait, Awaited::kRecord)) return false;
    const Choice choice = choice_of(record.packet(), source);
    if (piece == 0) {
      const auto token = static_cast<std::int32_t>(__shfl_sync(kAllLanes, record.packet().x, kUsualTopK));
      file_record(row, source, token, choice);
    }
    if (!data.wait(wait) || !scales.wait(epochs_.tag(), wait, Awaited::kScales)) return false;
    const Piece vectors = data.piece();
    for (unsigned left = __ballot_sync(kAllLanes, real ? choice.place >= 0 : lane_ == 0); left != 0; left &= left - 1) {
      const int to = __shfl_sync(kAllLanes, choice.place, __ffs(static_cast<int>(left)) - 1);
      store(static_cast<std::uint32_t>(to), piece, vectors, scales.packet());
    }
    return true;
  }

  /// Beyond an expert's capacity nothing is stored: the block that keeps the books says so.
  __device__ Choice choice_of(const uint4& seen, int source) const {
    Choice out;
    if (lane_ >= kUsualTopK) return out;
    out.slot = static_cast<std::int32_t>(seen.x);
    out.weight = __uint_as_float(seen.z);
    if (out.slot < a_.first_slot || out.slot >= a_.first_slot + a_.num_local) return out;
    out.expert = out.slot - a_.first_slot;
    std::int32_t position = static_cast<std::int32_t>(seen.y);
#pragma unroll 1
    for (int earlier = 0; earlier < source; ++earlier) position += m_.counts[earlier * a_.num_local + out.expert];
    const auto capacity = static_cast<std::int32_t>(a_.shape.capacity);
    if (position < capacity) out.place = out.expert * capacity + position;
    return out;
  }

  /// As DispatchReceiver: the token's record for the handle, and its weights.
  __device__ void file_record(int row, int source, std::int32_t token, const Choice& choice) const {
    const wire::TokenMeta record(
        a_.handle.records + static_cast<std::int64_t>(row) * wire::TokenMeta::bytes(kUsualTopK), kUsualTopK);
    if (lane_ == 0) *reinterpret_cast<int4*>(record.slots() - 4) = make_int4(source, token, -1, 0);
    if (lane_ >= kUsualTopK) return;
    record.slots()[lane_] = choice.slot;
    record.rows()[lane_] = choice.place;
    record.tokens()[lane_] = choice.place >= 0 ? row : -1;
    record.weights()[lane_] = choice.weight;
    if (choice.place >= 0) a_.weights_out[choice.place] = choice.weight;
  }

  __device__ void store(std::uint32_t to, int piece, const Piece& data, const uint4& scales) const {
    std::byte* row = a_.rows[0] + static_cast<std::uint64_t>(to) * static_cast<std::uint32_t>(a_.blocks[0].padded);
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int vector = piece * wire::kPieceVectors + lane_ + 32 * j;
      if (vector < vectors_of_row()) *reinterpret_cast<uint4*>(row + vector * 16) = data.vectors[j];
    }
    if constexpr (kCoded) {
      const BlockArgs& factors = a_.blocks[1];
      auto* words = reinterpret_cast<std::uint32_t*>(a_.rows[1] + static_cast<std::uint64_t>(to) *
                                                                      static_cast<std::uint32_t>(factors.padded));
      const std::uint32_t mine[3] = {scales.x, scales.y, scales.z};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int in_piece = 3 * lane_ + i, at = piece * kUsualScales + in_piece;
        if (in_piece < kUsualScales && at * 4 < factors.padded) words[at] = mine[i];
      }
    }
  }

  const LatencyDispatchArgs& a_;
  const UsualMemory& m_;
  const Epochs epochs_;
  const UsualSlots& slots_;
  const Division by_pieces_;
  const int lane_, pieces_;
  int end_ = 0;  ///< rows of the ranks up to this lane's
};

/// Counts and offsets of what came. By the block that keeps the books, all of its threads.
__device__ inline void write_usual_arrivals(const LatencyDispatchArgs& a, const UsualMemory& m, const Epochs& epochs) {
  const HandleArgs& h = a.handle;
  const int tid = static_cast<int>(threadIdx.x), local = a.num_local, ranks = a.group.num_ranks;
  const auto capacity = static_cast<std::int32_t>(a.shape.capacity);
#pragma unroll 1
  for (int e = tid; e <= local; e += static_cast<int>(blockDim.x)) {
    h.expert_offsets[e] = e * capacity;
    if (e == local) continue;
    const std::int32_t sum = arrived_for(a, m, e);
    h.expert_counts[e] = sum;
    if (sum <= capacity) continue;
    fail(a.group, epochs.now,
         {.kind = FaultKind::kOverflow,
          .step = FaultStep::kDispatchRecv,
          .peer = a.group.rank,
          .where = sum,
          .value = capacity});
  }
  for (int rank = tid; rank <= ranks; rank += static_cast<int>(blockDim.x)) {
    std::int32_t before = 0;
    for (int source = 0; source < rank; ++source) before += m.rows[source];
    h.source_offsets[rank] = before;
    if (rank == ranks) *a.num_rows = before;
  }
}

/// Weights of rows that did not come are 0. All warps of the grid.
__device__ inline void clear_usual_weights(const LatencyDispatchArgs& a, const UsualMemory& m, const Shifts& shifts) {
  const auto capacity = static_cast<int>(a.shape.capacity);
  const int blocks = static_cast<int>(gridDim.x);
#pragma unroll 1
  for (int e = shifts.warp * blocks + static_cast<int>(blockIdx.x); e < a.num_local; e += blocks * shifts.warps) {
    float* weights = a.weights_out + static_cast<std::int64_t>(e) * capacity;
#pragma unroll 1
    for (int i = arrived_for(a, m, e) + lane_idx(); i < capacity; i += 32) weights[i] = 0.0f;
  }
}

}  // namespace ferry::cuda::latency
