// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How a warp sends the rows of its tokens: it brings a row in its wire form piece by piece into shared memory and stores every piece
// at each destination. For dispatch_send: at ranks of this node, where rows stay, and for other nodes, where they are staged.
#pragma once

#include "cuda/device/lanes.cuh"
#include "cuda/device/receivers.cuh"
#include "cuda/device/row_progress.cuh"
#include "cuda/device/stage.cuh"
#include "cuda/device/stream_chunks.cuh"
#include "wire/fp8_quant.h"
#include "wire/token_meta.h"

namespace ferry::cuda {

/// What lane k knows about choice k of a token. Asked for one token ahead, or its latency would be paid for every token.
struct Choice {
  std::int32_t rank = -1, slot = -1, row = -1, token = -1, weight = 0;
  std::int32_t node = -1, forward_row = -1;  ///< to other nodes: which, and the token's row in the stream
};

/// Where a token goes: lane k holds the destination of choice k, if it is the first choice there or all are served.
struct Destination {
  std::byte* const* blocks = nullptr;  ///< null: none
  std::byte* record = nullptr;         ///< of the first choice there
  std::int32_t row = -1;
};

// A row of 7168 in bf16 is four pieces, in fp8 with its scales two; what counts is that there are many warps, since each is a
// chain of instructions (docs/design/cuda.md). A multiple of every scale block.
using SendStages = WarpStages<4, 3840, 2>;
static_assert(SendStages::kStageBytes % 128 == 0);

/// Where a token with more choices than lanes goes, in shared memory. All calls are made by the whole warp.
class DestinationList {
 public:
  __device__ explicit DestinationList(Destination* entries) : entries_(entries), lane_(threadIdx.x % 32) {}
  __device__ int size() const { return size_; }
  __device__ Destination at(int i) const { return i < size_ ? entries_[i] : Destination{}; }

  __device__ void clear() {
    __syncwarp();
    size_ = 0;
  }
  /// Adds the destinations that lanes have and that are the first with their `blocks`, and where it is `wanted` others, too,
  /// without a record.
  __device__ void add(Destination mine, bool wanted) {
    const auto key = reinterpret_cast<unsigned long long>(mine.blocks);
    const unsigned before = __match_any_sync(kAll, key) & ((1u << lane_) - 1);
    bool first = key != 0 && before == 0;
    for (int i = 0; i < size_; ++i) first = first && entries_[i].blocks != mine.blocks;
    const bool adds = first || (key != 0 && wanted);
    if (!first) mine.record = nullptr;
    const unsigned adding = __ballot_sync(kAll, adds);
    if (adds) entries_[size_ + __popc(adding & ((1u << lane_) - 1))] = mine;
    size_ += __popc(adding);
    __syncwarp();
  }

 private:
  Destination* entries_;
  const int lane_;
  int size_ = 0;
};

/// Pieces are runs of a wire row, whatever blocks they belong to: a row of fp8 with its scales is two pieces, not three. Lane b
/// knows block b of the payload. What costs is the length of a warp's chain of instructions per token (docs/design/cuda.md).
/// kWide: a token has more choices than a warp has lanes; its destinations are a list then. kCopies: progress is reported, and
/// rows that have arrived are copied.
/// kNetwork: to the streams for other nodes, which `receivers` then lists by node, and of which chunks are put as they are whole.
template <bool kWide, bool kCopies, bool kNetwork = false>
class RowSender {
 public:
  __device__ RowSender(const SendArgs& args, const BlockShare& share, const Receivers& receivers, SendStages& stages,
                       std::int32_t* records, Destination* list, const NetworkArgs* network = nullptr)
      : a_(args),
        network_(network),
        receivers_(receivers),
        ring_(stages),
        records_(records),
        list_(list),
        lane_(static_cast<int>(threadIdx.x) % 32),
        record_bytes_(static_cast<int>(wire::TokenMeta::bytes(args.top_k))),
        step_(share.blocks * static_cast<int>(blockDim.x / 32)) {
    static_assert(!kNetwork || (!kWide && !kCopies));
    const std::int64_t first = static_cast<std::int64_t>(threadIdx.x / 32) * share.blocks + share.block;
    first_ = first;
    const int pieces = (args.row_bytes + SendStages::kStageBytes - 1) / SendStages::kStageBytes;
    total_ =
        first < args.num_tokens ? static_cast<unsigned>((args.num_tokens - first + step_ - 1) / step_ * pieces) : 0;
    if (lane_ < args.num_blocks) {
      const BlockArgs& block = args.blocks[lane_];
      mine_ = {.data = block.in_pieces ? block.data : nullptr,
               .row_stride = block.row_stride,
               .begin = block.begin,
               .end = block.begin + block.padded,
               .padded = block.padded};
    }
    in_pieces_ = __all_sync(kAll, lane_ >= args.num_blocks || mine_.data != nullptr);
  }

