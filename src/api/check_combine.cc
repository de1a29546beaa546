// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a combine may be given. Every refusal says function, argument, seen, expected, and comes before anything moves.
#include <fmt/format.h>

#include "api/group_state.h"
#include "backend/handle_layout.h"
#include "core/check.h"
#include "core/digest.h"
#include "wire/return_codec.h"

namespace ferry {
namespace {

constexpr const char* kFunction = "ferry::Group::combine";

void check_memory(const char* argument, const Tensor& tensor) {
  ferry::check_memory(kFunction, argument, tensor);
}

void check_rails(const GroupState& group, const HandleHeader& header) {
  if (header.rails_digest == group.windows().rails.digest()) return;
  refuse_unsupported(
      kFunction, "handle",
      "masks changed which ranks forward between nodes since the dispatch, so its rows cannot return; dispatch again");
}

/// Elements of a row lie side by side. A stride that nobody takes says nothing: of one element, or in an empty tensor.
bool rows_are_dense(const Tensor& tensor) {
  const auto last = static_cast<std::size_t>(tensor.ndim - 1);
  return tensor.strides[last] == 1 || tensor.shape[last] <= 1 || tensor.num_elements() == 0;
}

/// x by layout; more rows than the handle knows are allowed, fewer are not.
void check_x(const CombineArgs& args) {
  const Tensor& x = args.x;
  const Handle& handle = *args.handle;
  if (x.dtype != DType::kBf16 && x.dtype != DType::kFp16 && x.dtype != DType::kFp32)
    refuse(kFunction, "x", describe(x), "bf16, fp16 or fp32");
  const auto last = static_cast<std::size_t>(x.ndim > 0 ? x.ndim - 1 : 0);
  if (handle.layout() == Layout::kExpertPadded) {
    const std::string expected = fmt::format("[{}, {}, H] (local experts, expert capacity)", handle.num_local_experts(),
                                             handle.expert_capacity());
    if (x.ndim != 3 || x.shape[0] != handle.num_local_experts() || x.shape[1] != handle.expert_capacity())
      refuse(kFunction, "x", describe(x), expected);
  } else {
    const std::int64_t rows = handle.layout() == Layout::kRankMajor ? handle.num_rows() : handle.num_expert_rows();
    if (x.ndim != 2 || x.shape[0] < rows)
      refuse(kFunction, "x", describe(x),
             fmt::format("[{}, H], a row per row dispatched ({})", rows, name(handle.layout())));
  }
  if (x.shape[last] < 1) refuse(kFunction, "x", describe(x), "H of at least 1");
  if (!rows_are_dense(x))
    refuse(kFunction, "x", fmt::format("strided by {} inside a row", x.strides[last]),
           "elements of a row side by side");
  check_memory("x", x);
}

void check_reduction(const CombineArgs& args) {
  const bool rank_major = args.handle->layout() == Layout::kRankMajor;
  if (rank_major && args.reduction.group == Reduction::Group::kChoice) {
    refuse_unsupported(
        kFunction, "reduction",
        "flat adds up choices, but a rank_major row is one row per rank already; use per_rank or per_node, or dispatch "
        "into an expert layout");
  }
  if (args.weighting == CombineArgs::Weighting::kNone && args.weights.present()) {
    refuse(kFunction, "weights", "given", "none, because weighting is kNone (kGiven uses them)");
  }
  if (args.weighting == CombineArgs::Weighting::kNone) return;
  if (rank_major) {
    refuse_unsupported(
        kFunction, "weighting",
        "a rank_major row is the sum of several choices already and cannot be weighted; weigh before, or dispatch into "
        "an expert layout");
  }
  const HandleHeader& header = header_of(*args.handle);
  if (args.weighting == CombineArgs::Weighting::kFromDispatch && header.has_weights == 0) {
    refuse(kFunction, "weighting", "from the dispatch, which had no topk_weights",
           "weights given to the dispatch, or here");
  }
  if (args.weighting == CombineArgs::Weighting::kFromDispatch && args.weights.present()) {
    refuse(kFunction, "weights", "given", "none, because weighting is kFromDispatch");
  }
  if (args.weighting != CombineArgs::Weighting::kGiven) return;
  const Tensor& weights = args.weights;
  if (weights.dtype != DType::kFp32 || weights.ndim != 2 || weights.shape[0] != header.num_tokens ||
      weights.shape[1] != header.top_k) {
    refuse(kFunction, "weights", describe(weights),
           fmt::format("[{}, {}] fp32 (this rank's tokens, top-k)", header.num_tokens, header.top_k));
  }
  check_memory("weights", weights);
}

void check_codec(const CombineArgs& args) {
  if (args.codec == Codec::kNone) return;
  if (args.codec == Codec::kFp8Ue8m0) {
    refuse_unsupported(kFunction, "codec",
                       "fp8_ue8m0 rounds scales up for GEMM libraries, but nobody sees the scales of a combine; use "
                       "fp8_f32, which is more exact, or logfmt10");
  }
  if (args.handle->mode() != Mode::kLatency) {
    refuse_unsupported(kFunction, "codec",
                       fmt::format("{} needs a handle of latency mode: throughput mode moves the rows of combine as "
                                   "they are; use none, or dispatch in latency mode",
                                   name(args.codec)));
  }
  if (args.x.dtype != DType::kBf16)
    refuse(kFunction, "x", describe(args.x), fmt::format("bf16, which codec {} takes", name(args.codec)));
}

void check_token_rows(const char* argument, const Tensor& tensor, std::int64_t num_tokens, std::int64_t hidden,
                      DType dtype, bool fp32_too) {
  if (!tensor.present()) return;
  const bool right_dtype = tensor.dtype == dtype || (fp32_too && tensor.dtype == DType::kFp32);
  const std::string expected = fmt::format("[{}, {}] {}{}, elements of a row side by side", num_tokens, hidden,
                                           name(dtype), fp32_too ? " or fp32" : "");
  if (!right_dtype || tensor.ndim != 2 || tensor.shape[0] != num_tokens || tensor.shape[1] != hidden)
    refuse(kFunction, argument, describe(tensor), expected);
  if (!rows_are_dense(tensor))
    refuse(kFunction, argument, fmt::format("strided by {} inside a row", tensor.strides[1]), expected);
  check_memory(argument, tensor);
}

/// Rows that are written must not lie over each other.
void check_rows_apart(const char* argument, const Tensor& tensor) {
  if (tensor.num_elements() == 0 || tensor.shape[0] < 2) return;
  const std::int64_t stride = tensor.strides[0];
  if (stride >= tensor.shape[1] || stride <= -tensor.shape[1]) return;
  refuse(kFunction, argument, fmt::format("{} with rows {} elements apart", describe(tensor), stride),
         fmt::format("rows at least {} elements apart", tensor.shape[1]));
}

void check_topk_weights(const CombineArgs& args) {
  const Tensor& weights = args.topk_weights;
  if (!weights.present()) return;
  const Handle& handle = *args.handle;
  const auto require = [&](bool right, const std::string& expected) {
    if (!right || weights.dtype != DType::kFp32) refuse(kFunction, "topk_weights", describe(weights), expected);
  };
  switch (handle.layout()) {
    case Layout::kRankMajor:
      require(weights.ndim == 2 && weights.shape[0] >= handle.num_rows() && weights.shape[1] == handle.top_k(),
              fmt::format("[{}, {}] fp32 (rows received, top-k)", handle.num_rows(), handle.top_k()));
      break;
    case Layout::kExpertMajor:
      require(weights.ndim == 1 && weights.shape[0] >= handle.num_expert_rows(),
              fmt::format("[{}] fp32 (expert rows)", handle.num_expert_rows()));
      break;
    case Layout::kExpertPadded:
      require(weights.ndim == 2 && weights.shape[0] == handle.num_local_experts() &&
                  weights.shape[1] == handle.expert_capacity(),
              fmt::format("[{}, {}] fp32 (local experts, expert capacity)", handle.num_local_experts(),
                          handle.expert_capacity()));
      break;
  }
  check_memory("topk_weights", weights);
}

std::uint64_t digest_of(const CombineCall& call) {
  Digest digest;
  digest.add(call.args.x.dtype)
      .add(call.hidden)
      .add(call.args.reduction.group)
      .add(call.args.reduction.order)
      .add(call.args.weighting)
      .add(call.args.codec);
  return digest.add(call.has_topk_weights)
      .add(call.top_k)
      .add(call.handle.mode())
      .add(call.handle.layout())
      .add(call.handle_epoch)
      .value();
}

}  // namespace

void fill_combine(const GroupState& group, const CombineArgs& args, CombineCall& call) {
  if (args.num_sms < 0) refuse(kFunction, "num_sms", fmt::to_string(args.num_sms), "0 (automatic) or more");
  if (args.timeout) check_timeout(kFunction, *args.timeout);
  const HandleHeader& header = check_handle(kFunction, group, args.handle);
  check_rails(group, header);
  call.handle_epoch = header.epoch;
  check_x(args);
  check_reduction(args);
  check_codec(args);
  check_topk_weights(args);
  call.args = args;
  call.handle = *args.handle;
  call.placement = group.placement;
  call.timeout = args.timeout.value_or(group.config.timeout);
  call.num_tokens = args.handle->num_tokens();
  call.top_k = args.handle->top_k();
  call.hidden = args.x.shape[static_cast<std::size_t>(args.x.ndim - 1)];
  const std::int64_t most = group.windows().layout.max_return_bytes();
  if (call.hidden > most)  // before it is multiplied: a tensor without rows may claim any width
    refuse(kFunction, "x", describe(args.x), fmt::format("rows of at most {} bytes", most));
  call.row_bytes = call.hidden * static_cast<std::int64_t>(dtype_bytes(args.x.dtype));
  call.has_topk_weights = args.topk_weights.present();
  call.slot_bytes = return_row_bytes(call.row_bytes, call.top_k, call.has_topk_weights);
  if (call.slot_bytes > most) {
    refuse(kFunction, "x", fmt::format("{} bytes per returned row", call.slot_bytes),
           fmt::format("at most {} (limits.hidden and dtype)", most));
  }
  call.weights_at = wire::padded(call.row_bytes);
  if (args.codec != Codec::kNone) {
    call.weights_at = wire::coded_words_bytes(call.hidden);
    call.slot_bytes = return_row_bytes(call.weights_at, call.top_k, call.has_topk_weights) +
                      wire::padded(wire::most_coded_bytes(args.codec, call.hidden));
  }
  check_token_rows("bias0", args.bias0, call.num_tokens, call.hidden, args.x.dtype, true);
  check_token_rows("bias1", args.bias1, call.num_tokens, call.hidden, args.x.dtype, true);
  check_token_rows("out", args.out, call.num_tokens, call.hidden, args.x.dtype, false);
  check_rows_apart("out", args.out);
  for (Tensor* tensor :
       {&call.args.x, &call.args.weights, &call.args.bias0, &call.args.bias1, &call.args.topk_weights, &call.args.out})
    tidy_strides(*tensor);
  call.digest = digest_of(call);
  if (const std::string reason = group.backend->why_not(call); !reason.empty())
    refuse_unsupported(kFunction, "backend", reason);
}

std::string why_not_combine(const GroupState& group, const CombineArgs& args) {
  try {
    CombineCall call;
    fill_combine(group, args, call);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace ferry
