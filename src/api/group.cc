// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// include/ferry/group.h made real.
#include "ferry/group.h"

#include <fmt/format.h>

#include "api/group_state.h"
#include "backend/handle_layout.h"
#include "core/check.h"

namespace ferry {

Group::Group(std::shared_ptr<GroupState> state) : state_(std::move(state)) {}
Group::Group(Group&&) noexcept = default;
Group& Group::operator=(Group&&) noexcept = default;
Group::~Group() {
  if (state_) state_->close();
}

int Group::rank() const {
  return state_->runtime->rank;
}
int Group::size() const {
  return state_->runtime->topology.num_ranks();
}
const Topology& Group::topology() const {
  return state_->runtime->topology;
}
const Placement& Group::placement() const {
  return *state_->placement;
}
const GroupConfig& Group::config() const {
  return state_->config;
}

PendingDispatch Group::dispatch_send(const DispatchArgs& args) {
  return {state_, state_->dispatch_send(args, GroupState::Phases::kApart)};
}
PendingCombine Group::combine_send(const CombineArgs& args) {
  return {state_, state_->combine_send(args, GroupState::Phases::kApart)};
}
DispatchResult Group::dispatch(const DispatchArgs& args) {
  return state_->dispatch_receive(state_->dispatch_send(args, GroupState::Phases::kTogether));
}
CombineResult Group::combine(const CombineArgs& args) {
  return state_->combine_receive(state_->combine_send(args, GroupState::Phases::kTogether));
}

std::string Group::why_not(const DispatchArgs& args) const {
  state_->require_open("ferry::Group::why_not");
  return why_not_dispatch(*state_, args);
}

std::string Group::why_not(const CombineArgs& args) const {
  state_->require_open("ferry::Group::why_not");
  return why_not_combine(*state_, args);
}

std::size_t Group::handle_bytes(const DispatchArgs& args) const {
  state_->require_open("ferry::Group::handle_bytes");
  DispatchArgs without_memory = args;
  without_memory.handle_memory = {};
  DispatchCall call;
  fill_dispatch(*state_, without_memory, call);
  return static_cast<std::size_t>(most_handle_bytes(*state_, call));
}

Tensor Group::combine_input(const Handle& handle, DType dtype, std::int64_t elements) const {
  constexpr const char* kFunction = "ferry::Group::combine_input";
  state_->require_open(kFunction);
  check_handle(kFunction, *state_, &handle);
  if (dtype != DType::kBf16 && dtype != DType::kFp16 && dtype != DType::kFp32)
    refuse(kFunction, "dtype", name(dtype), "bf16, fp16 or fp32");
  const std::int64_t most = state_->windows().layout.max_return_bytes() / static_cast<std::int64_t>(dtype_bytes(dtype));
  if (elements < 1 || elements > most)
    refuse(kFunction, "elements", fmt::to_string(elements), fmt::format("1 to {} (limits.hidden and dtype)", most));
  return state_->backend->combine_input(state_->windows(), handle, dtype, elements);
}

void Group::mask(int rank) {
  state_->mask(rank);
}
void Group::unmask(int rank) {
  state_->unmask(rank);
}
std::vector<bool> Group::masked() const {
  return {state_->masked().begin(), state_->masked().end()};
}
void Group::check() {
  state_->check();
}
void Group::abort() {
  state_->abort();
}
void Group::close() {
  state_->close();
}
GroupStatistics Group::statistics() const {
  return state_->statistics();
}
const std::vector<StepTrace>& Group::last_trace() const {
  return state_->last_trace;
}

namespace {

/// A pending object that goes without receive() leaves its call to the group.
template <typename CallPointer>
void drop(CallPointer& call) {
  if (call) call->dropped = true;
  call = nullptr;
}

}  // namespace

PendingDispatch::PendingDispatch(std::shared_ptr<GroupState> group, std::shared_ptr<DispatchCall> call)
    : group_(std::move(group)), call_(std::move(call)) {}
PendingDispatch& PendingDispatch::operator=(PendingDispatch&& other) noexcept {
  if (this == &other) return *this;
  drop(call_);
  group_ = std::move(other.group_);
  call_ = std::move(other.call_);
  return *this;
}
PendingDispatch::~PendingDispatch() {
  drop(call_);
}

DispatchResult PendingDispatch::receive() {
  if (!call_) refuse("ferry::PendingDispatch::receive", "pending", "empty or moved from", "a dispatch that was sent");
  return group_->dispatch_receive(call_);
}

PendingCombine::PendingCombine(std::shared_ptr<GroupState> group, std::shared_ptr<CombineCall> call)
    : group_(std::move(group)), call_(std::move(call)) {}
PendingCombine& PendingCombine::operator=(PendingCombine&& other) noexcept {
  if (this == &other) return *this;
  drop(call_);
  group_ = std::move(other.group_);
  call_ = std::move(other.call_);
  return *this;
}
PendingCombine::~PendingCombine() {
  drop(call_);
}

CombineResult PendingCombine::receive() {
  if (!call_) refuse("ferry::PendingCombine::receive", "pending", "empty or moved from", "a combine that was sent");
  return group_->combine_receive(call_);
}

}  // namespace ferry