  /// `reports`: tells peers how far it is, in kCopies.
  __device__ void send_all(std::uint64_t epoch, bool reports) {
    const TokenChunks chunks(a_.num_tokens, step_);
    int sent = 0;
    unsigned asked = 0;
    Cursor ask{first_}, go{first_};
    Choice next;
    if constexpr (!kWide) next = choice_of(go.token);
    for (unsigned piece = 0; piece < total_; ++piece) {
      for (; asked < total_ && asked <= piece + SendStages::kAhead; ++asked) {
        ring_.claim();
        bring(ask, asked);
        advance(ask);
      }
      if (kWide && go.is_first()) {
        find_destinations(go.token);
        write_wide_record(go.token);
        send_to_all([&] { store_record(); });
      } else if (go.is_first()) {
        const Choice choice = next;
        next = choice_of(go.token + step_);
        find_destination(choice);
        send_record(go.token, choice);
      }
      ring_.wait_full(piece);
      if constexpr (kWide) {
        send_to_all([&] { store(go, piece); });
      } else {
        store(go, piece);
      }
      ring_.stored();
      advance(go);
      if constexpr (kNetwork) {
        if (go.is_first()) put_chunks(epoch, ++sent, false);
        continue;
      }
      if (!kCopies || !reports || !go.is_first()) continue;
      if (const int chunk = chunks.ended_with(++sent); chunk >= 0) {
        ring_.drain();
        report_chunk(a_.group, epoch, a_.handle, a_.top_k, chunks, chunk);
      }
    }
    ring_.drain();
    if constexpr (kNetwork) put_chunks(epoch, sent, true);
  }

  /// Row n of a peer lies at its first choice here and is copied to the others. After send_all().
  __device__ void copy_arrived(std::int64_t n) {
    const std::int32_t* first_slot = a_.group.placement.first_slot + a_.group.rank;
    std::byte* const* receiver = receivers_.of(a_.group.rank);
    const wire::TokenMeta record(receiver[0] + n * record_bytes_, a_.top_k);
    const std::int32_t slot = lane_ < a_.top_k ? record.slots()[lane_] : -1;
    const bool mine = slot >= first_slot[0] && slot < first_slot[1];
    const std::int32_t row = mine ? record.rows()[lane_] : -1;
    const unsigned choices = __ballot_sync(kAll, mine);
    if ((choices & (choices - 1)) == 0) return;
    const int first_lane = __ffs(static_cast<int>(choices)) - 1;
    const std::int64_t first = __shfl_sync(kAll, row, first_lane);
    destination_ = {};
    if (mine && lane_ != first_lane) destination_ = {receiver + 1, nullptr, row};
    const std::byte* from = lane_ < a_.num_blocks ? receiver[1 + lane_] + first * mine_.padded : nullptr;
    ring_.written();  // who knows that the row is here has learned it by an ordinary load
    unsigned asked = 0;
    const auto pieces = static_cast<unsigned>((a_.row_bytes + SendStages::kStageBytes - 1) / SendStages::kStageBytes);
    for (unsigned piece = 0; piece < pieces; ++piece) {
      for (; asked < pieces && asked <= piece + SendStages::kAhead; ++asked) {
        const Cursor at{0, static_cast<int>(asked) * SendStages::kStageBytes};
        const Part part = part_between(at, mine_.begin, mine_.end);
        const bool loads = from != nullptr && part.bytes > 0;
        ring_.claim();
        ring_.expect(total_ + asked, min(SendStages::kStageBytes, a_.row_bytes - at.offset));
        ring_.load(total_ + asked, part.in_stage, loads ? from + part.in_block : nullptr, part.bytes);
      }
      ring_.wait_full(total_ + piece);
      store({0, static_cast<int>(piece) * SendStages::kStageBytes}, total_ + piece);
      ring_.stored();
    }
    total_ += pieces;
  }
  __device__ void drain() { ring_.drain(); }

