// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a dispatch may be given. Every refusal says function, argument, seen, expected, and comes before anything moves.
#include <fmt/format.h>

#include <algorithm>

#include "api/group_state.h"
#include "backend/handle_layout.h"
#include "core/check.h"
#include "core/digest.h"
#include "wire/fp8_quant.h"

namespace ferry {
namespace {

constexpr const char* kFunction = "ferry::Group::dispatch";

void check_values(const DispatchArgs& args) {
  if (args.max_tokens < 0)
    refuse(kFunction, "max_tokens", fmt::to_string(args.max_tokens), "0 (as the group's limits) or more");
  if (args.alignment < 1) refuse(kFunction, "alignment", fmt::to_string(args.alignment), "at least 1");
  if (args.expert_capacity < 0)
    refuse(kFunction, "expert_capacity", fmt::to_string(args.expert_capacity), "0 (as large as fits) or more");
  if (args.num_sms < 0) refuse(kFunction, "num_sms", fmt::to_string(args.num_sms), "0 (automatic) or more");
  if (args.timeout) check_timeout(kFunction, *args.timeout);
}

/// Of a mode that was chosen already.
void check_mode(const GroupState& group, const DispatchArgs& args) {
  const GroupLimits& limits = group.config.limits;
  if (args.mode == Mode::kLatency && args.layout == Layout::kExpertMajor) {
    refuse_unsupported(
        kFunction, "layout",
        "latency mode has no expert_major layout, because block starts need counts before data; use rank_major or "
        "expert_padded, or throughput mode");
  }
  if (args.mode == Mode::kLatency && limits.max_latency_tokens == 0) {
    refuse_unsupported(
        kFunction, "mode",
        "this group has no latency mode (limits.max_latency_tokens is 0); make it with max_latency_tokens above 0, or "
        "use throughput mode");
  }
}

void check_matrix(const std::string& argument, const Tensor& tensor, std::int64_t rows, std::int64_t columns,
                  const std::string& expected) {
  if (tensor.ndim != 2 || tensor.shape[0] != rows || tensor.shape[1] != columns)
    refuse(kFunction, argument, describe(tensor), expected);
  check_memory(kFunction, argument, tensor);
}

std::int64_t check_payload(const GroupState& group, const DispatchArgs& args) {
  if (args.payload.empty()) refuse(kFunction, "payload", "empty", "at least one block");
  const std::size_t most = wire::kMaxBlocks - (args.codec == Codec::kNone ? 0 : 1);
  if (args.payload.size() > most)
    refuse(kFunction, "payload", fmt::format("{} blocks", args.payload.size()), fmt::format("at most {}", most));
  const std::int64_t num_tokens = args.payload[0].ndim == 2 ? args.payload[0].shape[0] : -1;
  for (std::size_t b = 0; b < args.payload.size(); ++b) {
    const Tensor& block = args.payload[b];
    const std::string argument = fmt::format("payload[{}]", b);
    if (block.ndim != 2 || block.shape[0] < 0 || block.shape[1] < 1)
      refuse(kFunction, argument, describe(block), "[T, W] with W of at least 1");
    check_matrix(argument, block, num_tokens, block.shape[1],
                 fmt::format("[{}, W], as many rows as payload[0]", num_tokens));
  }
  for (const Tensor& block : args.payload) {
    const std::int64_t widest = group.windows().layout.max_row_bytes();  // before widths are multiplied
    if (block.shape[1] > widest)
      refuse(kFunction, "payload", describe(block), fmt::format("rows of at most {} bytes", widest));
  }
  return num_tokens;
}

void check_num_tokens(const GroupState& group, const DispatchCall& call) {
  const GroupLimits& limits = group.config.limits;
  const DispatchArgs& args = call.args;
  const bool throughput = args.mode == Mode::kThroughput;
  const std::int64_t most = throughput ? limits.max_tokens : limits.max_latency_tokens;
  const std::string expected = fmt::format("at most {} in {} mode (limits.{})", most, name(args.mode),
                                           throughput ? "max_tokens" : "max_latency_tokens");
  if (args.max_tokens > most) refuse(kFunction, "max_tokens", fmt::to_string(args.max_tokens), expected);
  if (call.num_tokens > most) refuse(kFunction, "payload[0]", fmt::format("{} tokens", call.num_tokens), expected);
  if (args.max_tokens > 0 && call.num_tokens > args.max_tokens)
    refuse(kFunction, "payload[0]", fmt::format("{} tokens", call.num_tokens),
           fmt::format("at most max_tokens = {}", args.max_tokens));
}

/// The wire blocks: the coded first block and its scales, then the others as they are.
wire::RowFormat make_format(const GroupState& group, const DispatchArgs& args) {
  wire::RowFormat format;
  std::size_t first = 0;
  if (args.codec == Codec::kLogfmt10)
    refuse_unsupported(kFunction, "codec", "logfmt10 is a codec of combine; use fp8_f32, fp8_ue8m0 or none");
  if (args.codec != Codec::kNone) {
    const Tensor& x = args.payload[0];
    if (x.dtype != DType::kBf16)
      refuse(kFunction, "payload[0]", describe(x), fmt::format("bf16, which codec {} takes", name(args.codec)));
    if (args.scale_block != 128 && args.scale_block != 32)
      refuse(kFunction, "scale_block", fmt::to_string(args.scale_block), "128 or 32");
    format.add(DType::kFp8E4m3, x.shape[1], 1);
    const std::int64_t scales = wire::num_scales(x.shape[1], args.scale_block);
    if (args.codec == Codec::kFp8F32) {
      format.add(DType::kFp32, scales, 4);
    } else {
      format.add(DType::kUe8m0, scales, 1);
    }
    first = 1;
  }
  for (std::size_t b = first; b < args.payload.size(); ++b) {
    format.add(args.payload[b].dtype, args.payload[b].shape[1],
               static_cast<std::int64_t>(dtype_bytes(args.payload[b].dtype)));
  }
  const std::int64_t most = group.windows().layout.max_row_bytes();
  if (format.row_bytes > most) {
    refuse(kFunction, "payload", fmt::format("{} bytes per row on the wire", format.row_bytes),
           fmt::format("at most {} (limits.hidden, dtype and extra_bytes)", most));
  }
  return format;
}

void check_cached(const GroupState& group, const DispatchArgs& args, const Placement& placement,
                  std::int64_t num_tokens) {
  if (args.topk_ids.present()) refuse(kFunction, "topk_ids", "given together with handle", "one of the two");
  if (args.renormalise)
    refuse(kFunction, "renormalise", "set together with handle", "weights that fit the handle's routing");
  const HandleHeader& header = check_handle(kFunction, group, args.handle);
  if (header.membership != group.windows().membership.number) {
    refuse(
        kFunction, "handle", fmt::format("of membership {}", header.membership),
        fmt::format("of membership {}: dispatch with topk_ids after masks changed", group.windows().membership.number));
  }
  const auto require_same = [](const char* argument, bool same, const std::string& seen, const std::string& handles) {
    if (!same) refuse(kFunction, argument, seen, fmt::format("{}, as the handle's", handles));
  };
  const bool same_capacity = args.layout != Layout::kExpertPadded || args.expert_capacity == 0 ||
                             header.expert_capacity == args.expert_capacity;
  const bool same_alignment = args.layout != Layout::kExpertMajor || header.alignment == args.alignment;
  require_same("placement", header.placement_digest == placement.digest(), "another", "the one");
  require_same("payload[0]", header.num_tokens == num_tokens, fmt::format("{} tokens", num_tokens),
               fmt::to_string(header.num_tokens));
  require_same("mode", args.handle->mode() == args.mode, name(args.mode), name(args.handle->mode()));
  require_same("layout", args.handle->layout() == args.layout, name(args.layout), name(args.handle->layout()));
  require_same("alignment", same_alignment, fmt::to_string(args.alignment), fmt::to_string(header.alignment));
  require_same("expert_capacity", same_capacity, fmt::to_string(args.expert_capacity),
               fmt::to_string(header.expert_capacity));
}

int check_ids(const GroupState& group, const DispatchArgs& args, std::int64_t num_tokens) {
  const Tensor& ids = args.topk_ids;
  const int most = group.config.limits.max_top_k;
  const std::string expected =
      fmt::format("[{}, K] int32 or int64 with K from 1 to {} (limits.max_top_k)", num_tokens, most);
  if (!ids.present()) refuse(kFunction, "topk_ids", "absent", expected + ", or a handle");
  if (ids.ndim != 2 || ids.shape[1] < 1 || ids.shape[1] > most ||
      (ids.dtype != DType::kInt32 && ids.dtype != DType::kInt64)) {
    refuse(kFunction, "topk_ids", describe(ids), expected);
  }
  check_matrix("topk_ids", ids, num_tokens, ids.shape[1], expected);
  return static_cast<int>(ids.shape[1]);
}

/// Rows that the window holds of an expert layout, and of them per expert.
std::int64_t window_rows(const GroupState& group, Mode mode) {
  const WindowLayout& layout = group.windows().layout;
  return mode == Mode::kThroughput ? layout.recv_rows() : layout.latency_out_rows();
}
std::int64_t most_capacity(const GroupState& group, Mode mode, const Placement& placement) {
  return window_rows(group, mode) / std::max(1, placement.max_local_experts());
}

/// What DispatchArgs::mode promises. Ranks must agree without a word, so nothing is looked at that may differ between them.
Mode choose_mode(const GroupState& group, const DispatchCall& call) {
  const DispatchArgs& args = call.args;
  if (args.mode != Mode::kAuto) return args.mode;
  if (args.handle != nullptr) return static_cast<Mode>(check_handle(kFunction, group, args.handle).mode);
  const GroupLimits& limits = group.config.limits;
  const std::int64_t most = args.max_tokens > 0 ? args.max_tokens : limits.max_tokens;
  if (args.layout == Layout::kExpertMajor || most > limits.max_latency_tokens) return Mode::kThroughput;
  if (args.layout == Layout::kExpertPadded &&
      args.expert_capacity > most_capacity(group, Mode::kLatency, *call.placement)) {
    return Mode::kThroughput;
  }
  DispatchCall largest;
  largest.args.mode = Mode::kLatency;
  largest.args.codec = args.codec;
  largest.args.scale_block = args.scale_block;
  largest.placement = call.placement;
  largest.format = call.format;
  largest.num_tokens = most;
  largest.top_k = call.top_k;
  return group.backend->why_not_mode(largest).empty() ? Mode::kLatency : Mode::kThroughput;
}

std::int64_t resolve_capacity(const GroupState& group, const DispatchArgs& args, const Placement& placement) {
  if (args.layout != Layout::kExpertPadded) return 0;
  const std::int64_t fits = most_capacity(group, args.mode, placement);
  const std::int64_t asked = args.handle != nullptr ? args.handle->expert_capacity() : args.expert_capacity;
  if (asked == 0) return std::min(fits, group.windows().layout.recv_tokens(args.mode));
  if (asked < 0 || asked > fits) {
    refuse(kFunction, "expert_capacity", fmt::to_string(asked),
           fmt::format("at most {}: {} rows for {} local experts ({})", fits, window_rows(group, args.mode),
                       placement.max_local_experts(),
                       args.mode == Mode::kThroughput ? "limits.recv_rows" : "limits.max_latency_tokens"));
  }
  return asked;
}

std::uint64_t digest_of(const DispatchCall& call) {
  Digest digest;
  const DispatchArgs& args = call.args;
  digest.add(args.mode).add(args.layout).add(args.codec).add(args.codec == Codec::kNone ? 0 : args.scale_block);
  digest.add(call.format.num_blocks);
  for (int b = 0; b < call.format.num_blocks; ++b) digest.add(call.format[b].dtype).add(call.format[b].width);
  digest.add(args.max_tokens)
      .add(call.top_k)
      .add(call.shape.alignment)
      .add(call.shape.capacity)
      .add(args.renormalise)
      .add(call.has_weights)
      .add(call.handle_epoch)
      .add(args.topk_weights.present());
  return digest.add(call.placement->digest()).value();
}

/// Tensors of the caller that the payload goes to.
void check_out(const GroupState& group, const DispatchCall& call) {
  const std::vector<Tensor>& out = call.args.out;
  if (out.empty()) return;
  if (group.config.backend == "cuda")
    refuse_unsupported(kFunction, "out", "the cuda backend writes into its own memory only; copy the result");
  if (call.shape.layout != Layout::kExpertPadded)
    refuse_unsupported(kFunction, "out", "only expert_padded has a shape that is known before the rows come");
  if (std::ssize(out) != call.format.num_blocks)
    refuse(kFunction, "out", fmt::format("{} tensors", out.size()),
           fmt::format("{}, one per block of the result", call.format.num_blocks));
  const int num_local = call.placement->num_local_experts(group.runtime->rank);
  for (int b = 0; b < call.format.num_blocks; ++b) {
    const Tensor& tensor = out[static_cast<std::size_t>(b)];
    const wire::Block& block = call.format[b];
    const bool fits = tensor.dtype == block.dtype && tensor.ndim == 3 && tensor.shape[0] == num_local &&
                      tensor.shape[1] == call.shape.capacity && tensor.shape[2] == block.width;
    if (!fits) {
      refuse(kFunction, fmt::format("out[{}]", b), describe(tensor),
             fmt::format("[{}, {}, {}] {}", num_local, call.shape.capacity, block.width, name(block.dtype)));
    }
    check_memory(kFunction, fmt::format("out[{}]", b), tensor);
  }
}

void check_handle_memory(const GroupState& group, const DispatchCall& call) {
  const std::span<std::byte> memory = call.args.handle_memory;
  if (memory.empty()) return;
  const std::int64_t most = most_handle_bytes(group, call);
  if (static_cast<std::int64_t>(memory.size()) < most) {
    refuse(kFunction, "handle_memory", fmt::format("{} bytes", memory.size()),
           fmt::format("at least {} (Group::handle_bytes)", most));
  }
  if (reinterpret_cast<std::uintptr_t>(memory.data()) % 16 != 0) {
    refuse(kFunction, "handle_memory", fmt::format("at address {}", static_cast<void*>(memory.data())),
           "at a multiple of 16 bytes");
  }
}

}  // namespace

std::int64_t most_handle_bytes(const GroupState& group, const DispatchCall& call) {
  const Topology& topology = group.runtime->topology;
  const WindowLayout& layout = group.windows().layout;
  HandleHeader header;
  header.num_ranks = topology.num_ranks();
  header.num_nodes = topology.num_nodes();
  header.num_slots = call.placement->num_slots();
  header.top_k = call.top_k;
  header.num_local_experts = call.placement->num_local_experts(group.runtime->rank);
  header.has_weights = call.has_weights ? 1 : 0;
  header.num_tokens = call.num_tokens;
  header.num_rows = layout.recv_tokens(call.args.mode);
  if (call.args.mode == Mode::kThroughput) {
    header.num_forwarded = layout.forward_sources() * group.config.limits.max_tokens;
  }
  return HandleView::bytes_for(header);
}

void fill_dispatch(const GroupState& group, const DispatchArgs& args, DispatchCall& call) {
  check_values(args);
  call.args = args;
  call.timeout = args.timeout.value_or(group.config.timeout);
  call.placement = args.placement != nullptr ? std::make_shared<const Placement>(*args.placement) : group.placement;
  const int num_ranks = group.runtime->topology.num_ranks();
  if (call.placement->num_ranks() != num_ranks) {
    refuse(kFunction, "placement", fmt::format("for {} ranks", call.placement->num_ranks()),
           fmt::format("for {}", num_ranks));
  }
  const int most_slots = std::max(group.config.limits.max_slots, group.placement->num_slots());
  if (call.placement->num_slots() > most_slots) {
    refuse(kFunction, "placement", fmt::format("{} places", call.placement->num_slots()),
           fmt::format("at most {} (limits.max_slots)", most_slots));
  }
  call.num_tokens = check_payload(group, args);
  call.format = make_format(group, args);
  if (args.handle == nullptr) call.top_k = check_ids(group, args, call.num_tokens);
  call.args.mode = choose_mode(group, call);
  check_mode(group, call.args);
  check_num_tokens(group, call);
  if (args.handle != nullptr) {
    check_cached(group, call.args, *call.placement, call.num_tokens);
    call.handle_epoch = header_of(*args.handle).epoch;
    call.cached = *args.handle;
    call.top_k = args.handle->top_k();
  }
  if (args.topk_weights.present()) {
    const std::string expected = fmt::format("[{}, {}] fp32, as topk_ids", call.num_tokens, call.top_k);
    if (args.topk_weights.dtype != DType::kFp32)
      refuse(kFunction, "topk_weights", describe(args.topk_weights), expected);
    check_matrix("topk_weights", args.topk_weights, call.num_tokens, call.top_k, expected);
  }
  call.has_weights =
      args.topk_weights.present() || (args.handle != nullptr && header_of(*args.handle).has_weights != 0);
  call.shape = {.layout = args.layout,
                .alignment = args.layout == Layout::kExpertMajor ? args.alignment : 1,
                .capacity = resolve_capacity(group, call.args, *call.placement)};
  for (Tensor& block : call.args.payload) tidy_strides(block);
  tidy_strides(call.args.topk_ids);
  tidy_strides(call.args.topk_weights);
  check_handle_memory(group, call);
  check_out(group, call);
  call.digest = digest_of(call);
  if (const std::string reason = group.backend->why_not(call); !reason.empty())
    refuse_unsupported(kFunction, "backend", reason);
}

std::string why_not_dispatch(const GroupState& group, const DispatchArgs& args) {
  try {
    DispatchCall call;
    fill_dispatch(group, args, call);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace ferry
