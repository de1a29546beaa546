// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 4, dispatch_recv, of latency mode: everybody's manifest fixes the row of every token; then a warp takes a piece of an
// arriving row and stores it wherever this rank's experts want it. See the host step of this name.
#pragma once

#include "cuda/latency/call.cuh"
#include "wire/token_meta.h"

namespace ferry::cuda::latency {

/// Shared memory of a block that receives.
struct ArrivalMemory {
  std::byte** windows;          ///< [R] first, as in RoutingMemory
  std::int32_t* row_starts;     ///< [R + 1] first rank-major row of each source
  std::int32_t* choice_starts;  ///< [R][E_local] rows of an expert from earlier sources
  std::int32_t* expert_counts;  ///< [E_local]

  FERRY_HD std::size_t lay_out(std::size_t at, int ranks, int num_local) {
    const auto take = [&](auto*& array, std::int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += (static_cast<std::size_t>(count) * sizeof(*array) + 15) / 16 * 16;
    };
    take(windows, ranks);
    take(row_starts, ranks + 1);
    take(choice_starts, static_cast<std::int64_t>(ranks) * num_local);
    take(expert_counts, num_local);
    return at;
  }
};

/// What all ranks say about their rows for this one.
class Arrivals {
 public:
  static constexpr FaultStep kStep = FaultStep::kDispatchRecv;

  /// Asks for the begin of the first manifest.
  __device__ Arrivals(const LatencyDispatchArgs& args, const ArrivalMemory& memory)
      : a_(args), m_(memory), first_(static_cast<int>(threadIdx.x) / 32), early_(ask(first_, lane_idx())) {}

  /// Reads the manifests and adds up. All threads of a block; true in all if every rank makes this call, and all rows fit.
  __device__ bool read(const Epochs& epochs) {
    const int warps = static_cast<int>(blockDim.x) / 32, ranks = a_.group.num_ranks,
              tid = static_cast<int>(threadIdx.x);
    bool good = true;
    for (int source = first_; source < ranks && good; source += warps) good = read_manifest(epochs, source);
    if (__syncthreads_and(good) == 0) return false;
    for (int e = tid; e < a_.num_local; e += static_cast<int>(blockDim.x)) {
      std::int32_t sum = 0;
#pragma unroll 8
      for (int source = 0; source < ranks; ++source) {
        std::int32_t& count = m_.choice_starts[source * a_.num_local + e];
        const std::int32_t rows = count;
        count = sum;
        sum += rows;
      }
      m_.expert_counts[e] = sum;
      if (a_.shape.layout == Layout::kExpertPadded && sum > a_.shape.capacity) {
        fail(a_.group, epochs.now,
             {.kind = FaultKind::kOverflow,
              .step = kStep,
              .peer = a_.group.rank,
              .where = sum,
              .value = a_.shape.capacity});
        good = false;
      }
    }
    if (tid == static_cast<int>(blockDim.x) - 1) {
      std::int32_t sum = 0;
#pragma unroll 8
      for (int source = 0; source < ranks; ++source) {
        const std::int32_t rows = m_.row_starts[source];
        m_.row_starts[source] = sum;
        sum += rows;
      }
      m_.row_starts[ranks] = sum;
    }
    return __syncthreads_and(good) != 0;
  }

  __device__ std::int32_t num_rows() const {
    return m_.row_starts[a_.group.num_ranks];
  }
  __device__ int source_of(std::int32_t row) const {
    int low = 0, high = a_.group.num_ranks;  // the last source that begins at or before the row
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (m_.row_starts[middle] <= row ? low : high) = middle;
    }
    return low;
  }

