// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What hangs on a group: its ranks, windows and calls in flight.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "backend/handle_layout.h"
#include "backend/runtime.h"
#include "ferry/group.h"

namespace ferry {

class GroupState : public std::enable_shared_from_this<GroupState> {
 public:
  GroupState(GroupConfig settings, std::shared_ptr<const Placement> experts, std::unique_ptr<Runtime> surroundings,
             std::unique_ptr<Backend> steps, std::uint64_t digest);
  ~GroupState();

  /// Opens the first windows; collective.
  void open();

  DispatchResult dispatch(const DispatchArgs& args);
  std::shared_ptr<DispatchCall> dispatch_send(const DispatchArgs& args);
  DispatchResult dispatch_receive(const std::shared_ptr<DispatchCall>& call);
  CombineResult combine(const CombineArgs& args);
  std::shared_ptr<CombineCall> combine_send(const CombineArgs& args);
  CombineResult combine_receive(const std::shared_ptr<CombineCall>& call);

  void mask(int rank);
  void unmask(int rank);
  /// As asked for, and those that this rank masked by itself.
  std::vector<std::uint8_t> masked() const;
  void check();
  void abort();
  void close();
  GroupStatistics statistics() const;
  /// The windows as they are now.
  const Windows& windows() const { return *windows_; }
  /// What keeps them mapped.
  std::shared_ptr<const void> keep_windows() const { return windows_; }
  void require_open(const char* function) const;

  const GroupConfig config;
  const std::shared_ptr<const Placement> placement;
  const std::unique_ptr<Runtime> runtime;
  const std::unique_ptr<Backend> backend;
  std::vector<StepTrace> last_trace;

 private:
  /// One thread at a time; a second one gets Error(invalid_argument) instead of a race.
  class Busy;
  /// How a call is made: in one go, or send now and receive later.
  enum class Phases { kTogether, kApart };

  std::shared_ptr<DispatchCall> send(const DispatchArgs& args, Phases phases);
  std::shared_ptr<CombineCall> send(const CombineArgs& args, Phases phases);
  bool members_differ();
  void refresh_windows(Mode mode);
  /// Who misses a deadline in the call's receive half is masked, and the call goes on.
  bool masks_late(Mode mode) const;
  bool goes_on_without(const Error& error, Mode mode, std::uint64_t epoch_before);
  template <typename Make>
  auto make_until_all_came(Mode mode, Make&& make);
  void raise_pending(const char* function);
  void replace_windows(std::shared_ptr<Windows> windows);
  template <typename CallType>
  void begin(CallType& call, std::vector<std::shared_ptr<CallType>>& flights, std::uint64_t& count);
  template <typename CallType>
  void free_flight(std::shared_ptr<CallType>& flight);
  template <typename CallType>
  auto receive(const std::shared_ptr<CallType>& call);
  void end_failed(Call& call, const Error& error);
  void forward_all();
  void receive_now(DispatchCall& call);
  void receive_now(CombineCall& call);

  const std::uint64_t digest_;
  std::shared_ptr<Windows> windows_;
  std::mutex windows_mutex_;  ///< for abort(), which another thread may call while windows change
  CallCounters counters_;
  std::vector<std::uint8_t> masks_;  ///< as asked for; take effect at the next call
  std::uint32_t next_membership_ = 0;
  bool rejoining_ = false;
  bool renew_ = false;  ///< the next call opens windows, whatever the masks are
  bool closed_ = false;
  bool forwarding_ = false;
  std::atomic<bool> busy_{false};
  std::vector<std::shared_ptr<DispatchCall>> dispatches_;  ///< by flight
  std::vector<std::shared_ptr<CombineCall>> combines_;
  std::vector<std::shared_ptr<DispatchCall>> old_dispatches_;  ///< not over yet, of windows before the last change
  std::vector<std::shared_ptr<CombineCall>> old_combines_;
  std::optional<Error> fault_;  ///< of a dropped call, raised by check()
};

/// Refusals before anything moves; `fill_*` writes what follows from the arguments into the call.
std::string why_not_dispatch(const GroupState& group, const DispatchArgs& args);
std::string why_not_combine(const GroupState& group, const CombineArgs& args);
/// The header of a handle that this group made; refuses anything else.
const HandleHeader& check_handle(const char* function, const GroupState& group, const Handle* handle);
/// Refuses a tensor that statistics cannot be added to: contiguous [length] int64, or int32 if `narrow_too`. Absent is fine.
void check_counter(const char* function, const char* argument, const Tensor& tensor, std::int64_t length,
                   bool narrow_too);
/// Refuses null and misaligned memory.
void check_memory(const char* function, const std::string& argument, const Tensor& tensor);
void fill_dispatch(const GroupState& group, const DispatchArgs& args, DispatchCall& call);
/// Largest handle that a dispatch can make.
std::int64_t most_handle_bytes(const GroupState& group, const DispatchCall& call);
void fill_combine(const GroupState& group, const CombineArgs& args, CombineCall& call);

/// Throws Error(invalid_argument) for limits that make no sense.
void check_limits(const GroupConfig& config, const Topology& topology);
WindowLayout make_window_layout(const GroupConfig& config, const Topology& topology, const Placement& placement,
                                const Rails& rails);

}  // namespace ferry
