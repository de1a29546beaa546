// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 5, combine_send, of latency mode: a warp takes a piece of a received token's row, sums what this rank's experts made of it
// (unless the reduction is flat) and stores it in packets in the token's return slot at its rank. See the host step of this name.
#pragma once

#include "cuda/device/elements.cuh"
#include "cuda/latency/call.cuh"
#include "cuda/latency/coded_piece.cuh"
#include "wire/token_meta.h"

namespace ferry::cuda::latency {

__device__ inline bool is_flat(const CombineArgsOnDevice& a) {
  return a.reduction.group == Reduction::Group::kChoice;
}
__device__ inline bool weights_go_ahead(const CombineArgsOnDevice& a) {
  return a.weigh == CombineArgsOnDevice::Weigh::kGiven && !is_flat(a);
}

/// How the rows of a combine are cut: vectors of 16 bytes, pieces of them.
struct ReturnShape {
  int vectors, pieces;
  __device__ explicit ReturnShape(const CombineArgsOnDevice& a)
      : vectors(static_cast<int>(a.sent_stride / 16)),
        pieces(static_cast<int>(wire::div_up(vectors, wire::kPieceVectors))) {}
  __device__ int count(int piece) const { return min(wire::kPieceVectors, vectors - piece * wire::kPieceVectors); }
  /// Of the words of a coded row's groups, behind the row; then come the combined weights.
  __device__ std::int64_t words_at() const { return pieces * wire::kPieceBytes; }
  __device__ std::int64_t weights_at(Codec codec) const {
    return words_at() + (codec == Codec::kNone ? 0 : wire::coded_words_packets_bytes(pieces));
  }
  __device__ PiecePlace place(const std::byte* slot, int piece) const {
    auto* at = const_cast<std::byte*>(slot);
    return {at + piece * wire::kPieceBytes, at + words_at() + piece * 2 * wire::kPacketBytes, count(piece)};
  }
};

/// Number of distinct ranks below `which` among the lanes' ranks (-1: none): its row's place. By a whole warp.
__device__ inline int return_place(std::int32_t rank, std::int32_t which) {
  const unsigned same = __match_any_sync(kAllLanes, rank >= 0 ? rank : -1 - lane_idx());
  const bool first = rank >= 0 && (same & ((1u << lane_idx()) - 1)) == 0;
  return __popc(__ballot_sync(kAllLanes, first && rank < which));
}

/// Word lane % 3 of the packet that holds a row of floats' element `lane`.
__device__ inline float float_of_packet(const uint4& packet) {
  const int word = lane_idx() % 3;
  return __uint_as_float(word == 0 ? packet.x : word == 1 ? packet.y : packet.z);
}

/// Stores a float per lane in packets; only those with a lane of `wanted`. By a whole warp.
__device__ inline void store_floats(std::byte* to, float mine, unsigned wanted, std::uint32_t tag) {
  const float next = __shfl_down_sync(kAllLanes, mine, 1), after = __shfl_down_sync(kAllLanes, mine, 2);
  if (lane_idx() % 3 == 0 && (wanted >> lane_idx() & 7u) != 0)
    store_packet(to + lane_idx() / 3 * 16, __float_as_uint(mine), __float_as_uint(next), __float_as_uint(after), tag);
}

/// Tells every peer what this rank's combine is. A warp of the grid.
__device__ inline void send_notes(const CombineArgsOnDevice& a, const Epochs& epochs) {
  const GroupArgs& group = a.group;
  for (int peer = lane_idx(); peer < group.num_ranks; peer += 32) {
    if (group.windows[peer] == nullptr) continue;
    delay_signal(group, peer);
    store_packet(group.windows[peer] + group.layout.latency.note_at(group.flight, group.rank),
                 static_cast<std::uint32_t>(group.digest), static_cast<std::uint32_t>(group.digest >> 32),
                 static_cast<std::uint32_t>(epochs.now >> 32), epochs.tag());
  }
}

/// Stores the weights of this rank's tokens at the ranks that sum their rows.
__device__ inline void send_weights_ahead(const CombineArgsOnDevice& a, const Epochs& epochs) {
  const Turns turns;
  const int lane = lane_idx();
  for (std::int64_t t = turns.first; t < a.num_tokens; t += turns.step) {
    const std::int32_t rank = lane < a.top_k ? a.handle.ranks[t * a.top_k + lane] : -1;
    const float weight = lane < a.top_k ? a.weights[t * a.weights_stride[0] + lane * a.weights_stride[1]] : 0.0f;
    const unsigned same = __match_any_sync(kAllLanes, rank >= 0 ? rank : -1 - lane);
    const bool first = rank >= 0 && (same & ((1u << lane) - 1)) == 0 && a.group.windows[rank] != nullptr;
    for (unsigned left = __ballot_sync(kAllLanes, first); left != 0; left &= left - 1) {
      const std::int32_t to = __shfl_sync(kAllLanes, rank, __ffs(static_cast<int>(left)) - 1);
      store_floats(a.group.windows[to] + a.group.layout.latency.weights_at(a.group.flight, a.group.rank, t), weight,
                   kAllLanes >> (32 - a.top_k), epochs.tag());
    }
  }
}

/// kCodec: kNone, or one that takes bf16.
template <DType kDType, Codec kCodec>
class ReturnSender {
 public:
  static constexpr FaultStep kStep = FaultStep::kCombineSend;
  using Vector = Sixteen<kDType>;
  static constexpr int kCount = Elements<kDType>::kCount;
  static constexpr int kElementBytes = 16 / kCount;

