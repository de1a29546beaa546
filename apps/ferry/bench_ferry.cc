// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Dispatch and combine by Ferry: see bench_ferry.h.
#include "bench_ferry.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include <fmt/format.h>

namespace ferry::bench {
namespace {

DType dtype_of(const std::string& word) {
  if (word == "fp16") return DType::kFp16;
  if (word == "fp32") return DType::kFp32;
  if (word == "fp8_f32" || word == "fp8_ue8m0") return DType::kFp8E4m3;
  return word == "bytes" ? DType::kUint8 : DType::kBf16;
}

Codec codec_of(const std::string& word) {
  if (word == "fp8_f32") return Codec::kFp8F32;
  return word == "fp8_ue8m0" ? Codec::kFp8Ue8m0 : Codec::kNone;
}

Layout layout_of(const std::string& word) {
  if (word == "expert_major") return Layout::kExpertMajor;
  return word == "expert_padded" ? Layout::kExpertPadded : Layout::kRankMajor;
}

Reduction reduction_of(const std::string& word) {
  if (word == "flat") return Reduction::flat();
  return word == "per_node" ? Reduction::per_node() : Reduction::per_rank();
}

std::vector<Tensor> payload_tensors(const BenchCase& c, const InputSet& input) {
  const std::vector<std::size_t> bytes = block_bytes(c);
  std::vector<Tensor> payload{Tensor::contiguous(input.blocks[0].data(), dtype_of(c.payload), {c.tokens, c.hidden})};
  if (bytes.size() == 2) {
    const DType scale = c.payload == "fp8_f32" ? DType::kFp32 : DType::kUe8m0;
    const auto scales = static_cast<std::int64_t>(bytes[1] / dtype_bytes(scale));
    payload.push_back(Tensor::contiguous(input.blocks[1].data(), scale, {c.tokens, scales}));
  }
  return payload;
}

/// Bytes from row to row; the rows of expert_padded must follow each other without gaps for the checks to count through.
std::size_t row_stride(const Tensor& tensor) {
  const auto at = static_cast<std::size_t>(tensor.ndim - 2);
  if (tensor.ndim == 3 && tensor.strides[0] != tensor.shape[1] * tensor.strides[1]) {
    throw std::runtime_error(fmt::format("ferry bench: blocks of experts are {} elements apart, expected {}",
                                         tensor.strides[0], tensor.shape[1] * tensor.strides[1]));
  }
  return static_cast<std::size_t>(tensor.strides[at]) * dtype_bytes(tensor.dtype);
}

std::int64_t real_rows(const BenchCase& c, const DispatchResult& result) {
  if (c.layout == "rank_major") return result.payload.at(0).shape[0];
  std::int64_t sum = 0;
  for (const std::int32_t count : result.handle.expert_counts()) sum += count;
  return sum;
}

}  // namespace

GroupConfig group_config(const BenchCase& c, const NetworkOptions& network) {
  GroupConfig config;
  config.limits.num_experts = c.experts;
  config.limits.max_tokens = std::max<std::int64_t>(c.tokens, 1);
  config.limits.max_latency_tokens = c.mode == "latency" ? c.tokens : 0;
  config.limits.max_top_k = c.top_k;
  config.limits.hidden = c.hidden;
  config.limits.dtype = dtype_of(combine_dtype(c));
  config.topology = Topology::split(c.ranks, c.nodes);
  config.backend = c.backend;
  config.network = c.network;
  config.network_options = network;
  config.timeout = std::chrono::nanoseconds(static_cast<std::int64_t>(c.deadline_s * 1e9));
  return config;
}

FerryJob::FerryJob(const BenchCase& bench_case, Meeting& meeting, const NetworkOptions& network)
    : case_(bench_case),
      group_(Group::create(group_config(bench_case, network), meeting)),
      out_(static_cast<std::size_t>(bench_case.tokens) * combine_row_bytes(bench_case)) {}

DispatchArgs FerryJob::dispatch_args(const InputSet& input) {
  DispatchArgs args;
  args.payload = payload_tensors(case_, input);
  args.topk_ids = Tensor::contiguous(input.ids.data(), DType::kInt32, {case_.tokens, case_.top_k});
  args.topk_weights = Tensor::contiguous(input.weights.data(), DType::kFp32, {case_.tokens, case_.top_k});
  args.mode = case_.mode == "latency" ? Mode::kLatency : Mode::kThroughput;
  args.layout = layout_of(case_.layout);
  args.codec = codec_of(case_.codec);
  if (case_.layout == "expert_padded") args.expert_capacity = padded_capacity(case_);
  args.output = case_.output == "owned" ? Output::kOwned : Output::kWindow;
  return args;
}

void FerryJob::dispatch(const InputSet& input) {
  DispatchArgs args = dispatch_args(input);
  // Buffers are made beforehand, as those of the MPI baseline are; this happens in the first call of the warm-up.
  if (handle_memory_.empty()) handle_memory_.resize(group_.handle_bytes(args));
  args.handle_memory = handle_memory_;
  result_ = group_.dispatch(args);
}

Received FerryJob::received() {
  Received received;
  for (const Tensor& block : result_.payload) {
    received.blocks.push_back({.data = static_cast<const std::byte*>(block.data), .stride_bytes = row_stride(block)});
  }
  received.rows = real_rows(case_, result_);
  received.ids = static_cast<const std::int32_t*>(result_.topk_ids.data);
  received.weights = static_cast<const float*>(result_.topk_weights.data);
  return received;
}

void FerryJob::combine(const InputSet& input) {
  const DType dtype = dtype_of(combine_dtype(case_));
  CombineArgs args;
  args.handle = &result_.handle;
  args.x = Tensor::contiguous(input.results.data(), dtype, {input.result_rows, case_.hidden});
  if (case_.layout == "expert_padded") {
    const std::int64_t capacity = padded_capacity(case_);
    args.x = Tensor::contiguous(input.results.data(), dtype, {input.result_rows / capacity, capacity, case_.hidden});
  }
  args.reduction = reduction_of(case_.reduction);
  if (combine_is_weighted(case_)) args.weighting = CombineArgs::Weighting::kFromDispatch;
  args.out = Tensor::contiguous(out_.data(), dtype, {case_.tokens, case_.hidden});
  group_.combine(args);
}

std::vector<StepTime> FerryJob::steps() {
  std::vector<StepTime> times;
  for (const StepTrace& trace : group_.last_trace()) times.push_back({.step = trace.step, .seconds = trace.seconds});
  return times;
}

}  // namespace ferry::bench
