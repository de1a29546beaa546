// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls in order: check, open windows if the membership changed, take a flight, run the steps.
#include "api/group_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "core/check.h"

namespace ferry {
namespace {

/// Of the dispatch whose rows come back; a handle that is none is refused later.
Mode mode_of(const CombineArgs& args) {
  return args.handle != nullptr && args.handle->valid() ? args.handle->mode() : Mode::kLatency;
}

Mode mode_of(const DispatchArgs& args) {
  return args.mode;
}

/// `args` with the mode that Mode::kAuto comes to, in `memory`: it decides which windows the call may be made in. No windows decide
/// about it.
const DispatchArgs& choose_mode(const GroupState& group, const DispatchArgs& args,
                                std::optional<DispatchArgs>& memory) {
  if (args.mode != Mode::kAuto) return args;
  DispatchCall call;
  fill_dispatch(group, args, call);
  memory = args;
  memory->mode = call.args.mode;
  return *memory;
}

/// Adds what the host waits for each rank, from here to its end, to a tensor of the caller. Devices count for themselves.
class WaitCounter {
 public:
  WaitCounter(const Runtime& runtime, const Tensor& total)
      : runtime_(runtime), total_(runtime.device_memories ? Tensor{} : total) {
    if (total_.present()) before_ = runtime.wait_ns;
  }
  WaitCounter(const WaitCounter&) = delete;
  WaitCounter& operator=(const WaitCounter&) = delete;
  ~WaitCounter() {
    for (std::size_t rank = 0; rank < before_.size(); ++rank)
      static_cast<std::int64_t*>(total_.data)[rank] += runtime_.wait_ns[rank] - before_[rank];
  }

