// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 7, combine_recv, of latency mode: a warp takes a piece of a token, waits for it in the token's return slots, weighs, sums in
// the documented order, adds bias and rounds once. See the host step of this name.
#pragma once

#include "cuda/latency/combine_send.cuh"

namespace ferry::cuda::latency {

/// The rows of one token in the order of the sum; shared memory of a warp.
struct ReturnTerms {
  const std::byte* rows[kMaxTopK];
  float weights[kMaxTopK];
  std::int32_t ranks[kMaxTopK];
};

/// Refuses peers that are in another call or gave other arguments, while other warps wait for their rows: those waits then end, too.
/// One warp of the grid.
__device__ inline void check_notes(const CombineArgsOnDevice& a, const Epochs& epochs) {
  const GroupArgs& group = a.group;
  for (int first = 0; first < group.num_ranks; first += 32) {
    const int peer = first + lane_idx();
    const bool wanted = peer < group.num_ranks && group.windows[peer] != nullptr && a.handle.tokens_to[peer] != 0;
    PacketArrival note(group.own_window + group.layout.latency.note_at(group.flight, wanted ? peer : 0), wanted);
    PacketWait wait(group, FaultStep::kCombineRecv, epochs.now, first, true);
    if (!note.wait(epochs.tag(), wait, Awaited::kNote)) return;
    const uint4& said = note.packet();
    const bool same_call = said.z == static_cast<std::uint32_t>(epochs.now >> 32);
    const bool same = same_call && said.x == static_cast<std::uint32_t>(group.digest) &&
                      said.y == static_cast<std::uint32_t>(group.digest >> 32);
    if (!wanted || same) continue;
    fail(
        group, epochs.now,
        {.kind = same_call ? FaultKind::kMismatch : FaultKind::kGoneOn, .step = FaultStep::kCombineRecv, .peer = peer});
  }
}

/// What a term is waited for with.
template <Codec kCodec>
struct TermOf {
  using Arrival = CodedArrival<kCodec>;
};
template <>
struct TermOf<Codec::kNone> {
  using Arrival = PieceArrival;
};

template <DType kDType, Codec kCodec>
class ReturnSummer {
 public:
  static constexpr FaultStep kStep = FaultStep::kCombineRecv;
  using Vector = Sixteen<kDType>;
  static constexpr int kCount = Elements<kDType>::kCount;
  static constexpr int kElementBytes = 16 / kCount;
  using Arrival = typename TermOf<kCodec>::Arrival;

  /// Asks for what the first item begins with.
  __device__ ReturnSummer(const CombineArgsOnDevice& args, std::byte* const* windows, ReturnTerms& terms)
      : a_(args),
        shape_(args),
        windows_(windows),
        terms_(terms),
        lane_(lane_idx()),
        is_plain_(kCodec == Codec::kNone && args.reduction.group == Reduction::Group::kRank &&
                  args.bias[0] == nullptr && args.bias[1] == nullptr) {
    ask(turns_.first);
  }

  /// All of this warp's items; false if one did not come.
  __device__ bool sum_all(const Epochs& epochs) {
    epochs_ = epochs;
    const int items = static_cast<int>(a_.num_tokens) * shape_.pieces;
    for (int item = turns_.first; item < items; item += turns_.step) {
      const std::int32_t rank = next_;
      ask(item + turns_.step);
      const int token = item / shape_.pieces, piece = item % shape_.pieces;
      if (!(is_plain_ ? sum<true>(token, piece, rank) : sum<false>(token, piece, rank))) return false;
    }
    return true;
  }

 private:
  __device__ void ask(int item) {
    const int token = item / shape_.pieces;
    next_ = token < a_.num_tokens && lane_ < a_.top_k ? a_.handle.ranks[token * a_.top_k + lane_] : -1;
  }

