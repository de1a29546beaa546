// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Latency mode on the host's side: what can be asked for, arguments and launches. A call that is made in one go is one kernel.
#include <fmt/format.h>

#include "backend/trace.h"
#include "cuda/check.h"
#include "cuda/cuda_backend.h"
#include "cuda/usual_calls.h"

namespace ferry::cuda {
namespace {

constexpr int kMaxLatencyTopK = 32;  ///< a token's choices are the lanes of one warp when they return

}  // namespace

std::vector<std::byte> CudaBackend::device_identity() const {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device_), "cudaGetDeviceProperties");
  const auto* bytes = reinterpret_cast<const std::byte*>(properties.uuid.bytes);
  return {bytes, bytes + sizeof(properties.uuid.bytes)};
}

std::string CudaBackend::why_not_latency_mode(const DispatchCall& call) const {
  if (call.top_k > kMaxLatencyTopK)
    return fmt::format("latency mode on the cuda backend takes top-k up to {}, not {}; use throughput mode",
                       kMaxLatencyTopK, call.top_k);
  const std::int64_t slot =
      wire::packet_format(call.format, call.top_k, call.args.codec, call.args.scale_block).slot_bytes;
  if (slot > runtime_.device_layout.latency.slot_bytes) {
    return fmt::format(
        "rows take {} bytes in packets, a slot of the window has {} (limits.hidden, dtype and extra_bytes)", slot,
        runtime_.device_layout.latency.slot_bytes);
  }
  HandleHeader header;
  header.num_slots = call.placement->num_slots();
  header.num_local_experts = call.placement->max_local_experts();
  return why_not_latency(latency_size(call.num_tokens, call.top_k, header), limits_);
}

LatencySize CudaBackend::latency_size(std::int64_t num_tokens, int top_k, const HandleHeader& header) const {
  return {.num_experts = header.num_slots,  // at most: every expert has a place
          .num_slots = header.num_slots,
          .num_ranks = runtime_.topology.num_ranks(),
          .num_local = header.num_local_experts,
          .top_k = top_k,
          .choices = num_tokens * top_k};
}

LatencyDispatchArgs& CudaBackend::latency_args(DispatchCall& call) {
  if (!call.backends) call.backends = std::make_shared<LatencyDispatchArgs>(make_latency_args(call));
  return *static_cast<LatencyDispatchArgs*>(call.backends.get());
}

LatencyDispatchArgs CudaBackend::make_latency_args(DispatchCall& call) {
  const Handle& handle = call.result.handle;
  const HandleHeader& header = handle.shadow()->header;
  LatencyDispatchArgs args;
  args.group = group_args(call, *call.placement, call.args.wait_ns);
  args.recv_counts = {call.args.recv_counts.data, call.args.recv_counts.dtype == DType::kInt64};
  if (spans_nodes()) args.group.windows = network_->latency_windows();
  args.num_tokens = call.num_tokens;
  args.top_k = call.top_k;
  args.renormalise = call.args.renormalise;
  args.handle = handle_args(handle.mutable_bytes().data(), header);
  args.write_handle = !call.cached.valid() || call.args.topk_weights.present();
  if (call.cached.valid()) {
    args.cached_slots = HandleView(call.cached.mutable_bytes().data(), header_of(call.cached)).slots();
  } else {
    const Tensor& ids = call.args.topk_ids;
    args.ids = ids.data;
    args.wide_ids = ids.dtype == DType::kInt64;
    args.ids_stride[0] = ids.strides[0];
    args.ids_stride[1] = ids.strides[1];
  }
  if (const Tensor& weights = call.args.topk_weights; weights.present()) {
    args.weights = static_cast<const float*>(weights.data);
    args.weights_stride[0] = weights.strides[0];
    args.weights_stride[1] = weights.strides[1];
  } else if (call.has_weights) {
    args.weights = args.handle.weights;  // of the handle that routes this call
    args.weights_stride[0] = call.top_k;
    args.weights_stride[1] = 1;
  }
  args.num_blocks = call.format.num_blocks;
  args.codec = call.args.codec;
  args.scale_block = call.args.scale_block;
  args.format = wire::packet_format(call.format, call.top_k, call.args.codec, call.args.scale_block);
  std::size_t wire_block = 0, first = 0;
  if (args.codec != Codec::kNone) {
    args.blocks[0] = block_args(call.args.payload[0], call.format[0]);
    args.blocks[1] = block_args(call.args.payload[0], call.format[1]);
    wire_block = 2;
    first = 1;
  }
  for (std::size_t b = first; b < call.args.payload.size(); ++b, ++wire_block)
    args.blocks[wire_block] = block_args(call.args.payload[b], call.format[static_cast<int>(wire_block)]);
  args.first_slot = call.placement->first_slot(runtime_.rank);
  args.num_local = header.num_local_experts;
  args.shape = call.shape;
  return args;
}

bool CudaBackend::is_common(const Windows& windows, const Placement& placement) {
  if (spans_nodes() || std::ssize(windows.live) != runtime_.topology.num_ranks()) return false;
  if (placement.digest() != seen_placement_.digest || placement.num_slots() != seen_placement_.num_slots)
    seen_placement_ = {placement.digest(), placement.num_slots(), is_even(placement)};
  return seen_placement_.is_even;
}

