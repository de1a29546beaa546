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

template <bool kCoded>
class UsualReceiver {
 public:
  static constexpr FaultStep kStep = FaultStep::kDispatchRecv;

  /// After the barrier behind the manifests.
  __device__ UsualReceiver(const UsualDispatchArgs& args, const UsualMemory& memory, const Epochs& epochs)
      : a_(args.call),
        m_(memory),
        epochs_(epochs),
        by_pieces_(args.by_pieces),
        lane_(lane_idx()),
        pieces_(args.call.format.pieces()),
        end_(lane_ < args.call.group.num_ranks ? memory.rows[lane_] : 0) {
    for (int step = 1; step < args.call.group.num_ranks; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end_, step);
      if (lane_ >= step) end_ += before;
    }
  }

  /// Rows of the ranks up to this lane's.
  __device__ int end() const { return end_; }
  __device__ int num_rows() const { return __shfl_sync(kAllLanes, end_, a_.group.num_ranks - 1); }

  /// All of this warp's items; false if one did not come.
  __device__ bool take_all(const Shifts& shifts) const {
    const int items = num_rows() * pieces_;
    for (int item = shifts.first; item < items; item += shifts.step) {
      const int row = by_pieces_.quotient(item);
      if (!take(row, item - row * pieces_)) return false;
    }
    return true;
  }

 private:
  /// What lane k knows about choice k of the token at hand.
  struct Choice {
    std::int32_t slot = -1, expert = -1, place = -1;
    float weight = 0.0f;
  };

  __device__ int vectors_of_row() const { return kCoded ? a_.format.coded_vectors : a_.format.plain_vectors; }

  __device__ bool take(int row, int piece) const {
    const GroupArgs& group = a_.group;
    const int source = __popc(__ballot_sync(kAllLanes, lane_ < group.num_ranks && end_ <= row));
    const int before = __shfl_sync(kAllLanes, end_, max(source - 1, 0));
    const std::byte* slot =
        group.own_window + group.layout.latency.slot_at(group.flight, source, source == 0 ? row : row - before);
    const std::byte* from = slot + a_.format.piece_at(piece);
    // All of it is asked for before any of it is looked at.
    PacketArrival record(slot + lane_ * 16, lane_ <= kUsualTopK);
    PieceArrival data(from, min(wire::kPieceVectors, vectors_of_row() - piece * wire::kPieceVectors), epochs_.tag());
    data.ask();
    PacketArrival scales(from + wire::kPieceBytes + lane_ * 16, kCoded && lane_ < wire::packets_of_words(kUsualScales));
    PacketWait wait(group, kStep, epochs_.now, source);
    if (!record.wait(epochs_.tag(), wait, Awaited::kRecord)) return false;
    const Choice choice = choice_of(record.packet(), source);
    if (piece == 0) {
      const auto token = static_cast<std::int32_t>(__shfl_sync(kAllLanes, record.packet().x, kUsualTopK));
      file_record(row, source, token, choice);
    }
    if (!data.wait(wait) || !scales.wait(epochs_.tag(), wait, Awaited::kScales)) return false;
    const Piece vectors = data.piece();
    for (unsigned left = __ballot_sync(kAllLanes, choice.place >= 0); left != 0; left &= left - 1) {
      const std::int64_t to = __shfl_sync(kAllLanes, choice.place, __ffs(static_cast<int>(left)) - 1);
      store(to, piece, vectors, scales.packet());
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

  __device__ void store(std::int64_t to, int piece, const Piece& data, const uint4& scales) const {
    const BlockArgs& values = a_.blocks[0];
    std::byte* row = a_.rows[0] + to * values.padded;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int vector = piece * wire::kPieceVectors + lane_ + 32 * j;
      if (vector < vectors_of_row()) *reinterpret_cast<uint4*>(row + vector * 16) = data.vectors[j];
    }
    if constexpr (kCoded) {
      const BlockArgs& factors = a_.blocks[1];
      auto* words = reinterpret_cast<std::uint32_t*>(a_.rows[1] + to * factors.padded);
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
  const Division by_pieces_;
  const int lane_, pieces_;
  int end_;
};

/// Counts and offsets of what came, weights of rows that did not; false if an expert has more than its capacity. By the block that
/// keeps the books, all of its threads.
__device__ inline bool write_usual_arrivals(const LatencyDispatchArgs& a, const UsualMemory& m, const Epochs& epochs,
                                            int end) {
  const HandleArgs& h = a.handle;
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), local = a.num_local;
  const auto capacity = static_cast<std::int32_t>(a.shape.capacity);
  bool fits = true;
  for (int e = tid; e <= local; e += threads) {
    h.expert_offsets[e] = e * capacity;
    if (e == local) continue;
    std::int32_t sum = 0;
    for (int source = 0; source < a.group.num_ranks; ++source) sum += m.counts[source * local + e];
    m.sums[e] = h.expert_counts[e] = sum;
    if (sum <= capacity) continue;
    fits = false;
    fail(a.group, epochs.now,
         {.kind = FaultKind::kOverflow,
          .step = FaultStep::kDispatchRecv,
          .peer = a.group.rank,
          .where = sum,
          .value = capacity});
  }
  if (tid < a.group.num_ranks) h.source_offsets[tid + 1] = end;  // of the first warp: a lane per rank
  if (tid == 0) h.source_offsets[0] = 0;
  if (tid == a.group.num_ranks - 1) *a.num_rows = end;
  fits = __syncthreads_and(fits) != 0;
  if (!fits) return false;
  const int warps = threads / 32;
  for (int e = tid / 32; e < local; e += warps) {
    float* weights = a.weights_out + static_cast<std::int64_t>(e) * capacity;
    for (int i = m.sums[e] + lane_idx(); i < capacity; i += 32) weights[i] = 0.0f;
  }
  return true;
}

}  // namespace ferry::cuda::latency