 private:
  /// A packet of a source's manifest.
  __device__ PacketArrival ask(int source, int packet) const {
    const GroupArgs& group = a_.group;
    const bool wanted = source < group.num_ranks && packet * 3 < LatencyLayout::kManifestWords + a_.num_local;
    return {group.own_window + group.layout.latency.manifest_at(group.flight, source) + packet * 16, wanted};
  }
  __device__ bool read_manifest(const Epochs& epochs, int source) {
    const int words = LatencyLayout::kManifestWords + a_.num_local;
    const bool live = m_.windows[source] != nullptr;
    PacketWait wait(a_.group, kStep, epochs.now, source);
    for (int first = 0; first * 3 < words; first += 32) {
      const int packet = first + lane_idx();
      if (first != 0 || source != first_) early_ = ask(source, packet);
      if (live && !early_.wait(epochs.tag(), wait, Awaited::kManifest)) return false;
      const uint4 seen = live ? early_.packet() : uint4{};  // who is left out counts as one without rows
      if (first == 0 && live && !is_same_call(a_.group, epochs, source, seen)) return false;
      const std::uint32_t values[3] = {seen.x, seen.y, seen.z};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int word = 3 * packet + i;
        if (word == LatencyLayout::kManifestWords - 1) m_.row_starts[source] = static_cast<std::int32_t>(values[i]);
        if (word >= LatencyLayout::kManifestWords && word < words)
          m_.choice_starts[source * a_.num_local + word - LatencyLayout::kManifestWords] =
              static_cast<std::int32_t>(values[i]);
      }
    }
    return true;
  }

  const LatencyDispatchArgs& a_;
  const ArrivalMemory m_;
  const int first_;  ///< source that this warp reads first
  PacketArrival early_;
};

class DispatchReceiver {
 public:
  static constexpr FaultStep kStep = FaultStep::kDispatchRecv;

  __device__ DispatchReceiver(const LatencyDispatchArgs& args, const ArrivalMemory& memory, const Arrivals& arrivals,
                              const Epochs& epochs)
      : a_(args), m_(memory), arrivals_(arrivals), epochs_(epochs), lane_(lane_idx()), own_(args.group.own_window) {}

  /// All of this warp's items; false if one did not come.
  __device__ bool take_all() {
    const int pieces = a_.format.pieces();
    const Turns turns;
    for (int item = turns.first; item < arrivals_.num_rows() * pieces; item += turns.step) {
      if (!take(item / pieces, item % pieces)) return false;
    }
    return true;
  }

  /// What of the result belongs to no row: ids and weights beyond the rows that came. All threads of the grid.
  __device__ void clear_rest(std::int64_t num_rows) const {
    const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
    if (a_.shape.layout == Layout::kRankMajor) {
      for (std::int64_t i = num_rows * a_.top_k + thread; i < a_.shown_rows * a_.top_k; i += threads)
        write_choice(i, -1, 0.0f);
    } else if (a_.weights_out != nullptr) {
      for (std::int64_t i = thread; i < a_.num_local * a_.shape.capacity; i += threads) {
        if (num_rows == 0 || i % a_.shape.capacity >= m_.expert_counts[i / a_.shape.capacity]) a_.weights_out[i] = 0.0f;
      }
    }
  }

 private:
  /// What lane k knows about choice k of the token at hand.
  struct Choice {
    std::int32_t slot = -1;
    std::int32_t expert = -1;  ///< local, -1 if not of this rank
    std::int32_t place = -1;   ///< row of the result
    float weight = 0.0f;
  };

  __device__ bool take(std::int32_t row, int piece) {
    const wire::PacketFormat& format = a_.format;
    const int source = arrivals_.source_of(row), k = a_.top_k;
    const std::byte* slot =
        own_ + a_.group.layout.latency.slot_at(a_.group.flight, source, row - m_.row_starts[source]);
    const bool coded = piece < format.coded_pieces;
    const int done = (coded ? piece : piece - format.coded_pieces) * wire::kPieceVectors;
    const int count = min(wire::kPieceVectors, (coded ? format.coded_vectors : format.plain_vectors) - done);
    const std::byte* from = slot + format.piece_at(piece);
    // All of it is asked for before any of it is looked at.
    PacketArrival record(slot + lane_ * 16, lane_ < k), token(slot + k * 16, lane_ == 0 && piece == 0);
    PieceArrival data(from, count, epochs_.tag());
    data.ask();
    const bool scaled = coded && lane_ < wire::packets_of_words(format.scale_words);
    PacketArrival scales(from + wire::kPieceBytes + lane_ * 16, scaled);
    PacketWait wait(a_.group, kStep, epochs_.now, source);
    if (!record.wait(epochs_.tag(), wait, Awaited::kRecord) || !token.wait(epochs_.tag(), wait, Awaited::kRecord))
      return false;
    const Choice choice = choice_of(record.packet(), source, row);
    if (piece == 0) file_record(row, source, static_cast<std::int32_t>(token.packet().x), choice);
    if (!data.wait(wait) || !scales.wait(epochs_.tag(), wait, Awaited::kScales)) return false;
    const Piece vectors = data.piece();
    for_each_target(row, choice, [&](std::int64_t to) {
      if (coded) {
        store_coded(to, piece, vectors, scales.packet(), scaled);
      } else {
        store_plain(to, done, count, vectors);
      }
    });
    return true;
  }