 private:
  const Runtime& runtime_;
  const Tensor total_;
  std::vector<std::int64_t> before_;
};

/// The same for rows received; by a host.
void add_counts(const DispatchCall& call) {
  const Tensor& total = call.args.recv_counts;
  for (std::size_t e = 0; total.present() && e < call.expert_counts.size(); ++e) {
    if (total.dtype == DType::kInt64) {
      static_cast<std::int64_t*>(total.data)[e] += call.expert_counts[e];
    } else {
      static_cast<std::int32_t*>(total.data)[e] += call.expert_counts[e];
    }
  }
}
void add_counts(const CombineCall&) {}

}  // namespace

class GroupState::Busy {
 public:
  Busy(GroupState& group, const char* function) : group_(group) {
    if (group_.busy_.exchange(true, std::memory_order_acquire)) {
      refuse(function, "group", "in a call of another thread", "one thread at a time");
    }
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
  ~Busy() { group_.busy_.store(false, std::memory_order_release); }

 private:
  GroupState& group_;
};

GroupState::GroupState(GroupConfig settings, std::shared_ptr<const Placement> experts,
                       std::unique_ptr<Runtime> surroundings, std::unique_ptr<Backend> steps, std::uint64_t digest)
    : config(std::move(settings)),
      placement(std::move(experts)),
      runtime(std::move(surroundings)),
      backend(std::move(steps)),
      digest_(digest),
      masks_(static_cast<std::size_t>(runtime->topology.num_ranks()), 0),
      dispatches_(static_cast<std::size_t>(config.limits.num_flights)),
      combines_(static_cast<std::size_t>(config.limits.num_flights)) {
  runtime->progress = [this] { forward_all(); };
  counters_.epoch = config.test.first_epoch;
}

bool GroupState::masks_late(Mode mode) const {
  if (config.auto_masks == 0) return false;
  return mode == Mode::kLatency || (runtime->topology.num_nodes() == 1 && !runtime->device_memories);
}

GroupState::~GroupState() {
  close();
}

void GroupState::open() {
  refresh_windows(Mode::kLatency);
}

void GroupState::require_open(const char* function) const {
  if (closed_) refuse(function, "group", "closed", "an open group");
}

/// What a call of throughput mode has to find: the row of every token follows from everybody's counts, so that all must have the
/// same members. Latency mode goes on in windows in which some have masked others.
bool GroupState::members_differ() {
  if (config.auto_masks == 0 || !windows_) return false;
  if (const auto newer = runtime->newer_membership(*windows_)) {
    for (std::size_t rank = 0; rank < masks_.size(); ++rank) masks_[rank] |= newer->masked[rank];
    next_membership_ = newer->masked == masked() ? newer->number : newer->number + 1;
    return true;
  }
  return masked() != windows_->membership.masked;
}

/// Opens fresh windows if the masks changed since the last call.
void GroupState::refresh_windows(Mode mode) {
  if (mode == Mode::kThroughput && !rejoining_ && members_differ()) renew_ = true;
  // Tags of packets are half an epoch. Calls of latency mode renew them in time; where none was made for long, new windows do. All
  // ranks count alike.
  constexpr std::uint64_t kTooLong = std::uint64_t{1} << 30;
  if (mode == Mode::kLatency && runtime->device_memories && windows_ &&
      counters_.epoch - windows_->last_latency_call > kTooLong)
    renew_ = true;
  Membership wanted{next_membership_, masks_};
  if (rejoining_) {
    const Runtime::Rejoin rejoin = runtime->wait_for_rejoin(config.timeout);
    wanted = rejoin.membership;
    counters_ = rejoin.counters;
  } else if (windows_ && windows_->membership.masked == masks_ && !renew_) {
    runtime->masked_now = masked();  // a rank masked and taken back before any call is waited for again
    // A peer whose first try to open the windows of this membership failed has opened others.
    const std::optional<std::uint32_t> reopened = runtime->reopened_as(*windows_);
    if (!reopened) return;
    wanted.number = *reopened;
  }
  if (!rejoining_) wanted.masked = masked();
  std::shared_ptr<Windows> windows;
  while (!windows) {
    masks_ = runtime->masked_now = wanted.masked;
    next_membership_ = wanted.number + 1;  // also if opening fails: a second try must not meet notices of the first
    const WindowLayout layout =
        make_window_layout(config, runtime->topology, *placement, Rails(runtime->topology, wanted.masked));
    if (runtime->device_memories) {
      RegionList regions(256);
      runtime->device_layout = make_device_layout(config.limits, runtime->topology, *placement, layout, regions);
    }
    try {
      windows = runtime->open_windows(wanted, layout, counters_, digest_, config.timeout, windows_.get(),
                                      config.auto_masks > 0);
    } catch (const MembershipGrew& grew) {
      wanted = grew.membership;
    }
  }
  counters_.epoch = windows->last_latency_call = windows->first_epoch;
  counters_.dispatches = counters_.combines = counters_.exchanges = 0;  // no call in flight uses the fresh windows
  for (auto& call : dispatches_) {
    if (call && !call->over) old_dispatches_.push_back(std::move(call));
    call = nullptr;
  }
  for (auto& call : combines_) {
    if (call && !call->over) old_combines_.push_back(std::move(call));
    call = nullptr;
  }
  std::fill(runtime->late.begin(), runtime->late.end(), 0);
  backend->adopt(windows);
  runtime->wait_until_mapped(*windows, config.timeout, windows_.get());
  replace_windows(std::move(windows));
  rejoining_ = renew_ = false;
  const auto is_finished = [](const auto& old) { return old->over || (old->dropped && old->forward_posted); };
  std::erase_if(old_dispatches_, is_finished);
  std::erase_if(old_combines_, is_finished);
}

/// Forwards what has arrived for others, for every call in flight.
void GroupState::forward_all() {
  if (forwarding_) return;  // a forward that waits for room in the ring comes by here again
  forwarding_ = true;
  const auto forward = [this](auto& calls) {
    for (auto& call : calls) {
      if (!call || call->over || !call->sent) continue;
      if constexpr (std::is_same_v<std::decay_t<decltype(*call)>, DispatchCall>) {
        backend->dispatch_forward(*call);
      } else {
        backend->combine_forward(*call);
      }
    }
  };
  try {
    forward(dispatches_);
    forward(combines_);
    forward(old_dispatches_);
    forward(old_combines_);
  } catch (...) {
    forwarding_ = false;
    throw;
  }
  forwarding_ = false;
}

void GroupState::receive_now(DispatchCall& call) {
  backend->dispatch_recv(call);
}
void GroupState::receive_now(CombineCall& call) {
  backend->combine_recv(call);
}

/// A flight can be taken again once its last call is over. A dropped call is finished here; one that somebody still holds is
/// the caller's mistake.
template <typename CallType>
void GroupState::free_flight(std::shared_ptr<CallType>& flight) {
  if (!flight || flight->over) return;
  if (!flight->dropped) {
    refuse(flight->kind == CallKind::kCombine ? "ferry::Group::combine" : "ferry::Group::dispatch", "calls in flight",
           fmt::format("{} not yet received", config.limits.num_flights),
           fmt::format("fewer than num_flights = {}: receive one first", config.limits.num_flights));
  }
  CallType* call = flight.get();
  call->discard = true;  // what the caller lent for results may be gone
  try {
    receive_now(*call);
  } catch (const Error& error) {
    fault_ = error;
  }
  call->over = true;
}

bool GroupState::goes_on_without(const Error& error, Mode mode, std::uint64_t epoch_before) {
  if (config.auto_masks == 0 || mode != Mode::kThroughput) return false;
  if (error.code() == ErrorCode::kMismatch) return windows_ && runtime->newer_membership(*windows_).has_value();
  if (error.code() != ErrorCode::kTimeout && error.code() != ErrorCode::kPeerLost) return false;
  bool any = false;
  for (const PeerWait& peer : error.peers) {
    if (peer.rank < 0 || peer.rank == runtime->rank) continue;
    // The error names everybody who has not come yet; where one is gone, the others may still be on their way.
    if (error.code() == ErrorCode::kPeerLost && !runtime->mesh->gone(peer.rank)) continue;
    any = any || runtime->late[static_cast<std::size_t>(peer.rank)] == 0;
    runtime->late[static_cast<std::size_t>(peer.rank)] = std::max<std::uint64_t>(1, error.epoch);
  }
  return any &&
         error.epoch > epoch_before;  // a fault of an earlier call is told, and its culprit left out of the next one
}

/// Makes a call of throughput mode, and again without those who were late: nobody has finished it, because each of its halves needs
/// all members.
template <typename Make>
auto GroupState::make_until_all_came(Mode mode, Make&& make) {
  for (;;) {
    const std::uint64_t epoch_before = counters_.epoch;
    try {
      return make();
    } catch (const Error& error) {
      if (!goes_on_without(error, mode, epoch_before)) throw;
    }
  }
}

template <typename CallType>
void GroupState::begin(CallType& call, std::vector<std::shared_ptr<CallType>>& flights, std::uint64_t& count) {
  const auto flight = static_cast<std::size_t>((count + 1) % flights.size());
  free_flight(flights[flight]);
  ++count;
  call.windows = windows_;
  call.epoch = ++counters_.epoch;
  if (mode_of(call.args) == Mode::kLatency) windows_->last_latency_call = call.epoch;
  call.flight = static_cast<int>(flight);
  call.memory = std::make_shared<ResultMemory>();
  call.memory->keep.push_back(windows_->own_memory());
  runtime->announce(call);
  // Waits that end at once do not look for trouble, so a group that was aborted is found here.
  const bool combine = call.kind == CallKind::kCombine;
  runtime->check_aborted(call, combine ? "ferry::Group::combine" : "ferry::Group::dispatch", *windows_);
}

/// A call whose kind ranks did not agree about counts for none of them, so that flights stay in step.
void GroupState::end_failed(Call& call, const Error& error) {
  call.over = true;
  if (call.windows != windows_) return;
  const auto flight = static_cast<std::size_t>(call.flight);
  const bool combine = call.kind == CallKind::kCombine;
  // The rank that could not take the rows of a latency dispatch has no handle and makes no combine.
  const bool refused_before = combine && error.code() == ErrorCode::kOverflow;
  // Where only the arguments differ, everybody has counted the call, and slow ranks may still read what belongs to it.
  const bool other_kind = error.code() == ErrorCode::kMismatch && runtime->ranks_make_other_calls(call);
  if (!refused_before && !other_kind) return;
  if (refused_before) --counters_.epoch;
  --(combine ? counters_.combines : counters_.dispatches);
  if (combine) windows_->last_combine[flight] = call.flight_used_before;
  if (call.kind == CallKind::kLatencyDispatch) windows_->last_latency_dispatch[flight] = call.flight_used_before;
  if (call.kind == CallKind::kDispatch) --counters_.exchanges;
}

/// What is known by now of calls that went wrong behind the host's back. Asked before a call counts: else the peers, whose earlier
/// call went well, would make it and this rank would not. After an abort, waits that ended otherwise are its consequence.
void GroupState::raise_pending(const char* function) {
  Call here;
  here.windows = windows_;
  here.epoch = counters_.epoch;
  runtime->check_aborted(here, function, *windows_);
  backend->check_faults();
}

std::shared_ptr<DispatchCall> GroupState::send(const DispatchArgs& args, Phases phases) {
  auto call = std::make_shared<DispatchCall>();
  call->blocking = phases == Phases::kTogether;
  refresh_windows(args.mode);
  raise_pending("ferry::Group::dispatch");
  fill_dispatch(*this, args, *call);
  const bool latency = call->args.mode == Mode::kLatency;
  call->kind = latency ? CallKind::kLatencyDispatch : CallKind::kDispatch;
  call->masks_late = masks_late(call->args.mode) && latency;
  begin(*call, dispatches_, counters_.dispatches);
  if (!latency) call->exchange = ++counters_.exchanges;
  dispatches_[static_cast<std::size_t>(call->flight)] = call;
  const WaitCounter counter(*runtime, args.wait_ns);
  try {
    backend->route(*call);
    backend->dispatch_send(*call);
    call->masks_late = masks_late(args.mode);  // everybody has counted its rows by now
  } catch (const Error& error) {
    end_failed(*call, error);
    throw;
  } catch (...) {  // out of memory, say: nobody holds the call any more
    call->over = true;
    throw;
  }
  call->sent = true;
  return call;
}

std::shared_ptr<CombineCall> GroupState::send(const CombineArgs& args, Phases phases) {
  auto call = std::make_shared<CombineCall>();
  call->blocking = phases == Phases::kTogether;
  call->kind = CallKind::kCombine;
  refresh_windows(mode_of(args));
  raise_pending("ferry::Group::combine");
  fill_combine(*this, args, *call);
  call->masks_late = masks_late(call->handle.mode());
  begin(*call, combines_, counters_.combines);
  combines_[static_cast<std::size_t>(call->flight)] = call;
  const WaitCounter counter(*runtime, args.wait_ns);
  try {
    backend->combine_send(*call);
  } catch (const Error& error) {
    end_failed(*call, error);
    throw;
  } catch (...) {  // out of memory, say: nobody holds the call any more
    call->over = true;
    throw;
  }
  call->sent = true;
  return call;
}

template <typename CallType>
auto GroupState::receive(const std::shared_ptr<CallType>& call) {
  if (call->received)
    refuse("ferry::Pending::receive", "pending", "received already", "a call that was not received yet");
  call->received = true;
  if (call->over) refuse("ferry::Pending::receive", "pending", "over", "a call in flight");
  const WaitCounter counter(*runtime, call->args.wait_ns);
  try {
    receive_now(*call);
    if (!runtime->device_memories) add_counts(*call);
    // When a call returns, this rank's part of it is carried out: whatever happens to the process next, peers have it.
    // The result is whole already, so nothing that happens from here on is an error of this call.
    runtime->drain(call->timeout);
  } catch (const Error& error) {
    end_failed(*call, error);
    last_trace = call->trace;
    throw;
  } catch (...) {
    call->over = true;
    throw;
  }
  call->over = true;
  last_trace = call->trace;
  backend->note_late(runtime->late);
  for (std::size_t rank = 0; rank < runtime->late.size(); ++rank) {
    if (runtime->late[rank] == call->epoch) call->result.late.push_back(static_cast<int>(rank));
  }
  const auto is_over = [](const auto& old) { return old->over; };
  std::erase_if(old_dispatches_, is_over);
  std::erase_if(old_combines_, is_over);
  return std::move(call->result);
}

// A whole call is one turn of its thread: between sending and receiving, another thread would find the flight taken, and this
// one could not give it back.
DispatchResult GroupState::dispatch(const DispatchArgs& args) {
  Busy busy(*this, "ferry::Group::dispatch");
  require_open("ferry::Group::dispatch");
  std::optional<DispatchArgs> memory;
  const DispatchArgs& chosen = choose_mode(*this, args, memory);
  return make_until_all_came(chosen.mode, [&] { return receive(send(chosen, Phases::kTogether)); });
}

CombineResult GroupState::combine(const CombineArgs& args) {
  Busy busy(*this, "ferry::Group::combine");
  require_open("ferry::Group::combine");
  return make_until_all_came(mode_of(args), [&] { return receive(send(args, Phases::kTogether)); });
}

std::shared_ptr<DispatchCall> GroupState::dispatch_send(const DispatchArgs& args) {
  Busy busy(*this, "ferry::Group::dispatch_send");
  require_open("ferry::Group::dispatch_send");
  std::optional<DispatchArgs> memory;
  const DispatchArgs& chosen = choose_mode(*this, args, memory);
  return make_until_all_came(chosen.mode, [&] { return send(chosen, Phases::kApart); });
}

std::shared_ptr<CombineCall> GroupState::combine_send(const CombineArgs& args) {
  Busy busy(*this, "ferry::Group::combine_send");
  require_open("ferry::Group::combine_send");
  return make_until_all_came(mode_of(args), [&] { return send(args, Phases::kApart); });
}

DispatchResult GroupState::dispatch_receive(const std::shared_ptr<DispatchCall>& call) {
  Busy busy(*this, "ferry::PendingDispatch::receive");
  require_open("ferry::PendingDispatch::receive");
  return receive(call);
}

CombineResult GroupState::combine_receive(const std::shared_ptr<CombineCall>& call) {
  Busy busy(*this, "ferry::PendingCombine::receive");
  require_open("ferry::PendingCombine::receive");
  return receive(call);
}

void GroupState::mask(int rank) {
  constexpr const char* kFunction = "ferry::Group::mask";
  Busy busy(*this, kFunction);
  require_open(kFunction);
  const int num_ranks = runtime->topology.num_ranks();
  if (rank < 0 || rank >= num_ranks)
    refuse(kFunction, "rank", fmt::to_string(rank), fmt::format("0 to {}", num_ranks - 1));
  if (rank == runtime->rank) refuse(kFunction, "rank", fmt::format("{}, this rank itself", rank), "another rank");
  masks_[static_cast<std::size_t>(rank)] = 1;
  runtime->masked_now[static_cast<std::size_t>(rank)] = 1;  // waits of calls in flight stop waiting for it at once
}

std::vector<std::uint8_t> GroupState::masked() const {
  backend->note_late(runtime->late);
  std::vector<std::uint8_t> all = masks_;
  for (std::size_t rank = 0; rank < all.size(); ++rank) all[rank] |= runtime->late[rank] != 0 ? 1 : 0;
  return all;
}

void GroupState::unmask(int rank) {
  constexpr const char* kFunction = "ferry::Group::unmask";
  Busy busy(*this, kFunction);
  require_open(kFunction);
  const int num_ranks = runtime->topology.num_ranks();
  if (rank < 0 || rank >= num_ranks)
    refuse(kFunction, "rank", fmt::to_string(rank), fmt::format("0 to {}", num_ranks - 1));
  if (rank == runtime->rank) {
    rejoining_ = true;
    return;
  }
  masks_[static_cast<std::size_t>(rank)] = 0;  // masked_now follows with the next windows
  // Others may have masked it by themselves while this rank did not, or the other way round.
  renew_ = renew_ || config.auto_masks > 0;
  backend->forget_late(rank);
  runtime->late[static_cast<std::size_t>(rank)] = 0;
}

void GroupState::check() {
  Busy busy(*this, "ferry::Group::check");
  require_open("ferry::Group::check");
  if (fault_) {
    const Error error = *fault_;
    fault_.reset();
    throw error;
  }
  raise_pending("ferry::Group::check");
}

void GroupState::abort() {
  runtime->abort();
  backend->give_up();
  const std::lock_guard lock(windows_mutex_);
  if (windows_) runtime->spread_abort_in_node(*windows_);
}

void GroupState::replace_windows(std::shared_ptr<Windows> windows) {
  const std::lock_guard lock(windows_mutex_);
  windows_.swap(windows);
}

void GroupState::close() {
  if (closed_) return;
  closed_ = true;
  // Rows of others that are here already are handed on; more than that would be waiting.
  try {
    forward_all();
  } catch (const Error&) {
    // The peers concerned see that this rank is gone.
  }
  // What was handed to the engine belongs to calls that peers may still be in; carrying it out is local work.
  if (windows_) runtime->finish(*windows_, std::chrono::seconds(1));
  try {
    backend->settle(true);
  } catch (const Error&) {
    // A device that has failed runs nothing any more.
  }
  dispatches_.clear();
  combines_.clear();
  old_dispatches_.clear();
  old_combines_.clear();
  replace_windows(nullptr);
  runtime->leave();
}

GroupStatistics GroupState::statistics() const {
  GroupStatistics statistics;
  statistics.epoch = counters_.epoch;
  statistics.membership = windows_ ? windows_->membership.number : 0;
  statistics.window_bytes = windows_ ? windows_->layout.total_bytes() : 0;
  if (runtime->device_memories) statistics.device_memory = runtime->device_memories->describe();
  statistics.wait_ns = runtime->wait_ns;
  if (runtime->engine) {
    const net::Statistics network = runtime->engine->statistics();
    statistics.network_commands = network.commands;
    statistics.network_bytes = network.bytes;
  }
  return statistics;
}

}  // namespace ferry
