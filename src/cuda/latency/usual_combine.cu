// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The kernels of a usual combine in latency mode: bf16 rows of expert_padded, weighted with the weights of the dispatch and summed per
// rank. usual.cuh says what else is usual, combine.cu is for calls of any kind and says what crosses.
#include "cuda/kernels.h"
#include "cuda/latency/combine_recv.cuh"
#include "cuda/latency/usual.cuh"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace latency {
namespace {

constexpr DType kDType = DType::kBf16;
using Vector = Sixteen<kDType>;

constexpr std::uint32_t kPieceUnits = wire::kPieceBytes / 16;

/// Vectors of 16 bytes of a row.
__device__ int vectors_of_row(const CombineArgsOnDevice& a) {
  return static_cast<int>(a.hidden / Elements<kDType>::kCount);
}

/// Step 5, combine_send: a warp takes a piece of a received token's row.
class UsualReturner {
 public:
  __device__ UsualReturner(const UsualCombineArgs& args, const Shifts& shifts)
      : a_(args.call),
        by_pieces_(args.by_pieces),
        by_local_(args.by_local),
        returns_(args.returns),
        per_token_(args.token),
        per_place_(args.place),
        per_row_(args.row),
        lane_(lane_idx()),
        vectors_(vectors_of_row(args.call)),
        pieces_(static_cast<int>(wire::div_up(vectors_, wire::kPieceVectors))),
        first_(shifts.first),
        step_(shifts.step) {}

  /// Asks for what the first item begins with, and how many there are.
  __device__ void start() {
    num_rows_ = a_.handle.source_offsets[a_.group.num_ranks];
    ask(first_);
  }
  __device__ void send_all(const Peer& peer, std::uint32_t tag) {
    for (int item = first_; item < num_rows_ * pieces_; item += step_) {
      const Record record = next_;
      const int piece = item - by_pieces_.quotient(item) * pieces_;
      ask(item + step_);
      send(record, piece, peer, tag);
    }
  }

 private:
  /// What a token's record says; slot, row and weight of choice k are lane k's.
  struct Record {
    int source, token;
    std::int32_t slot, row;
    float weight;
  };
  __device__ void ask(int item) {
    const int n = by_pieces_.quotient(item);
    if (n >= a_.max_rows) return;
    const wire::TokenMeta record(a_.handle.records + n * wire::TokenMeta::bytes(kUsualTopK), kUsualTopK);
    next_.source = record.source_rank();
    next_.token = record.source_token();
    const int k = lane_ % kUsualTopK;
    next_.slot = record.slots()[k];
    next_.row = record.rows()[k];
    next_.weight = record.weights()[k];
  }

  __device__ void send(const Record& record, int piece, const Peer& peer, std::uint32_t tag) {
    const GroupArgs& group = a_.group;
    const std::int32_t rank = record.slot < 0 ? -1 : by_local_.quotient(record.slot);
    const Piece sum = sum_of(__ballot_sync(kAllLanes, lane_ < kUsualTopK && rank == group.rank), record, piece);
    // This rank's place: how many ranks below it the token needs.
    const unsigned ranks = __reduce_or_sync(kAllLanes, rank < 0 ? 0u : 1u << rank);
    const int place = __popc(ranks & ((1u << group.rank) - 1));
    delay_signal(group, record.source);
    std::byte* to =
        at_unit(peer.window_of(record.source), returns_ + static_cast<std::uint32_t>(record.token) * per_token_ +
                                                   static_cast<std::uint32_t>(place) * per_place_ +
                                                   static_cast<std::uint32_t>(piece) * kPieceUnits);
    store_piece(to, sum, min(wire::kPieceVectors, vectors_ - piece * wire::kPieceVectors), tag);
  }