  /// `rank`: of this lane's choice. kPlain: rows as they are, without weight, bias or a second stage; most calls.
  template <bool kPlain>
  __device__ bool sum(int token, int piece, std::int32_t rank) {
    const int count = find_terms(token, piece, rank);
    const bool by_node = !kPlain && a_.reduction.group == Reduction::Group::kNode;
    Sums<kDType> sums[3];
    if (!kPlain && (!by_node || count == 0)) start_at_bias(sums, token, piece);
    if (!add_terms<kPlain>(sums, count, piece)) return false;
    if (by_node && count > 0) {
      Sums<kDType> outer[3];
      start_at_bias(outer, token, piece);
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        outer[j].add(sums[j].round());
        sums[j] = outer[j];
      }
    }
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int column = column_of(piece, j), elements = elements_at(column);
      if (elements > 0) sums[j].round().store(a_.out + token * a_.out_stride + column * kElementBytes, elements);
    }
    return true;
  }

  __device__ Arrival ask_term(int i, int piece) const {
    if constexpr (kCodec == Codec::kNone) {
      Arrival out(terms_.rows[i] + piece * wire::kPieceBytes, shape_.count(piece), epochs_.tag());
      out.ask();
      return out;
    } else {
      Arrival out(shape_.place(terms_.rows[i], piece), epochs_.tag());
      out.ask();
      return out;
    }
  }
  template <bool kPlain>
  __device__ bool add_term(Sums<kDType> (&sums)[3], Arrival& from, int i) const {
    PacketWait wait(a_.group, kStep, epochs_.now, terms_.ranks[i]);
    if (!from.wait(wait)) return false;
    const bool weighted = !kPlain && is_flat(a_) && a_.weigh != CombineArgsOnDevice::Weigh::kNone;
    if constexpr (kCodec == Codec::kNone) {
      const Piece row = from.piece();
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        if (weighted) {
          sums[j].add_weighted(Vector::of(row.vectors[j]), terms_.weights[i]);
        } else {
          sums[j].add(Vector::of(row.vectors[j]));
        }
      }
    } else {
      add_restored(sums, from, weighted, terms_.weights[i]);
    }
    return true;
  }
  __device__ static void add_restored(Sums<kDType> (&sums)[3], const Arrival& from, bool weighted, float weight) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      float values[kCount];
      from.restore(j, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        sums[j].values[i] = weighted ? __fmaf_rn(weight, values[i], sums[j].values[i]) : sums[j].values[i] + values[i];
    }
  }
  /// Restoring takes much code, so that there is one copy of it; the next term is on its way meanwhile.
  __device__ bool add_coded_terms(Sums<kDType> (&sums)[3], int count, int piece) const {
    if (count == 0) return true;
    Arrival next = ask_term(0, piece);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      Arrival now = next;
      if (i + 1 < count) next = ask_term(i + 1, piece);
      if (!add_term<false>(sums, now, i)) return false;
    }
    return true;
  }
  /// Pieces of several terms are asked for before the first is looked at.
  template <bool kPlain>
  __device__ bool add_terms(Sums<kDType> (&sums)[3], int count, int piece) const {
    if constexpr (kCodec != Codec::kNone) return add_coded_terms(sums, count, piece);
    int i = 0;
    for (; i + 3 <= count; i += 3) {
      Arrival a = ask_term(i, piece), b = ask_term(i + 1, piece), c = ask_term(i + 2, piece);
      if (!add_term<kPlain>(sums, a, i) || !add_term<kPlain>(sums, b, i + 1) || !add_term<kPlain>(sums, c, i + 2))
        return false;
    }
    for (; i < count; ++i) {
      Arrival last = ask_term(i, piece);
      if (!add_term<kPlain>(sums, last, i)) return false;
    }
    return true;
  }

  /// Lane k looks at choice k: which row it brings, and at which place of the sum. Returns their number.
  __device__ int find_terms(int token, int piece, std::int32_t rank) {
    const bool live = rank >= 0 && windows_[rank] != nullptr;
    const unsigned before = (1u << lane_) - 1;
    const unsigned same = __match_any_sync(kAllLanes, rank >= 0 ? rank : -1 - lane_);
    const bool by_last = a_.reduction.order == Reduction::Order::kLastChoice;
    const bool brings =
        live && (is_flat(a_) || (by_last ? (same & ~before & ~(1u << lane_)) == 0 : (same & before) == 0));
    const unsigned bringing = __ballot_sync(kAllLanes, brings);
    const unsigned firsts = __ballot_sync(kAllLanes, rank >= 0 && (same & before) == 0);
    int order = __popc(bringing & before), below = 0, place = 0;
    for (unsigned left = bringing | firsts; left != 0; left &= left - 1) {
      const int other = __ffs(static_cast<int>(left)) - 1;
      const bool is_below = __shfl_sync(kAllLanes, rank, other) < rank;
      below += is_below && (bringing >> other & 1) != 0 ? 1 : 0;
      place += is_below && (firsts >> other & 1) != 0 ? 1 : 0;
    }
    if (!is_flat(a_) && !by_last) order = below;
    const std::byte* slot =
        a_.group.own_window + a_.group.layout.latency.return_at(a_.group.flight, token, is_flat(a_) ? lane_ : place);
    __syncwarp();
    if (brings) {
      terms_.rows[order] = slot;
      terms_.ranks[order] = rank;
      terms_.weights[order] = is_flat(a_) ? weight_of(token) : 1.0f;
    }
    __syncwarp();
    if (piece == 0) take_combined(token, live, rank, slot);
    return __popc(bringing);
  }
  __device__ float weight_of(int token) const {
    if (a_.weigh == CombineArgsOnDevice::Weigh::kNone) return 1.0f;
    if (a_.weigh == CombineArgsOnDevice::Weigh::kFromDispatch) return a_.handle.weights[token * a_.top_k + lane_];
    return a_.weights[token * a_.weights_stride[0] + lane_ * a_.weights_stride[1]];
  }

  /// The combined weight of each choice, from behind its rank's row (flat: its own).
  __device__ void take_combined(int token, bool live, std::int32_t rank, const std::byte* slot) const {
    if (a_.out_weights == nullptr) return;
    PacketWait wait(a_.group, kStep, epochs_.now, max(rank, 0));
    PacketArrival weight(slot + shape_.weights_at(kCodec) + lane_ / 3 * 16, live);
    if (!weight.wait(epochs_.tag(), wait, Awaited::kWeights)) return;  // the wait for the row will say so, too
    if (lane_ < a_.top_k)
      a_.out_weights[token * a_.top_k + lane_] = live ? 0.0f + float_of_packet(weight.packet()) : 0.0f;
  }

  __device__ int column_of(int piece, int j) const {
    return (piece * wire::kPieceVectors + lane_ + 32 * j) * kCount;
  }
  __device__ int elements_at(int column) const {
    return static_cast<int>(min(static_cast<std::int64_t>(kCount), a_.hidden - column));
  }

  /// A stage begins at bias0 + bias1, not at 0 + bias0: a negative zero stays one.
  __device__ void start_at_bias(Sums<kDType> (&sums)[3], int token, int piece) const {
    for (int b = 0; b < 2; ++b) {
      if (a_.bias[b] == nullptr) continue;
      const bool is_first = b == 0 || a_.bias[0] == nullptr;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const int column = column_of(piece, j), count = elements_at(column);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          if (i >= count) continue;
          const float bias = bias_at(b, token, column + i);
          sums[j].values[i] = is_first ? bias : sums[j].values[i] + bias;
        }
      }
    }
  }
  __device__ float bias_at(int which, std::int64_t token, int column) const {
    const std::byte* row = a_.bias[which] + token * a_.bias_stride[which];
    if (a_.bias_dtype[which] == DType::kFp32) return reinterpret_cast<const float*>(row)[column];
    return Elements<kDType>::widen(reinterpret_cast<const typename Elements<kDType>::Word*>(row)[column]);
  }

  const CombineArgsOnDevice& a_;
  const ReturnShape shape_;
  std::byte* const* windows_;  ///< [R] in shared memory
  ReturnTerms& terms_;
  const Turns turns_;
  const int lane_;
  const bool is_plain_;
  Epochs epochs_;
  std::int32_t next_ = -1;  ///< rank of this lane's choice in the next item
};

}  // namespace ferry::cuda::latency
