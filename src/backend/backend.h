// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The seam between the API and a backend: the seven steps. The API checks arguments, makes the call and runs the steps in
// order; a backend carries them out on its windows.
#pragma once

#include <memory>
#include <string>

#include "backend/call.h"
#include "backend/runtime.h"

namespace ferry {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const noexcept = 0;

  /// Why this backend cannot make a call whose arguments are right otherwise; empty if it can.
  virtual std::string why_not(const DispatchCall&) const { return {}; }
  virtual std::string why_not(const CombineCall&) const { return {}; }
  /// Why nobody can make calls of this mode, row format and top-k with call.num_tokens tokens; looks at nothing else, so that all
  /// ranks come to the same answer.
  virtual std::string why_not_mode(const DispatchCall&) const { return {}; }
  /// Throws the fault of an earlier call that nobody has waited for.
  virtual void check_faults() {}
  /// Adds the ranks that a device has masked on the way: [R], the call in which it did.
  virtual void note_late(std::vector<std::uint64_t>& /*late*/) const {}
  /// Forgets that it did; it still leaves the rank out until there are new windows.
  virtual void forget_late(int /*rank*/) {}
  /// New windows are open; calls from now on use them.
  virtual void adopt(const std::shared_ptr<Windows>& /*windows*/) {}
  /// Waits until nothing of earlier calls runs any more; `abandon` gives what runs a second, then makes what waits for peers give up.
  virtual void settle(bool /*abandon*/) {}
  /// Ends what runs of any call; may be called from any thread.
  virtual void give_up() {}
  /// Names this rank's device, the same for all ranks that work on it; empty where there is none.
  virtual std::vector<std::byte> device_identity() const { return {}; }
  /// So many ranks of the group work on this rank's device, itself included.
  virtual void share_device(int /*num_ranks*/) {}
  /// What the experts may write their results into, so that combine reads them where they are: `elements` of `dtype` a row,
  /// rows as in the dispatch's layout. Throws Error(unsupported) where combine has no such place.
  virtual Tensor combine_input(const Windows& windows, const Handle& handle, DType dtype, std::int64_t elements) = 0;

  /// Fixes the row of every token; throughput mode exchanges counts for it.
  virtual void route(DispatchCall& call) = 0;
  virtual void dispatch_send(DispatchCall& call) = 0;
  /// Hands on what has arrived for others; never waits. True once nothing more will come.
  virtual bool dispatch_forward(DispatchCall& call) = 0;
  virtual void dispatch_recv(DispatchCall& call) = 0;
  virtual void combine_send(CombineCall& call) = 0;
  /// As dispatch_forward.
  virtual bool combine_forward(CombineCall& call) = 0;
  virtual void combine_recv(CombineCall& call) = 0;
};

/// Defined in src/host.
std::unique_ptr<Backend> make_host_backend(Runtime& runtime);
/// Defined in src/cuda, in builds that have it. `device` -1: the thread's current device.
std::unique_ptr<Backend> make_cuda_backend(Runtime& runtime, const GroupConfig& config, int device);
/// What the network engine needs of that device.
std::shared_ptr<net::CopyEngines> make_cuda_copy_engines(int device);

}  // namespace ferry