  /// The rows of the choices in `mine`, ascending, rounded once. Some rows are on their way together.
  __device__ Piece sum_of(unsigned mine, const Record& record, int piece) const {
    constexpr int kBatch = 4;
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
        weights[i] = __shfl_sync(kAllLanes, record.weight, which);
        rows[i] = load(static_cast<std::uint32_t>(__shfl_sync(kAllLanes, record.row, which)), piece);
        ++taken;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i >= taken) continue;
#pragma unroll
        for (int j = 0; j < 3; ++j) sums[j].add_weighted(Vector::of(rows[i].vectors[j]), weights[i]);
      }
    }
    Piece out;
#pragma unroll
    for (int j = 0; j < 3; ++j) out.vectors[j] = sums[j].round().bits();
    return out;
  }
  /// What lies beyond the row's end is its last vector once more, and not sent.
  __device__ Piece load(std::uint32_t row, int piece) const {
    const auto* vectors = reinterpret_cast<const uint4*>(a_.x) + static_cast<std::uint64_t>(row) * per_row_;
    Piece out;
#pragma unroll
    for (int j = 0; j < 3; ++j)
      out.vectors[j] = vectors[min(piece * wire::kPieceVectors + lane_ + 32 * j, vectors_ - 1)];
    return out;
  }

  const CombineArgsOnDevice& a_;
  const Division by_pieces_, by_local_;
  const std::uint32_t returns_, per_token_, per_place_, per_row_;
  const int lane_, vectors_, pieces_, first_, step_;
  int num_rows_ = 0;
  Record next_;  ///< of the next item: its latency is hidden behind the item before
};

/// Step 7, combine_recv: a warp takes a piece of a token. Rows are summed by rank, ascending, which is how their places are counted.
class UsualSummer {
 public:
  __device__ UsualSummer(const UsualCombineArgs& args, const Shifts& shifts)
      : a_(args.call),
        by_pieces_(args.by_pieces),
        returns_(args.returns),
        per_token_(args.token),
        per_place_(args.place),
        per_out_row_(args.out_row),
        lane_(lane_idx()),
        vectors_(vectors_of_row(args.call)),
        pieces_(static_cast<int>(wire::div_up(vectors_, wire::kPieceVectors))),
        items_(static_cast<int>(args.call.num_tokens) * pieces_),
        first_(shifts.first),
        step_(shifts.step) {}

  /// Asks for what the first item begins with.
  __device__ void start() { ask(first_); }
  /// All of this warp's items; false if one did not come.
  __device__ bool sum_all(const Epochs& epochs) {
    for (int item = first_; item < items_; item += step_) {
      const unsigned ranks = __reduce_or_sync(kAllLanes, next_ < 0 ? 0u : 1u << next_);
      const int token = by_pieces_.quotient(item), piece = item - token * pieces_;
      ask(item + step_);
      if (!sum(epochs, token, piece, ranks)) return false;
    }
    return true;
  }

 private:
  __device__ void ask(int item) {
    if (item < items_) next_ = a_.handle.ranks[by_pieces_.quotient(item) * kUsualTopK + lane_ % kUsualTopK];
  }

