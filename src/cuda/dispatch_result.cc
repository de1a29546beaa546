// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The tensors of a dispatch result, and the launch of dispatch_recv that fills them.
#include "backend/handle_layout.h"
#include "cuda/cuda_backend.h"
#include "routing/rows.h"

namespace ferry::cuda {
namespace {

/// Rows in the shape of the result: the exact number, or with device counts the most there can be.
std::int64_t shaped_rows(const DispatchCall& call) {
  const HandleHeader& header = call.result.handle.shadow()->header;
  return call.shape.layout == Layout::kRankMajor ? header.num_rows : header.num_expert_rows;
}

Tensor payload_tensor(const DispatchCall& call, const wire::Block& block, std::byte* data, std::int64_t num_rows) {
  const std::int64_t stride = block.padded / static_cast<std::int64_t>(dtype_bytes(block.dtype));
  if (call.shape.layout == Layout::kExpertPadded) {
    const std::int64_t num_local = call.result.handle.shadow()->header.num_local_experts;
    Tensor tensor = Tensor::contiguous(data, block.dtype, {num_local, call.shape.capacity, block.width});
    tensor.strides = {call.shape.capacity * stride, stride, 1};
    return tensor;
  }
  Tensor tensor = Tensor::contiguous(data, block.dtype, {num_rows, block.width});
  tensor.strides[0] = stride;
  return tensor;
}

}  // namespace

void CudaBackend::take_rows_at(DispatchCall& call) {
  const DeviceLayout& layout = runtime_.device_layout;
  call.backends = std::make_shared<RowsPlace>();
  RowsPlace& rows = rows_of(call);
  if (call.args.output == Output::kOwned) {
    rows.most = shaped_rows(call);  // counts are not known yet: the most there can be
    for (int b = 0; b < call.format.num_blocks; ++b) {
      auto block = owned_->try_allocate(static_cast<std::size_t>(rows.most * call.format[b].padded));
      if (!block) break;
      rows.at[static_cast<std::size_t>(b)] = block.get();
      rows.owned.push_back(std::move(block));
    }
    if (std::ssize(rows.owned) == call.format.num_blocks) return;
    rows.owned.clear();
  }
  std::byte* window = call.windows->device(runtime_.rank) + layout.recv + call.flight * layout.recv_stride;
  for (int b = 0; b < call.format.num_blocks; ++b)
    rows.at[static_cast<std::size_t>(b)] = window + layout.recv_rows * call.format[b].offset;
}

void CudaBackend::own_rows(DispatchCall& call, std::int64_t num_rows, cudaStream_t stream) {
  RowsPlace& rows = rows_of(call);
  const bool in_place = !rows.owned.empty();
  CallShape shape = shape_of(call, call.num_tokens, call.top_k, call.args.num_sms);
  shape.recv_tokens = num_rows;
  for (int b = 0; b < call.format.num_blocks; ++b) {
    const std::int64_t bytes = num_rows * call.format[b].padded;
    std::byte*& at = rows.at[static_cast<std::size_t>(b)];
    if (in_place) {
      // In eighths of the most: holes of odd sizes would fit no later result.
      const std::int64_t eighth = (rows.most * call.format[b].padded + 7) / 8;
      owned_->shrink(rows.owned[static_cast<std::size_t>(b)],
                     static_cast<std::size_t>(routing::align_up(bytes, std::max<std::int64_t>(1, eighth))));
      continue;
    }
    std::byte* own = allocate(call, *call.memory, bytes);
    launch_copy(own, at, bytes, plan_over_rows(shape, limits_).blocks, stream);
    at = own;
  }
}

void CudaBackend::make_result(DispatchCall& call, cudaStream_t stream) {
  DispatchResult& result = call.result;
  const HandleShadow& shadow = *result.handle.shadow();
  const HandleHeader& header = shadow.header;
  const std::int64_t num_rows = shaped_rows(call);
  ReceiveArgs args;
  args.group = group_args(call, *call.placement, call.args.wait_ns);
  args.recv_counts = {call.args.recv_counts.data, call.args.recv_counts.dtype == DType::kInt64};
  args.top_k = call.top_k;
  args.num_blocks = call.format.num_blocks;
  args.num_local = header.num_local_experts;
  args.shape = call.shape;
  for (int b = 0; b < call.format.num_blocks; ++b) {
    args.rows[b] = rows_of(call).at[static_cast<std::size_t>(b)];
    args.padded[b] = static_cast<std::int32_t>(call.format[b].padded);
  }
  args.handle = handle_args(result.handle.mutable_bytes().data(), header);
  args.write_records = !call.cached.valid() || call.args.topk_weights.present();
  args.zero_padding = call.args.zero_padding && call.shape.layout == Layout::kExpertMajor;
  args.shown_rows = num_rows;
  args.num_rows = static_cast<std::int64_t*>(result.num_rows.data);
  const Choices choices = make_choices(call);
  args.wide_ids = choices.wide_ids;
  args.ids = choices.ids;
  args.weights = choices.weights;
  CallShape shape = shape_of(call, call.num_tokens, call.top_k, call.args.num_sms);
  if (shadow.counts_known) shape.recv_tokens = header.num_rows;
  launch_dispatch_recv(args, plan_dispatch_recv(shape, limits_), stream);

  if (call.args.output == Output::kOwned) own_rows(call, num_rows, stream);
  mark(stream);
  for (auto& block : rows_of(call).owned) call.memory->keep.push_back(std::move(block));
  make_tensors(call, rows_of(call).at);
}

CudaBackend::Choices CudaBackend::make_choices(DispatchCall& call) {
  DispatchResult& result = call.result;
  const HandleHeader& header = result.handle.shadow()->header;
  const bool rank_major = call.shape.layout == Layout::kRankMajor;
  const std::int64_t num_rows = shaped_rows(call);
  Choices out;
  if (rank_major) {
    out.wide_ids = call.args.topk_ids.present() && call.args.topk_ids.dtype == DType::kInt64;
    const DType dtype = out.wide_ids ? DType::kInt64 : DType::kInt32;
    out.ids = allocate(call, *call.memory, num_rows * call.top_k * static_cast<std::int64_t>(dtype_bytes(dtype)));
    result.topk_ids = Tensor::contiguous(out.ids, dtype, {num_rows, call.top_k});
  }
  if (call.has_weights) {
    const std::int64_t width = rank_major ? call.top_k : 1;
    out.weights = reinterpret_cast<float*>(allocate(call, *call.memory, num_rows * width * 4));
    result.topk_weights =
        rank_major ? Tensor::contiguous(out.weights, DType::kFp32, {num_rows, call.top_k})
        : call.shape.layout == Layout::kExpertMajor
            ? Tensor::contiguous(out.weights, DType::kFp32, {num_rows})
            : Tensor::contiguous(out.weights, DType::kFp32, {header.num_local_experts, call.shape.capacity});
  }
  return out;
}

void CudaBackend::make_tensors(DispatchCall& call, const std::array<std::byte*, wire::kMaxBlocks>& rows) {
  DispatchResult& result = call.result;
  const HandleShadow& shadow = *result.handle.shadow();
  const HandleHeader& header = shadow.header;
  const HandleView view(result.handle.mutable_bytes().data(), header);
  const std::int64_t num_rows = shaped_rows(call);
  result.layout = call.shape.layout;
  for (int b = 0; b < call.format.num_blocks; ++b)
    result.payload.push_back(payload_tensor(call, call.format[b], rows[static_cast<std::size_t>(b)], num_rows));
  result.source_offsets = Tensor::contiguous(view.source_offsets(), DType::kInt32, {header.num_ranks + 1});
  result.expert_counts = Tensor::contiguous(view.expert_counts(), DType::kInt32, {header.num_local_experts});
  result.expert_offsets = Tensor::contiguous(view.expert_offsets(), DType::kInt32, {header.num_local_experts + 1});
  if (call.args.host_counts) {
    for (std::int32_t count : shadow.expert_counts) {
      result.host_expert_counts.push_back(
          call.shape.layout == Layout::kExpertMajor ? routing::align_up(count, call.shape.alignment) : count);
    }
  }
  call.memory->keep.push_back(call.windows);
  call.memory->keep.push_back(result.handle.owner());
  result.owner = call.memory;
}

}  // namespace ferry::cuda
