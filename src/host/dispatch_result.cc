// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "host/dispatch_result.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "routing/dedup.h"
#include "wire/rows.h"

namespace ferry::host {
namespace {

HandleHeader make_header(const Runtime& runtime, const DispatchCall& call) {
  HandleHeader header;
  header.group = runtime.group;
  header.epoch = call.epoch;
  header.rails_digest = call.windows->rails.digest();
  header.placement_digest = call.placement->digest();
  header.rank = runtime.rank;
  header.num_ranks = runtime.topology.num_ranks();
  header.num_nodes = runtime.topology.num_nodes();
  header.num_slots = call.placement->num_slots();
  header.layout = static_cast<std::int32_t>(call.shape.layout);
  header.mode = static_cast<std::int32_t>(call.args.mode);
  header.top_k = call.top_k;
  header.num_local_experts = call.placement->num_local_experts(runtime.rank);
  header.has_weights = call.has_weights ? 1 : 0;
  header.membership = call.windows->membership.number;
  header.num_tokens = call.num_tokens;
  header.num_rows = call.num_rows;
  header.num_expert_rows = call.num_expert_rows;
  header.expert_capacity = call.shape.layout == Layout::kExpertPadded ? call.shape.capacity : 0;
  header.alignment = call.shape.alignment;
  for (const ForwardProgress& progress : call.forwards) header.num_forwarded += progress.expected;
  header.total_bytes = HandleView::bytes_for(header);
  return header;
}

/// What this rank sent: slots, ranks and rows per choice, totals per destination.
void write_sender_part(const Runtime& runtime, const DispatchCall& call, const HandleView& view) {
  std::copy(call.slots.begin(), call.slots.end(), view.slots());
  std::copy(call.ranks.begin(), call.ranks.end(), view.ranks());
  std::copy(call.rows.begin(), call.rows.end(), view.rows());
  std::copy(call.tokens.begin(), call.tokens.end(), view.tokens());
  std::copy(call.weights.begin(), call.weights.end(), view.weights());
  std::copy(call.forward_rows.begin(), call.forward_rows.end(), view.forward_rows());
  std::fill_n(view.tokens_to(), runtime.topology.num_ranks(), 0);
  std::fill_n(view.choices_to(), runtime.topology.num_ranks(), 0);
  std::fill_n(view.tokens_to_node(), runtime.topology.num_nodes(), 0);
  std::int32_t* tokens_to = view.tokens_to();
  std::int32_t* choices_to = view.choices_to();
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    const std::int32_t* ranks = call.ranks.data() + t * call.top_k;
    for (int k = 0; k < call.top_k; ++k) {
      if (ranks[k] < 0) continue;
      ++choices_to[ranks[k]];
      if (routing::is_first_of_owner(ranks, k)) ++tokens_to[ranks[k]];
    }
  }
  for (std::size_t i = 0; i < call.forward_rows.size(); ++i) {
    if (call.forward_rows[i] >= 0) ++view.tokens_to_node()[i % static_cast<std::size_t>(runtime.topology.num_nodes())];
  }
}

void write_receiver_part(const Runtime& runtime, const DispatchCall& call, const HandleView& view) {
  std::int32_t* rank_of_slot = view.rank_of_slot();
  for (int rank = 0; rank < runtime.topology.num_ranks(); ++rank)
    std::fill(rank_of_slot + call.placement->first_slot(rank), rank_of_slot + call.placement->first_slot(rank + 1),
              rank);
  std::int32_t* source_offsets = view.source_offsets();
  std::int32_t* forward_offsets = view.forward_offsets();
  source_offsets[0] = forward_offsets[0] = 0;
  for (int source = 0; source < runtime.topology.num_ranks(); ++source) {
    const auto index = static_cast<std::size_t>(source);
    source_offsets[source + 1] = source_offsets[source] + call.tokens_from[index];
    forward_offsets[source + 1] = forward_offsets[source];
    for (const ForwardProgress& progress : call.forwards) {
      if (progress.source == source) forward_offsets[source + 1] += static_cast<std::int32_t>(progress.expected);
    }
  }
  std::copy(call.expert_counts.begin(), call.expert_counts.end(), view.expert_counts());
  const int num_local = static_cast<int>(call.expert_counts.size());
  if (call.shape.layout == Layout::kRankMajor) {
    std::fill_n(view.expert_offsets(), num_local + 1, 0);
  } else {
    routing::expert_starts(call.shape, call.expert_counts.data(), num_local, view.expert_offsets());
  }
}

/// Rows in the shape of the result: the exact number, or with device counts the most there can be.
std::int64_t shaped_rows(const DispatchCall& call, std::int64_t capacity) {
  const bool rank_major = call.shape.layout == Layout::kRankMajor;
  if (call.args.host_counts || call.shape.layout == Layout::kExpertPadded)
    return rank_major ? call.num_rows : call.num_expert_rows;
  return rank_major ? std::min(capacity, call.windows->layout.recv_tokens(call.args.mode)) : capacity;
}

/// Copies the rows of a result that are real (and the padding of expert_major, which may have been zeroed).
void copy_rows(const DispatchCall& call, std::byte* to, const std::byte* from, std::int64_t row_bytes) {
  const auto copy = [&](std::int64_t first, std::int64_t count) {
    if (count > 0)
      std::memcpy(to + first * row_bytes, from + first * row_bytes, static_cast<std::size_t>(count * row_bytes));
  };
  if (call.shape.layout != Layout::kExpertPadded)
    return copy(0, call.shape.layout == Layout::kRankMajor ? call.num_rows : call.num_expert_rows);
  for (std::size_t e = 0; e < call.expert_counts.size(); ++e)
    copy(static_cast<std::int64_t>(e) * call.shape.capacity, call.expert_counts[e]);
}

/// Copies the real rows of an expert_padded block into a tensor of the caller.
void copy_out(const DispatchCall& call, const wire::Block& block, const Tensor& out, const std::byte* from) {
  const auto element = static_cast<std::int64_t>(dtype_bytes(block.dtype));
  auto* to = static_cast<std::byte*>(out.data);
  for (std::int64_t e = 0; e < std::ssize(call.expert_counts); ++e) {
    for (std::int64_t row = 0; row < call.expert_counts[static_cast<std::size_t>(e)]; ++row) {
      const std::byte* source = from + (e * call.shape.capacity + row) * block.padded;
      std::byte* place = to + (e * out.strides[0] + row * out.strides[1]) * element;
      if (out.strides[2] == 1) {
        std::memcpy(place, source, static_cast<std::size_t>(block.bytes));
        continue;
      }
      for (std::int64_t i = 0; i < block.width; ++i)
        std::memcpy(place + i * out.strides[2] * element, source + i * element, static_cast<std::size_t>(element));
    }
  }
}

/// The block arrays, shaped by layout: views, copies, or what the caller gave for them.
void make_payload(DispatchCall& call, std::byte* base, std::int64_t capacity) {
  const bool padded_layout = call.shape.layout == Layout::kExpertPadded;
  const std::int64_t num_rows = shaped_rows(call, capacity);
  for (int b = 0; b < call.format.num_blocks; ++b) {
    const wire::Block& block = call.format[b];
    auto* data = base + capacity * block.offset;
    if (!call.args.out.empty()) {
      const Tensor& out = call.args.out[static_cast<std::size_t>(b)];
      copy_out(call, block, out, data);
      call.result.payload.push_back(out);
      continue;
    }
    if (call.args.output == Output::kOwned) {
      auto* own = static_cast<std::byte*>(call.memory->allocate(num_rows * block.padded));
      copy_rows(call, own, data, block.padded);
      data = own;
    }
    const auto stride = block.padded / static_cast<std::int64_t>(dtype_bytes(block.dtype));
    Tensor tensor = Tensor::contiguous(data, block.dtype, {num_rows, block.width});
    tensor.strides[0] = stride;
    if (padded_layout) {
      tensor = Tensor::contiguous(
          data, block.dtype, {static_cast<std::int64_t>(call.expert_counts.size()), call.shape.capacity, block.width});
      tensor.strides = {call.shape.capacity * stride, stride, 1};
    }
    call.result.payload.push_back(tensor);
  }
}

/// [N, K] local ids and weights of the rank-major layout.
void make_choices(const Runtime& runtime, DispatchCall& call, const HandleView& view, std::int64_t num_rows) {
  const bool wide = call.args.topk_ids.present() && call.args.topk_ids.dtype == DType::kInt64;
  const DType id_dtype = wide ? DType::kInt64 : DType::kInt32;
  auto* ids = static_cast<std::byte*>(
      call.memory->allocate(num_rows * call.top_k * static_cast<std::int64_t>(dtype_bytes(id_dtype))));
  auto* weights = call.has_weights ? static_cast<float*>(call.memory->allocate(num_rows * call.top_k * 4)) : nullptr;
  const LocalSlots local(*call.placement, runtime.rank);
  for (std::int64_t n = 0; n < num_rows; ++n) {
    const bool arrived = n < call.num_rows;
    const wire::TokenMeta record = view.record(arrived ? n : 0);
    for (int k = 0; k < call.top_k; ++k) {
      const std::int64_t at = n * call.top_k + k;
      const std::int32_t expert = arrived ? local.expert(record.slots()[k]) : -1;
      if (wide) {
        reinterpret_cast<std::int64_t*>(ids)[at] = expert;
      } else {
        reinterpret_cast<std::int32_t*>(ids)[at] = expert;
      }
      if (weights != nullptr) weights[at] = expert >= 0 ? record.weights()[k] : 0.0f;
    }
  }
  call.result.topk_ids = Tensor::contiguous(ids, id_dtype, {num_rows, call.top_k});
  if (weights != nullptr) call.result.topk_weights = Tensor::contiguous(weights, DType::kFp32, {num_rows, call.top_k});
}

/// The weight of each expert row; padding rows get 0.
void make_row_weights(const Runtime& runtime, DispatchCall& call, const HandleView& view, std::int64_t num_rows) {
  auto* weights = static_cast<float*>(call.memory->allocate(num_rows * 4));
  std::fill_n(weights, num_rows, 0.0f);
  const LocalSlots local(*call.placement, runtime.rank);
  for (std::int64_t n = 0; n < call.num_rows; ++n) {
    const wire::TokenMeta record = view.record(n);
    for (int k = 0; k < call.top_k; ++k) {
      if (local.expert(record.slots()[k]) >= 0) weights[record.rows()[k]] = record.weights()[k];
    }
  }
  call.result.topk_weights =
      call.shape.layout == Layout::kExpertPadded
          ? Tensor::contiguous(weights, DType::kFp32,
                               {static_cast<std::int64_t>(call.expert_counts.size()), call.shape.capacity})
          : Tensor::contiguous(weights, DType::kFp32, {num_rows});
}

void zero_padding(const DispatchCall& call, const HandleView& view, const ResultRows& rows) {
  for (std::size_t e = 0; e < call.expert_counts.size(); ++e) {
    for (std::int64_t row = view.expert_offsets()[e] + call.expert_counts[e]; row < view.expert_offsets()[e + 1];
         ++row) {
      for (int b = 0; b < call.format.num_blocks; ++b)
        std::memset(rows.at(b, row), 0, static_cast<std::size_t>(call.format[b].padded));
    }
  }
}

void make_counts(DispatchCall& call, const HandleView& view) {
  auto* num_rows = static_cast<std::int64_t*>(call.memory->allocate(8));
  *num_rows = call.num_rows;
  call.result.num_rows = Tensor::contiguous(num_rows, DType::kInt64, {1});
  const auto num_local = static_cast<std::int64_t>(call.expert_counts.size());
  call.result.source_offsets = Tensor::contiguous(view.source_offsets(), DType::kInt32, {view.header().num_ranks + 1});
  call.result.expert_counts = Tensor::contiguous(view.expert_counts(), DType::kInt32, {num_local});
  call.result.expert_offsets = Tensor::contiguous(view.expert_offsets(), DType::kInt32, {num_local + 1});
  if (!call.rank_counts.empty()) {
    const std::int64_t num_ranks = view.header().num_ranks;
    auto* counts = static_cast<std::int32_t*>(call.memory->allocate(num_ranks * num_ranks * 4));
    std::copy(call.rank_counts.begin(), call.rank_counts.end(), counts);
    call.result.rank_counts = Tensor::contiguous(counts, DType::kInt32, {num_ranks, num_ranks});
  }
  if (!call.args.host_counts) return;
  for (std::int32_t count : call.expert_counts) {
    call.result.host_expert_counts.push_back(
        call.shape.layout == Layout::kExpertMajor ? routing::align_up(count, call.shape.alignment) : count);
  }
}

}  // namespace