 private:
  /// A place in this warp's sequence of pieces: the run of `token`'s wire row from `offset` on.
  struct Cursor {
    std::int64_t token;
    int offset = 0;
    __device__ bool is_first() const { return offset == 0; }
  };
  /// What a lane knows of its block of the payload.
  struct Block {
    const std::byte* data = nullptr;  ///< null: its pieces are made by all lanes
    std::int64_t row_stride = 0;
    int begin = 0, end = 0, padded = 0;  ///< begin and end in the wire row
  };
  /// What of a piece belongs to one block.
  struct Part {
    int in_block, in_stage, bytes;
  };
  __device__ void advance(Cursor& at) const {
    at.offset += SendStages::kStageBytes;
    if (at.offset < a_.row_bytes) return;
    at.offset = 0;
    at.token += step_;
  }
  __device__ static Part part_between(const Cursor& at, int block_begin, int block_end) {
    const int begin = max(block_begin, at.offset), end = min(block_end, at.offset + SendStages::kStageBytes);
    return {begin - block_begin, begin - at.offset, end - begin};
  }
  __device__ Part part_of(const Cursor& at, int block) const {
    const BlockArgs& b = a_.blocks[block];
    return part_between(at, b.begin, b.begin + b.padded);
  }

  /// Stores a piece at every destination.
  __device__ void store(const Cursor& at, unsigned piece) {
    const Part mine = part_between(at, mine_.begin, mine_.end);
    for (int b = 0; b < a_.num_blocks; ++b) {
      const int bytes = __shfl_sync(kAll, mine.bytes, b), in_stage = __shfl_sync(kAll, mine.in_stage, b);
      const int padded = __shfl_sync(kAll, mine_.padded, b), in_block = __shfl_sync(kAll, mine.in_block, b);
      if (bytes <= 0) continue;
      std::byte* to = nullptr;
      if (destination_.blocks != nullptr)
        to = destination_.blocks[b] + static_cast<std::int64_t>(destination_.row) * padded + in_block;
      ring_.store(piece, in_stage, to, bytes);
    }
  }

  /// Brings a piece in its wire form into its stage.
  __device__ void bring(const Cursor& at, unsigned piece) {
    const Part mine = part_between(at, mine_.begin, mine_.end);
    const bool loads = mine_.data != nullptr && mine.bytes > 0;
    int asked_bytes = min(SendStages::kStageBytes, a_.row_bytes - at.offset);
    if (!in_pieces_) {
      make(at, piece);
      asked_bytes = static_cast<int>(__reduce_add_sync(kAll, loads ? static_cast<unsigned>(mine.bytes) : 0u));
    }
    ring_.expect(piece, asked_bytes);
    ring_.load(piece, mine.in_stage, loads ? mine_.data + at.token * mine_.row_stride + mine.in_block : nullptr,
               mine.bytes);
  }
  /// The parts of a piece that cannot be copied as they are.
  __device__ void make(const Cursor& at, unsigned piece) {
    for (int b = 0; b < a_.num_blocks; ++b) {
      const Part part = part_of(at, b);
      const BlockArgs& block = a_.blocks[b];
      if (part.bytes <= 0 || block.in_pieces) continue;
      std::byte* to = ring_.data(piece) + part.in_stage;
      if (a_.codec != Codec::kNone && b < 2) {
        quantise(at.token, b, part, to);
      } else {
        gather(block, block.data + at.token * block.row_stride, part, to);
      }
    }
    ring_.written();
  }

  /// Elements that do not lie side by side, or not on 16-byte boundaries.
  __device__ void gather(const BlockArgs& block, const std::byte* row, const Part& part, std::byte* to) const {
    const auto copy = [&]<typename Word>(Word) {
      constexpr int kBytes = static_cast<int>(sizeof(Word));
      const int end = min(part.bytes, block.bytes - part.in_block);
      for (int at = lane_ * kBytes; at < end; at += 32 * kBytes) {
        *reinterpret_cast<Word*>(to + at) =
            *reinterpret_cast<const Word*>(row + (part.in_block + at) / kBytes * block.element_stride);
      }
    };
    switch (block.element_bytes) {
      case 1:
        return copy(std::uint8_t{});
      case 2:
        return copy(std::uint16_t{});
      case 4:
        return copy(std::uint32_t{});
      default:
        return copy(std::uint64_t{});
    }
  }

