// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 7, combine_recv: wait until the peers' rows may be read, fetch each token's rows from where they lie, weigh, sum in the
// documented order, add bias, round once. A warp takes a token; its rows come in pieces through the warp's ring of pieces, far
// ahead of the sums. Fetching needs no slots for returned rows and no second pass (docs/design/cuda.md). See the host step of
// this name.
#include "cuda/device/combine_call.cuh"
#include "cuda/device/elements.cuh"
#include "cuda/device/fetch_ring.cuh"
#include "cuda/device/wait.cuh"
#include "cuda/kernels.h"

namespace ferry::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr FaultStep kStep = FaultStep::kCombineRecv;

// 126 KiB in flight per SM: 8 SMs then fetch what a link carries and as much again from their own memory. 7 vectors per lane
// make four whole pieces of 7168 16-bit elements.
constexpr int kDepth = 4, kVectors = 7;
using Fetched = FetchMemory<kDepth, kVectors>;
constexpr int kPieceBytes = Fetched::kPieceBytes;

/// The rows of one token in the order of the sum, at most kMost.
template <int kMost>
struct Terms {
  const std::byte* rows[kMost];
  float weights[kMost];
  int count;
};
/// Tokens whose rows may have been asked for and not yet used: short rows are one piece.
constexpr int kTokensAhead = kDepth;

/// Where a rank's rows begin, as its note says; null: it is left out.
struct RankRows {
  const std::byte* base;
  std::int64_t stride;
};

template <int kMost>
struct alignas(128) WarpMemory {
  Fetched fetched;
  Terms<kMost> terms[kTokensAhead];
};

/// Refuses peers that are in another call or gave other arguments; keeps where the rows of the others are. All threads of a
/// block.
__device__ bool read_notes(const CombineArgsOnDevice& a, std::uint64_t epoch, RankRows* ranks) {
  const GroupArgs& group = a.group;
  bool good = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    ranks[peer] = {};
    if (group.windows[peer] == nullptr) continue;
    const auto& note =
        *reinterpret_cast<const CombineNote*>(group.windows[group.rank] + group.layout.note_at(group.flight, peer));
    if (note.epoch == epoch && note.digest == group.digest) {
      ranks[peer] = {group.windows[peer] + note.rows_offset, note.row_stride};
      if (peer == group.rank && a.own_in_place) ranks[peer] = {a.x, a.row_stride};
      continue;
    }
    fail(group, epoch,
         {.kind = note.epoch == epoch ? FaultKind::kMismatch : FaultKind::kGoneOn,
          .step = kStep,
          .peer = peer,
          .seen = note.epoch,
          .wanted = epoch});
    good = false;
  }
  return __syncthreads_and(good) != 0;
}

/// kPlain: sums of rows as they are, without weight, bias or a second stage. Most calls; its code is a tenth of the other's.
/// kMost: choices of a token; with more than lanes they are looked at 32 at a time.
template <DType kDType, bool kPlain, int kMost>
class TokenSummer {
 public:
  static constexpr bool kWide = kMost > kMaxTopK;
  using Vector = Sixteen<kDType>;
  static constexpr int kCount = Elements<kDType>::kCount;
  static constexpr int kElementBytes = 16 / kCount;