  __device__ bool sum(const Epochs& epochs, int token, int piece, unsigned ranks) const {
    const GroupArgs& group = a_.group;
    const std::byte* from = at_unit(group.own_window, returns_ + static_cast<std::uint32_t>(token) * per_token_ +
                                                          static_cast<std::uint32_t>(piece) * kPieceUnits);
    const int count = min(wire::kPieceVectors, vectors_ - piece * wire::kPieceVectors);
    constexpr int kBatch = 4;
    Sums<kDType> sums[3];
    for (int left = __popc(ranks); left > 0; left -= kBatch, from = at_unit(from, kBatch * per_place_)) {
      // All of a batch is asked for before the first of it is looked at.
      const auto row = [&](int i) {
        PieceArrival out(at_unit(from, static_cast<std::uint32_t>(i) * per_place_), i < left ? count : 0, epochs.tag());
        out.ask();
        return out;
      };
      PieceArrival rows[kBatch] = {row(0), row(1), row(2), row(3)};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i >= left) continue;
        const int writer = __ffs(static_cast<int>(ranks)) - 1;
        ranks &= ranks - 1;
        if (!add(sums, rows[i], epochs, writer)) return false;
      }
    }
    auto* out = reinterpret_cast<uint4*>(a_.out) + static_cast<std::uint64_t>(token) * per_out_row_;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int vector = piece * wire::kPieceVectors + lane_ + 32 * j;
      if (vector < vectors_) out[vector] = sums[j].round().bits();
    }
    return true;
  }

  __device__ bool add(Sums<kDType> (&sums)[3], PieceArrival& from, const Epochs& epochs, int writer) const {
    PacketWait wait(a_.group, FaultStep::kCombineRecv, epochs.now, writer);
    if (!from.wait(wait)) return false;
    const Piece row = from.piece();
#pragma unroll
    for (int j = 0; j < 3; ++j) sums[j].add(Vector::of(row.vectors[j]));
    return true;
  }

  const CombineArgsOnDevice& a_;
  const Division by_pieces_;
  const std::uint32_t returns_, per_token_, per_place_, per_out_row_;
  const int lane_, vectors_, pieces_, items_, first_, step_;
  std::int32_t next_ = -1;  ///< rank of this lane's choice in the next item
};

template <Phase kPhase>
__global__ void __launch_bounds__(kLatencyThreads, 1)
    usual_combine_kernel(const __grid_constant__ UsualCombineArgs args) {
  const CombineArgsOnDevice& a = args.call;
  const Shifts shifts;
  const bool last_warp = shifts.keeps_books && shifts.warp == shifts.warps - 1;
  UsualSummer summer(args, shifts);
  Epochs epochs;
  bool good = true;
  if constexpr (kPhase == Phase::kReceive) {
    epochs.now = a.group.state->latency_epoch[index_of(LatencyKind::kCombine)][a.group.flight];
    summer.start();
  } else {
    // What needs no other load is asked for first, all of it; then comes the first wait.
    UsualReturner returner(args, shifts);
    epochs = next_epochs(a.group, LatencyKind::kCombine);
    Peer peer(a.group, LatencyKind::kCombine);
    returner.start();
    summer.start();
    if (last_warp) give_credits(a.group, LatencyKind::kCombine, epochs);
    good = peer.wait_credits(FaultStep::kCombineSend, epochs);  // by now every warp has the call's number
    if (!meet_unless(shifts.warp != shifts.warps - 1) && lane_idx() == 0)
      file_call(a.group, LatencyKind::kCombine, epochs);
    if (good) {
      if (last_warp) send_notes(a, epochs);
      returner.send_all(peer, epochs.tag());
    }
  }
  if constexpr (kPhase != Phase::kSend) {
    if (good) {
      if (last_warp) check_notes(a, epochs);
      summer.sum_all(epochs);
    }
    // Also after a failure: peers need not wait for a rank that reads nothing any more.
    file_read(a.group, LatencyKind::kCombine, epochs);
  }
}

const void* kernel_of(Phase phase) {
  return phase == Phase::kSend      ? reinterpret_cast<const void*>(usual_combine_kernel<Phase::kSend>)
         : phase == Phase::kReceive ? reinterpret_cast<const void*>(usual_combine_kernel<Phase::kReceive>)
                                    : reinterpret_cast<const void*>(usual_combine_kernel<Phase::kWhole>);
}

}  // namespace
}  // namespace latency

void launch_usual_combine(const UsualCombineArgs& args, Phase phase, const Launch& launch, cudaStream_t stream) {
  void* arguments[] = {const_cast<UsualCombineArgs*>(&args)};
  cudaLaunchKernel(latency::kernel_of(phase), dim3(static_cast<unsigned>(launch.blocks)),
                   dim3(static_cast<unsigned>(launch.threads)), arguments, 0, stream);
}

void prepare_usual_combine() {
  for (const Phase phase : {Phase::kSend, Phase::kReceive, Phase::kWhole}) prepare_kernel(latency::kernel_of(phase), 0);
}

}  // namespace ferry::cuda