  __device__ ReturnSender(const CombineArgsOnDevice& args, std::byte* const* windows, const std::int32_t* rank_of_slot)
      : a_(args),
        shape_(args),
        windows_(windows),
        rank_of_slot_(rank_of_slot),
        lane_(lane_idx()),
        in_vectors_(args.hidden % kCount == 0 && args.row_stride % 16 == 0 && args.expert_stride % 16 == 0 &&
                    reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0) {}

  /// Asks for what the first item begins with, and how many there are.
  __device__ void start() {
    num_rows_ = a_.handle.source_offsets[a_.group.num_ranks];
    ask(turns_.first / shape_.pieces);
  }
  /// All of this warp's items; false if weights did not come.
  __device__ bool send_all(const Epochs& epochs) {
    epochs_ = epochs;
    for (int item = turns_.first; item < num_rows_ * shape_.pieces; item += turns_.step) {
      const Record record = next_;
      ask((item + turns_.step) / shape_.pieces);
      const int n = item / shape_.pieces, piece = item % shape_.pieces;
      if (!(in_vectors_ ? send<true>(n, piece, record) : send<false>(n, piece, record))) return false;
    }
    return true;
  }

 private:
  /// What lane k knows about choice k.
  struct Choice {
    std::int32_t rank = -1, row = -1;
    float weight = 1.0f;
  };

  /// What a token's record says; slot, row and weight of choice k are lane k's.
  struct Record {
    int source = 0, token = 0;
    std::int32_t slot = -1, row = -1;
    float weight = 1.0f;
  };
  __device__ void ask(int n) {
    if (n >= a_.max_rows) return;
    const int k = a_.top_k;
    const wire::TokenMeta record(a_.handle.records + n * wire::TokenMeta::bytes(k), k);
    next_.source = record.source_rank();
    next_.token = record.source_token();
    if (lane_ >= k) return;
    next_.slot = record.slots()[lane_];
    next_.row = record.rows()[lane_];
    if (a_.weigh == CombineArgsOnDevice::Weigh::kFromDispatch) next_.weight = record.weights()[lane_];
  }

  /// kInVectors: rows of x can be read 16 bytes at a time. Without a branch per vector, so that loads do not wait for each other.
  template <bool kInVectors>
  __device__ bool send(int n, int piece, const Record& record) {
    const int source = record.source, token = record.token;
    Choice choice{.row = record.row, .weight = record.weight};
    if (record.slot >= 0) choice.rank = rank_of_slot_[record.slot];
    std::byte* window = windows_[source];
    if (window == nullptr) return true;  // it was left out since
    if (weights_go_ahead(a_) && !take_weight(source, token, choice)) return false;
    const unsigned mine = __ballot_sync(kAllLanes, choice.rank == a_.group.rank);
    const auto slot_at = [&](int place) {
      return window + a_.group.layout.latency.return_at(a_.group.flight, token, place);
    };
    delay_signal(a_.group, source);
    if (!is_flat(a_)) {
      std::byte* to = slot_at(return_place(choice.rank, a_.group.rank));
      const Piece sum = a_.layout == Layout::kRankMajor ? copy_of<kInVectors>(x_row(n), piece)
                                                        : sum_of<kInVectors>(mine, choice, piece);
      store_row(to, sum, piece);
      if (piece == 0) send_combined(to, n, mine, choice);
      return true;
    }
    for (unsigned left = mine; left != 0; left &= left - 1) {
      const int which = __ffs(static_cast<int>(left)) - 1;
      std::byte* to = slot_at(which);
      const Piece row = copy_of<kInVectors>(x_row(__shfl_sync(kAllLanes, choice.row, which)), piece);
      store_row(to, row, piece);
      if (piece == 0) send_combined(to, n, 1u << which, choice);
    }
    return true;
  }