  /// bf16 to fp8 with a scale per block of channels: block 0 of the wire row is the data, block 1 the scales, each worked out
  /// from the row when its piece is brought.
  __device__ void quantise(std::int64_t token, int which, const Part& part, std::byte* to) const {
    const BlockArgs& source = a_.blocks[0];
    const int hidden = source.width;
    const std::byte* row = source.data + token * source.row_stride;
    const int group = a_.scale_block;
    const bool data = which == 0;
    const int scale_bytes = a_.codec == Codec::kFp8F32 ? 4 : 1;
    // A run of data begins at a multiple of the scale block; a run of scales holds whole scales.
    const int first = data ? part.in_block / group : part.in_block / scale_bytes;
    const int end_channel = data ? min(hidden, part.in_block + part.bytes) : hidden;
    const int count = data ? (end_channel - part.in_block + group - 1) / group
                           : min((hidden + group - 1) / group - first, part.bytes / scale_bytes);
    const auto value = [&](int channel) {
      return *reinterpret_cast<const std::uint16_t*>(row + channel * source.element_stride);
    };
    for (int i = 0; i < count; ++i) {
      const int begin = (first + i) * group, end = min(hidden, begin + group);
      unsigned largest = 0;
      for (int c = begin + lane_; c < end; c += 32)
        largest = max(largest, static_cast<unsigned>(wire::bf16_magnitude_or_zero(value(c))));
      largest = __reduce_max_sync(kAll, largest);
      const auto magnitude = static_cast<std::uint16_t>(largest);
      if (!data) {
        if (lane_ != 0) continue;
        if (a_.codec == Codec::kFp8F32) {
          reinterpret_cast<float*>(to)[i] = wire::fp8_scale_f32(magnitude).scale;
        } else {
          reinterpret_cast<std::uint8_t*>(to)[i] = wire::fp8_scale_ue8m0(magnitude).scale;
        }
        continue;
      }
      const float multiplier = a_.codec == Codec::kFp8F32 ? wire::fp8_scale_f32(magnitude).multiplier
                                                          : wire::fp8_scale_ue8m0(magnitude).multiplier;
      for (int c = begin + lane_; c < end; c += 32)
        reinterpret_cast<std::uint8_t*>(to)[c - part.in_block] = wire::fp8_encode(value(c), multiplier);
    }
  }

  __device__ Choice choice_of(std::int64_t token) const {
    Choice out;
    if (token >= a_.num_tokens || lane_ >= a_.top_k) return out;
    const std::int64_t at = token * a_.top_k + lane_;
    out.rank = a_.handle.ranks[at];
    out.slot = a_.handle.slots[at];
    out.row = a_.handle.rows[at];
    out.token = a_.handle.tokens[at];
    if constexpr (kNetwork) {
      const std::int32_t node = out.rank < 0 ? network_->my_node : network_->node_of[out.rank];
      if (node != network_->my_node) {
        out.node = node;
        out.forward_row = a_.handle.forward_rows[token * network_->num_nodes + node];
      }
    }
    if (a_.has_weights) out.weight = __float_as_int(a_.handle.weights[at]);
    return out;
  }

  /// All choices there get their row from here.
  __device__ bool is_everywhere(std::int32_t rank) const { return a_.own_everywhere && rank == a_.group.rank; }

  __device__ void find_destination(const Choice& choice) {
    if constexpr (kNetwork) return find_stream(choice);
    const std::int32_t rank = choice.rank;
    const unsigned same = __match_any_sync(kAll, rank >= 0 ? rank : -1 - lane_);
    destination_ = {};
    const bool first = (same & ((1u << lane_) - 1)) == 0;
    if (rank < 0 || !(first || is_everywhere(rank))) return;
    std::byte** receiver = receivers_.of(rank);
    if (receiver[0] == nullptr) return;
    std::byte* record = receiver[0] + static_cast<std::int64_t>(choice.token) * record_bytes_;
    destination_ = {receiver + 1, first ? record : nullptr, choice.row};
  }

  /// kNetwork: the first choice in each other node.
  __device__ void find_stream(const Choice& choice) {
    const unsigned same = __match_any_sync(kAll, choice.node >= 0 ? choice.node : -1 - lane_);
    destination_ = {};
    if (choice.node < 0 || (same & ((1u << lane_) - 1)) != 0) return;
    std::byte** receiver = receivers_.of(choice.node);
    if (receiver[0] == nullptr) return;
    std::byte* record = receiver[0] + static_cast<std::int64_t>(choice.forward_row) * record_bytes_;
    destination_ = {receiver + 1, record, choice.forward_row};
  }

