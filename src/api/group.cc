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

/// A group that was moved from has no state.
GroupState& Group::state(const char* function) const {
  if (!state_) refuse(function, "group", "moved from", "a group");
  return *state_;
}

int Group::rank() const {
  return state("ferry::Group::rank").runtime->rank;
}
int Group::size() const {
  return state("ferry::Group::size").runtime->topology.num_ranks();
}
const Topology& Group::topology() const {
  return state("ferry::Group::topology").runtime->topology;
}
const Placement& Group::placement() const {
  return *state("ferry::Group::placement").placement;
}
const GroupConfig& Group::config() const {
  return state("ferry::Group::config").config;
}
std::string Group::backend_name() const {
  return state("ferry::Group::backend_name").backend->name();
}
std::string Group::network_name() const {
  const auto& engine = state("ferry::Group::network_name").runtime->engine;
  return engine ? engine->provider().name : "none";
}

PendingDispatch Group::dispatch_send(const DispatchArgs& args) {
  return {state_, state("ferry::Group::dispatch_send").dispatch_send(args)};
}
PendingCombine Group::combine_send(const CombineArgs& args) {
  return {state_, state("ferry::Group::combine_send").combine_send(args)};
}
DispatchResult Group::dispatch(const DispatchArgs& args) {
  return state("ferry::Group::dispatch").dispatch(args);
}
CombineResult Group::combine(const CombineArgs& args) {
  return state("ferry::Group::combine").combine(args);
}

std::string Group::why_not(const DispatchArgs& args) const {
  const GroupState& group = state("ferry::Group::why_not");
  group.require_open("ferry::Group::why_not");
  return why_not_dispatch(group, args);
}

std::string Group::why_not(const CombineArgs& args) const {
  const GroupState& group = state("ferry::Group::why_not");
  group.require_open("ferry::Group::why_not");
  return why_not_combine(group, args);
}

std::size_t Group::handle_bytes(const DispatchArgs& args) const {
  const GroupState& group = state("ferry::Group::handle_bytes");
  group.require_open("ferry::Group::handle_bytes");
  DispatchArgs without_memory = args;
  without_memory.handle_memory = {};
  DispatchCall call;
  fill_dispatch(group, without_memory, call);
  return static_cast<std::size_t>(most_handle_bytes(group, call));
}

Mode Group::mode_of(const DispatchArgs& args) const {
  const GroupState& group = state("ferry::Group::mode_of");
  group.require_open("ferry::Group::mode_of");
  DispatchCall call;
  fill_dispatch(group, args, call);
  return call.args.mode;
}

Tensor Group::combine_input(const Handle& handle, DType dtype, std::int64_t elements,
                            std::shared_ptr<const void>* owner) const {
  constexpr const char* kFunction = "ferry::Group::combine_input";
  const GroupState& group = state(kFunction);
  group.require_open(kFunction);
  check_handle(kFunction, group, &handle);
  if (dtype != DType::kBf16 && dtype != DType::kFp16 && dtype != DType::kFp32)
    refuse(kFunction, "dtype", name(dtype), "bf16, fp16 or fp32");
  const std::int64_t most = group.windows().layout.max_return_bytes() / static_cast<std::int64_t>(dtype_bytes(dtype));
  if (elements < 1 || elements > most)
    refuse(kFunction, "elements", fmt::to_string(elements), fmt::format("1 to {} (limits.hidden and dtype)", most));
  const Tensor input = group.backend->combine_input(group.windows(), handle, dtype, elements);
  if (owner != nullptr) *owner = group.keep_windows();
  return input;
}

void Group::mask(int rank) {
  state("ferry::Group::mask").mask(rank);
}
void Group::unmask(int rank) {
  state("ferry::Group::unmask").unmask(rank);
}
std::vector<bool> Group::masked() const {
  const auto& masks = state("ferry::Group::masked").masked();
  return {masks.begin(), masks.end()};
}
void Group::check() {
  state("ferry::Group::check").check();
}
void Group::abort() {
  state("ferry::Group::abort").abort();
}
void Group::close() {
  state("ferry::Group::close").close();
}
GroupStatistics Group::statistics() const {
  return state("ferry::Group::statistics").statistics();
}
const std::vector<StepTrace>& Group::last_trace() const {
  return state("ferry::Group::last_trace").last_trace;
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

bool PendingDispatch::valid() const noexcept {
  return call_ && !call_->received;
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

bool PendingCombine::valid() const noexcept {
  return call_ && !call_->received;
}
CombineResult PendingCombine::receive() {
  if (!call_) refuse("ferry::PendingCombine::receive", "pending", "empty or moved from", "a combine that was sent");
  return group_->combine_receive(call_);
}

}  // namespace ferry
