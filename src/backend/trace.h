// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a step did and how long it took, for Group::last_trace().
#pragma once

#include <chrono>

#include "backend/call.h"

namespace ferry {

/// Times a step and files it with the call when the scope ends. A step that runs in pieces is one line: times add up.
class StepScope {
 public:
  StepScope(Call& call, const char* step) : call_(call), step_(step) {}
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;
  ~StepScope() {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    for (StepTrace& trace : call_.trace) {
      if (trace.step != step_) continue;
      trace.rows += rows;
      trace.bytes += bytes;
      trace.seconds += seconds;
      return;
    }
    call_.trace.push_back({step_, rows, bytes, seconds});
  }

  /// Counts a row that the step stored or sent.
  void count(std::int64_t row_bytes) {
    ++rows;
    bytes += row_bytes;
  }

  std::int64_t rows = 0;  ///< see StepTrace
  std::int64_t bytes = 0;

 private:
  Call& call_;
  const char* step_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace ferry