  __device__ TokenSummer(const CombineArgsOnDevice& args, WarpMemory<kMost>& memory, const RankRows* ranks)
      : a_(args),
        ranks_(ranks),
        ring_(memory.fetched),
        terms_(memory.terms),
        lane_(static_cast<int>(threadIdx.x) % 32),
        step_(static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32)),
        row_bytes_(static_cast<int>((args.hidden * kElementBytes + 15) / 16 * 16)),
        in_vectors_(args.hidden % kCount == 0 && args.out_stride % 16 == 0 &&
                    reinterpret_cast<std::uintptr_t>(args.out) % 16 == 0) {}

  __device__ void sum_all() {
    const std::int64_t first = static_cast<std::int64_t>(threadIdx.x / 32) * gridDim.x + blockIdx.x;
    Cursor ask{first}, go{first};
    if constexpr (!kWide) next_ = choice_of(first, lane_);
    unsigned asked = 0;
    for (unsigned piece = 0; go.token < a_.num_tokens; ++piece) {
      for (; asked < piece + kDepth - 1; ++asked) {
        if (ask.token >= a_.num_tokens) {
          ring_.ask(asked, nullptr, 0);
          continue;
        }
        if (ask.is_first()) {
          if constexpr (kWide) {
            find_wide_terms(ask);
          } else {
            find_terms(ask);
          }
        }
        bring(ask, asked);
        advance(ask);
      }
      ring_.wait(piece);
      use(go, piece);
      advance(go);
    }
  }

 private:
  /// A place in this warp's sequence of pieces: for each token, for each run of columns, for each row. A token without rows
  /// has empty pieces, which bring it its bias.
  struct Cursor {
    std::int64_t token;
    unsigned number = 0;  ///< of the token in this warp's sequence
    int offset = 0;       ///< of the run, in bytes
    int term = 0;
    __device__ bool is_first() const { return offset == 0 && term == 0; }
  };
  __device__ Terms<kMost>& terms_of(const Cursor& at) const { return terms_[at.number % kTokensAhead]; }
  __device__ void advance(Cursor& at) const {
    if (++at.term < terms_of(at).count) return;
    at.term = 0;
    at.offset += kPieceBytes;
    if (at.offset < row_bytes_) return;
    at.offset = 0;
    at.token += step_;
    ++at.number;
  }

  __device__ void bring(const Cursor& at, unsigned piece) {
    const Terms<kMost>& terms = terms_of(at);
    if (terms.count == 0) return ring_.ask(piece, nullptr, 0);
    ring_.ask(piece, terms.rows[at.term] + at.offset, min(kPieceBytes, row_bytes_ - at.offset));
  }

  /// Adds a piece to the sums; the last row of a run ends them.
  __device__ void use(const Cursor& at, unsigned piece) {
    const Terms<kMost>& terms = terms_of(at);
    const int count = terms.count;
    const bool by_node = !kPlain && a_.reduction.group == Reduction::Group::kNode;
    if (kPlain && at.term == 0 && count > 0) {
      add<true>(piece, 1.0f);
    } else {
      if (at.term == 0) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) sums_[v] = Sums<kDType>{};
        if (!kPlain && (!by_node || count == 0)) start_at_bias(sums_, at);
      }
      if (count > 0) add<false>(piece, terms.weights[at.term]);
    }
    if (at.term + 1 < count) return;
    if (by_node && count > 0) {
      Sums<kDType> outer[kVectors];
      start_at_bias(outer, at);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        outer[v].add(sums_[v].round());
        sums_[v] = outer[v];
      }
    }
    write(a_.out + at.token * a_.out_stride + at.offset + lane_ * 16,
          static_cast<int>(a_.hidden) * kElementBytes - at.offset - lane_ * 16);
  }
  /// All vectors of a piece are on their way before the first is used. kFirst: the sums begin here, from 0.
  template <bool kFirst>
  __device__ void add(unsigned piece, float weight) {
    uint4 vectors[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) vectors[v] = ring_.read(piece, v);
    if constexpr (kFirst) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        sums_[v] = Sums<kDType>{};
        sums_[v].add(Vector::of(vectors[v]));
      }
    } else if (!kPlain && a_.weigh != CombineArgsOnDevice::Weigh::kNone &&
               a_.reduction.group == Reduction::Group::kChoice) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) sums_[v].add_weighted(Vector::of(vectors[v]), weight);
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) sums_[v].add(Vector::of(vectors[v]));
    }
  }
  /// Stores the sums of a run; `left`: bytes of the row from this lane's first vector on.
  __device__ void write(std::byte* out, int left) const {
    if (in_vectors_ && left > (kPieceBytes - 32 * 16)) {  // a whole piece
#pragma unroll
      for (int v = 0; v < kVectors; ++v) *reinterpret_cast<uint4*>(out + v * 32 * 16) = sums_[v].round().bits();
      return;
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v * 32 * 16 < left) sums_[v].round().store(out + v * 32 * 16, (left - v * 32 * 16) / kElementBytes);
    }
  }
  __device__ int first_column(const Cursor& at, int vector) const {
    return at.offset / kElementBytes + (vector * 32 + lane_) * kCount;
  }

  /// What lane k knows about choice k of a token.
  struct Choice {
    std::int32_t rank = -1, row = 0, token = 0;
    float weight = 1.0f;
  };
  __device__ Choice choice_of(std::int64_t token, int k) const {
    Choice out;
    if (token >= a_.num_tokens || k >= a_.top_k) return out;
    const std::int64_t at = token * a_.top_k + k;
    const bool flat = a_.reduction.group == Reduction::Group::kChoice;
    out.rank = a_.handle.ranks[at];
    out.token = a_.handle.tokens[at];
    out.row = flat ? a_.handle.rows[at] : out.token;
    if (!flat || a_.weigh == CombineArgsOnDevice::Weigh::kNone) return out;
    out.weight = a_.weigh == CombineArgsOnDevice::Weigh::kFromDispatch
                     ? a_.handle.weights[at]
                     : a_.weights[token * a_.weights_stride[0] + k * a_.weights_stride[1]];
    return out;
  }

  /// Lane k looks at choice k: which row it brings, and at which place of the sum.
  __device__ void find_terms(const Cursor& cursor) {
    const std::int64_t token = cursor.token;
    Terms<kMost>& terms = terms_of(cursor);
    const std::int64_t at = token * a_.top_k + lane_;
    const Choice choice = next_;
    next_ = choice_of(token + step_, lane_);
    const std::int32_t rank = choice.rank;
    const bool live = rank >= 0 && ranks_[rank].base != nullptr;
    const unsigned before = (1u << lane_) - 1;
    bool brings = live;
    int place = 0;
    if (a_.reduction.group != Reduction::Group::kChoice) {
      const unsigned same = __match_any_sync(kAll, rank >= 0 ? rank : -1 - lane_);
      const bool last = a_.reduction.order == Reduction::Order::kLastChoice;
      brings = live && (last ? (same & ~before & ~(1u << lane_)) == 0 : (same & before) == 0);
      const unsigned bringing = __ballot_sync(kAll, brings);
      if (last) {
        place = __popc(bringing & before);
      } else {
        for (unsigned left = bringing; left != 0; left &= left - 1)
          place += __shfl_sync(kAll, rank, __ffs(static_cast<int>(left)) - 1) < rank ? 1 : 0;
      }
    } else {
      place = __popc(__ballot_sync(kAll, brings) & before);
    }
    const int count = __popc(__ballot_sync(kAll, brings));
    __syncwarp();
    if (lane_ == 0) terms.count = count;
    if (brings) {
      terms.rows[place] = ranks_[rank].base + choice.row * ranks_[rank].stride;
      terms.weights[place] = choice.weight;
    }
    if (a_.out_weights != nullptr && lane_ < a_.top_k) a_.out_weights[at] = returned_weight(choice, lane_);
    __syncwarp();
  }
  /// The combined weight that choice k brings.
  __device__ float returned_weight(const Choice& choice, int k) const {
    if (choice.rank < 0 || ranks_[choice.rank].base == nullptr) return 0.0f;
    const auto* weights =
        reinterpret_cast<const float*>(a_.group.windows[choice.rank] + a_.group.layout.combine_weights +
                                       a_.group.flight * a_.group.layout.combine_weights_stride);
    return 0.0f + load_relaxed(weights + static_cast<std::int64_t>(choice.token) * a_.top_k + k);
  }

  /// kWide. Every choice a term; or a term per rank: ranks ascending, or in the order of their last choices.
  __device__ void find_wide_terms(const Cursor& cursor) {
    Terms<kMost>& terms = terms_of(cursor);
    const std::int64_t token = cursor.token;
    const bool by_rank = a_.reduction.group != Reduction::Group::kChoice;
    const bool ascending = by_rank && a_.reduction.order == Reduction::Order::kAscending;
    const std::int32_t* ranks = a_.handle.ranks + token * a_.top_k;
    int count = 0;
    __syncwarp();
    for (int begin = 0; begin < a_.top_k; begin += 32) {
      const int k = begin + lane_;
      const Choice choice = choice_of(token, k);
      bool brings = choice.rank >= 0 && ranks_[choice.rank].base != nullptr;
      int place = 0;  // ascending: that of the rank; else that among those which bring a term
      for (int other = 0; other < a_.top_k && by_rank; ++other) {
        if (ranks[other] == choice.rank && (ascending ? other < k : other > k)) brings = false;
      }
      for (int rank = 0; ascending && brings && rank < choice.rank; ++rank) place += is_wanted(ranks, rank) ? 1 : 0;
      const unsigned bringing = __ballot_sync(kAll, brings);
      if (!ascending) place = count + __popc(bringing & ((1u << lane_) - 1));
      count += __popc(bringing);
      if (brings) {
        terms.rows[place] = ranks_[choice.rank].base + choice.row * ranks_[choice.rank].stride;
        terms.weights[place] = choice.weight;
      }
      if (a_.out_weights != nullptr && k < a_.top_k) a_.out_weights[token * a_.top_k + k] = returned_weight(choice, k);
    }
    if (lane_ == 0) terms.count = count;
    __syncwarp();
  }
  /// A choice of the token goes to this rank, which takes part.
  __device__ bool is_wanted(const std::int32_t* ranks, int rank) const {
    if (ranks_[rank].base == nullptr) return false;
    for (int k = 0; k < a_.top_k; ++k) {
      if (ranks[k] == rank) return true;
    }
    return false;
  }

  /// A stage begins at bias0 + bias1, not at 0 + bias0: a negative zero stays one.
  __device__ void start_at_bias(Sums<kDType> (&sums)[kVectors], const Cursor& at) const {
    for (int b = 0; b < 2; ++b) {
      if (a_.bias[b] == nullptr) continue;
      const bool is_first = b == 0 || a_.bias[0] == nullptr;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int column = first_column(at, v) + i;
          if (column >= a_.hidden) continue;
          const float bias = bias_at(b, at.token, column);
          sums[v].values[i] = is_first ? bias : sums[v].values[i] + bias;
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
  const RankRows* ranks_;
  Choice next_;  ///< of the token after the last one asked for: its latency is hidden behind rows
  FetchRing<Fetched> ring_;
  Terms<kMost>* terms_;
  const int lane_;
  const std::int64_t step_;
  const int row_bytes_;
  const bool in_vectors_;  ///< the result can be stored 16 bytes at a time
  Sums<kDType> sums_[kVectors];
};

extern __shared__ __align__(128) std::byte shared_bytes[];

template <DType kDType, int kMost>
__global__ void __launch_bounds__(32 * kMostCombineWarps, 1)
    combine_recv_kernel(const __grid_constant__ CombineArgsOnDevice a) {
  const DeviceState& state = *a.group.state;
  const std::uint64_t epoch = a.announces ? state.epoch + 1 : state.combine_epoch[a.group.flight];
  bool good = !has_failed(a.group, epoch);
  if (a.announces && blockIdx.x == 0 && good) {
    good = wait_until_read(a.group, epoch);
    if (good) {
      announce_rows(a, epoch);
      if (threadIdx.x == 0) file_input(a, epoch);
    }
  }
  good = good && wait_everybody(a.group, kStep, epoch, DeviceSignal::kCombineReady, total_of(epoch));
  auto* ranks = reinterpret_cast<RankRows*>(shared_bytes + blockDim.x / 32 * sizeof(WarpMemory<kMost>));
  good = good && read_notes(a, epoch, ranks);
  if (good) {
    auto& memory = reinterpret_cast<WarpMemory<kMost>*>(shared_bytes)[threadIdx.x / 32];
    const bool plain = a.reduction.group == Reduction::Group::kRank && a.bias[0] == nullptr && a.bias[1] == nullptr;
    if (plain && kMost <= kMaxTopK) {
      TokenSummer<kDType, kMost <= kMaxTopK, kMost>(a, memory, ranks).sum_all();
    } else {
      TokenSummer<kDType, false, kMost>(a, memory, ranks).sum_all();
    }
  }
  // Also after a failure: peers need not wait for a rank that reads nothing any more.
  if (!is_last_block(a.group)) return;
  for (int peer = static_cast<int>(threadIdx.x); peer < a.group.num_ranks; peer += static_cast<int>(blockDim.x))
    post(a.group, DeviceSignal::kCombineRead, peer, total_of(epoch));
  if (a.announces && threadIdx.x == 0) file_combine(a, epoch);
}

}  // namespace

std::size_t combine_shared_bytes(int warps, int num_ranks, int top_k) {
  const std::size_t memory = top_k > kMaxTopK ? sizeof(WarpMemory<kWideTopK>) : sizeof(WarpMemory<kMaxTopK>);
  return static_cast<std::size_t>(warps) * memory + static_cast<std::size_t>(num_ranks) * sizeof(RankRows);
}

void launch_combine_recv(const CombineArgsOnDevice& args, const Launch& launch, cudaStream_t stream) {
  with_dtype(args.dtype, [&]<DType kDType>() {
    const auto kernel =
        args.top_k > kMaxTopK ? combine_recv_kernel<kDType, kWideTopK> : combine_recv_kernel<kDType, kMaxTopK>;
    kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
  });
}

void prepare_combine_recv(int dynamic_bytes) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    with_dtype(dtype, [&]<DType kDType>() {
      prepare_kernel(reinterpret_cast<const void*>(combine_recv_kernel<kDType, kMaxTopK>), dynamic_bytes);
      prepare_kernel(reinterpret_cast<const void*>(combine_recv_kernel<kDType, kWideTopK>), dynamic_bytes);
    });
  }
}

}  // namespace ferry::cuda