  __device__ void store_row(std::byte* slot, const Piece& row, int piece) const {
    if constexpr (kCodec == Codec::kNone) {
      store_piece(slot + piece * wire::kPieceBytes, row, shape_.count(piece), epochs_.tag());
    } else {
      PieceCodec<kCodec>::store(shape_.place(slot, piece), row, epochs_.tag());
    }
  }

  __device__ bool take_weight(int source, int token, Choice& choice) const {
    const std::byte* from = a_.group.own_window + a_.group.layout.latency.weights_at(a_.group.flight, source, token);
    PacketWait wait(a_.group, kStep, epochs_.now, source);
    PacketArrival weight(from + lane_ / 3 * 16, lane_ < a_.top_k);
    if (!weight.wait(epochs_.tag(), wait, Awaited::kWeights)) return false;
    choice.weight = float_of_packet(weight.packet());
    return true;
  }

  __device__ const std::byte* x_row(std::int64_t row) const {
    if (a_.layout != Layout::kExpertPadded) return a_.x + row * a_.row_stride;
    return a_.x + row / a_.expert_capacity * a_.expert_stride + row % a_.expert_capacity * a_.row_stride;
  }
  __device__ int column_of(int piece, int j) const { return (piece * wire::kPieceVectors + lane_ + 32 * j) * kCount; }
  __device__ int elements_at(int column) const {
    return static_cast<int>(min(static_cast<std::int64_t>(kCount), a_.hidden - column));
  }

  template <bool kInVectors>
  __device__ Piece copy_of(const std::byte* row, int piece) const {
    Piece out;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int column = column_of(piece, j), count = elements_at(column);
      if constexpr (kInVectors) {
        // What lies beyond the row's end is the last vector once more, and not sent.
        const int at = count > 0 ? column : static_cast<int>(a_.hidden) - kCount;
        out.vectors[j] = *reinterpret_cast<const uint4*>(row + at * kElementBytes);
      } else if (count > 0) {
        out.vectors[j] = Vector::load(row + column * kElementBytes, count).bits();
      }
    }
    return out;
  }

  /// The rows of this rank's choices, ascending, rounded once. Rows of several choices are on their way together.
  template <bool kInVectors>
  __device__ Piece sum_of(unsigned mine, const Choice& choice, int piece) const {
    constexpr int kBatch = 4;
    const bool weighted = a_.weigh != CombineArgsOnDevice::Weigh::kNone;
    Sums<kDType> sums[3];
    while (mine != 0) {
      Piece rows[kBatch];
      float weights[kBatch];
      int taken = 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (mine == 0) continue;
        const int which = __ffs(static_cast<int>(mine)) - 1;
        mine &= mine - 1;
        weights[i] = __shfl_sync(kAllLanes, choice.weight, which);
        rows[i] = copy_of<kInVectors>(x_row(__shfl_sync(kAllLanes, choice.row, which)), piece);
        ++taken;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i >= taken) continue;
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          if (weighted) {
            sums[j].add_weighted(Vector::of(rows[i].vectors[j]), weights[i]);
          } else {
            sums[j].add(Vector::of(rows[i].vectors[j]));
          }
        }
      }
    }
    Piece out;
#pragma unroll
    for (int j = 0; j < 3; ++j) out.vectors[j] = sums[j].round().bits();
    return out;
  }

  /// The combined weights of the choices in `mine`, 0 for the others, behind the row at `to`.
  __device__ void send_combined(std::byte* to, std::int64_t n, unsigned mine, const Choice& choice) const {
    if (a_.topk_weights == nullptr) return;
    float weight = 0.0f;
    if ((mine >> lane_ & 1) != 0) weight = combined_weight(n, choice.row);
    // A packet without a choice of this rank nobody waits for, so that it could come when the slot is another row's.
    store_floats(to + shape_.weights_at(kCodec), weight, mine, epochs_.tag());
  }
  __device__ float combined_weight(std::int64_t n, std::int32_t row) const {
    if (a_.layout == Layout::kRankMajor) return a_.topk_weights[n * a_.topk_stride[0] + lane_ * a_.topk_stride[1]];
    return a_.topk_weights[row / a_.expert_capacity * a_.topk_stride[0] + row % a_.expert_capacity * a_.topk_stride[1]];
  }

  const CombineArgsOnDevice& a_;
  const ReturnShape shape_;
  std::byte* const* windows_;         ///< [R] in shared memory
  const std::int32_t* rank_of_slot_;  ///< [S] in shared memory
  const Turns turns_;
  const int lane_;
  const bool in_vectors_;
  Epochs epochs_;
  int num_rows_ = 0;
  Record next_;  ///< of the next item: its latency is hidden behind the item before
};

}  // namespace ferry::cuda::latency