void ResultRows::copy_row(std::int64_t from, std::int64_t to) const {
  for (int b = 0; b < format_.num_blocks; ++b)
    std::memcpy(at(b, to), at(b, from), static_cast<std::size_t>(format_[b].bytes));
}

void ResultRows::store_blocks(const std::array<const std::byte*, wire::kMaxBlocks>& blocks, std::int64_t to) const {
  for (int b = 0; b < format_.num_blocks; ++b)
    wire::copy_row(at(b, to), blocks[static_cast<std::size_t>(b)], format_[b].bytes);
}

void ResultRows::store_row(const std::byte* wire_row, std::int64_t to) const {
  for (int b = 0; b < format_.num_blocks; ++b)
    wire::copy_row(at(b, to), wire_row + format_[b].offset, format_[b].bytes);
}

HandleView make_handle(const Runtime& runtime, DispatchCall& call) {
  const HandleHeader header = make_header(runtime, call);
  if (call.cached.valid() && HandleView::header_at(call.cached.mutable_bytes()).num_rows != call.num_rows) {
    throw call_error(
        ErrorCode::kPeerLost, "dispatch_recv", call.epoch,
        fmt::format("ferry::Group::dispatch: call {}: {} rows came, the handle knows {}: a rank was left out on "
                    "the way; dispatch with topk_ids",
                    call.epoch, call.num_rows, HandleView::header_at(call.cached.mutable_bytes()).num_rows));
  }
  if (call.cached.valid() && !call.args.topk_weights.present()) {
    call.result.handle = call.cached;  // the records that arrive are the ones it holds
    return HandleView(call.cached.mutable_bytes());
  }
  std::span<std::byte> memory = call.args.handle_memory;
  std::shared_ptr<ResultMemory> owner;
  if (memory.empty()) {
    owner = std::make_shared<ResultMemory>();
    memory = {static_cast<std::byte*>(owner->allocate(header.total_bytes)),
              static_cast<std::size_t>(header.total_bytes)};
  }
  memory = memory.first(static_cast<std::size_t>(header.total_bytes));
  call.result.handle = Handle(owner, memory);
  HandleView::header_at(memory) = header;
  const HandleView view(memory);
  write_sender_part(runtime, call, view);
  write_receiver_part(runtime, call, view);
  return view;
}

