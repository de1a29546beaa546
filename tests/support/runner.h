// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// One rank's side of a case through the public API: arguments from the case, results compared with the reference.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <vector>

#include "ferry/ferry.h"
#include "support/cases.h"
#include "support/device.h"
#include "support/reference.h"
#include "support/spawn.h"

namespace ferry::test {

/// Memory and views of one round on one rank. Keep it until the calls that use it are over.
class Round {
 public:
  Round(const Reference& reference, int rank);

  DispatchArgs dispatch_args();
  /// The same rows again, routed by a handle.
  DispatchArgs cached_args(const Handle& handle);
  /// `result` is the dispatch whose rows come back: its shapes are what the experts fill.
  CombineArgs combine_args(const DispatchResult& result);

  /// Moves the rows of a combine to where the backend reads them in place, if the case allows it.
  void use_combine_input(const Group& group, CombineArgs& args);

  /// Puts this round's inputs where those of calls of another round with the same shapes lie.
  void refill(const DispatchArgs& args);
  void refill(const CombineArgs& args, const DispatchResult& result);
  /// Changes one id where it lies.
  void set_id(const DispatchArgs& args, std::int64_t token, int choice, std::int64_t id);

  /// A tensor of the same shape with bytes that belong to no result.
  Tensor spoiled(const Tensor& like);
  /// Holds this rank's stream up; on the host, the rank.
  void hold_up(std::chrono::microseconds time) const;
  /// Until what was started on this thread's stream is over; host calls are over when they return.
  void wait() const;

  /// Both throw Failure naming the first difference.
  void check(const DispatchResult& result, bool cached = false);
  void check(const CombineResult& result);

  std::int64_t capacity() const { return capacity_; }
  const ExpectedDispatch& expected() const { return expected_; }

 private:
  /// Copies rows x cols elements into memory of its own, with gaps if the case is strided.
  Tensor hold(const void* data, DType dtype, std::int64_t rows, std::int64_t cols, bool gaps_inside_rows);
  Tensor hold_ids();
  bool on_device() const { return case_.backend == "cuda"; }
  /// As the backend takes it: the tensor itself, or its copy on the device.
  Tensor placed(const Tensor& host) { return on_device() ? device_.to_device(host) : host; }
  Tensor fetched(const Tensor& tensor) { return on_device() ? device_.to_host(tensor) : tensor; }
  void check_payload(const DispatchResult& result) const;
  void check_choices(const DispatchResult& result, bool cached) const;
  void check_counts(const DispatchResult& result, bool cached) const;
  void check_handle(const DispatchResult& result) const;
  Tensor returned_rows(const DispatchResult& result);
  Tensor returned_weights(const DispatchResult& result);

  const Reference& reference_;
  const Case case_;
  int rank_;
  std::int64_t capacity_ = 0;
  ExpectedDispatch expected_;
  std::deque<std::vector<std::byte>> memory_;
  DeviceCopies device_;
};

/// A group of this rank for the case, with the case's masks.
Group make_group(const Case& c, Rank rank);
/// The same with settings that are not quite group_config(c).
Group make_group(const Case& c, Rank rank, GroupConfig config);

/// All rounds of a case on all ranks: dispatch, combine, cached dispatch, each compared. Throws Failure, with the case.
void run_case(const Case& c);

/// References of all rounds, made before ranks start.
std::vector<std::unique_ptr<Reference>> make_references(const Case& c);

}  // namespace ferry::test
