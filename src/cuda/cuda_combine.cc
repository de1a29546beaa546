// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The combine half of the CUDA backend: where the rows of a call come from, and its launches.
#include "backend/trace.h"
#include "cuda/check.h"
#include "cuda/cuda_backend.h"

namespace ferry::cuda {
namespace {

/// Latency mode: both halves in one. Not where rows of x could be overwritten before they are sent.
bool is_one_kernel(const CombineCall& call) {
  return call.blocking && !call.out_over_x();
}

bool is_flat(const CombineArgsOnDevice& args) {
  return args.reduction.group == Reduction::Group::kChoice;
}

std::int64_t bytes_of(const Tensor& tensor) {
  return static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
}

}  // namespace

CombineArgsOnDevice CudaBackend::combine_args(const CombineCall& call) {
  const CombineArgs& given = call.args;
  const HandleShadow& shadow = *call.handle.shadow();
  CombineArgsOnDevice args;
  args.group = group_args(call, *call.placement, given.wait_ns);
  if (spans_nodes() && call.handle.mode() == Mode::kLatency) args.group.windows = network_->latency_windows();
  args.num_tokens = call.num_tokens;
  args.top_k = call.top_k;
  args.num_local = shadow.header.num_local_experts;
  args.num_slots = shadow.header.num_slots;
  args.max_rows = static_cast<std::int32_t>(shadow.header.num_rows);
  args.dtype = given.x.dtype;
  args.hidden = call.hidden;
  args.reduction = given.reduction;
  args.codec = given.codec;
  args.layout = call.handle.layout();
  args.expert_capacity = shadow.header.expert_capacity;
  args.handle = handle_args(call.handle.mutable_bytes().data(), shadow.header);
  args.x = static_cast<const std::byte*>(given.x.data);
  args.row_stride = given.x.strides[static_cast<std::size_t>(given.x.ndim) - 2] * bytes_of(given.x);
  args.expert_stride = given.x.ndim == 3 ? given.x.strides[0] * bytes_of(given.x) : 0;
  args.sent_stride = wire::padded(call.row_bytes);

  const DeviceLayout& layout = runtime_.device_layout;
  const std::int64_t input = layout.combine_input + shadow.flight * layout.combine_input_stride;
  const bool flat = given.reduction.group == Reduction::Group::kChoice;
  const bool whole =
      args.layout != Layout::kExpertPadded || args.expert_stride == args.expert_capacity * args.row_stride;
  const bool in_input = args.x == call.windows->device(runtime_.rank) + input && args.row_stride == args.sent_stride &&
                        whole && shadow.header.membership == call.windows->membership.number;
  args.rows_offset = layout.combine_rows + call.flight * layout.combine_rows_stride;
  if (args.layout != Layout::kRankMajor && !flat) {
    args.source = RowSource::kSumChoices;
  } else if (in_input && !call.out_over_x()) {
    args.source = RowSource::kInPlace;
    args.input_flight = shadow.flight;
    args.rows_offset = input;
  } else {
    args.source = RowSource::kCopy;
    // Only while the caller waits: between two phases x may change. Nor where out is written over x.
    args.own_in_place = call.blocking && whole && !call.out_over_x() && call.row_bytes % 16 == 0 &&
                        args.row_stride % 16 == 0 && reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0;
  }
  using Weigh = CombineArgsOnDevice::Weigh;
  if (given.weighting == CombineArgs::Weighting::kFromDispatch) args.weigh = Weigh::kFromDispatch;
  if (given.weighting == CombineArgs::Weighting::kGiven) {
    args.weigh = Weigh::kGiven;
    args.weights = static_cast<const float*>(given.weights.data);
    args.weights_stride[0] = given.weights.strides[0];
    args.weights_stride[1] = given.weights.strides[1];
  }
  if (call.has_topk_weights) {
    // Null says that none are given. An empty tensor's data may be null, too, but a rank without rows may still pass on
    // weights of others between nodes: it gets an address that nobody reads.
    const void* data = given.topk_weights.data;
    args.topk_weights = static_cast<const float*>(data != nullptr ? data : call.windows->device(runtime_.rank));
    args.topk_stride[0] = given.topk_weights.strides[0];
    args.topk_stride[1] = given.topk_weights.ndim == 2 ? given.topk_weights.strides[1] : 0;
  }
  const Tensor* biases[] = {&given.bias0, &given.bias1};
  for (int b = 0; b < 2; ++b) {
    if (!biases[b]->present()) continue;
    args.bias[b] = static_cast<const std::byte*>(biases[b]->data);
    args.bias_dtype[b] = biases[b]->dtype;
    args.bias_stride[b] = biases[b]->strides[0] * bytes_of(*biases[b]);
  }
  args.announces = call.blocking && !spans_nodes() && args.source == RowSource::kInPlace && !call.has_topk_weights &&
                   (flat || args.weigh != Weigh::kGiven);
  return args;
}

void CudaBackend::combine_send(CombineCall& call) {
  StepScope step(call, "combine_send");
  const DeviceScope scope(device_);
  cudaStream_t stream = follow(call.args.stream);
  const CombineArgsOnDevice args = combine_args(call);
  if (call.handle.mode() == Mode::kLatency) {
    if (spans_nodes() || !is_one_kernel(call)) launch(call, args, Phase::kSend, stream);
    return;
  }
  if (args.announces) return;
  Launch launch = plan_over_rows(shape_of(call, call.num_tokens, call.top_k, call.args.num_sms), limits_);
  if (args.source == RowSource::kInPlace && !call.has_topk_weights) launch.blocks = 1;
  if (spans_nodes() && args.weigh == CombineArgsOnDevice::Weigh::kGiven && !is_flat(args))
    launch_weights_across(args, network_->args(), launch, stream);
  launch_combine_send(args, launch, stream);
  if (spans_nodes()) forward(call, args, stream);
  mark(stream);
}

void CudaBackend::combine_recv(CombineCall& call) {
  StepScope step(call, "combine_recv");
  require_windows(call, "combine_recv");
  const DeviceScope scope(device_);
  cudaStream_t stream = follow(call.args.stream);
  CombineArgsOnDevice args = combine_args(call);
  const Tensor& out = call.args.out;
  const bool keep_out = out.present() && !call.discard;
  if (keep_out) {
    call.result.out = out;
  } else {
    const std::int64_t bytes = call.num_tokens * call.row_bytes;
    call.result.out =
        Tensor::contiguous(allocate(call, *call.memory, bytes), call.args.x.dtype, {call.num_tokens, call.hidden});
  }
  args.out = static_cast<std::byte*>(call.result.out.data);
  args.out_stride = call.result.out.strides[0] * bytes_of(call.result.out);
  if (call.has_topk_weights) {
    call.result.topk_weights = Tensor::contiguous(allocate(call, *call.memory, call.num_tokens * call.top_k * 4),
                                                  DType::kFp32, {call.num_tokens, call.top_k});
    args.out_weights = static_cast<float*>(call.result.topk_weights.data);
  }
  call.result.owner = call.memory;
  if (call.handle.mode() == Mode::kLatency)
    return launch(call, args, is_one_kernel(call) && !spans_nodes() ? Phase::kWhole : Phase::kReceive, stream);
  const Launch launch = plan_combine_recv(shape_of(call, call.num_tokens, call.top_k, call.args.num_sms), limits_);
  if (spans_nodes()) {
    if (args.reduction.group != Reduction::Group::kNode) launch_number_returned(args, network_->args(), stream);
    launch_combine_recv(args, network_->args(), launch, stream);
  } else {
    launch_combine_recv(args, launch, stream);
  }
  mark(stream);
}

Tensor CudaBackend::combine_input(const Windows& windows, const Handle& handle, DType dtype, std::int64_t elements) {
  const HandleShadow& shadow = *handle.shadow();
  const std::int64_t stride_bytes = wire::padded(elements * static_cast<std::int64_t>(dtype_bytes(dtype)));
  const DeviceLayout& layout = runtime_.device_layout;
  std::byte* data = windows.device(runtime_.rank) + layout.combine_input + shadow.flight * layout.combine_input_stride;
  const bool padded_layout = handle.layout() == Layout::kExpertPadded;
  const std::int64_t capacity = shadow.header.expert_capacity;
  if (handle.mode() == Mode::kLatency) {
    throw Error(ErrorCode::kUnsupported,
                "ferry::Group::combine_input: in latency mode combine reads x where it is and copies nothing; give it "
                "any tensor");
  }
  const std::int64_t stride = stride_bytes / static_cast<std::int64_t>(dtype_bytes(dtype));
  if (padded_layout) {
    Tensor tensor = Tensor::contiguous(data, dtype, {shadow.header.num_local_experts, capacity, elements});
    tensor.strides = {capacity * stride, stride, 1};
    return tensor;
  }
  const std::int64_t rows = handle.layout() == Layout::kRankMajor ? handle.num_rows() : handle.num_expert_rows();
  Tensor tensor = Tensor::contiguous(data, dtype, {rows, elements});
  tensor.strides[0] = stride;
  return tensor;
}

}  // namespace ferry::cuda
