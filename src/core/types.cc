// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Names and sizes of the plain values, and tensor views.
#include "ferry/types.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>
#include <span>

#include "core/check.h"
#include "ferry/error.h"

namespace ferry {
namespace {

/// Shapes come from outside: a product that no memory could hold is as large as any.
std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<std::int64_t>::max() : product;
}

}  // namespace

std::size_t dtype_bytes(DType dtype) noexcept {
  switch (dtype) {
    case DType::kBf16:
    case DType::kFp16:
      return 2;
    case DType::kFp32:
    case DType::kInt32:
      return 4;
    case DType::kInt64:
      return 8;
    case DType::kFp8E4m3:
    case DType::kUe8m0:
    case DType::kUint8:
      return 1;
  }
  return 1;
}

const char* name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kFp16:
      return "fp16";
    case DType::kFp32:
      return "fp32";
    case DType::kFp8E4m3:
      return "fp8_e4m3";
    case DType::kUe8m0:
      return "ue8m0";
    case DType::kUint8:
      return "uint8";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
  }
  return "?";
}

const char* name(Mode mode) noexcept {
  switch (mode) {
    case Mode::kThroughput:
      return "throughput";
    case Mode::kLatency:
      return "latency";
    case Mode::kAuto:
      return "auto";
  }
  return "?";
}

const char* name(Layout layout) noexcept {
  switch (layout) {
    case Layout::kRankMajor:
      return "rank_major";
    case Layout::kExpertMajor:
      return "expert_major";
    case Layout::kExpertPadded:
      return "expert_padded";
  }
  return "?";
}

const char* name(Output output) noexcept {
  return output == Output::kWindow ? "window" : "owned";
}

const char* name(Codec codec) noexcept {
  switch (codec) {
    case Codec::kNone:
      return "none";
    case Codec::kFp8F32:
      return "fp8_f32";
    case Codec::kFp8Ue8m0:
      return "fp8_ue8m0";
    case Codec::kLogfmt10:
      return "logfmt10";
  }
  return "?";
}

const char* name(Reduction reduction) noexcept {
  const bool ascending = reduction.order == Reduction::Order::kAscending;
  switch (reduction.group) {
    case Reduction::Group::kChoice:
      return ascending ? "flat" : "flat, last choice";
    case Reduction::Group::kRank:
      return ascending ? "per_rank" : "per_rank, last choice";
    case Reduction::Group::kNode:
      return ascending ? "per_node" : "per_node, last choice";
  }
  return "?";
}

const char* name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kOverflow:
      return "overflow";
    case ErrorCode::kTimeout:
      return "timeout";
    case ErrorCode::kPeerLost:
      return "peer_lost";
    case ErrorCode::kMismatch:
      return "mismatch";
    case ErrorCode::kAborted:
      return "aborted";
    case ErrorCode::kBootstrap:
      return "bootstrap";
    case ErrorCode::kInternal:
      return "internal";
  }
  return "?";
}

Tensor Tensor::contiguous(void* data, DType dtype, std::initializer_list<std::int64_t> shape) noexcept {
  Tensor tensor{.data = data, .dtype = dtype, .ndim = static_cast<int>(shape.size() > 3 ? 3 : shape.size())};
  int i = 0;
  for (std::int64_t extent : shape) {
    if (i == 3) break;
    tensor.shape[static_cast<std::size_t>(i++)] = extent;
  }
  std::int64_t stride = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    tensor.strides[static_cast<std::size_t>(d)] = stride;
    stride = times(stride, tensor.shape[static_cast<std::size_t>(d)]);
  }
  return tensor;
}

void tidy_strides(Tensor& tensor) {
  const bool is_empty = tensor.num_elements() == 0;
  std::int64_t dense = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    const auto i = static_cast<std::size_t>(d);
    if (is_empty || tensor.shape[i] == 1) tensor.strides[i] = dense;
    dense = times(dense, tensor.shape[i]);
  }
}

Tensor Tensor::contiguous(const void* data, DType dtype, std::initializer_list<std::int64_t> shape) noexcept {
  return contiguous(const_cast<void*>(data), dtype, shape);  // inputs are views that nobody writes
}

std::int64_t Tensor::num_elements() const noexcept {
  if (!present()) return 0;
  std::int64_t n = 1;
  for (int d = 0; d < ndim && d < 3; ++d) {
    n = times(n, shape[static_cast<std::size_t>(d)]);
  }
  return n;
}

std::string describe(const Tensor& tensor) {
  if (!tensor.present()) return "absent";
  const auto rank = static_cast<std::size_t>(tensor.ndim < 0 ? 0 : (tensor.ndim > 3 ? 3 : tensor.ndim));
  return fmt::format("{} [{}]", name(tensor.dtype), fmt::join(std::span(tensor.shape.data(), rank), ", "));
}

}  // namespace ferry
