// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 2, dispatch_send: a warp takes a token, brings its row in its wire form piece by piece into shared memory, once, and
// stores every piece at each destination, straight into the row where it belongs. See the host step of this name.
#include "cuda/device/stage.cuh"
#include "cuda/device/wait.cuh"
#include "cuda/kernels.h"
#include "wire/fp8_quant.h"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;

/// Where a token goes: lane k holds the destination of choice k, if it is the first choice there.
struct Destination {
  std::byte* rows = nullptr;  ///< null: none
  std::byte* record = nullptr;
  std::int32_t row = -1;
};

class RowSender {
 public:
  __device__ RowSender(const SendArgs& args, WarpStages& stages, std::int32_t* records)
      : a_(args), ring_(stages), records_(records), lane_(static_cast<int>(threadIdx.x) % 32) {
    record_bytes_ = static_cast<int>(wire::TokenMeta::bytes(args.top_k));
    for (int b = 0; b < args.num_blocks; ++b) pieces_ += pieces_of(b);
    warps_ = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
    first_ = static_cast<std::int64_t>(threadIdx.x / 32) * gridDim.x + blockIdx.x;
    const std::int64_t tokens = first_ < args.num_tokens ? (args.num_tokens - first_ + warps_ - 1) / warps_ : 0;
    total_ = tokens * pieces_;
  }

  __device__ void send_all() {
    std::int64_t asked = 0;
    Cursor ask = cursor(), go = cursor();
    for (std::int64_t piece = 0; piece < total_; ++piece) {
      for (; asked < total_ && asked <= piece + kAhead; ++asked) {
        ring_.claim();
        bring(ask, asked);
        advance(ask);
      }
      if (go.is_first()) {
        destination_ = destination_of(go.token);
        send_record(go.token);
      }
      ring_.wait_full(piece);
      const wire::Block& wire = a_.blocks[go.block].wire;
      std::byte* to = destination_.rows == nullptr
                          ? nullptr
                          : destination_.rows + a_.group.layout.recv_rows * wire.offset +
                                destination_.row * wire.padded + go.offset;
      ring_.store(piece, to, piece_bytes(go));
      advance(go);
    }
    ring_.drain();
  }

 private:
  /// A place in this warp's sequence of pieces.
  struct Cursor {
    std::int64_t token;
    int block = 0, offset = 0;
    __device__ bool is_first() const { return block == 0 && offset == 0; }
  };
  __device__ Cursor cursor() const { return {first_}; }
  __device__ int pieces_of(int block) const {
    return static_cast<int>((a_.blocks[block].wire.padded + kStageBytes - 1) / kStageBytes);
  }
  __device__ int piece_bytes(const Cursor& at) const {
    return static_cast<int>(min(static_cast<std::int64_t>(kStageBytes), a_.blocks[at.block].wire.padded - at.offset));
  }
  __device__ void advance(Cursor& at) const {
    at.offset += kStageBytes;
    if (at.offset < a_.blocks[at.block].wire.padded) return;
    at.offset = 0;
    if (++at.block < a_.num_blocks) return;
    at.block = 0;
    at.token += warps_;
  }

  /// Brings a piece in its wire form into its stage.
  __device__ void bring(const Cursor& at, std::int64_t piece) {
    const BlockArgs& block = a_.blocks[at.block];
    const std::byte* row = block.data + at.token * block.row_stride;
    if (block.in_pieces) return ring_.load(piece, row + at.offset, piece_bytes(at));
    std::byte* to = ring_.data(piece);
    if (a_.codec != Codec::kNone && at.block < 2) {
      quantise(at, to);
    } else {
      gather(block, row, at.offset, piece_bytes(at), to);
    }
    ring_.written(piece);
  }

