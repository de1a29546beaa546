// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where the tensors of one rank lie: in host memory, or on a GPU. The layer is the same for both.
#pragma once

#include <memory>

#include "ferry/group.h"

namespace ferry::app {

/// Used by one thread. What it lends or reads stays until forget().
class RankMemory {
 public:
  virtual ~RankMemory() = default;

  /// Device, stream and SMs that calls over this memory use.
  virtual void configure(GroupConfig&) const {}
  virtual void configure(DispatchArgs&) const {}
  virtual void configure(CombineArgs&) const {}

  /// The same elements where the group takes them.
  virtual Tensor lend(const Tensor& host) = 0;
  /// The same for rows of combine: where combine reads them without a copy of its own.
  virtual Tensor lend_rows(const Group& group, const Handle& handle, const Tensor& host) = 0;
  /// The same elements, shape and strides where the host can read them, once finish() was called.
  virtual Tensor read(const Tensor& tensor) = 0;
  /// Waits until all that was asked of the group is done, and raises its faults.
  virtual void finish(Group& group) = 0;
  virtual void forget() = 0;
};

std::unique_ptr<RankMemory> make_host_memory();

}  // namespace ferry::app