  __device__ Choice choice_of(const uint4& seen, int source, std::int32_t row) const {
    Choice out;
    if (lane_ >= a_.top_k) return out;
    out.slot = static_cast<std::int32_t>(seen.x);
    out.weight = __uint_as_float(seen.z);
    if (out.slot < a_.first_slot || out.slot >= a_.first_slot + a_.num_local) return out;
    out.expert = out.slot - a_.first_slot;
    out.place = a_.shape.layout == Layout::kRankMajor
                    ? row
                    : static_cast<std::int32_t>(out.expert * a_.shape.capacity) +
                          m_.choice_starts[source * a_.num_local + out.expert] + static_cast<std::int32_t>(seen.y);
    return out;
  }

  /// Rows of the result that the token takes.
  template <typename Store>
  __device__ void for_each_target(std::int32_t row, const Choice& choice, Store&& store) const {
    if (a_.shape.layout == Layout::kRankMajor) return store(row);
    for (unsigned left = __ballot_sync(kAllLanes, choice.place >= 0); left != 0; left &= left - 1)
      store(__shfl_sync(kAllLanes, choice.place, __ffs(static_cast<int>(left)) - 1));
  }

  /// The token's record for the handle, and its ids and weights; by the warp of a row's first piece.
  __device__ void file_record(std::int32_t row, int source, std::int32_t token, const Choice& choice) const {
    if (a_.write_handle) {
      const wire::TokenMeta record(
          a_.handle.records + static_cast<std::int64_t>(row) * wire::TokenMeta::bytes(a_.top_k), a_.top_k);
      if (lane_ == 0) *reinterpret_cast<int4*>(record.slots() - 4) = make_int4(source, token, -1, 0);
      if (lane_ < a_.top_k) {
        record.slots()[lane_] = choice.slot;
        record.rows()[lane_] = choice.place;
        record.tokens()[lane_] = choice.place >= 0 ? row : -1;
        record.weights()[lane_] = choice.weight;
      }
    }
    if (lane_ >= a_.top_k) return;
    const float weight = choice.expert >= 0 ? choice.weight : 0.0f;
    if (a_.shape.layout == Layout::kRankMajor) {
      write_choice(static_cast<std::int64_t>(row) * a_.top_k + lane_, choice.expert, weight);
    } else if (choice.expert >= 0 && a_.weights_out != nullptr) {
      a_.weights_out[choice.place] = weight;
    }
  }
  __device__ void write_choice(std::int64_t at, std::int32_t local, float weight) const {
    if (a_.wide_ids_out) {
      static_cast<std::int64_t*>(a_.ids_out)[at] = local;
    } else {
      static_cast<std::int32_t*>(a_.ids_out)[at] = local;
    }
    if (a_.weights_out != nullptr) a_.weights_out[at] = weight;
  }

  __device__ void store_coded(std::int64_t to, int piece, const Piece& data, const uint4& scales, bool scaled) const {
    const BlockArgs &values = a_.blocks[0], &factors = a_.blocks[1];
    std::byte* row = a_.rows[0] + to * values.padded;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int at = (piece * wire::kPieceVectors + lane_ + 32 * j) * 16;
      if (at < values.padded) *reinterpret_cast<uint4*>(row + at) = data.vectors[j];
    }
    if (!scaled) return;
    auto* words = reinterpret_cast<std::uint32_t*>(a_.rows[1] + to * factors.padded);
    const std::uint32_t mine[3] = {scales.x, scales.y, scales.z};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int in_piece = 3 * lane_ + i, at = piece * a_.format.scale_words + in_piece;
      if (in_piece < a_.format.scale_words && at * 4 < factors.padded) words[at] = mine[i];
    }
  }
  __device__ void store_plain(std::int64_t to, int done, int count, const Piece& data) const {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int vector = lane_ + 32 * j;
      if (vector >= count) continue;
      int b = a_.codec == Codec::kNone ? 0 : 2;
      int at = (done + vector) * 16;
      while (at >= a_.blocks[b].padded) at -= a_.blocks[b++].padded;
      *reinterpret_cast<uint4*>(a_.rows[b] + to * a_.blocks[b].padded + at) = data.vectors[j];
    }
  }

  const LatencyDispatchArgs& a_;
  const ArrivalMemory m_;
  const Arrivals& arrivals_;
  const Epochs epochs_;
  const int lane_;
  std::byte* own_;
};

}  // namespace ferry::cuda::latency
