// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A group, its calls and their results as Python holds them: the C++ object together with what keeps its arguments
// alive.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "ferry/group.h"
#include "group_use.h"
#include "streams.h"

namespace ferry::python {

struct PyGroup {
  std::shared_ptr<Group> group;
  std::shared_ptr<GroupUse> use;
  Device home;  ///< where its tensors lie

  PyGroup(Group made, const GroupConfig& config);
  PyGroup(const PyGroup&) = delete;
  PyGroup& operator=(const PyGroup&) = delete;
  ~PyGroup();
};

/// The arrays of a call and its stream.
class CallInputs {
 public:
  explicit CallInputs(const Device& home) : place_{home, {}} {}

  /// Throws as read_array does; also for memory of another device than the group's.
  /// `owner`, if given, gets what keeps the memory.
  Tensor read(nanobind::handle value, const std::string& function, const std::string& argument,
              Access access = Access::kRead, std::shared_ptr<const void>* owner = nullptr);
  /// The stream that was given, else the one that the arrays go by; null on the host backend. Once all arrays were read.
  void* choose_stream(const std::string& function, const std::optional<StreamLike>& given);
  /// Where the results of the call lie.
  const Place& place() const { return place_; }

 private:
  Place place_;
  StreamChoice streams_;
  std::vector<std::shared_ptr<const void>> owners_;
};

/// DispatchArgs and whatever they point to.
struct DispatchInputs : CallInputs {
  using CallInputs::CallInputs;

  DispatchArgs args;
  Handle handle;
  std::optional<Placement> placement;
  std::shared_ptr<const void> handle_memory_owner;
  nanobind::object out;  ///< a tuple of what was given, to be returned; invalid if nothing was
};

/// CombineArgs and whatever they point to.
struct CombineInputs : CallInputs {
  using CallInputs::CallInputs;

  CombineArgs args;
  Handle handle;
  nanobind::object out;  ///< as given, to be returned; invalid if none was
};

/// A result; `out` holds the very objects that the caller gave for the payload, if it did.
struct PyDispatchResult {
  DispatchResult result;
  nanobind::object out;
  Place place;
};

/// A result; `out` of a combine is the very object that the caller gave, if one was.
struct PyCombineResult {
  CombineResult result;
  nanobind::object out;
  Place place;
};

/// A call that was sent and not received. Pending is PendingDispatch or PendingCombine.
template <typename Pending, typename Inputs>
struct PyPending {
  /// Destroyed together, the call first.
  struct Call {
    std::shared_ptr<Inputs> inputs;
    Pending pending;
    bool is_received = false;  ///< or receive() has failed: the call reads and writes nothing any more
  };
  std::shared_ptr<Call> call;
  std::shared_ptr<GroupUse> use;

  PyPending(Pending pending, std::shared_ptr<Inputs> inputs, std::shared_ptr<GroupUse> group_use)
      : call(std::make_shared<Call>(Call{.inputs = std::move(inputs), .pending = std::move(pending)})),
        use(std::move(group_use)) {}
  PyPending(PyPending&&) noexcept = default;
  PyPending(const PyPending&) = delete;
  PyPending& operator=(const PyPending&) = delete;
  ~PyPending() {
    if (!call) return;
    if (!call->is_received) use->retain(call->inputs);
    use->drop(std::move(call));
  }
};
using PyPendingDispatch = PyPending<PendingDispatch, DispatchInputs>;
using PyPendingCombine = PyPending<PendingCombine, CombineInputs>;

using GroupClass = nanobind::class_<PyGroup>;
/// Add the group's methods for each kind of call.
void bind_dispatch_methods(GroupClass& group);
void bind_combine_methods(GroupClass& group);

}  // namespace ferry::python
