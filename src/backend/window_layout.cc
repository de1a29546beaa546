// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/window_layout.h"

#include <fmt/format.h>

#include <algorithm>

#include "routing/rows.h"
#include "wire/return_codec.h"
#include "wire/row_format.h"
#include "wire/token_meta.h"

namespace ferry {
namespace {

// A writer's signals fill whole cache lines of their own: two writers never share one.
constexpr std::int64_t kLineBytes = 128;

// Signals of which each flight has one come after those that exist once.
constexpr int kFirstFlightSignal = static_cast<int>(Signal::kDispatchRows);
constexpr int kFlightSignals = static_cast<int>(Signal::kNumSignals) - kFirstFlightSignal;

std::int64_t at(const std::vector<std::int64_t>& offsets, int flight) {
  return offsets[static_cast<std::size_t>(flight)];
}

}  // namespace

std::int64_t max_dispatch_row_bytes(const GroupLimits& limits) {
  const auto row = wire::padded(limits.hidden * static_cast<std::int64_t>(dtype_bytes(limits.dtype)));
  const auto fp8_row = wire::padded(limits.hidden) + wire::padded((limits.hidden + 31) / 32 * 4);
  return std::max(row, fp8_row) + wire::padded(limits.extra_bytes);
}

std::int64_t return_row_bytes(std::int64_t row_bytes, int top_k, bool with_weights) {
  return wire::padded(row_bytes) + (with_weights ? wire::padded(4 * static_cast<std::int64_t>(top_k)) : 0);
}

WindowLayout::WindowLayout(const GroupLimits& limits, const Topology& topology, const Placement& placement,
                           int max_sources, RowPlace place)
    : place_(place),
      num_ranks_(topology.num_ranks()),
      num_nodes_(topology.num_nodes()),
      num_flights_(limits.num_flights),
      forward_sources_(max_sources),
      max_tokens_(std::max(limits.max_tokens, limits.max_latency_tokens)),
      max_row_bytes_(max_dispatch_row_bytes(limits)),
      max_return_bytes_(return_row_bytes(
          limits.hidden * std::max<std::int64_t>(2, static_cast<std::int64_t>(dtype_bytes(limits.dtype))),
          limits.max_top_k, true)) {
  add_control_regions(std::max(limits.max_slots, placement.num_slots()));
  add_dispatch_regions(limits, placement);
  add_combine_regions(limits);
}

std::vector<std::int64_t> WindowLayout::add_flights(const char* name, std::int64_t bytes) {
  std::vector<std::int64_t> offsets;
  if (place_ == RowPlace::kDevice) bytes = 0;
  for (int flight = 0; flight < num_flights_; ++flight)
    offsets.push_back(list_.add(fmt::format("{}[{}]", name, flight), bytes));
  return offsets;
}

void WindowLayout::add_control_regions(int num_slots) {
  const std::int64_t words = kFirstFlightSignal + static_cast<std::int64_t>(kFlightSignals) * num_flights_;
  signal_stride_ = (words * 8 + kLineBytes - 1) / kLineBytes * kLineBytes;
  signals_ = list_.add("signals", signal_stride_ * num_ranks_);
  abort_ = list_.add("abort", kLineBytes);
  notes_ = list_.add("notes", 2 * static_cast<std::int64_t>(sizeof(CallNote)) * num_flights_ * num_ranks_);
  counts_stride_ = wire::padded(static_cast<std::int64_t>(sizeof(CallNote)) +
                                4 * (static_cast<std::int64_t>(num_ranks_) + num_nodes_ + num_slots));
  counts_ = list_.add("counts", 2 * counts_stride_ * num_ranks_);
}

void WindowLayout::add_dispatch_regions(const GroupLimits& limits, const Placement& placement) {
  const std::int64_t meta_bytes = wire::TokenMeta::bytes(limits.max_top_k);
  const std::int64_t record_bytes = max_record_bytes_ = max_row_bytes_ + meta_bytes;
  stream_bytes_ = limits.max_tokens * record_bytes;
  const std::int64_t max_local = placement.max_local_experts();
  const std::int64_t all_tokens = num_ranks_ * limits.max_tokens;
  // An id may occur several times in a row, so a token can take K rows at one rank however few experts live there.
  recv_rows_ = limits.recv_rows > 0 ? limits.recv_rows : all_tokens * limits.max_top_k + max_local * kPlannedAlignment;
  recv_ = add_flights("receive rows", recv_rows_ * max_row_bytes_);
  recv_tokens_ = std::min(all_tokens, recv_rows_);
  max_latency_tokens_ = limits.max_latency_tokens;
  recv_meta_ = add_flights("receive records", recv_tokens_ * meta_bytes);

  const bool has_network = num_nodes_ > 1;
  // Rows come into slots over the network only; ranks of a node fetch them from each other's staging regions.
  dispatch_slots_stride_ = limits.max_latency_tokens * (has_network ? record_bytes : meta_bytes);
  dispatch_slots_ = add_flights("latency slots", dispatch_slots_stride_ * num_ranks_);
  latency_out_rows_ = std::max<std::int64_t>(1, max_local) * num_ranks_ * limits.max_latency_tokens;
  latency_out_ = add_flights("latency results", latency_out_rows_ * max_row_bytes_);

  const std::int64_t staged = std::max((num_nodes_ - 1) * limits.max_tokens, limits.max_latency_tokens);
  dispatch_staging_ = add_flights("dispatch staging", staged * routing::align_up(record_bytes, 64));
  dispatch_forward_ = add_flights("dispatch forward", forward_sources_ * limits.max_tokens * record_bytes);
}

void WindowLayout::add_combine_regions(const GroupLimits& limits) {
  const std::int64_t top_k = limits.max_top_k;
  // Latency mode takes a coded row with the words of its groups.
  const std::int64_t most_coded = max_return_bytes_ + wire::coded_words_bytes(max_return_bytes_ / 2);
  return_slots_ = add_flights(
      "return slots", top_k * std::max(max_tokens_ * max_return_bytes_, limits.max_latency_tokens * most_coded));
  return_stream_bytes_ = limits.max_tokens * top_k * max_return_bytes_;
  combine_forward_ = add_flights("combine forward", forward_sources_ * return_stream_bytes_);
  const std::int64_t staged = num_nodes_ > 1 ? num_ranks_ * limits.max_latency_tokens * top_k : 0;
  combine_staging_ = add_flights("combine staging", staged * most_coded);
  weights_stride_ = max_tokens_ * top_k * 4;
  // Every rank also keeps its own rows here, on their way to the others.
  weights_ahead_ = add_flights("weights ahead", weights_stride_ * num_ranks_ * (num_nodes_ > 1 ? 2 : 1));
}

std::int64_t WindowLayout::signal(Signal kind, int flight, int writer) const {
  const int index = static_cast<int>(kind);
  const int word = index < kFirstFlightSignal ? index : index + flight * kFlightSignals;
  return signals_ + writer * signal_stride_ + word * 8;
}

std::int64_t WindowLayout::note(int flight, bool combine, int writer) const {
  return notes_ + ((static_cast<std::int64_t>(flight) * 2 + (combine ? 1 : 0)) * num_ranks_ + writer) *
                      static_cast<std::int64_t>(sizeof(CallNote));
}

std::int64_t WindowLayout::counts(int parity, int writer) const {
  return counts_ + (static_cast<std::int64_t>(parity) * num_ranks_ + writer) * counts_stride_;
}

std::int64_t WindowLayout::recv(int flight) const {
  return at(recv_, flight);
}
std::int64_t WindowLayout::recv_meta(int flight) const {
  return at(recv_meta_, flight);
}
std::int64_t WindowLayout::dispatch_slots(int flight, int source) const {
  return at(dispatch_slots_, flight) + source * dispatch_slots_stride_;
}
std::int64_t WindowLayout::latency_out(int flight) const {
  return at(latency_out_, flight);
}
std::int64_t WindowLayout::dispatch_staging(int flight) const {
  return at(dispatch_staging_, flight);
}
std::int64_t WindowLayout::dispatch_forward(int flight) const {
  return at(dispatch_forward_, flight);
}
std::int64_t WindowLayout::return_slots(int flight) const {
  return at(return_slots_, flight);
}
std::int64_t WindowLayout::combine_forward(int flight) const {
  return at(combine_forward_, flight);
}
std::int64_t WindowLayout::combine_staging(int flight) const {
  return at(combine_staging_, flight);
}
std::int64_t WindowLayout::weights_ahead(int flight, int source) const {
  return at(weights_ahead_, flight) + source * weights_stride_;
}

}  // namespace ferry