  /// Elements that do not lie side by side, or not on 16-byte boundaries.
  __device__ void gather(const BlockArgs& block, const std::byte* row, int offset, int bytes, std::byte* to) const {
    const auto copy = [&]<typename Word>(Word) {
      constexpr int kBytes = static_cast<int>(sizeof(Word));
      const int end = static_cast<int>(min(static_cast<std::int64_t>(bytes), block.wire.bytes - offset));
      for (int at = lane_ * kBytes; at < end; at += 32 * kBytes) {
        *reinterpret_cast<Word*>(to + at) =
            *reinterpret_cast<const Word*>(row + (offset + at) / kBytes * block.element_stride);
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
  __device__ void quantise(const Cursor& at, std::byte* to) const {
    const BlockArgs& source = a_.blocks[0];
    const auto hidden = static_cast<int>(source.wire.width);
    const std::byte* row = source.data + at.token * source.row_stride;
    const int group = a_.scale_block;
    const bool data = at.block == 0;
    const int scale_bytes = a_.codec == Codec::kFp8F32 ? 4 : 1;
    // A piece of data begins at a multiple of the scale block; a piece of scales holds whole scales.
    const int first = data ? at.offset / group : at.offset / scale_bytes;
    const int end_channel = data ? min(hidden, at.offset + kStageBytes) : hidden;
    const int count = data ? (end_channel - at.offset + group - 1) / group
                           : min((hidden + group - 1) / group - first, kStageBytes / scale_bytes);
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
        reinterpret_cast<std::uint8_t*>(to)[c - at.offset] = wire::fp8_encode(value(c), multiplier);
    }
  }

  __device__ Destination destination_of(std::int64_t token) const {
    const std::int64_t at = token * a_.top_k + lane_;
    const std::int32_t rank = lane_ < a_.top_k ? a_.handle.ranks[at] : -1;
    const unsigned same = __match_any_sync(kAll, rank >= 0 ? rank : -1 - lane_);
    Destination out;
    if (rank < 0 || (same & ((1u << lane_) - 1)) != 0 || a_.group.windows[rank] == nullptr) return out;
    const DeviceLayout& layout = a_.group.layout;
    out.rows = a_.group.windows[rank] + layout.recv + a_.group.flight * layout.recv_stride;
    out.record = a_.group.windows[rank] + layout.recv_meta + a_.group.flight * layout.recv_meta_stride +
                 static_cast<std::int64_t>(a_.handle.tokens[at]) * record_bytes_;
    out.row = a_.handle.rows[at];
    return out;
  }

  /// The token's record, built in shared memory and stored by ordinary stores to every destination.
  __device__ void send_record(std::int64_t token) {
    const int k = a_.top_k;
    __syncwarp();
    if (lane_ == 0) {
      records_[0] = a_.group.rank;
      records_[1] = static_cast<std::int32_t>(token);
      records_[2] = -1;
      records_[3] = 0;
    }
    if (lane_ < k) {
      const std::int64_t at = token * k + lane_;
      records_[4 + lane_] = a_.handle.slots[at];
      records_[4 + k + lane_] = a_.handle.rows[at];
      records_[4 + 2 * k + lane_] = a_.handle.tokens[at];
      records_[4 + 3 * k + lane_] = a_.has_weights ? __float_as_int(a_.handle.weights[at]) : 0;
    }
    __syncwarp();
    for (unsigned left = __ballot_sync(kAll, destination_.rows != nullptr); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      auto* to = reinterpret_cast<std::byte*>(
          __shfl_sync(kAll, reinterpret_cast<unsigned long long>(destination_.record), lane));
      for (int at = lane_ * 16; at < record_bytes_; at += 32 * 16)
        *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(reinterpret_cast<std::byte*>(records_) + at);
    }
  }

  const SendArgs& a_;
  StageRing ring_;
  std::int32_t* records_;
  Destination destination_;
  const int lane_;
  int record_bytes_, pieces_ = 0;
  std::int64_t warps_, first_, total_;
};

/// Tells the peers that their rows are there, and files the call; by the last block.
__device__ void finish(const GroupArgs& group, std::uint64_t epoch) {
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x))
    post(group, DeviceSignal::kDispatchRows, peer, total_of(epoch));
  __syncthreads();
  if (threadIdx.x != 0) return;
  group.state->dispatch_epoch[group.flight] = epoch;
  group.state->exchanges += 1;
  group.state->epoch = epoch;
}

extern __shared__ __align__(128) std::byte shared_bytes[];

__global__ void __launch_bounds__(256, 1) dispatch_send_kernel(const __grid_constant__ SendArgs a) {
  const std::uint64_t epoch = a.group.state->epoch + 1;
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto* stages = reinterpret_cast<WarpStages*>(shared_bytes);
  auto* records = reinterpret_cast<std::int32_t*>(shared_bytes + warps * sizeof(WarpStages)) +
                  warp * (wire::TokenMeta::bytes(a.top_k) / 4);
  if (!has_failed(a.group, epoch)) {
    RowSender sender(a, stages[warp], records);
    sender.send_all();
  }
  __threadfence_system();
  if (is_last_block(a.group)) finish(a.group, epoch);
}

}  // namespace

std::size_t send_shared_bytes(int warps, int top_k) {
  return static_cast<std::size_t>(warps) *
         (sizeof(WarpStages) + static_cast<std::size_t>(wire::TokenMeta::bytes(top_k)));
}

void launch_dispatch_send(const SendArgs& args, const Launch& launch, cudaStream_t stream) {
  dispatch_send_kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
}

void prepare_dispatch_send(int max_shared_bytes) {
  cudaFuncSetAttribute(dispatch_send_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, max_shared_bytes - kStaticSharedBytes);
}

}  // namespace ferry::cuda
