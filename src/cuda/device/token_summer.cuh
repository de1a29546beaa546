// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Sums of rows that lie in windows: a warp takes a token, whose rows come in pieces through the warp's ring of pieces, far ahead of the
// sums. For combine_recv and, between nodes, combine_forward.
#pragma once

#include "cuda/device/elements.cuh"
#include "cuda/device/fetch_ring.cuh"
#include "cuda/device/lanes.cuh"
#include "cuda/device/return_streams.cuh"
#include "cuda/device/wait.cuh"
#include "wire/token_meta.h"

namespace ferry::cuda {

// 126 KiB in flight per SM: 8 SMs then fetch what a link carries and as much again from their own memory. 7 vectors per lane
// make four whole pieces of 7168 16-bit elements.
inline constexpr int kDepth = 4, kVectors = 7;
using Fetched = FetchMemory<kDepth, kVectors>;
inline constexpr int kPieceBytes = Fetched::kPieceBytes;

/// The rows of one token in the order of the sum, at most kMost.
template <int kMost>
struct Terms {
  const std::byte* rows[kMost];
  float weights[kMost];
  int count;
};
/// Tokens whose rows may have been asked for and not yet used: short rows are one piece.
inline constexpr int kTokensAhead = kDepth;

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
__device__ inline bool read_notes(const CombineArgsOnDevice& a, FaultStep step, std::uint64_t epoch, RankRows* ranks) {
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
          .step = step,
          .peer = peer,
          .seen = note.epoch,
          .wanted = epoch});
    good = false;
  }
  return __syncthreads_and(good) != 0;
}

/// Whose tokens are summed: this rank's, whose rows lie in its node; or in several nodes, some of which have sent their sums; or those
/// of ranks of other nodes that passed through this rank, and of whose rows those of this node are summed.
enum class SumOf : std::int32_t { kOwnTokens, kOwnTokensAcrossNodes, kForwarded };

/// kPlain: sums of rows as they are, without weight, bias or a second stage. Most calls; its code is a tenth of the other's.
/// kMost: choices of a token; with more than lanes they are looked at 32 at a time.
template <DType kDType, bool kPlain, int kMost, SumOf kOf = SumOf::kOwnTokens>
class TokenSummer {
 public:
  static constexpr bool kWide = kMost > kMaxTopK;
  static constexpr bool kAcross = kOf == SumOf::kOwnTokensAcrossNodes, kForwarded = kOf == SumOf::kForwarded;
  static_assert(kOf == SumOf::kOwnTokens || (!kWide && kPlain == kForwarded));
  using Vector = Sixteen<kDType>;
  static constexpr int kCount = Elements<kDType>::kCount;
  static constexpr int kElementBytes = 16 / kCount;