void CudaBackend::launch(DispatchCall& call, Phase phase, cudaStream_t stream) {
  const LatencyDispatchArgs& args = latency_args(call);
  const HandleHeader& header = call.result.handle.shadow()->header;
  const std::int64_t pieces = args.format.pieces();
  const auto reached = std::min<std::int64_t>(call.top_k, std::ssize(call.windows->live));
  LatencyWork work{.num_sms = call.args.num_sms};
  if (phase != Phase::kReceive) work.send_items = call.num_tokens * (pieces + 1);
  if (phase != Phase::kSend)
    work.recv_items = call.num_tokens * reached * pieces;  // what peers with as many tokens send
  if (spans_nodes()) launch_before(args.group, LatencyKind::kDispatch, phase, stream);
  const LatencySize size = latency_size(call.num_tokens, call.top_k, header);
  if (is_common(*call.windows, *call.placement) && is_usual(args, size, limits_)) {
    work.bookkeepers = 1;
    launch_usual(args, phase, work, size, limits_, stream);
  } else {
    launch_latency_dispatch(args, phase, plan_latency_dispatch(work, size, limits_), stream);
  }
  if (spans_nodes() && phase == Phase::kSend) launch_latency_ship(args, network_->args(), stream);
  mark(stream);
}

void CudaBackend::receive_latency(DispatchCall& call) {
  cudaStream_t stream = follow(call.args.stream);
  LatencyDispatchArgs& args = latency_args(call);
  const HandleHeader& header = call.result.handle.shadow()->header;
  const std::int64_t rows =
      call.shape.layout == Layout::kRankMajor ? header.num_rows : call.shape.capacity * header.num_local_experts;
  const LatencyLayout& layout = runtime_.device_layout.latency;
  std::byte* results = call.windows->device(runtime_.rank) + layout.results + call.flight * layout.results_stride;
  for (int b = 0; b < call.format.num_blocks; ++b) {
    args.rows[b] = call.args.output == Output::kOwned ? owned_block(call, rows * call.format[b].padded)
                                                      : results + layout.result_rows * call.format[b].offset;
  }
  const Choices choices = make_choices(call);
  args.ids_out = choices.ids;
  args.wide_ids_out = choices.wide_ids;
  args.weights_out = choices.weights;
  args.shown_rows = rows;
  args.num_rows = reinterpret_cast<std::int64_t*>(allocate(call, *call.memory, 8));
  call.result.num_rows = Tensor::contiguous(args.num_rows, DType::kInt64, {1});
  args.counts = call.args.host_counts ? memory_->counts(call.flight) : nullptr;
  args.ticket = call.epoch;
  launch(call, call.blocking && !spans_nodes() ? Phase::kWhole : Phase::kReceive, stream);
  if (call.args.host_counts) {
    wait_for_counts(call);
    if (call.shape.layout == Layout::kRankMajor) {
      call.result.topk_ids.shape[0] = header.num_rows;
      if (call.has_weights) call.result.topk_weights.shape[0] = header.num_rows;
    }
  }
  make_tensors(call, {std::to_array(args.rows)});
}

/// From what limits.owned_rows sets apart, else from the driver, which may wait for whatever runs on the device.
std::byte* CudaBackend::owned_block(DispatchCall& call, std::int64_t bytes) {
  auto block = owned_->try_allocate(static_cast<std::size_t>(bytes));
  if (!block) return allocate(call, *call.memory, bytes);
  call.memory->keep.push_back(block);
  return block.get();
}

void CudaBackend::launch(const CombineCall& call, const CombineArgsOnDevice& args, Phase phase, cudaStream_t stream) {
  const HandleShadow& shadow = *call.handle.shadow();
  const std::int64_t pieces = wire::div_up(args.sent_stride / 16, wire::kPieceVectors);
  const auto reached = std::min<std::int64_t>(call.top_k, std::ssize(call.windows->live));
  LatencyWork work{.num_sms = call.args.num_sms};
  const std::int64_t rows = shadow.counts_known ? shadow.header.num_rows : call.num_tokens * reached;
  if (phase != Phase::kReceive) work.send_items = rows * pieces;
  if (phase != Phase::kSend) work.recv_items = call.num_tokens * pieces;
  if (spans_nodes()) launch_before(args.group, LatencyKind::kCombine, phase, stream);
  const LatencySize size = latency_size(call.num_tokens, call.top_k, shadow.header);
  // The handle's placement counts; a dispatch may have brought its own.
  const bool same_placement = shadow.header.placement_digest == call.placement->digest() &&
                              shadow.header.num_slots == call.placement->num_slots();
  if (same_placement && is_common(*call.windows, *call.placement) && is_usual(args, size)) {
    work.bookkeepers = 1;
    launch_usual(args, phase, work, size, limits_, stream);
  } else {
    launch_latency_combine(args, phase, plan_latency_combine(work, size, limits_), stream);
  }
  if (spans_nodes() && phase == Phase::kSend) launch_latency_ship(args, network_->args(), stream);
  mark(stream);
}

/// Ranks of other nodes are told what was read here before a send waits for what they have read; and what they sent is here before a
/// kernel looks at it.
void CudaBackend::launch_before(const GroupArgs& group, LatencyKind kind, Phase phase, cudaStream_t stream) {
  if (phase == Phase::kReceive) {
    launch_latency_await(group, network_->args(), kind, stream);
  } else {
    launch_latency_credits(group, network_->args(), kind, stream);
  }
}

}  // namespace ferry::cuda