  /// kNetwork: this warp has staged so many tokens; `all`: it has no more. Chunks that are thereby whole are put.
  __device__ void put_chunks(std::uint64_t epoch, int tokens, bool all) {
    const StreamChunks chunks(a_.num_tokens, step_);
    if (!all && tokens % chunks.tokens_per_warp != 0) return;
    const int ended = all ? chunks.count : tokens / chunks.tokens_per_warp;
    if (ended == reported_) return;
    ring_.drain();
    for (; reported_ < ended; ++reported_) put_chunk(a_, *network_, epoch, chunks, reported_);
  }

  /// kWide: the first choice at each rank, or all.
  __device__ void find_destinations(std::int64_t token) {
    list_.clear();
    for (int first = 0; first < a_.top_k; first += 32) {
      const int k = first + lane_;
      const std::int64_t at = token * a_.top_k + k;
      const std::int32_t rank = k < a_.top_k ? a_.handle.ranks[at] : -1;
      std::byte** receiver = rank < 0 ? nullptr : receivers_.of(rank);
      Destination mine;
      if (receiver != nullptr && receiver[0] != nullptr) {
        mine = {receiver + 1, receiver[0] + static_cast<std::int64_t>(a_.handle.tokens[at]) * record_bytes_,
                a_.handle.rows[at]};
      }
      list_.add(mine, is_everywhere(rank));
    }
  }
  /// kWide: calls `send` with the destinations of the list, 32 at a time.
  template <typename Send>
  __device__ void send_to_all(Send&& send) {
    for (int first = 0; first < list_.size(); first += 32) {
      destination_ = list_.at(first + lane_);
      send();
    }
  }
  /// kWide: the token's record, in shared memory.
  __device__ void write_wide_record(std::int64_t token) {
    const int k = a_.top_k;
    const std::int64_t at = token * k;
    begin_record(token);
    for (int c = lane_; c < k; c += 32) {
      records_[4 + c] = a_.handle.slots[at + c];
      records_[4 + k + c] = a_.handle.rows[at + c];
      records_[4 + 2 * k + c] = a_.handle.tokens[at + c];
      records_[4 + 3 * k + c] = a_.has_weights ? __float_as_int(a_.handle.weights[at + c]) : 0;
    }
    __syncwarp();
  }
  __device__ void begin_record(std::int64_t token) {
    __syncwarp();
    if (lane_ != 0) return;
    records_[0] = a_.group.rank;
    records_[1] = static_cast<std::int32_t>(token);
    records_[2] = -1;
    records_[3] = 0;
  }

  /// The token's record, built in shared memory and stored by ordinary stores to every destination.
  __device__ void send_record(std::int64_t token, const Choice& choice) {
    const int k = a_.top_k;
    begin_record(token);
    if (lane_ < k) {
      records_[4 + lane_] = choice.slot;
      records_[4 + k + lane_] = choice.row;
      records_[4 + 2 * k + lane_] = choice.token;
      records_[4 + 3 * k + lane_] = choice.weight;
    }
    __syncwarp();
    store_record();
  }
  __device__ void store_record() {
    for (unsigned left = __ballot_sync(kAll, destination_.record != nullptr); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      auto* to = reinterpret_cast<std::byte*>(
          __shfl_sync(kAll, reinterpret_cast<unsigned long long>(destination_.record), lane));
      if constexpr (kNetwork) {  // the record says where the row is in its stream
        const std::int32_t row = __shfl_sync(kAll, destination_.row, lane);
        __syncwarp();
        if (lane_ == 0) records_[2] = row;
        __syncwarp();
      }
      for (int at = lane_ * 16; at < record_bytes_; at += 32 * 16)
        *reinterpret_cast<uint4*>(to + at) =
            *reinterpret_cast<const uint4*>(reinterpret_cast<std::byte*>(records_) + at);
    }
  }

  const SendArgs& a_;
  const NetworkArgs* network_;
  int reported_ = 0;  ///< kNetwork: chunks
  const Receivers receivers_;
  StageRing<SendStages> ring_;
  std::int32_t* records_;
  DestinationList list_;
  Destination destination_;
  Block mine_;
  const int lane_;
  const int record_bytes_, step_;
  bool in_pieces_;  ///< every block's pieces can be copied as they are
  unsigned total_;
  std::int64_t first_;
};

/// Entries of a warp's list of destinations.
__host__ __device__ inline int most_destinations(int top_k) {
  return top_k <= kMaxTopK ? 0 : top_k;
}
}  // namespace ferry::cuda