  /// The last two where the group spans nodes.
  __device__ TokenSummer(const CombineArgsOnDevice& args, WarpMemory<kMost>& memory, const RankRows* ranks,
                         const NetworkArgs* network = nullptr, std::uint64_t epoch = 0)
      : a_(args),
        network_(network),
        epoch_(epoch),
        ranks_(ranks),
        ring_(memory.fetched),
        terms_(memory.terms),
        lane_(static_cast<int>(threadIdx.x) % 32),
        step_(static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32)),
        row_bytes_(static_cast<int>((args.hidden * kElementBytes + 15) / 16 * 16)),
        in_vectors_(args.hidden % kCount == 0 && args.out_stride % 16 == 0 &&
                    reinterpret_cast<std::uintptr_t>(args.out) % 16 == 0) {
    if constexpr (kForwarded) num_forwarded_ = args.handle.forward_offsets[args.group.num_ranks];
  }

  __device__ void sum_all() {
    const std::int64_t first = static_cast<std::int64_t>(threadIdx.x / 32) * gridDim.x + blockIdx.x;
    Cursor ask{first}, go{first};
    if constexpr (!kWide) next_ = choice_of(first, lane_);
    unsigned asked = 0;
    for (unsigned piece = 0; go.token < num_tokens(); ++piece) {
      for (; asked < piece + kDepth - 1; ++asked) {
        if (ask.token >= num_tokens()) {
          ring_.ask(asked, nullptr, 0);
          continue;
        }
        if (ask.is_first()) {
          if constexpr (kWide) {
            find_wide_terms(ask);
          } else if constexpr (kAcross) {
            find_terms_across(ask);
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
  __device__ std::int64_t num_tokens() const {
    if constexpr (kForwarded) return num_forwarded_;
    return a_.num_tokens;
  }
  __device__ Terms<kMost>& terms_of(const Cursor& at) const { return terms_[at.number % kTokensAhead]; }
  __device__ int count_of(const Cursor& at) const {
    const int count = terms_of(at).count;
    if constexpr (kAcross) return NodeTerms(count).all;
    return count;
  }
  __device__ void advance(Cursor& at) const {
    if (++at.term < count_of(at)) return;
    at.term = 0;
    at.offset += kPieceBytes;
    if (at.offset < row_bytes_) return;
    at.offset = 0;
    at.token += step_;
    ++at.number;
  }

  __device__ void bring(const Cursor& at, unsigned piece) {
    const Terms<kMost>& terms = terms_of(at);
    if (count_of(at) == 0) return ring_.ask(piece, nullptr, 0);
    ring_.ask(piece, terms.rows[at.term] + at.offset, min(kPieceBytes, row_bytes_ - at.offset));
  }

  /// Adds a piece to the sums; the last row of a run ends them.
  __device__ void use(const Cursor& at, unsigned piece) {
    if constexpr (kAcross) return use_across(at, piece);
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
    write_run(at);
  }
  __device__ void write_run(const Cursor& at) {
    write(a_.out + at.token * a_.out_stride + at.offset + lane_ * 16,
          static_cast<int>(a_.hidden) * kElementBytes - at.offset - lane_ * 16);
    if constexpr (kForwarded) {
      if (at.offset + kPieceBytes >= row_bytes_) report_returned(a_, *network_, epoch_, at.token, row_bytes_);
    }
  }

  /// kAcross: a token's terms are the rows of this node's ranks, then the sums that came from other nodes, in the order in which nodes
  /// enter the sum; this node's sum enters before the sum number `own_place` of those.
  struct NodeTerms {
    int all, own, own_place;
    __device__ explicit NodeTerms(int packed) : all(packed & 0xff), own(packed >> 8 & 0xff), own_place(packed >> 16) {}
    __device__ static int pack(int all, int own, int own_place) { return all | own << 8 | own_place << 16; }
  };
  __device__ void use_across(const Cursor& at, unsigned piece) {
    const NodeTerms terms(terms_of(at).count);
    if (at.term == 0) {
      clear_sums();
      if (terms.own == 0) start_at_bias(sums_, at);
    }
    if (terms.all > 0) add<false>(piece, terms_of(at).weights[at.term]);
    if (terms.own > 0 && at.term + 1 == terms.own) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) own_sum_[v] = sums_[v].round();
      clear_sums();
      start_at_bias(sums_, at);
    }
    if (terms.own > 0 && at.term + 1 == terms.own + terms.own_place) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) sums_[v].add(own_sum_[v]);
    }
    if (at.term + 1 >= terms.all) write_run(at);
  }
  __device__ void clear_sums() {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) sums_[v] = Sums<kDType>{};
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
    // kAcross: -1 for ranks left out. Of other nodes: the token's row in the stream there, and the first row that comes back for it.
    std::int32_t node = -1, forward_row = -1, returned = 0;
  };
  __device__ Choice choice_of(std::int64_t token, int k) const {
    Choice out;
    if (token >= num_tokens() || k >= a_.top_k) return out;
    if constexpr (kForwarded) return forwarded_choice(token, k);
    const std::int64_t at = token * a_.top_k + k;
    if constexpr (kAcross) {
      const std::int32_t rank = a_.handle.ranks[at];
      if (rank < 0 || a_.group.members[rank] == nullptr) return out;
      out.node = network_->node_of[rank];
      if (out.node != network_->my_node) {
        const std::int64_t of_node = token * network_->num_nodes + out.node;
        out.forward_row = a_.handle.forward_rows[of_node];
        out.returned =
            a_.reduction.group == Reduction::Group::kNode ? out.forward_row : network_->returned_before[of_node];
      }
    }
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

  /// kForwarded: choice k of a token that passed through this rank, if it lies in this node.
  __device__ Choice forwarded_choice(std::int64_t number, int k) const {
    const wire::TokenMeta record(a_.handle.forwarded + number * wire::TokenMeta::bytes(a_.top_k), a_.top_k);
    Choice out;
    const std::int32_t slot = record.slots()[k];
    if (slot < 0) return out;
    out.rank = a_.handle.rank_of_slot[slot];
    out.row = out.token = record.tokens()[k];
    return out;
  }

  /// kAcross. per_node: a term per rank of this node, then one per other node; per_rank: one per rank; flat: one per choice.
  __device__ void find_terms_across(const Cursor& cursor) {
    Terms<kMost>& terms = terms_of(cursor);
    const Choice choice = next_;
    next_ = choice_of(cursor.token + step_, lane_);
    const bool live = choice.node >= 0, here = choice.node == network_->my_node;
    const bool by_node = a_.reduction.group == Reduction::Group::kNode,
               flat = a_.reduction.group == Reduction::Group::kChoice;
    const bool last = a_.reduction.order == Reduction::Order::kLastChoice;
    const unsigned before = (1u << lane_) - 1;
    const int key = by_node && !here ? a_.group.num_ranks + choice.node : choice.rank;
    const unsigned same = __match_any_sync(kAll, live ? key : -1 - lane_);
    const bool brings = live && (flat || (last ? (same & ~before & ~(1u << lane_)) == 0 : (same & before) == 0));
    const unsigned own = __ballot_sync(kAll, brings && here), others = __ballot_sync(kAll, brings && !here);
    // Of what is in order: all terms, or those of this node and those of others each for themselves. Ranks are numbered node by node.
    const unsigned peers = !by_node ? own | others : here ? own : others;
    const bool by_lane = last || flat;
    int place = by_lane ? __popc(peers & before) : 0, of_node = 0, own_place = 0;
    for (unsigned left = own | others; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      const int rank = __shfl_sync(kAll, choice.rank, lane), node = __shfl_sync(kAll, choice.node, lane);
      if (!by_lane && (peers >> lane & 1u) != 0) place += rank < choice.rank ? 1 : 0;
      // The rows of a node come back in the order of choices (flat) or of ranks.
      if (node == choice.node) of_node += flat ? lane < lane_ : rank < choice.rank;
      if (node < network_->my_node) own_place += 1;
    }
    if (by_node && last && own != 0) own_place = __popc(others & ((1u << (31 - __clz(static_cast<int>(own)))) - 1));
    if (by_node && !here) place += __popc(own);
    await_returns(choice, live && !here);
    __syncwarp();
    const int count = __popc(own) + __popc(others);
    if (lane_ == 0)
      terms.count = by_node ? NodeTerms::pack(count, __popc(own), own_place) : NodeTerms::pack(count, 0, 0);
    if (brings) {
      terms.rows[place] = here ? ranks_[choice.rank].base + choice.row * ranks_[choice.rank].stride
                               : returned_row(choice, by_node ? 0 : of_node);
      terms.weights[place] = choice.weight;
    }
    if (a_.out_weights != nullptr && lane_ < a_.top_k) {
      a_.out_weights[cursor.token * a_.top_k + lane_] =
          live && !here ? weight_across(choice) : returned_weight(choice, lane_);
    }
    __syncwarp();
  }
  /// The combined weight of a choice in another node.
  __device__ float weight_across(const Choice& choice) const {
    const NetworkLayout& layout = a_.group.layout.network;
    const auto* weights = reinterpret_cast<const float*>(
        a_.group.own_window +
        layout.return_weights_at(a_.group.flight, NetworkLayout::other_node(choice.node, network_->my_node)));
    return 0.0f + load_relaxed(weights + static_cast<std::int64_t>(choice.forward_row) * a_.top_k + lane_);
  }
  /// Row `index` of those that came back for a token from the node of a choice.
  __device__ const std::byte* returned_row(const Choice& choice, int index) const {
    const int other = NetworkLayout::other_node(choice.node, network_->my_node);
    return a_.group.own_window + a_.group.layout.network.returns_at(a_.group.flight, other) +
           (choice.returned + static_cast<std::int64_t>(index)) * row_bytes_;
  }
  /// Until the rows that lanes take from other nodes are here. Lane n remembers which chunks of node n are. A wait that fails ends the
  /// call; the rows are then old ones.
  __device__ void await_returns(const Choice& choice, bool wanted) {
    const auto chunk =
        wanted ? static_cast<int>(choice.forward_row / a_.group.layout.network.return_chunk_tokens()) : 0;
    const unsigned known = __shfl_sync(kAll, arrived_, max(choice.node, 0));
    unsigned missing = __ballot_sync(kAll, wanted && (known >> chunk & 1u) == 0);
    if (missing == 0) return;
    if (missing >> lane_ & 1u) await_returned(a_, *network_, epoch_, choice.node, chunk);
    __syncwarp();
    for (; missing != 0; missing &= missing - 1) {
      const int lane = __ffs(static_cast<int>(missing)) - 1;
      const int node = __shfl_sync(kAll, choice.node, lane), which = __shfl_sync(kAll, chunk, lane);
      if (lane_ == node) arrived_ |= 1u << which;
    }
#if __CUDA_ARCH__ >= 900
    fence_bulk();  // the waits were ordinary loads; the rows are fetched by the bulk copy engine
#endif
    __syncwarp();
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
  const NetworkArgs* network_;
  const std::uint64_t epoch_;
  std::int64_t num_forwarded_ = 0;
  unsigned arrived_ = 0;               ///< kAcross, lane n: chunks of what node n gives back that are here
  Sixteen<kDType> own_sum_[kVectors];  ///< kAcross: of this node's ranks
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

}  // namespace ferry::cuda
