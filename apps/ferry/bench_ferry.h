// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ferry itself as the job of a benchmark: one group per rank, seen through the public API only.
#pragma once

#include <vector>

#include "bench_run.h"
#include "ferry/ferry.h"

namespace ferry::bench {

class FerryJob : public Job {
 public:
  /// Collective over the meeting.
  FerryJob(const BenchCase& bench_case, Meeting& meeting, const NetworkOptions& network);

  void dispatch(const InputSet& input) override;
  Received received() override;
  void combine(const InputSet& input) override;
  const std::byte* combined() override { return out_.data(); }
  std::vector<StepTime> steps() override;

  void abort() { group_.abort(); }

 private:
  DispatchArgs dispatch_args(const InputSet& input);

  const BenchCase case_;
  Group group_;
  std::vector<std::byte> handle_memory_;
  Buffer out_;
  DispatchResult result_;
};

/// The configuration that carries one case.
GroupConfig group_config(const BenchCase& bench_case, const NetworkOptions& network);

}  // namespace ferry::bench