void check_note(const DispatchCall& call, int source, const CallNote& note) {
  if (note.epoch != call.epoch) {
    // Signals only grow, so a rank that has given up on this call and gone on looks as if it had arrived. Without this look the
    // call ends in a timeout or in check_still_the_same, so no test needs it alone.
    throw peer_error(
        ErrorCode::kMismatch, "route", call.epoch, source,
        fmt::format("ferry::Group::dispatch: call {}: rank {} has gone on to call {}", call.epoch, source, note.epoch));
  }
  if (note.status == kCallBadId) {
    Error error = call_error(
        ErrorCode::kInvalidArgument, "route", call.epoch,
        fmt::format("ferry::Group::dispatch: topk_ids of rank {} at row {} is {}, expected below {} (or negative)",
                    source, note.where, note.value, call.placement->num_experts()));
    error.argument = "topk_ids";
    throw error;
  }
  if (note.digest == call.digest) return;
  throw peer_error(
      ErrorCode::kMismatch, "route", call.epoch, source,
      fmt::format(
          "ferry::Group::dispatch: call {}: rank {} gave other arguments than this rank (mode, layout, codec, dtypes, "
          "widths, top-k, alignment, capacity, weights, placement or handle)",
          call.epoch, source));
}

void make_result(const Runtime& runtime, DispatchCall& call, std::byte* base, std::int64_t capacity) {
  const HandleView view(call.result.handle.mutable_bytes());
  const ResultRows rows(call, base, capacity);
  call.result.layout = call.shape.layout;
  if (call.args.zero_padding && call.shape.layout == Layout::kExpertMajor) zero_padding(call, view, rows);
  make_payload(call, base, capacity);
  const bool rank_major = call.shape.layout == Layout::kRankMajor;
  const std::int64_t num_rows = shaped_rows(call, capacity);
  if (rank_major) make_choices(runtime, call, view, num_rows);
  if (!rank_major && call.has_weights) make_row_weights(runtime, call, view, num_rows);
  make_counts(call, view);
  call.memory->keep.push_back(call.result.handle.owner());  // counts and offsets are views of the handle
  call.result.owner = call.memory;
}

}  // namespace ferry::host
